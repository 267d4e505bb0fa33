//! The write half of a shard.
//!
//! A row is born in the open head. A full head is frozen and its live rows are built into a segment
//! by a thread of the [`Builder`]; until the segment is *absorbed*, the frozen head answers for
//! them. Segments are merged in the same way: the inputs answer until the output is absorbed.
//!
//! ```text
//!  insert -> open head -> frozen head ==(build)==> segment ==(merge)==> segment
//!                  \________________ committed as "head" ____/  committed as files + tombstones
//! ```
//!
//! Absorbing happens on the writer's own thread, between changes, so there is one order of events:
//! rows that died while the builder worked are dead bits of the origin that were set when the job
//! was made, and become tombstones of the new segment. A chunk removed and inserted again while its
//! old row is being built has its new row in a newer head; the old row's bit is clear, so it becomes
//! a tombstone like any other.
//!
//! The commit is the difference between what the heads held at the last epoch and hold now
//! ([`Shard::touched`]), plus segments and tombstones. A segment is absorbed and its rows leave the
//! committed head in the same commit; inputs of a merge are removed in the commit that adds the
//! output. A crash before that commit leaves files that no commit names, which opening sweeps.
//!
//! A head that can't be sealed ends the process: its rows have nowhere else to go. A merge that can't be made, for
//! want of room or of memory, is put off for a while that grows (see `news`): its inputs are intact and answer.
//!
//! Invariant: each live chunk has exactly one live row, over all heads and segments.

use crate::bitmap::Bitmap;
use crate::builder::{BuildError, Builder, Built, Job, Origin, Work};
use crate::factory::{FaissOptions, Quantization};
use crate::files;
use crate::generation::{GROWTH, Generation};
use crate::head::Head;
use crate::news::{News, Postponed};
use crate::read::{Held, ShardRead};
use crate::segment::{Layout, Segment};
use crate::tiers::{self, Size};
use rustc_hash::FxHashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use vectide_model::{
    ChunkId, ClosedShard, Embedding, IndexError, IndexRow, SegmentId, SegmentManifest, ShardCommit,
    VectorIndex,
};

/// One row in so many may be a stranger to its generation before a new one is trained.
const STRANGERS_SHARE: usize = 8;

/// A full head, being built into a segment.
struct Frozen {
    id: SegmentId,
    head: Head,
    /// The rows that the segment gets.
    live_at_start: Arc<Bitmap>,
}

/// Segments being built into one.
struct Merging {
    id: SegmentId,
    inputs: Vec<Held>,
    /// Whether it makes the generation that readers wanted.
    is_renewal: bool,
}

/// A chunk whose place in the heads has changed since the last epoch.
struct Touched {
    /// Whether the last commit has it in the head.
    was_in_head: bool,
    /// The row, if a head has it now.
    row: Option<IndexRow>,
}

/// The write half of a shard.
pub(crate) struct Shard {
    directory: PathBuf,
    dimension: usize,
    options: FaissOptions,
    builder: Arc<Builder>,
    open: Head,
    frozen: Vec<Frozen>,
    segments: Vec<Held>,
    merging: Option<Merging>,
    postponed: Postponed,
    next_id: u64,
    touched: FxHashMap<ChunkId, Touched>,
    /// Whether rows came or went since the last epoch.
    has_changed: bool,
    tombstones: Vec<(SegmentId, u32)>,
    added: Vec<SegmentManifest>,
    removed: Vec<SegmentManifest>,
    failure: Option<IndexError>,
    replies: Sender<Built>,
    built: Receiver<Built>,
    cancelled: Arc<AtomicBool>,
    /// Set by readers whose searches miss too much.
    is_renewal_wanted: Arc<AtomicBool>,
    /// Told when the next close has something to take in.
    news: Arc<News>,
}

impl Shard {
    /// A shard of these segments and no heads. `next_id` is greater than every id ever used.
    pub(crate) fn new(
        directory: PathBuf,
        dimension: usize,
        options: FaissOptions,
        builder: Arc<Builder>,
        segments: Vec<Held>,
        next_id: u64,
    ) -> Self {
        let (replies, built) = channel();
        Self {
            open: Head::new(dimension, options.head_rows_max),
            directory,
            dimension,
            options,
            builder,
            frozen: Vec::new(),
            segments,
            merging: None,
            postponed: Postponed::default(),
            next_id,
            touched: FxHashMap::default(),
            has_changed: false,
            tombstones: Vec::new(),
            added: Vec::new(),
            removed: Vec::new(),
            failure: None,
            replies,
            built,
            cancelled: Arc::default(),
            is_renewal_wanted: Arc::default(),
            news: Arc::default(),
        }
    }

