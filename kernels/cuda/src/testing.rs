//! What the tests share: memory that is watched, reproducible numbers, definitions in f64, and runs on
//! the emulator.
//!
//! Invariant: memory that a kernel has not written is NaN, whatever the type.

#![allow(unsafe_code)]

use crate::launch::{Address, Launch};
use crate::launches::Pooling;
use half::f16;
use std::alloc::Layout;
use std::ptr::NonNull;
use vectide_cuda_emulator::{Schedule, Shape};

/// Bytes before and behind that nobody may write.
const GUARD_BYTES: usize = 1024;
const POISON: u8 = 0xFF;
/// Seeds of a run that expects a right answer: one of each patience (see the emulator's `schedule.h`).
const SEEDS: std::ops::Range<u64> = 0..3;
/// Seeds that a planted error gets to show itself.
const PLANTED_SEEDS: std::ops::Range<u64> = 0..12;

/// Types that may be read from poisoned memory: every pattern of bits is one.
pub(crate) trait Plain: Copy {}
impl Plain for f16 {}
impl Plain for f32 {}
impl Plain for i32 {}
impl Plain for u32 {}
impl Plain for u8 {}
impl Plain for [i32; 2] {}

/// A piece of the device's memory, as the emulator sees it.
pub(crate) struct Memory {
    block: NonNull<u8>,
    bytes: usize,
}

impl Memory {
    fn layout(bytes: usize) -> Layout {
        Layout::from_size_align(bytes + 2 * GUARD_BYTES, 256).unwrap()
    }

    /// Room for `count` numbers that nobody has written.
    pub(crate) fn poisoned<T: Plain>(count: usize) -> Self {
        let bytes = count * size_of::<T>();
        // SAFETY: the layout is not of size zero, and the block is filled over its whole length.
        let block = unsafe {
            let block = std::alloc::alloc(Self::layout(bytes));
            block.write_bytes(POISON, Self::layout(bytes).size());
            NonNull::new(block).expect("memory")
        };
        Self { block, bytes }
    }

    /// A copy of `values`.
    pub(crate) fn of<T: Plain>(values: &[T]) -> Self {
        let memory = Self::poisoned::<T>(values.len());
        // SAFETY: the block has room for the values behind its first guard.
        unsafe {
            let to = memory.block.add(GUARD_BYTES).as_ptr();
            to.copy_from_nonoverlapping(values.as_ptr().cast(), size_of_val(values));
        }
        memory
    }

    pub(crate) fn address(&self) -> Address {
        Address(self.block.as_ptr() as u64).offset(GUARD_BYTES)
    }

    /// What is there, with the guards checked.
    pub(crate) fn read<T: Plain>(&self) -> Vec<T> {
        self.assert_guards();
        // SAFETY: the block has that many bytes behind its first guard, all of them written at least
        // once, at an alignment that suits every such type.
        unsafe {
            let from = self.block.add(GUARD_BYTES).cast::<T>().as_ptr();
            std::slice::from_raw_parts(from, self.bytes / size_of::<T>()).to_vec()
        }
    }

    /// # Panics
    /// When something was written before or behind the memory.
    pub(crate) fn assert_guards(&self) {
        for start in [0, GUARD_BYTES + self.bytes] {
            // SAFETY: both guards lie in the block and are written.
            let guard =
                unsafe { std::slice::from_raw_parts(self.block.add(start).as_ptr(), GUARD_BYTES) };
            assert!(
                guard.iter().all(|byte| *byte == POISON),
                "a guard was written"
            );
        }
    }

    fn snapshot(&self) -> Vec<u8> {
        self.read::<u8>()
    }

    fn restore(&self, bytes: &[u8]) {
        // SAFETY: the snapshot has the memory's length.
        unsafe {
            let to = self.block.add(GUARD_BYTES).as_ptr();
            to.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout.
        unsafe { std::alloc::dealloc(self.block.as_ptr(), Self::layout(self.bytes)) }
    }
}

/// A seeded generator (xorshift64*, Vigna 2016).
pub(crate) struct Noise(u64);

impl Noise {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub(crate) fn next_u64(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        (self.next_u64() >> 16) as usize % bound
    }

