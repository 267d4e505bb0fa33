//! How fast a machine is: products, exact search, and whole encoders at several lengths.
//!
//! A figure is of the host's clock around calls that wait for their results; the best of several runs
//! where it is a rate, percentiles of all where it is a delay.
//!
//! Invariant: nothing is measured on a machine that has not run the same thing once before.

#![allow(unsafe_code)]

use super::noise::Noise;
use super::workbench::Workbench;
use crate::encoder::{EncodeError, Encoder};
use crate::launch::Address;
use crate::launches::{
    Finish, LinearLaunch, NearestLaunch, NearestParts, NormaliseLaunch, RowWidth, TileShape,
};
use crate::machine::{GpuFault, Machine};
use half::f16;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use vectide_model::Lane;

/// Runs of a rate, of which the best counts.
const RUNS: usize = 5;
/// Threads that keep the bulk lane full.
const BULK_THREADS: usize = 3;
/// Tokens of a query in the figures of delay.
const QUERY_TOKENS: usize = 12;

/// One figure.
#[derive(Clone, Debug)]
pub struct Measured {
    /// Of what.
    pub name: String,
    /// How much.
    pub value: f64,
    /// Of which: `tokens/s`.
    pub unit: &'static str,
}

impl Measured {
    /// As a line of JSON.
    pub fn json(&self) -> String {
        let (name, unit) = (&self.name, self.unit);
        format!(
            r#"{{"name":"{name}","value":{:.6e},"unit":"{unit}"}}"#,
            self.value
        )
    }
}

fn best<E>(mut run: impl FnMut() -> Result<(), E>) -> Result<Duration, E> {
    run()?;
    let mut best = Duration::MAX;
    for _ in 0..RUNS {
        let start = Instant::now();
        run()?;
        best = best.min(start.elapsed());
    }
    Ok(best)
}

/// A product of this size, `launches` times in a row.
///
/// # Errors
/// When the machine fails.
pub fn measure_linear<M: Machine>(
    machine: &M,
    [rows, inputs, outputs]: [usize; 3],
    launches: usize,
) -> Result<Measured, GpuFault> {
    let bench = Workbench::new(machine)?;
    let mut noise = Noise::new(1);
    let input = bench.place(&noise.halves(rows * inputs, 1.0))?;
    let weights = bench.place(&noise.halves(outputs * inputs, 0.1))?;
    let bias = bench.place(&noise.halves(outputs, 1.0))?;
    let out = bench.poisoned::<f16>(rows * outputs)?;
    let launch = LinearLaunch {
        rows,
        inputs,
        outputs,
        input: input.address(),
        weights: weights.address(),
        bias: bias.address(),
        out: out.address(),
        finish: Finish::Plain,
        tile: TileShape::choose(rows, outputs, machine.multiprocessors()),
    };
    let all = vec![launch.launch(); launches];
    // SAFETY: everything that is launched on was placed above, of these sizes.
    let time = best(|| unsafe { bench.run(&all) })?;
    let operations = 2.0 * (rows * inputs * outputs * launches) as f64;
    Ok(Measured {
        name: format!("linear {rows} x {inputs} x {outputs}"),
        value: operations / time.as_secs_f64() / 1e12,
        unit: "TFLOP/s",
    })
}

/// Layer normalisation of so many rows: what memory gives, since nothing is computed to speak of.
///
/// # Errors
/// When the machine fails.
pub fn measure_memory<M: Machine>(machine: &M, rows: usize) -> Result<Measured, GpuFault> {
    let width = RowWidth::W768;
    let bench = Workbench::new(machine)?;
    let numbers = rows * width.get();
    let input = bench.place(&Noise::new(6).halves(numbers, 1.0))?;
    let norm = bench.place(&vec![1.0_f32; width.get()])?;
    let out = bench.poisoned::<f16>(numbers)?;
    let launch = NormaliseLaunch {
        width,
        rows,
        input: input.address(),
        scale: norm.address(),
        shift: norm.address(),
        out: out.address(),
        epsilon: 1e-12,
    };
    // SAFETY: as in `measure_linear`.
    let time = best(|| unsafe { bench.run(&[launch.launch()]) })?;
    // Read once and written once.
    let bytes = (2 * numbers * size_of::<f16>()) as f64;
    Ok(Measured {
        name: format!("layer normalisation {rows} x {}", width.get()),
        value: bytes / time.as_secs_f64() / 1e9,
        unit: "GB/s",
    })
}

