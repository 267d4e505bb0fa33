//! The exact nearest rows of many queries at once.
//!
//! Rows are cut into parts, so that there are blocks enough for the device; a second kernel merges the
//! parts' lists.
//!
//! Invariant: the answer does not depend on the number of parts: falling score, then rising row.

use crate::launch::{Address, Argument, Launch, blocks};

/// The most rows of an answer.
pub const K_MAX: usize = 128;
/// What stands for a row where there are fewer live ones than asked for.
pub const NOTHING: u32 = u32::MAX;
/// Rows and queries of a block's tile.
const TILE: usize = 64;
const THREADS: u32 = 128;
const DEPTH_STEP: usize = 32;
const STAGES: usize = 4;
/// Of both operands, two bytes a number.
const STAGES_BYTES: usize = STAGES * 2 * TILE * DEPTH_STEP * 2;
/// Lie over the stages; a row is 8 floats longer than its numbers.
const SCORES_BYTES: usize = TILE * (TILE + 8) * 4;
const MERGE_WARPS: usize = 4;
/// Blocks that a multiprocessor of compute capability 8.0 has room for, by shared memory at a k of 32.
const BLOCKS_PER_MULTIPROCESSOR: usize = 3;

/// How rows are cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NearestParts {
    /// Number of parts.
    pub parts: usize,
    /// Rows of each part but the last.
    pub part_rows: usize,
}

impl NearestParts {
    /// The most lists that there are between the two kernels for up to so many queries: fewer queries
    /// have more parts.
    pub fn lists_max(queries_max: usize, multiprocessors: usize) -> usize {
        (multiprocessors * BLOCKS_PER_MULTIPROCESSOR * TILE).max(queries_max)
    }

    /// As many parts as keep every multiprocessor busy, none of them without rows.
    pub fn choose(rows: usize, queries: usize, multiprocessors: usize) -> Self {
        let wanted = (multiprocessors * BLOCKS_PER_MULTIPROCESSOR) / queries.div_ceil(TILE).max(1);
        let part_rows = rows
            .div_ceil(wanted.max(1))
            .next_multiple_of(TILE)
            .max(TILE);
        Self {
            parts: rows.div_ceil(part_rows).max(1),
            part_rows,
        }
    }
}

/// A search.
#[derive(Clone, Copy, Debug)]
pub struct NearestLaunch {
    /// Queries and rows that are searched.
    pub queries: usize,
    /// Rows.
    pub rows: usize,
    /// Numbers of a row; a multiple of 32.
    pub depth: usize,
    /// Rows of an answer, up to [`K_MAX`].
    pub k: usize,
    /// How rows are cut.
    pub parts: NearestParts,
    /// fp16, `[queries][depth]`.
    pub query_data: Address,
    /// fp16, `[rows][depth]`.
    pub row_data: Address,
    /// A bit a row in words of 32, or [`Address::NULL`] where all are live.
    pub live: Address,
    /// Room for `[parts][queries][k]` fp32 scores and as many `u32` rows.
    pub part_scores: Address,
    /// See `part_scores`.
    pub part_lists: Address,
    /// fp32, `[queries][k]`.
    pub best_scores: Address,
    /// `u32`, `[queries][k]`; [`NOTHING`] where there is none.
    pub best_rows: Address,
}

impl NearestLaunch {
    /// The two launches, in order.
    ///
    /// # Panics
    /// When depth or k are not what the kernels take.
    pub fn launches(&self) -> [Launch; 2] {
        assert!(self.depth.is_multiple_of(DEPTH_STEP) && (1..=K_MAX).contains(&self.k));
        assert!(self.parts.part_rows.is_multiple_of(TILE));
        let scan = Launch {
            kernel: "nearest_rows",
            grid: [blocks(self.parts.parts, 1), blocks(self.queries, TILE)],
            threads: THREADS,
            shared_bytes: STAGES_BYTES.max(SCORES_BYTES) + TILE * self.k * 8,
            arguments: vec![
                self.query_data.into(),
                self.row_data.into(),
                self.live.into(),
                self.part_scores.into(),
                self.part_lists.into(),
                Argument::count(self.queries),
                Argument::count(self.rows),
                Argument::count(self.depth),
                Argument::count(self.k),
                Argument::count(self.parts.part_rows),
            ],
        };
        let merge = Launch {
            kernel: "merge_nearest",
            grid: [blocks(self.queries, MERGE_WARPS), 1],
            threads: (MERGE_WARPS * 32) as u32,
            shared_bytes: MERGE_WARPS * self.k * 8,
            arguments: vec![
                self.part_scores.into(),
                self.part_lists.into(),
                self.best_scores.into(),
                self.best_rows.into(),
                Argument::count(self.queries),
                Argument::count(self.parts.parts),
                Argument::count(self.k),
            ],
        };
        [scan, merge]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Memory, Noise, assert_sites_are_needed, run_without};
    use half::f16;

    struct Case {
        queries: usize,
        rows: usize,
        depth: usize,
        k: usize,
        query_data: Vec<f16>,
        row_data: Vec<f16>,
        live: Option<Vec<u32>>,
    }

