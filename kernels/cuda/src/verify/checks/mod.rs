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
use crate::machine::{FaultKind, GpuFault, Machine};
use encoder::check_encoder;
use half::f16;
use products::{check_attention, check_linear, check_nearest};
use rows::{check_embeddings, check_norm, check_pooling};

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

    /// As a line of JSON.
    pub fn json(&self) -> String {
        let verdict = if self.passes() { "ok" } else { "WRONG" };
        // What a driver says may hold anything.
        let name = self.name.replace(['"', '\\'], "'");
        let name = name.replace(char::is_control, " ");
        format!(
            r#"{{"check":"{name}","error":"{:e}","tolerance":"{:e}","verdict":"{verdict}"}}"#,
            self.error, self.tolerance
        )
    }
}

fn halves(found: &[f16]) -> impl Iterator<Item = f64> + '_ {
    found.iter().map(|x| x.to_f64())
}

/// Products of real models' layers: inputs and outputs.
const PRODUCTS: [(usize, usize); 6] = [
    (384, 1152),
    (384, 384),
    (1536, 384),
    (768, 3072),
    (3072, 768),
    (1024, 1024),
];

/// Runs all checks; tells each outcome as soon as there is one, so that what was found is not lost with
/// what comes after. A check that the machine refuses has failed, and the others go on.
///
/// # Errors
/// When the machine's context is lost: what is left was not checked.
pub fn check_all<M: Machine>(
    machine: M,
    effort: Effort,
    seed: u64,
    tell: &mut dyn FnMut(&Outcome),
) -> Result<(), GpuFault> {
    let mut noise = Noise::new(seed);
    let bench = Workbench::new(&machine)?;
    check_row_kernels(&bench, effort, &mut noise, tell)?;
    check_products(&bench, effort, &mut noise, tell)?;
    drop(bench);
    report(tell, "encoder", check_encoder(machine, effort, &mut noise))
}

/// Tells an outcome, or under the check's name what it failed with.
fn report(
    tell: &mut dyn FnMut(&Outcome),
    name: &str,
    found: Result<Outcome, GpuFault>,
) -> Result<(), GpuFault> {
    match found {
        Ok(outcome) => tell(&outcome),
        Err(fault) => {
            tell(&Outcome {
                name: format!("{name}: {fault}"),
                error: f64::NAN,
                tolerance: 0.0,
            });
            // Every later call would fail as well, and say nothing about its kernel.
            if fault.kind == FaultKind::Sticky {
                return Err(fault);
            }
        }
    }
    Ok(())
}

fn check_row_kernels<M: Machine>(
    bench: &Workbench<'_, M>,
    effort: Effort,
    noise: &mut Noise,
    tell: &mut dyn FnMut(&Outcome),
) -> Result<(), GpuFault> {
    let rows = if effort == Effort::Full { 1031 } else { 9 };
    for width in RowWidth::ALL {
        let name = |kernel: &str| format!("{kernel}, width {}", width.get());
        let found = check_embeddings(bench, width, rows, noise);
        report(tell, &name("embeddings"), found)?;
        let found = check_norm(bench, width, rows, noise);
        report(tell, &name("layer normalisation"), found)?;
        let found = check_pooling(bench, width, effort, noise);
        report(tell, &name("pooling"), found)?;
    }
    Ok(())
}

fn check_products<M: Machine>(
    bench: &Workbench<'_, M>,
    effort: Effort,
    noise: &mut Noise,
    tell: &mut dyn FnMut(&Outcome),
) -> Result<(), GpuFault> {
    let is_full = effort == Effort::Full;
    let sizes = if is_full { &PRODUCTS[..] } else { &[(64, 128)] };
    for &(inputs, outputs) in sizes {
        for tile in [TileShape::Narrow, TileShape::Wide] {
            for finish in [Finish::Plain, Finish::Gelu, Finish::Residual(Address::NULL)] {
                let rows = if is_full { 1 + noise.below(300) } else { 70 };
                let name = format!("linear {rows} x {inputs} x {outputs}, {tile:?}, {finish:?}");
                let found = check_linear(bench, [rows, inputs, outputs], tile, finish, noise);
                report(tell, &name, found)?;
            }
        }
    }
    for head_size in [32, 64] {
        let found = check_attention(bench, head_size, effort, noise);
        report(tell, &format!("attention, heads of {head_size}"), found)?;
    }
    let all_k = if is_full {
        [1, 10, 33, K_MAX]
    } else {
        [1, 2, 3, 5]
    };
    for k in all_k {
        let found = check_nearest(bench, k, effort, noise);
        report(tell, &format!("nearest {k}"), found)?;
    }
    Ok(())
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
        let mut outcomes = Vec::new();
        let mut tell = |outcome: &Outcome| outcomes.push(outcome.clone());
        check_all(EmulatedMachine::new(), Effort::Small, 1, &mut tell).unwrap();
        assert!(outcomes.len() > 20);
        for outcome in outcomes {
            assert!(outcome.passes(), "{outcome:?}");
        }
    }

    /// One fault once took all results with it, and nothing was said to be wrong.
    #[test]
    fn a_fault_fails_its_own_check_and_keeps_what_was_found() {
        let run = |kind| {
            let machine = EmulatedMachine::new();
            machine.faults().fail_after(40, kind);
            let mut outcomes = Vec::new();
            let mut tell = |outcome: &Outcome| outcomes.push(outcome.clone());
            let ended = check_all(machine, Effort::Small, 1, &mut tell);
            (outcomes, ended)
        };
        let (outcomes, ended) = run(FaultKind::Refused);
        assert!(ended.is_ok() && outcomes.len() > 20);
        let wrong = outcomes.iter().position(|outcome| !outcome.passes());
        let wrong = wrong.unwrap();
        assert!(wrong > 0 && outcomes[wrong..].iter().all(|outcome| !outcome.passes()));
        let last = &outcomes[outcomes.len() - 1].name;
        assert!(last.starts_with("encoder: the GPU failed "), "{last}");
        let (until_lost, ended) = run(FaultKind::Sticky);
        assert!(ended.is_err());
        assert_eq!(until_lost.len(), wrong + 1);
        assert!(!until_lost[wrong].passes());
    }

    #[test]
    fn an_outcome_is_a_line_whatever_its_name() {
        let outcome = Outcome {
            name: "a \"name\"\nof two lines".into(),
            error: f64::NAN,
            tolerance: 1.0,
        };
        assert_eq!(
            outcome.json(),
            r#"{"check":"a 'name' of two lines","error":"NaN","tolerance":"1e0","verdict":"WRONG"}"#
        );
    }
}
