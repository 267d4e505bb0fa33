//! The background threads that build segments, shared by all shards of a factory.
//!
//! One thread seals heads and one merges segments, so that a long merge never keeps heads waiting,
//! and a process with many shards still has two. Each shard has at most its frozen heads and one
//! merge in the queues, which bounds them. A third thread frees segments that were merged away once
//! no reader holds them: giving back a gigabyte takes tens of milliseconds, which neither a query nor
//! the writer should spend.
//!
//! Invariant: every job that is not cancelled is answered exactly once, also when it panics.

use crate::bitmap::Bitmap;
use crate::codes::RowCodes;
use crate::files;
use crate::generation::{Generation, Sample};
use crate::head::HeadView;
use crate::news::News;
use crate::postings::{self, KeyKind, Keyed, KeyedRows, LENGTHS_KEY, NO_ROW, Posting};
use crate::rows::RowsInOrder;
use crate::segment::{Layout, Segment, Unbuilt};
use half::f16;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;
use vectide_model::{ChunkId, IndexError, RowFields, SegmentId};

/// Where rows of a new segment come from.
pub(crate) enum Origin {
    /// The live rows of a frozen head.
    Head(HeadView),
    /// The live rows of a segment.
    Segment(Arc<Segment>, Arc<Bitmap>),
}

impl Origin {
    fn live(&self) -> &Bitmap {
        match self {
            Self::Head(head) => head.live(),
            Self::Segment(_, live) => live,
        }
    }

    fn chunk(&self, row: usize) -> ChunkId {
        match self {
            Self::Head(head) => head.chunk_at(row),
            Self::Segment(segment, _) => segment.chunk(row),
        }
    }

    fn vector(&self, row: usize) -> &[f16] {
        match self {
            Self::Head(head) => head.vector_at(row),
            Self::Segment(segment, _) => segment.vector(row),
        }
    }

    fn has_keys(&self, kind: KeyKind) -> bool {
        match self {
            Self::Head(head) => {
                let mut slots = head.live().iter();
                slots.any(|slot| has_keys_of(head.fields_at(slot), kind))
            }
            Self::Segment(segment, _) => segment.keys(kind).is_some(),
        }
    }

    /// The keys of its rows, which have these numbers in the new segment.
    fn keys<'a>(&'a self, kind: KeyKind, numbers: &'a [u32]) -> Keyed<'a> {
        match self {
            Self::Head(head) => {
                let mut keyed: Vec<(&[u8], Posting)> = Vec::new();
                for (slot, row) in numbers
                    .iter()
                    .enumerate()
                    .filter(|(_, row)| **row != NO_ROW)
                {
                    add_keys(head.fields_at(slot), kind, *row, &mut keyed);
                }
                keyed.sort_unstable();
                Keyed::Memory(keyed)
            }
            Self::Segment(segment, _) => match segment.keys(kind) {
                Some(postings) => Keyed::File(postings, numbers),
                None => Keyed::Memory(Vec::new()),
            },
        }
    }

    /// Whether its rows came after a generation was trained and no segment has had codes for them. A segment without
    /// codes that is younger may have older rows in it; but they are few, and coded once.
    fn is_newer_than(&self, generation: &Generation) -> bool {
        match self {
            Self::Head(_) => true,
            // The number of a generation is that of the segment that it was trained with.
            Self::Segment(segment, _) => {
                segment.generation().is_none() && segment.id().0 > generation.number()
            }
        }
    }

    fn codes(&self, generation: &Generation) -> Option<RowCodes> {
        match self {
            Self::Head(_) => None,
            Self::Segment(segment, _) => {
                let own = segment.generation()?;
                (own.number() == generation.number()).then(|| segment.row_codes())?
            }
        }
    }
}

fn has_keys_of(fields: &RowFields, kind: KeyKind) -> bool {
    match kind {
        KeyKind::Attributes => !fields.attributes.keys().is_empty(),
        KeyKind::Terms => !fields.terms.counts().is_empty(),
    }
}