    /// Floats in [-spread / 2, spread / 2).
    pub(crate) fn floats(&mut self, count: usize, spread: f32) -> Vec<f32> {
        (0..count)
            .map(|_| ((self.next_u64() >> 40) as f32 / (1 << 24) as f32 - 0.5) * spread)
            .collect()
    }

    /// The same, rounded to fp16.
    pub(crate) fn halves(&mut self, count: usize, spread: f32) -> Vec<f16> {
        self.floats(count, spread)
            .into_iter()
            .map(f16::from_f32)
            .collect()
    }
}

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

/// Leaves out each barrier and wait in turn: at least one schedule must show that it is missing.
///
/// `attempt` gets what is left out and a seed; it answers with what it reached, or what went wrong.
pub(crate) fn assert_sites_are_needed(
    attempt: impl Fn(Option<&str>, u64) -> Result<Vec<String>, String>,
) {
    let sites = attempt(None, 0).unwrap();
    assert!(!sites.is_empty());
    for site in sites {
        let is_noticed = PLANTED_SEEDS
            .clone()
            .any(|seed| attempt(Some(&site), seed).is_err());
        assert!(is_noticed, "nothing shows that {site} is missing");
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

/// x times the normal distribution's cumulative function, by the Maclaurin series of the error
/// function, and its limit where the series would lose digits.
pub(crate) fn gelu_reference(x: f64) -> f64 {
    let argument = x / std::f64::consts::SQRT_2;
    if argument.abs() > 4.5 {
        return x.max(0.0);
    }
    let (mut term, mut sum) = (argument, argument);
    for n in 1..120 {
        term *= -argument * argument / f64::from(n);
        sum += term / f64::from(2 * n + 1);
    }
    0.5 * x * (1.0 + sum * 2.0 / std::f64::consts::PI.sqrt())
}

pub(crate) fn normalise_reference(
    row: &[f64],
    scale: &[f32],
    shift: &[f32],
    epsilon: f32,
) -> Vec<f64> {
    let count = row.len() as f64;
    let mean = row.iter().sum::<f64>() / count;
    let variance = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / count;
    let factor = 1.0 / (variance + f64::from(epsilon)).sqrt();
    (row.iter().zip(scale).zip(shift))
        .map(|((x, scale), shift)| (x - mean) * factor * f64::from(*scale) + f64::from(*shift))
        .collect()
}

/// Rows of all heads, from rows of queries, keys and values.
pub(crate) fn attention_reference(
    packed: &[f64],
    lengths: &[usize],
    heads: usize,
    head_size: usize,
) -> Vec<f64> {
    let width = heads * head_size;
    let mut out = vec![0.0; packed.len() / 3];
    let mut first = 0;
    for length in lengths {
        for head in 0..heads {
            let part = |row: usize, which: usize| {
                let at = (first + row) * 3 * width + which * width + head * head_size;
                &packed[at..at + head_size]
            };
            for query in 0..*length {
                let scores: Vec<f64> = (0..*length)
                    .map(|key| {
                        let products = part(query, 0).iter().zip(part(key, 1)).map(|(q, k)| q * k);
                        products.sum::<f64>() / (head_size as f64).sqrt()
                    })
                    .collect();
                let best = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let weights: Vec<f64> = scores.iter().map(|x| (x - best).exp()).collect();
                let total: f64 = weights.iter().sum();
                let to = (first + query) * width + head * head_size;
                for (key, weight) in weights.iter().enumerate() {
                    for (out, value) in out[to..to + head_size].iter_mut().zip(part(key, 2)) {
                        *out += weight / total * value;
                    }
                }
            }
        }
        first += length;
    }
    out
}

/// One text's vector from its rows.
pub(crate) fn pool_reference(
    rows: &[f64],
    width: usize,
    dimensions: usize,
    pooling: Pooling,
) -> Vec<f64> {
    let tokens = match pooling {
        Pooling::Mean => rows.len() / width,
        Pooling::First => (rows.len() / width).min(1),
    };
    let mut vector = vec![0.0; dimensions];
    for row in rows.chunks_exact(width).take(tokens) {
        for (sum, value) in vector.iter_mut().zip(row) {
            *sum += value / tokens as f64;
        }
    }
    let length = vector.iter().map(|x| x * x).sum::<f64>().sqrt().max(1e-12);
    vector.iter_mut().for_each(|x| *x /= length);
    vector
}
