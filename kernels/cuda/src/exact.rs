//! Exact search over rows that lie on a device: an oracle for an index, and for many queries at once.
//!
//! Rows are uploaded once; a search uploads which rows are live, once, and its queries, and reads back
//! the best. Queries go by at most 256, so that the memory between the two kernels has a limit.
//!
//! Invariant: an answer is that of sorting all live rows by falling score, equal ones by rising row.

#![allow(unsafe_code)]

use crate::launch::{Address, Launch};
use crate::launches::{K_MAX, NOTHING, NearestLaunch, NearestParts};
use crate::machine::{DeviceMemory, GpuFault, Machine, Queue, Staging, Urgency};
use crate::upload::upload;
use half::f16;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

/// Queries of one pass over the rows: four tiles, beyond which a pass computes longer than it reads.
const QUERIES_AT_ONCE: usize = 256;

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
    queries: M::Staging,
    /// Its own, so that it can be under way while queries are written.
    live: M::Staging,
    best: M::Staging,
    places: Places,
}

/// Where the parts of a search stand in its memory.
struct Places {
    queries: Range<usize>,
    live: Range<usize>,
    part_scores: Range<usize>,
    part_lists: Range<usize>,
    /// As many scores as there are answers, and right behind them their rows: they are read back as one.
    best: Range<usize>,
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
        Self {
            queries: place(2 * depth * QUERIES_AT_ONCE),
            live: place(4 * rows.div_ceil(32)),
            part_scores: place(lists),
            part_lists: place(lists),
            best: place(8 * K_MAX * QUERIES_AT_ONCE),
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
        let uploaded = upload(&machine, 2 * rows.len(), |range, to| {
            let rows = &rows[range.start / 2..range.end / 2];
            put(to, rows.iter().map(|x| x.to_le_bytes()));
        })?;
        let desk = Desk {
            queue: machine.queue(Urgency::Low)?,
            memory: machine.allocate(places.best.end)?,
            queries: machine.staging(places.queries.len())?,
            live: machine.staging(places.live.len())?,
            best: machine.staging(places.best.len())?,
            places,
        };
        Ok(Self {
            desk: Mutex::new(desk),
            rows: uploaded,
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
        // Once: it stays where it is from one pass to the next.
        let mut to_upload = live;
        for queries in queries.chunks(QUERIES_AT_ONCE * self.depth) {
            let count = queries.len() / self.depth;
            let live = live.map_or(Address::NULL, |_| desk.at(&desk.places.live));
            let launches = self.launches(&desk, count, k, live);
            let computed = desk.compute(queries, to_upload.take(), &launches, count * k);
            // In any case: nothing may be under way when the desk is used again.
            let finished = desk.queue.finish();
            computed.and(finished)?;
            answers.append(&mut desk.answers(count, k));
        }
        Ok(answers)
    }

    fn launches(&self, desk: &Desk<M>, count: usize, k: usize, live: Address) -> [Launch; 2] {
        let best = desk.at(&desk.places.best);
        NearestLaunch {
            queries: count,
            rows: self.row_count,
            depth: self.depth,
            k,
            parts: NearestParts::choose(self.row_count, count, self.multiprocessors),
            query_data: desk.at(&desk.places.queries),
            row_data: self.rows.address(),
            live,
            part_scores: desk.at(&desk.places.part_scores),
            part_lists: desk.at(&desk.places.part_lists),
            best_scores: best,
            best_rows: best.offset(4 * count * k),
        }
        .launches()
    }
}

fn put<const BYTES: usize>(to: &mut [u8], values: impl Iterator<Item = [u8; BYTES]>) {
    for (to, value) in to.chunks_exact_mut(BYTES).zip(values) {
        to.copy_from_slice(&value);
    }
}

impl<M: Machine> Desk<M> {
    fn at(&self, place: &Range<usize>) -> Address {
        self.memory.address().offset(place.start)
    }

    /// Begins a search of so many answers; copies what it uses and no more.
    fn compute(
        &mut self,
        queries: &[f16],
        live: Option<&[u32]>,
        launches: &[Launch],
        answers: usize,
    ) -> Result<(), GpuFault> {
        let words = queries.iter().map(|x| x.to_le_bytes());
        put(self.queries.bytes_mut(), words);
        if let Some(live) = live {
            put(
                self.live.bytes_mut(),
                live.iter().map(|word| word.to_le_bytes()),
            );
        }
        let to_queries = self.at(&self.places.queries);
        let (to_live, best) = (self.at(&self.places.live), self.at(&self.places.best));
        // SAFETY: each staging has its place's length, and every place and list has room for the most
        // queries and rows of an answer; all of it is this desk's alone, and the rows are only read.
        // `search` waits before anything is touched again.
        unsafe {
            if let Some(live) = live {
                self.queue.upload(&self.live, 4 * live.len(), to_live)?;
            }
            let bytes = 2 * queries.len();
            self.queue.upload(&self.queries, bytes, to_queries)?;
            for launch in launches {
                self.queue.launch(launch)?;
            }
            self.queue.download(best, 8 * answers, &mut self.best)
        }
    }

    fn answers(&self, queries: usize, k: usize) -> Vec<Vec<Hit>> {
        let (words, _) = self.best.bytes().as_chunks::<4>();
        let hit = |at: usize| Hit {
            row: u32::from_le_bytes(words[queries * k + at]),
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