/// Adds the keys of a row of this number.
fn add_keys<'a>(
    fields: &'a RowFields,
    kind: KeyKind,
    row: u32,
    keyed: &mut Vec<(&'a [u8], Posting)>,
) {
    let posting = |count| Posting { row, count };
    match kind {
        KeyKind::Attributes => {
            let keys = fields.attributes.keys().iter();
            keyed.extend(keys.map(|key| (&**key, posting(1))));
        }
        KeyKind::Terms if fields.terms.counts().is_empty() => {}
        KeyKind::Terms => {
            keyed.push((LENGTHS_KEY, posting(fields.terms.length())));
            let counts = fields.terms.counts().iter();
            keyed.extend(counts.map(|(term, count)| (&term.0[..], posting(*count))));
        }
    }
}

/// What a segment is built to.
pub(crate) enum Work {
    /// What is known already.
    Build(Layout),
    /// Codes by a new generation, trained on a sample of these rows first.
    Train(Vec<Origin>),
}

/// A segment to be built.
pub(crate) struct Job {
    /// Its identity.
    pub(crate) id: SegmentId,
    /// The shard's folder.
    pub(crate) directory: PathBuf,
    /// Components of a vector.
    pub(crate) dimension: usize,
    /// What it is built to.
    pub(crate) work: Work,
    /// Whose live rows it gets.
    pub(crate) origins: Vec<Origin>,
    /// Set when the shard is closed.
    pub(crate) cancelled: Arc<AtomicBool>,
    /// Where the answer goes.
    pub(crate) reply: Sender<Built>,
    /// Told once the answer is there.
    pub(crate) news: Arc<News>,
}

/// The answer to a [`Job`].
pub(crate) struct Built {
    /// Which.
    pub(crate) id: SegmentId,
    /// The segment.
    pub(crate) result: Result<Segment, BuildError>,
}

/// Why there is no segment, of which no file is left.
#[derive(Clone, Debug)]
pub(crate) enum BuildError {
    /// It could not be written, or there was no memory for it; it may be another time.
    Failed(IndexError),
    /// A defect, after which nothing goes on.
    Panicked(IndexError),
}

/// The live rows of some origins, ascending by chunk id.
struct Gathered<'a> {
    origins: &'a [Origin],
    /// Of each origin, the codes of its rows if they are of the generation that is built to.
    codes: Vec<Option<RowCodes>>,
    code_bytes: usize,
    /// Of each origin, whether its rows are newer than that generation.
    are_new: Vec<bool>,
    /// Chunk, origin, row: 24 bytes a row while the segment is built.
    order: Vec<(ChunkId, u32, u32)>,
}

impl<'a> Gathered<'a> {
    fn new(origins: &'a [Origin], layout: &Layout) -> Self {
        let mut order = Vec::with_capacity(origins.iter().map(|origin| origin.live().live()).sum());
        for (origin, number) in origins.iter().zip(0..) {
            let rows = origin.live().iter();
            order.extend(rows.map(|row| (origin.chunk(row), number, row as u32)));
        }
        order.sort_unstable();
        let generation = match layout {
            Layout::Coded(generation) => Some(generation),
            Layout::Whole | Layout::Lists(_) => None,
        };
        let codes = |origin: &Origin| origin.codes(generation?);
        let are_new =
            |origin: &Origin| generation.is_some_and(|generation| origin.is_newer_than(generation));
        Self {
            origins,
            codes: origins.iter().map(codes).collect(),
            code_bytes: generation.map_or(0, |it| it.code_bytes()),
            are_new: origins.iter().map(are_new).collect(),
            order,
        }
    }
}

impl Gathered<'_> {
    /// Of each origin, the new numbers of its rows.
    fn numbers(&self) -> Vec<Vec<u32>> {
        let rows = self.origins.iter().map(|origin| origin.live().rows());
        let mut numbers: Vec<Vec<u32>> = rows.map(|rows| vec![NO_ROW; rows]).collect();
        for ((_, origin, row), number) in self.order.iter().zip(0..) {
            numbers[*origin as usize][*row as usize] = number;
        }
        numbers
    }
}

