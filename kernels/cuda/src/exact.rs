//! Exact search over rows that lie on a device: an oracle for an index, and for many queries at once.
//!
//! Rows are uploaded once; a search uploads its queries and which rows are live, and reads back the
//! best. Queries go by at most 256, so that the memory between the two kernels has a limit.
//!
//! Invariant: an answer is that of sorting all live rows by falling score, equal ones by rising row.

#![allow(unsafe_code)]

use crate::launch::Address;
use crate::launches::{K_MAX, NOTHING, NearestLaunch, NearestParts};
use crate::machine::{DeviceMemory, GpuFault, Machine, Queue, Staging, Urgency};
use half::f16;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

/// Queries of one pass over the rows: four tiles, beyond which a pass computes longer than it reads.
const QUERIES_AT_ONCE: usize = 256;
/// Bytes of staging for the rows.
const UPLOAD_BYTES: usize = 16 << 20;

/// A row that was found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Hit {
    /// Which.
    pub row: u32,
    /// Its inner product with the query.
    pub score: f32,
}

/// Rows on a device.
pub struct ExactSearch<M: Machine> {
    // Dropped first, after its work was waited for.
    desk: Mutex<Desk<M>>,
    rows: M::Memory,
    row_count: usize,
    depth: usize,
    multiprocessors: usize,
    _machine: M,
}

/// What one search at a time uses.
struct Desk<M: Machine> {
    queue: M::Queue,
    memory: M::Memory,
    inward: M::Staging,
    outward: M::Staging,
    places: Places,
}

/// Where the parts of a search stand in its memory; queries and live rows are uploaded as one, and best
/// scores and rows are read back as one.
struct Places {
    queries: Range<usize>,
    live: Range<usize>,
    part_scores: Range<usize>,
    part_lists: Range<usize>,
    best_scores: Range<usize>,
    best_rows: Range<usize>,
}

impl Places {
    fn of(rows: usize, depth: usize, multiprocessors: usize) -> Self {
        let mut end = 0_usize;
        let mut place = |bytes: usize| {
            let start = end.next_multiple_of(256);
            end = start + bytes;
            start..end
        };
        let lists = 4 * K_MAX * NearestParts::lists_max(QUERIES_AT_ONCE, multiprocessors);
        let answers = 4 * K_MAX * QUERIES_AT_ONCE;
        Self {
            queries: place(2 * depth * QUERIES_AT_ONCE),
            live: place(4 * rows.div_ceil(32)),
            part_scores: place(lists),
            part_lists: place(lists),
            best_scores: place(answers),
            best_rows: place(answers),
        }
    }
}

impl<M: Machine> ExactSearch<M> {
    /// Uploads rows of `depth` numbers.
    ///
    /// # Errors
    /// When the device fails or has no room.
    ///
    /// # Panics
    /// When there are no rows, they are not whole, or `depth` is not a multiple of 32.
    pub fn open(machine: M, rows: &[f16], depth: usize) -> Result<Self, GpuFault> {
        assert!(depth > 0 && depth.is_multiple_of(32));
        assert!(!rows.is_empty() && rows.len().is_multiple_of(depth));
        let row_count = rows.len() / depth;
        let multiprocessors = machine.multiprocessors();
        let places = Places::of(row_count, depth, multiprocessors);
        let mut desk = Desk {
            queue: machine.queue(Urgency::Low)?,
            memory: machine.allocate(places.best_rows.end)?,
            inward: machine.staging(places.live.end.max(UPLOAD_BYTES.min(2 * rows.len())))?,
            outward: machine.staging(places.best_rows.end - places.best_scores.start)?,
            places,
        };
        let memory = machine.allocate(2 * rows.len())?;
        desk.upload_rows(rows, memory.address())?;
        Ok(Self {
            desk: Mutex::new(desk),
            rows: memory,
            row_count,
            depth,
            multiprocessors,
            _machine: machine,
        })
    }

    /// The `k` nearest rows of each query, of those whose bit in `live` is set, or of all.
    ///
    /// # Errors
    /// When the device fails.
    ///
    /// # Panics
    /// When queries are not whole, `live` has not a bit a row in words of 32, or `k` is 0 or above
    /// [`K_MAX`].
    pub fn search(
        &self,
        queries: &[f16],
        k: usize,
        live: Option<&[u32]>,
    ) -> Result<Vec<Vec<Hit>>, GpuFault> {
        assert!(queries.len().is_multiple_of(self.depth) && (1..=K_MAX).contains(&k));
        assert!(live.is_none_or(|live| live.len() == self.row_count.div_ceil(32)));
        // A panic elsewhere leaves the desk whole: a search begins by writing what it reads.
        let mut desk = self.desk.lock().unwrap_or_else(PoisonError::into_inner);
        let mut answers = Vec::with_capacity(queries.len() / self.depth);
        for queries in queries.chunks(QUERIES_AT_ONCE * self.depth) {
            answers.append(&mut self.search_some(&mut desk, queries, k, live)?);
        }
        Ok(answers)
    }

    fn search_some(
        &self,
        desk: &mut Desk<M>,
        queries: &[f16],
        k: usize,
        live: Option<&[u32]>,
    ) -> Result<Vec<Vec<Hit>>, GpuFault> {
        let count = queries.len() / self.depth;
        let at = |place: &Range<usize>| desk.memory.address().offset(place.start);
        let launches = NearestLaunch {
            queries: count,
            rows: self.row_count,
            depth: self.depth,
            k,
            parts: NearestParts::choose(self.row_count, count, self.multiprocessors),
            query_data: at(&desk.places.queries),
            row_data: self.rows.address(),
            live: live.map_or(Address::NULL, |_| at(&desk.places.live)),
            part_scores: at(&desk.places.part_scores),
            part_lists: at(&desk.places.part_lists),
            best_scores: at(&desk.places.best_scores),
            best_rows: at(&desk.places.best_rows),
        }
        .launches();
        desk.write(queries, live);
        let computed = desk.compute(&launches);
        // In any case: nothing may be under way when the desk is used again.
        let finished = desk.queue.finish();
        computed.and(finished)?;
        Ok(desk.answers(count, k))
    }
}

