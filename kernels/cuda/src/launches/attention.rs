//! Attention over ragged texts.
//!
//! Invariant: the scale is folded into powers of two here, so the kernel has one multiplication a
//! score.

use crate::launch::{Address, Argument, Launch};

/// Queries of a block: a text of `n` tokens has `n / 64` tiles, rounded up.
pub const QUERIES_PER_TILE: usize = 64;
const THREADS: u32 = 128;
/// Keys of a step, of which two are in shared memory with their values.
const KEYS_PER_STEP: usize = 64;

/// Attention of every text over itself.
#[derive(Clone, Copy, Debug)]
pub struct AttentionLaunch {
    /// Heads.
    pub heads: usize,
    /// Numbers of a head: 32 or 64.
    pub head_size: usize,
    /// Entries of `tiles`.
    pub tile_count: usize,
    /// fp16 rows: queries of all heads, then keys, then values.
    pub packed: Address,
    /// `i32`: the first row of each text, and one past the last.
    pub starts: Address,
    /// Two `i32` a tile: text, first query.
    pub tiles: Address,
    /// fp16 rows: all heads.
    pub out: Address,
}

impl AttentionLaunch {
    /// As a launch.
    ///
    /// # Panics
    /// When no kernel has the head's size; [`crate::shape::BertShape`] has asked before.
    pub fn launch(&self) -> Launch {
        let scale = std::f32::consts::LOG2_E / (self.head_size as f32).sqrt();
        Launch {
            kernel: match self.head_size {
                32 => "attention_32",
                64 => "attention_64",
                other => panic!("no attention for heads of {other}"),
            },
            grid: [
                u32::try_from(self.tile_count).expect("tiles below 2^32"),
                u32::try_from(self.heads).expect("heads below 2^32"),
            ],
            threads: THREADS,
            // Two steps of keys and values, two bytes a number.
            shared_bytes: 2 * 2 * KEYS_PER_STEP * self.head_size * 2,
            arguments: vec![
                self.packed.into(),
                self.starts.into(),
                self.tiles.into(),
                self.out.into(),
                Argument::count(self.heads),
                Argument::Real(scale),
            ],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{
        Memory, Noise, assert_close, assert_sites_are_needed, attention_reference, compare,
        run_on_schedules, run_without,
    };
    use half::f16;

    struct Case {
        lengths: Vec<usize>,
        heads: usize,
        head_size: usize,
        packed: Vec<f16>,
    }

    impl Case {
        fn new(lengths: &[usize], heads: usize, head_size: usize, spread: f32) -> Self {
            let rows: usize = lengths.iter().sum();
            let mut noise = Noise::new((rows + head_size) as u64);
            Self {
                lengths: lengths.into(),
                heads,
                head_size,
                packed: noise.halves(rows * 3 * heads * head_size, spread),
            }
        }

        fn starts(&self) -> Vec<i32> {
            let mut starts = vec![0];
            for length in &self.lengths {
                starts.push(starts[starts.len() - 1] + *length as i32);
            }
            starts
        }

        /// With one tile behind the end of a text, as launches of a fixed size have them.
        fn tiles(&self) -> Vec<[i32; 2]> {
            let mut tiles = vec![[0, i32::MAX]];
            for (text, length) in self.lengths.iter().enumerate() {
                let firsts = (0..*length).step_by(QUERIES_PER_TILE);
                tiles.extend(firsts.map(|first| [text as i32, first as i32]));
            }
            tiles
        }

        fn expected(&self) -> Vec<f64> {
            let packed: Vec<f64> = self.packed.iter().map(|x| x.to_f64()).collect();
            attention_reference(&packed, &self.lengths, self.heads, self.head_size)
        }
    }

    struct Placed {
        launch: Launch,
        out: Memory,
        _inputs: [Memory; 3],
    }

    fn place(case: &Case) -> Placed {
        let tiles = case.tiles();
        let inputs = [
            Memory::of(&case.packed),
            Memory::of(&case.starts()),
            Memory::of(&tiles),
        ];
        let out = Memory::poisoned::<f16>(case.packed.len() / 3);
        let launch = AttentionLaunch {
            heads: case.heads,
            head_size: case.head_size,
            tile_count: tiles.len(),
            packed: inputs[0].address(),
            starts: inputs[1].address(),
            tiles: inputs[2].address(),
            out: out.address(),
        };
        Placed {
            launch: launch.launch(),
            out,
            _inputs: inputs,
        }
    }

    fn check(case: &Case, tolerance: f64) {
        let placed = place(case);
        let expected = case.expected();
        run_on_schedules(&placed.launch, &placed.out, || {
            assert_close(&placed.out.read::<f16>(), &expected, tolerance);
        });
    }

    #[test]
    fn it_equals_the_softmax_in_f64() {
        for head_size in [32, 64] {
            check(&Case::new(&[1, 7, 64, 65, 0, 130], 2, head_size, 4.0), 2e-3);
            check(&Case::new(&[512], 1, head_size, 4.0), 2e-3);
        }
    }

    #[test]
    fn every_odd_length_up_to_the_second_step() {
        for head_size in [32, 64] {
            let lengths: Vec<usize> = (1..150)
                .step_by(7)
                .chain([15, 16, 17, 63, 127, 129])
                .collect();
            check(&Case::new(&lengths, 1, head_size, 4.0), 2e-3);
        }
    }

    /// Scores of hundreds: weights that vanish beside the largest, and maxima that move between steps.
    #[test]
    fn large_scores_neither_overflow_nor_vanish() {
        check(&Case::new(&[200], 1, 32, 40.0), 2e-2);
    }

    #[test]
    fn every_barrier_is_needed() {
        for head_size in [32, 64] {
            let case = Case::new(&[300, 40], 1, head_size, 4.0);
            let expected = case.expected();
            assert_sites_are_needed(|skipped, seed| {
                let placed = place(&case);
                let sites = run_without(&placed.launch, seed, skipped)?;
                compare(&placed.out.read::<f16>(), &expected, 2e-3)?;
                Ok(sites)
            });
        }
    }
}