    /// Adds a row of the committed head.
    pub(crate) fn restore(&mut self, row: &IndexRow) -> Result<(), IndexError> {
        if self.has_live_row(&row.chunk) {
            return Err(IndexError {
                fact: format!("the committed state has two rows of chunk {}", row.chunk),
                hint: "this is a defect or a damaged state: remove the state folder so that the \
                       index is built anew from its sources"
                    .into(),
            });
        }
        self.push(row);
        self.failure.take().map_or(Ok(()), Err)
    }

    fn has_live_row(&self, chunk: &ChunkId) -> bool {
        self.open.contains(chunk)
            || self.frozen.iter().any(|frozen| frozen.head.contains(chunk))
            || self
                .segments
                .iter()
                .any(|held| held.live_row_of(chunk).is_some())
    }

    fn take_id(&mut self) -> SegmentId {
        self.next_id += 1;
        SegmentId(self.next_id - 1)
    }

    /// Marks the live row of a chunk dead, wherever it is; says whether there was one.
    fn detach(&mut self, chunk: &ChunkId) -> bool {
        let frozen = self.frozen.iter_mut().map(|frozen| &mut frozen.head);
        if std::iter::once(&mut self.open)
            .chain(frozen)
            .any(|head| head.remove(chunk))
        {
            let was_in_head = true;
            let touched = Touched {
                was_in_head,
                row: None,
            };
            self.touched.entry(*chunk).or_insert(touched).row = None;
            return true;
        }
        for held in &mut self.segments {
            if let Some(row) = held.live_row_of(chunk) {
                held.clear(row);
                self.tombstones.push((held.segment.id(), row as u32));
                return true;
            }
        }
        false
    }

    fn push(&mut self, row: &IndexRow) {
        if let Err(error) = check_dimension(&row.vector, self.dimension) {
            self.fail(error);
            return;
        }
        if self.open.is_full() {
            self.make_room();
        }
        self.open.push(row.chunk, &row.vector.0, row.fields.clone());
    }

    /// Keeps the first failure for the end of the epoch.
    fn fail(&mut self, error: IndexError) {
        self.failure.get_or_insert(error);
    }

    /// Empties the open head: without its dead rows if they are the most, by freezing it otherwise.
    fn make_room(&mut self) {
        let live = self.open.view().live().clone();
        if live.live() * 2 <= live.rows() {
            self.open = self.open.compacted();
            return;
        }
        self.wait_for_frozen_heads();
        let id = self.take_id();
        let work = Work::Build(self.layout(live.live()));
        let job = self.job(id, work, vec![Origin::Head(self.open.view().clone())]);
        let head = std::mem::replace(
            &mut self.open,
            Head::new(self.dimension, self.options.head_rows_max),
        );
        self.frozen.push(Frozen {
            id,
            head,
            live_at_start: live,
        });
        if let Err(error) = self.builder.seal(job) {
            self.fail(error);
        }
    }

    /// The one place where the writer waits for the builder: when it has fallen so far behind that
    /// more frozen heads would cost memory and slow every query.
    fn wait_for_frozen_heads(&mut self) {
        while self.frozen.len() >= self.options.frozen_heads_max && self.failure.is_none() {
            match self.built.recv() {
                Ok(built) => self.absorb(built),
                // Not possible while `replies` lives; without it, waiting would never end.
                Err(_) => return,
            }
        }
    }

    /// The generation that segments are coded by: the newest one.
    fn generation(&self) -> Option<&Arc<Generation>> {
        let generations = self
            .segments
            .iter()
            .filter_map(|it| it.segment.generation());
        generations.max_by_key(|generation| generation.number())
    }

    /// What a segment of so many rows is built to.
    fn layout(&self, rows: usize) -> Layout {
        let is_small = rows <= self.options.flat_rows_max;
        match self.options.quantization {
            Quantization::Pq => match self.generation() {
                Some(generation) if rows > self.options.whole_rows_max() => {
                    Layout::Coded(generation.clone())
                }
                _ => Layout::Whole,
            },
            Quantization::Sq8 if !is_small => Layout::Lists("SQ8"),
            Quantization::Fp16 if !is_small => Layout::Lists("SQfp16"),
            _ => Layout::Whole,
        }
    }

    /// Whether a first generation is wanted, or one for a shard that has grown or whose rows have moved.
    fn is_training_due(&self, live: usize) -> bool {
        let is_worn = |it: &Arc<Generation>| {
            let strangers = it.strangers().saturating_mul(STRANGERS_SHARE);
            live >= it.rows().saturating_mul(GROWTH)
                || strangers >= live
                || self.is_renewal_wanted.load(Ordering::Relaxed)
        };
        self.options.quantization == Quantization::Pq
            && live > self.options.flat_rows_max
            && self.generation().is_none_or(is_worn)
    }