impl RowsInOrder for Gathered<'_> {
    fn rows(&self) -> usize {
        self.order.len()
    }

    fn chunk(&self, row: usize) -> ChunkId {
        self.order[row].0
    }

    fn vector(&self, row: usize) -> &[f16] {
        let (_, origin, row) = self.order[row];
        self.origins[origin as usize].vector(row as usize)
    }

    fn code(&self, row: usize) -> Option<(u32, &[u8])> {
        let (_, origin, row) = self.order[row];
        let codes = self.codes[origin as usize].as_ref()?;
        let row = row as usize;
        let code = &codes.codes[row * self.code_bytes..][..self.code_bytes];
        Some((codes.lists[row], code))
    }

    fn is_new(&self, row: usize) -> bool {
        self.are_new[self.order[row].1 as usize]
    }

    fn keys(&self, kind: KeyKind, give: &mut KeyedRows<'_, io::Error>) -> io::Result<()> {
        if !self.origins.iter().any(|origin| origin.has_keys(kind)) {
            return Ok(());
        }
        let numbers = self.numbers();
        let origins = self.origins.iter().zip(&numbers);
        let keyed: Vec<Keyed<'_>> = origins
            .map(|(origin, numbers)| origin.keys(kind, numbers))
            .collect();
        postings::merge(&keyed, give)
    }
}

/// Trains a generation on a sample of all live rows: ids are hashes, so their order is no order of the vectors.
fn train(number: u64, dimension: usize, origins: &[Origin]) -> Result<Generation, Unbuilt> {
    let rows: usize = origins.iter().map(|origin| origin.live().live()).sum();
    let mut sample = Sample::of(rows, dimension);
    let live = origins
        .iter()
        .flat_map(|origin| origin.live().iter().map(move |row| (origin, row)));
    for (number, (origin, row)) in live.enumerate() {
        sample.offer(number, || origin.vector(row));
    }
    Ok(Generation::train(number, &sample)?)
}

impl Job {
    /// Rows that the segment gets.
    fn rows(&self) -> usize {
        self.origins.iter().map(|it| it.live().live()).sum()
    }

    fn build(&self) -> Result<Segment, Unbuilt> {
        let layout = match &self.work {
            Work::Build(layout) => layout.clone(),
            Work::Train(sample) => {
                let generation = train(self.id.0, self.dimension, sample)?;
                Layout::Coded(Arc::new(generation))
            }
        };
        let rows = Gathered::new(&self.origins, &layout);
        let (directory, id) = (&self.directory, self.id);
        Segment::build(
            directory,
            id,
            self.dimension,
            &layout,
            &rows,
            &self.cancelled,
        )
    }

    /// Whether it makes a generation.
    #[cfg(test)]
    pub(crate) fn is_training(&self) -> bool {
        matches!(self.work, Work::Train(_))
    }

    /// Builds and answers.
    pub(crate) fn run(self) {
        if self.cancelled.load(Ordering::Relaxed) {
            return;
        }
        let built = catch_unwind(AssertUnwindSafe(|| self.build()));
        let result = match built {
            Ok(Ok(segment)) => Ok(segment),
            Ok(Err(Unbuilt::Cancelled)) => return,
            Ok(Err(Unbuilt::Failed(error))) => Err(BuildError::Failed(error)),
            Err(_) => Err(BuildError::Panicked(IndexError {
                fact: format!("building segment {:016x} panicked", self.id.0),
                hint: "this is a defect: report it with the panic's message in the log; the \
                       committed state is intact"
                    .into(),
            })),
        };
        if result.is_err() {
            // Those that have their names already, too: no commit will name them.
            files::discard_unbuilt(&self.directory, self.id);
        }
        // A shard that is closed meanwhile has no use for the answer; its folder is swept when it
        // is opened again.
        let _ = self.reply.send(Built {
            id: self.id,
            result,
        });
        self.news.tell();
    }
}

/// Rows from which on the memory that building a segment took, some 150 bytes a row, is worth giving back.
const ROWS_TO_GIVE_BACK: usize = 65_536;

