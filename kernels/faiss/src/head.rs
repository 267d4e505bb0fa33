//! The newest rows of a shard: flat fp16, scanned exactly.
//!
//! Rows are appended to blocks. A reader holds the blocks by reference count; the writer changes a
//! block by `Arc::make_mut`, so that after an epoch was published at most the one open block is
//! copied, never the whole head. Dead rows are cleared in a bitmap, also copied on write. Chunk ids
//! are found through a table of slots that readers and the writer share: it only ever gains entries,
//! and a reader ignores those at or beyond its own length, which came later.
//!
//! Invariant: at most one live row has a given chunk id, and a [`HeadView`] never changes.

use crate::bitmap::Bitmap;
use crate::budget::Budget;
use crate::dot::Query;
use crate::term_totals::TermTotals;
use crate::top::Top;
use half::f16;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use vectide_model::{ChunkId, Embedding, Filter, RowFields};

/// Rows of a block: 16 rows of 384 dimensions are 12 KiB, which is what an epoch copies and what each
/// earlier epoch that is kept for queries holds by itself; a scan of them runs at the speed of memory.
const BLOCK_ROWS: usize = 16;

#[derive(Debug)]
struct Block {
    chunks: Vec<ChunkId>,
    fields: Vec<RowFields>,
    vectors: Vec<f16>,
    dimension: usize,
}

impl Block {
    fn new(dimension: usize) -> Self {
        Self {
            chunks: Vec::with_capacity(BLOCK_ROWS),
            fields: Vec::with_capacity(BLOCK_ROWS),
            vectors: Vec::with_capacity(BLOCK_ROWS * dimension),
            dimension,
        }
    }

    fn vector(&self, row: usize) -> &[f16] {
        &self.vectors[row * self.dimension..][..self.dimension]
    }
}

impl Clone for Block {
    /// With room for the rows to come.
    fn clone(&self) -> Self {
        let mut copy = Self::new(self.dimension);
        copy.chunks.extend_from_slice(&self.chunks);
        copy.fields.extend_from_slice(&self.fields);
        copy.vectors.extend_from_slice(&self.vectors);
        copy
    }
}

/// Open addressing over slots; entries are never changed once set.
#[derive(Debug)]
struct SlotTable {
    entries: Box<[AtomicU32]>,
}

/// An entry that is not used yet.
const EMPTY: u32 = u32::MAX;

impl SlotTable {
    /// At most half full with `rows` entries, so that a probe ends soon.
    fn new(rows: usize) -> Self {
        let size = (rows * 2).next_power_of_two();
        Self {
            entries: (0..size).map(|_| AtomicU32::new(EMPTY)).collect(),
        }
    }

    fn probe(&self, chunk: &ChunkId) -> impl Iterator<Item = &AtomicU32> {
        let key = u128::from_le_bytes(chunk.0);
        // A multiplicative hash (the constant is 2^64 over the golden ratio): chunk ids are hashes
        // already, but tests and other makers of ids count upwards.
        let mixed = ((key as u64) ^ ((key >> 64) as u64).rotate_left(32))
            .wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let start = (mixed >> 32) as usize;
        let mask = self.entries.len() - 1;
        (0..self.entries.len()).map(move |step| &self.entries[(start + step) & mask])
    }

    /// Slots that may hold the chunk. An entry is stored before the rows that it stands for are
    /// published, and publishing orders memory, so relaxed loads see every entry a reader needs.
    fn slots(&self, chunk: &ChunkId) -> impl Iterator<Item = usize> {
        self.probe(chunk)
            .map(|entry| entry.load(Ordering::Relaxed))
            .take_while(|slot| *slot != EMPTY)
            .map(|slot| slot as usize)
    }

    fn add(&self, chunk: &ChunkId, slot: usize) {
        let free = self
            .probe(chunk)
            .find(|entry| entry.load(Ordering::Relaxed) == EMPTY);
        if let Some(entry) = free {
            entry.store(slot as u32, Ordering::Relaxed);
        }
    }
}