fn put<const BYTES: usize>(to: &mut [u8], values: impl Iterator<Item = [u8; BYTES]>) {
    for (to, value) in to.chunks_exact_mut(BYTES).zip(values) {
        to.copy_from_slice(&value);
    }
}

impl<M: Machine> Desk<M> {
    fn upload_rows(&mut self, rows: &[f16], to: Address) -> Result<(), GpuFault> {
        for (piece, rows) in rows.chunks(UPLOAD_BYTES / 2).enumerate() {
            put(
                self.inward.bytes_mut(),
                rows.iter().map(|x| x.to_le_bytes()),
            );
            let to = to.offset(piece * UPLOAD_BYTES);
            // SAFETY: the piece lies within the memory, which has all rows' length, and within the
            // staging, which is not touched before `finish` has returned.
            unsafe { self.queue.upload(&self.inward, 2 * rows.len(), to)? };
            self.queue.finish()?;
        }
        Ok(())
    }

    fn write(&mut self, queries: &[f16], live: Option<&[u32]>) {
        let image = self.inward.bytes_mut();
        let to = &mut image[self.places.queries.clone()];
        put(to, queries.iter().map(|x| x.to_le_bytes()));
        let words = live.unwrap_or_default().iter();
        put(
            &mut image[self.places.live.clone()],
            words.map(|word| word.to_le_bytes()),
        );
    }

    fn compute(&mut self, launches: &[crate::launch::Launch]) -> Result<(), GpuFault> {
        let memory = self.memory.address();
        let answers = self.places.best_scores.start..self.places.best_rows.end;
        // SAFETY: queries and live rows are uploaded to the beginning of the memory, where their places
        // are; lists have room for every number of queries up to the limit; all of it is this desk's
        // alone, and the rows are only read. `search_some` waits before anything is touched again.
        unsafe {
            self.queue
                .upload(&self.inward, self.places.live.end, memory)?;
            for launch in launches {
                self.queue.launch(launch)?;
            }
            let from = memory.offset(answers.start);
            self.queue.download(from, answers.len(), &mut self.outward)
        }
    }

    fn answers(&self, queries: usize, k: usize) -> Vec<Vec<Hit>> {
        let (words, _) = self.outward.bytes().as_chunks::<4>();
        let rows_at = (self.places.best_rows.start - self.places.best_scores.start) / 4;
        let hit = |at: usize| Hit {
            row: u32::from_le_bytes(words[rows_at + at]),
            score: f32::from_le_bytes(words[at]),
        };
        let answer = |query: usize| {
            let hits = (query * k..(query + 1) * k).map(hit);
            hits.take_while(|hit| hit.row != NOTHING).collect()
        };
        (0..queries).map(answer).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::FaultKind;
    use crate::testing::{EmulatedMachine, Noise};

    const DEPTH: usize = 32;

    fn whole(noise: &mut Noise, rows: usize) -> Vec<f16> {
        let number = |_| f16::from_f32(noise.below(5) as f32 - 2.0);
        (0..rows * DEPTH).map(number).collect()
    }

    fn expected(query: &[f16], rows: &[f16], k: usize, live: Option<&[u32]>) -> Vec<Hit> {
        let mut hits: Vec<Hit> = (rows.chunks_exact(DEPTH).enumerate())
            .filter(|(row, _)| live.is_none_or(|live| live[row / 32] >> (row % 32) & 1 == 1))
            .map(|(row, values)| Hit {
                row: row as u32,
                score: query
                    .iter()
                    .zip(values)
                    .map(|(x, y)| x.to_f32() * y.to_f32())
                    .sum(),
            })
            .collect();
        hits.sort_by(|a, b| b.score.total_cmp(&a.score).then(a.row.cmp(&b.row)));
        hits.truncate(k);
        hits
    }

    #[test]
    fn answers_equal_sorting_all_rows() {
        let mut noise = Noise::new(1);
        let rows = whole(&mut noise, 150);
        let queries = whole(&mut noise, QUERIES_AT_ONCE + 3);
        let live: Vec<u32> = (0..5).map(|_| noise.next_u64() as u32).collect();
        let search = ExactSearch::open(EmulatedMachine::new(), &rows, DEPTH).unwrap();
        for (k, live) in [
            (7, None),
            (K_MAX, Some(live.as_slice())),
            (1, Some(&[0; 5][..])),
        ] {
            let found = search.search(&queries, k, live).unwrap();
            assert_eq!(found.len(), QUERIES_AT_ONCE + 3);
            for (query, found) in queries.chunks_exact(DEPTH).zip(&found) {
                assert_eq!(*found, expected(query, &rows, k, live));
            }
        }
        assert!(search.search(&[], 1, None).unwrap().is_empty());
    }

    #[test]
    fn a_fault_is_told_and_the_next_search_is_right() {
        let mut noise = Noise::new(2);
        let rows = whole(&mut noise, 70);
        let query = whole(&mut noise, 1);
        let machine = EmulatedMachine::new();
        let faults = machine.faults();
        let search = ExactSearch::open(machine, &rows, DEPTH).unwrap();
        for calls in 0..5 {
            faults.fail_after(calls, FaultKind::Refused);
            assert!(search.search(&query, 3, None).is_err());
        }
        faults.never();
        let found = search.search(&query, 3, None).unwrap();
        assert_eq!(found, [expected(&query, &rows, 3, None)]);
    }
}