    impl Case {
        /// Small whole numbers: scores are exact, and many of them equal.
        fn new(queries: usize, rows: usize, depth: usize, k: usize, has_deleted: bool) -> Self {
            let mut noise = Noise::new((rows + k) as u64);
            let mut whole = |count: usize| -> Vec<f16> {
                let number = |x: u64| f16::from_f32((x % 5) as f32 - 2.0);
                (0..count).map(|_| number(noise.next_u64() >> 20)).collect()
            };
            let (query_data, row_data) = (whole(queries * depth), whole(rows * depth));
            let live = has_deleted.then(|| {
                let words = rows.div_ceil(32);
                (0..words).map(|_| noise.next_u64() as u32).collect()
            });
            Self {
                queries,
                rows,
                depth,
                k,
                query_data,
                row_data,
                live,
            }
        }

        fn expected(&self) -> Vec<(f32, u32)> {
            let depth = self.depth;
            (0..self.queries)
                .flat_map(|query| {
                    let query = &self.query_data[query * depth..][..depth];
                    let is_live = |row: &usize| {
                        let bits = self.live.as_ref();
                        bits.is_none_or(|live| live[row / 32] >> (row % 32) & 1 == 1)
                    };
                    let score = |row: usize| {
                        let row = &self.row_data[row * depth..][..depth];
                        query
                            .iter()
                            .zip(row)
                            .map(|(x, y)| x.to_f32() * y.to_f32())
                            .sum::<f32>()
                    };
                    let mut hits: Vec<(f32, u32)> = (0..self.rows)
                        .filter(is_live)
                        .map(|row| (score(row), row as u32))
                        .collect();
                    hits.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
                    hits.resize(self.k, (f32::NEG_INFINITY, NOTHING));
                    hits
                })
                .collect()
        }

        fn search(
            &self,
            parts: NearestParts,
            seed: u64,
            skip: Option<&str>,
        ) -> Result<Answer, String> {
            let inputs = [Memory::of(&self.query_data), Memory::of(&self.row_data)];
            let live = self.live.as_ref().map(|live| Memory::of(live));
            let lists = parts.parts * self.queries * self.k;
            let part = [
                Memory::poisoned::<f32>(lists),
                Memory::poisoned::<u32>(lists),
            ];
            let answers = self.queries * self.k;
            let best = [
                Memory::poisoned::<f32>(answers),
                Memory::poisoned::<u32>(answers),
            ];
            let launches = NearestLaunch {
                queries: self.queries,
                rows: self.rows,
                depth: self.depth,
                k: self.k,
                parts,
                query_data: inputs[0].address(),
                row_data: inputs[1].address(),
                live: live.as_ref().map_or(Address::NULL, Memory::address),
                part_scores: part[0].address(),
                part_lists: part[1].address(),
                best_scores: best[0].address(),
                best_rows: best[1].address(),
            }
            .launches();
            let mut sites = Vec::new();
            for launch in &launches {
                sites.append(&mut run_without(launch, seed, skip)?);
            }
            part.iter().chain(&best).for_each(Memory::assert_guards);
            let (scores, rows) = (best[0].read::<f32>(), best[1].read::<u32>());
            Ok(Answer {
                hits: scores.into_iter().zip(rows).collect(),
                sites,
            })
        }
    }

    struct Answer {
        hits: Vec<(f32, u32)>,
        sites: Vec<String>,
    }

    /// Rows must be equal, and scores where there are rows.
    fn compare(found: &[(f32, u32)], expected: &[(f32, u32)]) -> Result<(), String> {
        for (at, (found, expected)) in found.iter().zip(expected).enumerate() {
            if found.1 != expected.1 || (expected.1 != NOTHING && found.0 != expected.0) {
                return Err(format!("place {at}: {found:?}, expected {expected:?}"));
            }
        }
        Ok(())
    }

    #[test]
    fn it_equals_sorting_all_scores() {
        for (queries, rows, depth, k, has_deleted) in [
            (1, 1, 32, 1, false),
            (3, 200, 64, 10, true),
            (70, 333, 32, 33, true),
            (5, 500, 96, 128, false),
            (2, 40, 32, 100, true),
        ] {
            let case = Case::new(queries, rows, depth, k, has_deleted);
            let expected = case.expected();
            for multiprocessors in [1, 7] {
                let parts = NearestParts::choose(rows, queries, multiprocessors);
                for seed in 0..3 {
                    let found = case.search(parts, seed, None).unwrap();
                    compare(&found.hits, &expected).unwrap();
                }
            }
        }
    }

    #[test]
    fn every_barrier_is_needed() {
        // Every lane has four entries: only then does one read after the last ballot what others move.
        let case = Case::new(64, 256, 64, 128, true);
        let expected = case.expected();
        let parts = NearestParts {
            parts: 2,
            part_rows: 128,
        };
        assert_sites_are_needed(|skipped, seed| {
            let found = case.search(parts, seed, skipped)?;
            compare(&found.hits, &expected)?;
            Ok(found.sites)
        });
    }

    #[test]
    fn parts_cover_all_rows_and_none_is_empty() {
        for rows in [1, 63, 64, 65, 1000, 1_000_000] {
            for queries in [1, 64, 65, 256] {
                let cut = NearestParts::choose(rows, queries, 132);
                assert!(cut.parts * cut.part_rows >= rows);
                assert!((cut.parts - 1) * cut.part_rows < rows);
                assert!(cut.parts * queries <= NearestParts::lists_max(queries, 132));
            }
        }
    }
}
