//! One check a kind of kernel, and one of a whole encoder.
//!
//! Invariant: an error that is NaN fails, as does a text without its vector.

#![allow(unsafe_code)]

mod encoder;
mod products;
mod rows;

use super::noise::Noise;
use super::workbench::Workbench;
use crate::launch::{Address, Launch};
use crate::launches::{Finish, K_MAX, QUERIES_PER_TILE, RowWidth, TileShape};
use crate::machine::{GpuFault, Machine};
use encoder::check_encoder;
use half::f16;
use products::{check_attention, check_linear, check_nearest};
use rows::{check_embeddings, check_gelu, check_norm, check_pooling};

/// How much is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effort {
    /// A second on the emulator.
    Small,
    /// Odd lengths up to 512 and every size of a real model.
    Full,
}

/// What a check has found.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Which kernel, on what.
    pub name: String,
    /// The largest error, of a number's size where that is above 1.
    pub error: f64,
    /// What may be.
    pub tolerance: f64,
}

impl Outcome {
    /// Whether the error is what may be.
    pub fn passes(&self) -> bool {
        self.error <= self.tolerance
    }
}

/// The largest error; NaN where one is.
fn largest_error(found: impl Iterator<Item = f64>, expected: &[f64]) -> f64 {
    let mut count = 0;
    let mut largest = 0.0_f64;
    for (found, expected) in found.zip(expected) {
        let error = (found - expected).abs() / expected.abs().max(1.0);
        largest = if error.is_nan() {
            f64::NAN
        } else {
            largest.max(error)
        };
        count += 1;
        if largest.is_nan() {
            break;
        }
    }
    if count == expected.len() {
        largest
    } else {
        f64::NAN
    }
}

fn halves(found: &[f16]) -> impl Iterator<Item = f64> + '_ {
    found.iter().map(|x| x.to_f64())
}

/// Runs all checks.
///
/// # Errors
/// When the machine fails.
pub fn check_all<M: Machine>(
    machine: M,
    effort: Effort,
    seed: u64,
) -> Result<Vec<Outcome>, GpuFault> {
    let is_full = effort == Effort::Full;
    let bench = Workbench::new(&machine)?;
    let mut noise = Noise::new(seed);
    let mut outcomes = Vec::new();
    let rows = if is_full { 1031 } else { 9 };
    for width in RowWidth::ALL {
        outcomes.push(check_embeddings(&bench, width, rows, &mut noise)?);
        outcomes.push(check_norm(&bench, width, rows, &mut noise)?);
        outcomes.push(check_pooling(&bench, width, effort, &mut noise)?);
    }
    outcomes.push(check_gelu(&bench, rows, &mut noise)?);
    let sizes: &[(usize, usize)] = if is_full {
        &[
            (384, 1152),
            (384, 384),
            (1536, 384),
            (768, 3072),
            (3072, 768),
            (1024, 1024),
        ]
    } else {
        &[(64, 128)]
    };
    for &(inputs, outputs) in sizes {
        for tile in [TileShape::Narrow, TileShape::Wide] {
            for finish in [Finish::Plain, Finish::Gelu, Finish::Residual(Address::NULL)] {
                let rows = if is_full { 1 + noise.below(300) } else { 70 };
                let size = [rows, inputs, outputs];
                outcomes.push(check_linear(&bench, size, tile, finish, &mut noise)?);
            }
        }
    }
    for head_size in [32, 64] {
        outcomes.push(check_attention(&bench, head_size, effort, &mut noise)?);
    }
    for k in if is_full {
        [1, 10, 33, K_MAX]
    } else {
        [1, 2, 3, 5]
    } {
        outcomes.push(check_nearest(&bench, k, effort, &mut noise)?);
    }
    drop(bench);
    outcomes.push(check_encoder(machine, effort, &mut noise)?);
    Ok(outcomes)
}

fn run<M: Machine>(bench: &Workbench<'_, M>, launches: &[Launch]) -> Result<(), GpuFault> {
    // SAFETY: every check places what its launches use, of the sizes that it launches with, and keeps
    // it until it has read the result.
    unsafe { bench.run(launches) }
}

/// Where texts of these lengths start, and the tiles of their attention.
fn starts_and_tiles(lengths: &[usize]) -> (Vec<i32>, Vec<i32>) {
    let (mut starts, mut tiles) = (vec![0], Vec::new());
    let mut end = 0;
    for (text, length) in lengths.iter().enumerate() {
        let firsts = (0..*length).step_by(QUERIES_PER_TILE);
        tiles.extend(firsts.flat_map(|first| [text as i32, first as i32]));
        end += *length as i32;
        starts.push(end);
    }
    (starts, tiles)
}

/// Odd lengths from 1 on, and those around the steps of the kernels.
fn lengths(effort: Effort) -> Vec<usize> {
    match effort {
        Effort::Small => vec![1, 17, 65, 0, 3],
        Effort::Full => (1..=512)
            .step_by(34)
            .chain([0, 15, 16, 63, 64, 65, 127, 129, 512])
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::EmulatedMachine;

    #[test]
    fn all_checks_pass_on_the_emulator() {
        let outcomes = check_all(EmulatedMachine::new(), Effort::Small, 1).unwrap();
        assert!(outcomes.len() > 20);
        for outcome in outcomes {
            assert!(outcome.passes(), "{outcome:?}");
        }
    }

    #[test]
    fn what_is_not_a_number_or_missing_fails() {
        assert!(largest_error([1.0, f64::NAN, 3.0].into_iter(), &[1.0, 2.0, 3.0]).is_nan());
        assert!(largest_error([1.0].into_iter(), &[1.0, 2.0]).is_nan());
        let outcome = Outcome {
            name: String::new(),
            error: f64::NAN,
            tolerance: 1.0,
        };
        assert!(!outcome.passes());
    }
}