/// What a reader sees of a head at an epoch.
#[derive(Clone, Debug)]
pub(crate) struct HeadView {
    blocks: Arc<Vec<Arc<Block>>>,
    live: Arc<Bitmap>,
    slots: Arc<SlotTable>,
    term_totals: TermTotals,
}

impl HeadView {
    /// Live rows.
    pub(crate) fn rows(&self) -> usize {
        self.live.live()
    }

    /// Which rows are live.
    pub(crate) fn live(&self) -> &Arc<Bitmap> {
        &self.live
    }

    fn chunk(&self, slot: usize) -> &ChunkId {
        &self.blocks[slot / BLOCK_ROWS].chunks[slot % BLOCK_ROWS]
    }

    /// The live rows that have terms.
    pub(crate) fn term_totals(&self) -> TermTotals {
        self.term_totals
    }

    /// Where the live row of a chunk stands.
    pub(crate) fn slot_of(&self, chunk: &ChunkId) -> Option<usize> {
        self.slots
            .slots(chunk)
            .find(|slot| self.live.contains(*slot) && self.chunk(*slot) == chunk)
    }

    /// The stored vector of a live row.
    pub(crate) fn vector(&self, chunk: &ChunkId) -> Option<&[f16]> {
        self.slot_of(chunk).map(|slot| self.vector_at(slot))
    }

    /// All live rows.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (ChunkId, &[f16])> {
        self.live
            .iter()
            .map(|slot| (self.chunk_at(slot), self.vector_at(slot)))
    }

    /// What a row is found by besides its vector, live or dead.
    pub(crate) fn fields_at(&self, slot: usize) -> &RowFields {
        &self.blocks[slot / BLOCK_ROWS].fields[slot % BLOCK_ROWS]
    }

    /// The chunk of a row, live or dead.
    pub(crate) fn chunk_at(&self, slot: usize) -> ChunkId {
        *self.chunk(slot)
    }

    /// The vector of a row, live or dead.
    pub(crate) fn vector_at(&self, slot: usize) -> &[f16] {
        self.blocks[slot / BLOCK_ROWS].vector(slot % BLOCK_ROWS)
    }

    /// Offers every live row that passes the filter to each query: a block is read from memory once for all
    /// of them. Few rows score high enough to be asked whether they pass.
    pub(crate) fn search(
        &self,
        queries: &[Query<'_>],
        filter: Option<&Filter>,
        tops: &mut [Top],
        budget: &mut Budget,
    ) {
        let passes = |fields: &RowFields| filter.is_none_or(|it| it.passes(&fields.attributes));
        let all_live = self.live.is_full();
        for (at, block) in self.blocks.iter().enumerate() {
            if budget.is_over() {
                return;
            }
            for (query, top) in queries.iter().zip(&mut *tops) {
                for (row, chunk) in block.chunks.iter().enumerate() {
                    if all_live || self.live.contains(at * BLOCK_ROWS + row) {
                        let chunk = || passes(&block.fields[row]).then_some(*chunk);
                        top.offer_if(query.dot(block.vector(row)), chunk);
                    }
                }
            }
        }
    }
}

/// The writer's side of a head.
#[derive(Debug)]
pub(crate) struct Head {
    view: HeadView,
    dimension: usize,
    rows_max: usize,
}

impl Head {
    /// An empty head for `rows_max` rows, dead ones included.
    pub(crate) fn new(dimension: usize, rows_max: usize) -> Self {
        Self {
            view: HeadView {
                blocks: Arc::new(Vec::new()),
                live: Arc::new(Bitmap::default()),
                slots: Arc::new(SlotTable::new(rows_max)),
                term_totals: TermTotals::default(),
            },
            dimension,
            rows_max,
        }
    }