/// The ten nearest of so many rows, for so many queries at once.
///
/// # Errors
/// When the machine fails.
pub fn measure_nearest<M: Machine>(
    machine: &M,
    rows: usize,
    queries: usize,
) -> Result<Measured, GpuFault> {
    let (depth, k) = (384, 10);
    let bench = Workbench::new(machine)?;
    let mut noise = Noise::new(2);
    let parts = NearestParts::choose(rows, queries, machine.multiprocessors());
    let query_data = bench.place(&noise.halves(queries * depth, 1.0))?;
    let row_data = bench.place(&noise.halves(rows * depth, 1.0))?;
    let lists = parts.parts * queries * k;
    let between = (bench.poisoned::<f32>(lists)?, bench.poisoned::<u32>(lists)?);
    let best_hits = (
        bench.poisoned::<f32>(queries * k)?,
        bench.poisoned::<u32>(queries * k)?,
    );
    let launches = NearestLaunch {
        queries,
        rows,
        depth,
        k,
        parts,
        query_data: query_data.address(),
        row_data: row_data.address(),
        live: Address::NULL,
        part_scores: between.0.address(),
        part_lists: between.1.address(),
        best_scores: best_hits.0.address(),
        best_rows: best_hits.1.address(),
    }
    .launches();
    // SAFETY: as in `measure_linear`.
    let time = best(|| unsafe { bench.run(&launches) })?;
    Ok(Measured {
        name: format!("nearest {k} of {rows} x {depth}, {queries} at once"),
        value: queries as f64 / time.as_secs_f64(),
        unit: "queries/s",
    })
}

/// Lengths of texts that are mostly short, with a long tail: a median of 64 tokens (log-normal with a
/// deviation of 0.8, by the sum of twelve uniform numbers).
fn lognormal_length(noise: &mut Noise, tokens_max: usize) -> usize {
    let uniform = |noise: &mut Noise| noise.below(1 << 20) as f64 / f64::from(1 << 20);
    let normal = (0..12).map(|_| uniform(noise)).sum::<f64>() - 6.0;
    let length = 64.0 * (0.8 * normal).exp();
    (length as usize).clamp(1, tokens_max)
}

fn texts(
    count_tokens: usize,
    vocabulary: usize,
    mut length: impl FnMut() -> usize,
) -> Vec<Vec<u32>> {
    let mut noise = Noise::new(3);
    let mut texts = Vec::new();
    let mut tokens = 0;
    while tokens < count_tokens {
        let length = length();
        tokens += length;
        texts.push(
            (0..length)
                .map(|_| noise.below(vocabulary) as u32)
                .collect(),
        );
    }
    texts
}

/// Rates at several lengths, and a query's delay alone and beside a full bulk lane.
///
/// # Errors
/// When the machine fails.
pub fn measure_encoder<M: Machine>(
    name: &str,
    encoder: &Encoder<M>,
    tokens: usize,
    queries: usize,
) -> Result<Vec<Measured>, EncodeError> {
    let shape = *encoder.shape();
    let mut measured = Vec::new();
    for length in [16, 64, 128, 256, 512] {
        let length = length.min(shape.tokens_max());
        let all = texts(tokens, shape.vocabulary, || length);
        measured.push(rate(format!("{name}, texts of {length}"), encoder, &all)?);
    }
    let mut noise = Noise::new(4);
    let all = texts(tokens, shape.vocabulary, || {
        lognormal_length(&mut noise, shape.tokens_max())
    });
    measured.push(rate(format!("{name}, log-normal lengths"), encoder, &all)?);
    measured.extend(delays(
        &format!("{name}, one query alone"),
        encoder,
        queries,
    )?);
    let label = format!("{name}, one query beside bulk");
    measured.extend(beside_bulk(encoder, &all, || {
        delays(&label, encoder, queries)
    })?);
    Ok(measured)
}