/// Gives freed memory back to the system: the allocator would keep it for the next job, which may be hours away.
fn give_back_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        // SAFETY: it touches only what is free, and may be called at any time from any thread.
        unsafe { libc::malloc_trim(0) };
    }
}

/// Ways to the threads.
#[derive(Debug)]
pub(crate) struct Builder {
    seals: Sender<Job>,
    merges: Sender<Job>,
    retired: Sender<Arc<Segment>>,
}

/// How often it is looked whether a retired segment's last reader is done.
const RETIRED_CHECK: Duration = Duration::from_millis(50);

impl Builder {
    /// Starts the threads; they end when the builder is dropped.
    pub(crate) fn start() -> Result<Self, IndexError> {
        // Sealing keeps heads small, so it goes before merging.
        let run = |queue: Receiver<Job>| {
            for job in queue {
                let rows = job.rows();
                job.run();
                if rows >= ROWS_TO_GIVE_BACK {
                    give_back_memory();
                }
            }
        };
        Ok(Self {
            seals: spawn("vectide-seal", 5, run)?,
            merges: spawn("vectide-merge", 10, run)?,
            retired: spawn("vectide-retire", 10, free_when_unused)?,
        })
    }

    /// Puts a frozen head in the queue.
    pub(crate) fn seal(&self, job: Job) -> Result<(), IndexError> {
        self.seals.send(job).map_err(|_| gone())
    }

    /// Puts a merge in the queue.
    pub(crate) fn merge(&self, job: Job) -> Result<(), IndexError> {
        self.merges.send(job).map_err(|_| gone())
    }

    /// Takes a segment that no epoch to come will read.
    pub(crate) fn retire(&self, segment: Arc<Segment>) {
        // Should the thread have ended, the last reader frees it.
        let _ = self.retired.send(segment);
    }

    /// A builder whose jobs are run by the test, in the order and at the times it likes.
    #[cfg(test)]
    pub(crate) fn manual() -> (Self, Receiver<Job>, Receiver<Job>) {
        let ((seals, sealing), (merges, merging)) = (channel(), channel());
        let builder = Self {
            seals,
            merges,
            retired: channel().0,
        };
        (builder, sealing, merging)
    }
}

fn gone() -> IndexError {
    IndexError {
        fact: "a thread that builds segments has ended".into(),
        hint: "this is a defect: report it with the log; the committed state is intact".into(),
    }
}

fn spawn<T: Send + 'static>(
    name: &str,
    nice: i32,
    work: impl FnOnce(Receiver<T>) + Send + 'static,
) -> Result<Sender<T>, IndexError> {
    let (sender, queue) = channel();
    let started = std::thread::Builder::new()
        .name(name.into())
        .spawn(move || {
            lower_priority(nice);
            work(queue);
        });
    started.map(|_| sender).map_err(|error| IndexError {
        fact: format!("the thread {name} could not be started: {error}"),
        hint: "raise the limit of processes (ulimit -u) or free memory".into(),
    })
}

/// Holds retired segments until it is their only owner, so that the one who frees them is this
/// thread.
fn free_when_unused(queue: Receiver<Arc<Segment>>) {
    let mut retired: Vec<Arc<Segment>> = Vec::new();
    loop {
        let next = if retired.is_empty() {
            queue.recv().map_err(|_| RecvTimeoutError::Disconnected)
        } else {
            queue.recv_timeout(RETIRED_CHECK)
        };
        match next {
            Ok(segment) => retired.push(segment),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        retired.retain(|segment| Arc::strong_count(segment) > 1);
    }
}

/// Lets queries and the dataflow go first where the kernel schedules by niceness.
fn lower_priority(nice: i32) {
    #[cfg(target_os = "linux")]
    {
        // SAFETY: a plain system call; on Linux "process 0" is the calling thread alone.
        let refused = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, nice) } != 0;
        if refused {
            tracing::debug!(
                nice,
                "the priority of a background thread could not be lowered"
            );
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = nice;
}