    /// What a reader sees from now on.
    pub(crate) fn view(&self) -> &HeadView {
        &self.view
    }

    /// Whether no row fits any more.
    pub(crate) fn is_full(&self) -> bool {
        self.view.live.rows() >= self.rows_max
    }

    /// Whether a chunk has a live row.
    pub(crate) fn contains(&self, chunk: &ChunkId) -> bool {
        self.view.slot_of(chunk).is_some()
    }

    /// Appends a row; the head must not be full and must not hold the chunk. A vector of another
    /// dimension is cut or filled with zeros: callers have checked it.
    pub(crate) fn push(&mut self, chunk: ChunkId, vector: &[f16], fields: RowFields) {
        let slot = self.view.live.rows();
        let blocks = Arc::make_mut(&mut self.view.blocks);
        if slot.is_multiple_of(BLOCK_ROWS) {
            blocks.push(Arc::new(Block::new(self.dimension)));
        }
        let block = Arc::make_mut(&mut blocks[slot / BLOCK_ROWS]);
        self.view.term_totals.add(fields.terms.length());
        block.chunks.push(chunk);
        block.fields.push(fields);
        block.vectors.extend(vector.iter().take(self.dimension));
        block
            .vectors
            .resize(block.chunks.len() * self.dimension, f16::ZERO);
        Arc::make_mut(&mut self.view.live).push();
        self.view.slots.add(&chunk, slot);
    }

    /// Marks a chunk's row dead; says whether it had one.
    pub(crate) fn remove(&mut self, chunk: &ChunkId) -> bool {
        let Some(slot) = self.view.slot_of(chunk) else {
            return false;
        };
        let length = self.view.fields_at(slot).terms.length();
        self.view.term_totals.remove(length);
        Arc::make_mut(&mut self.view.live).clear(slot)
    }

    /// A head of the live rows alone.
    pub(crate) fn compacted(&self) -> Self {
        let mut compact = Self::new(self.dimension, self.rows_max);
        for slot in self.view.live.iter() {
            let fields = self.view.fields_at(slot).clone();
            compact.push(self.view.chunk_at(slot), self.view.vector_at(slot), fields);
        }
        compact
    }
}

/// A stored vector in the contract's form.
pub(crate) fn embedding(vector: &[f16]) -> Embedding {
    Embedding(vector.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn id(number: u8) -> ChunkId {
        ChunkId([number; 16])
    }

    fn content(view: &HeadView) -> BTreeMap<ChunkId, f32> {
        let rows: BTreeMap<_, _> = view
            .iter()
            .map(|(chunk, v)| (chunk, v[0].to_f32()))
            .collect();
        assert_eq!(rows.len(), view.rows());
        for number in 0..30 {
            let found = view.vector(&id(number)).map(|vector| vector[0].to_f32());
            assert_eq!(found, rows.get(&id(number)).copied());
        }
        rows
    }

    proptest! {
        /// Views taken at any time never move, whatever the writer does afterwards.
        #[test]
        fn views_are_immutable(operations in prop::collection::vec((0..30_u8, 0..10_u8), 1..400)) {
            let mut head = Head::new(3, 150);
            let mut model = BTreeMap::new();
            let mut views = Vec::new();
            for (step, (chunk, action)) in operations.into_iter().enumerate() {
                let had = head.remove(&id(chunk));
                prop_assert_eq!(had, model.remove(&id(chunk)).is_some());
                if action > 2 {
                    if head.is_full() {
                        head = head.compacted();
                    }
                    let value = (step % 100) as f32;
                    head.push(id(chunk), &[f16::from_f32(value); 3], RowFields::default());
                    model.insert(id(chunk), value);
                }
                if action == 5 {
                    views.push((head.view().clone(), model.clone()));
                }
            }
            views.push((head.view().clone(), model));
            for (view, model) in views {
                prop_assert_eq!(content(&view), model);
            }
        }
    }
}
