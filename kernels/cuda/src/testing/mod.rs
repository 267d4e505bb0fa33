//! What the tests share: memory that is watched and runs on the emulator, beside what
//! [`crate::verify`] has.
//!
//! Invariant: a run that is expected to be right is made on every kind of schedule.

#![allow(unsafe_code)]

mod folder;
mod machine;
mod memory;

pub(crate) use crate::verify::{
    Noise, TinyModel, as_safetensors, attention_reference, encode_reference, gelu_reference,
    normalise_reference, pool_reference,
};
pub(crate) use folder::{bert_config, bert_folder, context};
pub(crate) use machine::{EmulatedDevices, EmulatedMachine, Faults};
pub(crate) use memory::Memory;

use crate::launch::Launch;
use half::f16;
use vectide_cuda_emulator::{Schedule, Shape};

/// Seeds of a run that expects a right answer: one of each patience (see the emulator's `schedule.h`).
const SEEDS: std::ops::Range<u64> = 0..3;
/// Seeds that a planted error gets to show itself.
const PLANTED_SEEDS: std::ops::Range<u64> = 0..12;

/// Runs a launch on the emulator.
pub(crate) fn run(launch: &Launch, seed: u64) -> Result<Vec<String>, String> {
    run_without(launch, seed, None)
}

/// Runs a launch in which a barrier or wait does nothing; names those that were reached.
pub(crate) fn run_without(
    launch: &Launch,
    seed: u64,
    skipped: Option<&str>,
) -> Result<Vec<String>, String> {
    let mut words: Vec<u64> = launch
        .arguments
        .iter()
        .map(|argument| argument.word())
        .collect();
    let shape = Shape {
        grid: launch.grid,
        threads: launch.threads,
        shared_bytes: launch.shared_bytes,
    };
    let schedule = Schedule {
        seed,
        skipped_site: skipped.map(str::to_owned),
    };
    // SAFETY: launches are made by `launches` alone, each for its kernel, and the tests give them
    // memory of the sizes that they say.
    unsafe { vectide_cuda_emulator::launch(launch.kernel, shape, &mut words, &schedule) }
}

/// Runs a launch on every kind of schedule, each time from what `out` holds now.
pub(crate) fn run_on_schedules(launch: &Launch, out: &Memory, check: impl Fn()) {
    let before = out.snapshot();
    for seed in SEEDS {
        out.restore(&before);
        run(launch, seed).unwrap();
        check();
    }
}

/// Leaves out each barrier and wait in turn. A barrier must be missed on every schedule, since races are
/// watched for; a wait on at least one, since a copy may be there in time.
///
/// `attempt` gets what is left out and a seed; it answers with what it reached, or what went wrong.
pub(crate) fn assert_sites_are_needed(
    attempt: impl Fn(Option<&str>, u64) -> Result<Vec<String>, String>,
) {
    let sites = attempt(None, 0).unwrap();
    assert!(sites.iter().any(|site| site.contains("barrier ")));
    for site in sites {
        let is_missed = |seed| attempt(Some(&site), seed).is_err();
        if site.contains("barrier ") {
            for seed in SEEDS {
                assert!(is_missed(seed), "{site} is not missed on schedule {seed}");
            }
        } else {
            assert!(
                PLANTED_SEEDS.clone().any(is_missed),
                "nothing shows that {site} is missing"
            );
        }
    }
}

/// Numbers that a result may be made of.
pub(crate) trait Number: Copy {
    fn number(self) -> f64;
}
impl Number for f16 {
    fn number(self) -> f64 {
        self.to_f64()
    }
}
impl Number for f64 {
    fn number(self) -> f64 {
        self
    }
}

/// Whether all differ by at most `tolerance`, of their size where that is above 1.
pub(crate) fn compare<T: Number>(
    found: &[T],
    expected: &[f64],
    tolerance: f64,
) -> Result<(), String> {
    assert_eq!(found.len(), expected.len());
    for (at, (found, expected)) in found.iter().zip(expected).enumerate() {
        let error = (found.number() - expected).abs() / expected.abs().max(1.0);
        // Not `error > tolerance`, which NaN would pass.
        if !matches!(
            error.partial_cmp(&tolerance),
            Some(std::cmp::Ordering::Less)
        ) {
            return Err(format!("at {at}: {}, expected {expected}", found.number()));
        }
    }
    Ok(())
}

#[track_caller]
pub(crate) fn assert_close<T: Number>(found: &[T], expected: &[f64], tolerance: f64) {
    compare(found, expected, tolerance).unwrap();
}