/// Does `work` while the bulk lane is full.
fn beside_bulk<M: Machine, R>(
    encoder: &Encoder<M>,
    texts: &[Vec<u32>],
    work: impl FnOnce() -> Result<R, EncodeError>,
) -> Result<R, EncodeError> {
    let is_over = AtomicBool::new(false);
    let keep_busy = || {
        while !is_over.load(Ordering::Relaxed) {
            encode_all(encoder, texts)?;
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let busy: Vec<_> = (0..BULK_THREADS).map(|_| scope.spawn(keep_busy)).collect();
        let answer = work();
        is_over.store(true, Ordering::Relaxed);
        // A lane that was not full would flatter the figure.
        busy.into_iter().try_for_each(joined)?;
        answer
    })
}

fn joined(
    thread: std::thread::ScopedJoinHandle<'_, Result<(), EncodeError>>,
) -> Result<(), EncodeError> {
    match thread.join() {
        Ok(answer) => answer,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

fn encode_all<M: Machine>(encoder: &Encoder<M>, texts: &[Vec<u32>]) -> Result<(), EncodeError> {
    let texts: Vec<&[u32]> = texts.iter().map(Vec::as_slice).collect();
    encoder.encode(Lane::Bulk, &texts).map(|_| ())
}

fn rate<M: Machine>(
    name: String,
    encoder: &Encoder<M>,
    texts: &[Vec<u32>],
) -> Result<Measured, EncodeError> {
    let tokens: usize = texts.iter().map(Vec::len).sum();
    let time = best(|| {
        std::thread::scope(|scope| {
            let pieces = texts.chunks(texts.len().div_ceil(BULK_THREADS));
            let calls: Vec<_> = pieces
                .map(|piece| scope.spawn(|| encode_all(encoder, piece)))
                .collect();
            calls.into_iter().try_for_each(joined)
        })
    })?;
    Ok(Measured {
        name,
        value: tokens as f64 / time.as_secs_f64(),
        unit: "tokens/s",
    })
}

fn delays<M: Machine>(
    name: &str,
    encoder: &Encoder<M>,
    queries: usize,
) -> Result<[Measured; 2], EncodeError> {
    let query: Vec<u32> = (0..QUERY_TOKENS as u32).collect();
    let mut all = Vec::with_capacity(queries);
    for _ in 0..queries.max(1) {
        let start = Instant::now();
        encoder.encode(Lane::Query, &[&query])?;
        all.push(start.elapsed());
    }
    all.sort_unstable();
    Ok([(50, "p50"), (99, "p99")].map(|(percent, label)| Measured {
        name: format!("{name}, {label}"),
        value: all[(all.len() * percent / 100).min(all.len() - 1)].as_secs_f64() * 1e3,
        unit: "ms",
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shape::BertShape;
    use crate::testing::EmulatedMachine;
    use crate::verify::TinyModel;
    use crate::weights::WeightLayout;

    /// Of the measuring itself: the figures of an emulator mean nothing.
    #[test]
    fn every_figure_is_taken() {
        let machine = EmulatedMachine::new();
        let linear = measure_linear(&machine, [64, 32, 64], 1).unwrap();
        assert!(linear.value > 0.0);
        assert!(measure_memory(&machine, 9).unwrap().value > 0.0);
        assert!(measure_nearest(&machine, 64, 1).unwrap().value > 0.0);
        let shape = BertShape {
            positions: 16,
            ..TinyModel::shape(0, 12, 32)
        };
        let image = WeightLayout::of(&shape).random_image(1);
        let encoder = Encoder::open(machine, shape, &image, None).unwrap();
        let measured = measure_encoder("tiny", &encoder, 20, 3).unwrap();
        assert_eq!(measured.len(), 10);
        for figure in measured {
            assert!(figure.value.is_finite() && figure.value > 0.0, "{figure:?}");
            assert!(
                figure.json().starts_with(r#"{"name":"tiny, "#),
                "{}",
                figure.json()
            );
        }
    }

    #[test]
    fn lengths_are_mostly_short() {
        let mut noise = Noise::new(5);
        let mut lengths: Vec<usize> = (0..999)
            .map(|_| lognormal_length(&mut noise, 512))
            .collect();
        lengths.sort_unstable();
        assert!((50..80).contains(&lengths[499]), "{}", lengths[499]);
        assert!(lengths[990] > 200 && lengths[998] <= 512);
    }
}