    /// Whether a segment is to be coded anew.
    fn is_stale(&self, held: &Held) -> bool {
        let own = held.segment.generation().map(|it| it.number());
        self.options.quantization == Quantization::Pq
            && held.live.live() > self.options.whole_rows_max()
            && self
                .generation()
                .is_some_and(|newest| own != Some(newest.number()))
    }

    fn job(&self, id: SegmentId, work: Work, origins: Vec<Origin>) -> Job {
        Job {
            id,
            directory: self.directory.clone(),
            dimension: self.dimension,
            work,
            origins,
            cancelled: self.cancelled.clone(),
            reply: self.replies.clone(),
            news: self.news.clone(),
        }
    }

    fn absorb(&mut self, built: Built) {
        let merging = self.merging.take_if(|merging| merging.id == built.id);
        let segment = match (built.result, &merging) {
            (Ok(segment), _) => segment,
            (Err(BuildError::Failed(error)), Some(merging)) => {
                if merging.is_renewal {
                    self.is_renewal_wanted.store(true, Ordering::Relaxed);
                }
                return self.postpone(&error);
            }
            (Err(BuildError::Failed(error) | BuildError::Panicked(error)), _) => {
                return self.fail(error);
            }
        };
        if let Some(merging) = merging {
            self.postponed.end();
            self.absorb_merge(&merging, segment);
        } else if let Some(at) = self.frozen.iter().position(|frozen| frozen.id == built.id) {
            let frozen = self.frozen.remove(at);
            self.absorb_seal(&frozen, segment);
        }
    }

    /// Leaves merging alone for a while.
    fn postpone(&mut self, error: &IndexError) {
        let pause = self.postponed.note(&self.news);
        tracing::warn!(
            "segments of {} are not merged, and answer as they are; this is tried again in {} s: {error}",
            self.directory.display(),
            pause.as_secs()
        );
    }

    fn absorb_seal(&mut self, frozen: &Frozen, segment: Segment) {
        let view = frozen.head.view();
        for (chunk, _) in view.iter() {
            let touched = Touched {
                was_in_head: true,
                row: None,
            };
            self.touched.entry(chunk).or_insert(touched).row = None;
        }
        let died = view.live().died_since(&frozen.live_at_start);
        self.add_segment(segment, died.map(|slot| view.chunk_at(slot)));
    }

    fn absorb_merge(&mut self, merging: &Merging, segment: Segment) {
        let mut died = Vec::new();
        for input in &merging.inputs {
            let is_input = |held: &Held| held.segment.id() == input.segment.id();
            if let Some(at) = self.segments.iter().position(is_input) {
                let held = self.segments.remove(at);
                let rows = held.live.died_since(&input.live);
                died.extend(rows.map(|row| held.segment.chunk(row)));
                self.removed.push(held.segment.manifest().clone());
                self.builder.retire(held.segment);
            }
        }
        self.add_segment(segment, died.into_iter());
    }

    /// Takes a new segment in; the rows of `died` are dead already.
    fn add_segment(&mut self, segment: Segment, died: impl Iterator<Item = ChunkId>) {
        let mut live = Bitmap::all(segment.rows());
        let mut dead_rows = Vec::new();
        for row in died.filter_map(|chunk| segment.row_of(&chunk)) {
            live.clear(row);
            dead_rows.push((segment.id(), row as u32));
        }
        if live.live() == 0 {
            files::discard(&self.directory, segment.manifest());
            return;
        }
        self.tombstones.extend(dead_rows);
        self.added.push(segment.manifest().clone());
        self.segments.push(Held::new(segment, live));
    }

    /// Removes committed segments without live rows, but for those a merge is reading.
    fn drop_empty_segments(&mut self) {
        let (added, merging) = (&self.added, &self.merging);
        let is_used = |id: SegmentId| {
            let inputs = merging.iter().flat_map(|merging| &merging.inputs);
            added.iter().any(|manifest| manifest.id == id)
                || inputs.into_iter().any(|input| input.segment.id() == id)
        };
        for held in self.segments.extract_if(.., |held| {
            held.live.live() == 0 && !is_used(held.segment.id())
        }) {
            self.removed.push(held.segment.manifest().clone());
            self.builder.retire(held.segment);
        }
    }

    fn commit(&mut self) -> ShardCommit {
        let mut commit = ShardCommit {
            tombstones: std::mem::take(&mut self.tombstones),
            segments_added: std::mem::take(&mut self.added),
            segments_removed: std::mem::take(&mut self.removed),
            ..ShardCommit::default()
        };
        let removed = &commit.segments_removed;
        commit
            .tombstones
            .retain(|(segment, _)| removed.iter().all(|manifest| manifest.id != *segment));
        for (chunk, touched) in self.touched.drain() {
            match touched.row {
                Some(row) => commit.head_added.push(row),
                None if touched.was_in_head => commit.head_removed.push(chunk),
                None => {}
            }
        }
        commit
    }

    fn snapshot(&self) -> ShardRead {
        let frozen = self.frozen.iter().map(|frozen| &frozen.head);
        let heads = frozen.chain([&self.open]).map(|head| head.view().clone());
        ShardRead {
            dimension: self.dimension,
            heads: heads.collect(),
            segments: self.segments.clone(),
            is_renewal_wanted: self.is_renewal_wanted.clone(),
            news: self.news.clone(),
            merges_postponed: self.postponed.total,
        }
    }

    /// Starts the next merge, after the commit was made: so all its inputs are named by commits.
    fn start_merge(&mut self) -> Result<(), IndexError> {
        if self.merging.is_some() || self.postponed.is_pausing(&self.news) {
            return Ok(());
        }
        let size = |held: &Held| Size {
            rows: held.segment.rows(),
            live: held.live.live(),
            key_bytes: held.segment.key_bytes(),
            is_stale: self.is_stale(held),
        };
        let mut alive: Vec<&Held> = self
            .segments
            .iter()
            .filter(|held| held.live.live() > 0)
            .collect();
        alive.sort_by_key(|held| held.live.live());
        let sizes: Vec<Size> = alive.iter().map(|held| size(held)).collect();
        let live = sizes.iter().map(|size| size.live).sum();
        let is_training_due = self.is_training_due(live);
        let first = || tiers::first(&sizes);
        let is_idle = !self.has_changed && self.frozen.is_empty();
        let planned = tiers::plan(&sizes, self.options.head_rows_max);
        let planned = planned.or_else(|| is_training_due.then(first));
        let planned = planned.or_else(|| is_idle.then(|| tiers::plan_idle(&sizes)).flatten());
        let Some(chosen) = planned else {
            // What is worth doing when nothing changes is looked for again, in an epoch without changes.
            if self.has_changed && self.frozen.is_empty() && tiers::plan_idle(&sizes).is_some() {
                self.news.tell();
            }
            return Ok(());
        };
        let inputs: Vec<Held> = chosen.into_iter().map(|at| alive[at].clone()).collect();
        let needed = inputs.iter().map(Held::live_bytes).sum();
        if let Some(shortage) = files::shortage(&self.directory, needed) {
            self.postpone(&shortage);
            return Ok(());
        }
        let origin = |held: &Held| Origin::Segment(held.segment.clone(), held.live.clone());
        let mut is_renewal = false;
        let work = if is_training_due {
            is_renewal = self.is_renewal_wanted.swap(false, Ordering::Relaxed);
            Work::Train(alive.iter().map(|held| origin(held)).collect())
        } else {
            let rows = inputs.iter().map(|held| held.live.live()).sum();
            Work::Build(self.layout(rows))
        };
        let origins = inputs.iter().map(origin).collect();
        let id = self.take_id();
        self.builder.merge(self.job(id, work, origins))?;
        self.merging = Some(Merging {
            id,
            inputs,
            is_renewal,
        });
        Ok(())
    }
}

/// Refuses a vector that another model made.
pub(crate) fn check_dimension(vector: &Embedding, dimension: usize) -> Result<(), IndexError> {
    if vector.0.len() == dimension {
        return Ok(());
    }
    Err(IndexError {
        fact: format!(
            "a vector of {} dimensions was given to an index of {dimension}",
            vector.0.len()
        ),
        hint: "the embedding model has changed: start with a new state folder".into(),
    })
}

impl VectorIndex for Shard {
    fn remove(&mut self, chunk: &ChunkId) {
        self.has_changed |= self.detach(chunk);
    }

    fn insert(&mut self, row: IndexRow) {
        self.has_changed = true;
        self.detach(&row.chunk);
        self.push(&row);
        let touched = Touched {
            was_in_head: false,
            row: None,
        };
        let touched = self.touched.entry(row.chunk).or_insert(touched);
        touched.row = Some(row);
    }

    fn close_epoch(&mut self) -> Result<ClosedShard, IndexError> {
        // Before looking: what is answered from now on is news again.
        self.news.take();
        while let Ok(built) = self.built.try_recv() {
            self.absorb(built);
        }
        if let Some(error) = self.failure.clone() {
            return Err(error);
        }
        self.drop_empty_segments();
        let commit = self.commit();
        let read = Arc::new(self.snapshot());
        self.start_merge()?;
        self.has_changed = false;
        Ok(ClosedShard { read, commit })
    }

    fn has_news(&self) -> bool {
        self.news.are_there()
    }
}

impl Drop for Shard {
    fn drop(&mut self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }
}
