//! One check a kind of kernel, and one of a whole encoder.
//!
//! Invariant: an error that is NaN fails, as does a text without its vector.

#![allow(unsafe_code)]

use super::model::{TinyModel, as_safetensors, encode_reference};
use super::noise::Noise;
use super::reference::{attention_reference, gelu_reference, normalise_reference, pool_reference};
use super::workbench::Workbench;
use crate::encoder::Encoder;
use crate::launch::{Address, Launch};
use crate::launches::{
    AttentionLaunch, EmbedLaunch, Finish, GeluLaunch, K_MAX, LinearLaunch, NearestLaunch,
    NearestParts, NormaliseLaunch, PoolLaunch, Pooling, QUERIES_PER_TILE, RowWidth, TileShape,
};
use crate::machine::{GpuFault, Machine};
use crate::shape::BertShape;
use crate::weights::WeightLayout;
use half::f16;
use safetensors::Dtype;
use vectide_model::Lane;

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

fn check_embeddings<M: Machine>(
    bench: &Workbench<'_, M>,
    width: RowWidth,
    rows: usize,
    noise: &mut Noise,
) -> Result<Outcome, GpuFault> {
    let columns = width.get();
    let (words, positions) = (1000, 512);
    let tables = noise.halves((words + positions + 1) * columns, 1.0);
    let (scale, shift) = (noise.floats(columns, 2.0), noise.floats(columns, 1.0));
    let ids: Vec<i32> = (0..rows).map(|_| noise.below(words) as i32).collect();
    let places: Vec<i32> = (0..rows).map(|_| noise.below(positions) as i32).collect();
    let placed = [bench.place(&ids)?, bench.place(&places)?];
    let table = bench.place(&tables)?;
    let norm = [bench.place(&scale)?, bench.place(&shift)?];
    let out = bench.poisoned::<f16>(rows * columns)?;
    let launch = EmbedLaunch {
        width,
        rows,
        ids: placed[0].address(),
        positions: placed[1].address(),
        types: Address::NULL,
        word_table: table.address(),
        position_table: table.address().offset(words * columns * 2),
        type_table: table.address().offset((words + positions) * columns * 2),
        scale: norm[0].address(),
        shift: norm[1].address(),
        out: out.address(),
        epsilon: 1e-12,
    };
    run(bench, &[launch.launch()])?;
    let of = |at: usize| &tables[at * columns..][..columns];
    let expected: Vec<f64> = (0..rows)
        .flat_map(|row| {
            let place = words + places[row] as usize;
            let parts = [of(ids[row] as usize), of(place), of(words + positions)];
            let sum = |i: usize| parts.iter().map(|part| part[i].to_f64()).sum();
            let sums: Vec<f64> = (0..columns).map(sum).collect();
            normalise_reference(&sums, &scale, &shift, 1e-12)
        })
        .collect();
    Ok(Outcome {
        name: format!("embeddings, width {columns}"),
        error: largest_error(halves(&bench.read(&out)?), &expected),
        tolerance: 3e-3,
    })
}

fn check_norm<M: Machine>(
    bench: &Workbench<'_, M>,
    width: RowWidth,
    rows: usize,
    noise: &mut Noise,
) -> Result<Outcome, GpuFault> {
    let columns = width.get();
    let input = noise.halves(rows * columns, 4.0);
    let residual = noise.halves(rows * columns, 4.0);
    let (scale, shift) = (noise.floats(columns, 2.0), noise.floats(columns, 1.0));
    let placed = [bench.place(&input)?, bench.place(&residual)?];
    let norm = [bench.place(&scale)?, bench.place(&shift)?];
    let out = bench.poisoned::<f16>(rows * columns)?;
    let launch = NormaliseLaunch {
        width,
        rows,
        input: placed[0].address(),
        residual: placed[1].address(),
        scale: norm[0].address(),
        shift: norm[1].address(),
        out: out.address(),
        epsilon: 1e-12,
    };
    run(bench, &[launch.launch()])?;
    let sums: Vec<f64> = halves(&input)
        .zip(halves(&residual))
        .map(|(x, y)| x + y)
        .collect();
    let expected: Vec<f64> = (sums.chunks_exact(columns))
        .flat_map(|row| normalise_reference(row, &scale, &shift, 1e-12))
        .collect();
    Ok(Outcome {
        name: format!("layer normalisation, width {columns}"),
        error: largest_error(halves(&bench.read(&out)?), &expected),
        tolerance: 3e-3,
    })
}

fn check_gelu<M: Machine>(
    bench: &Workbench<'_, M>,
    rows: usize,
    noise: &mut Noise,
) -> Result<Outcome, GpuFault> {
    let width = 1536;
    let input = noise.halves(rows * width, 12.0);
    let bias = noise.halves(width, 1.0);
    let placed = [bench.place(&input)?, bench.place(&bias)?];
    let out = bench.poisoned::<f16>(rows * width)?;
    let launch = GeluLaunch {
        rows,
        width,
        input: placed[0].address(),
        bias: placed[1].address(),
        out: out.address(),
    };
    run(bench, &[launch.launch()])?;
    let sums = halves(&input)
        .enumerate()
        .map(|(at, x)| x + bias[at % width].to_f64());
    let expected: Vec<f64> = sums.map(gelu_reference).collect();
    Ok(Outcome {
        name: "gelu".into(),
        error: largest_error(halves(&bench.read(&out)?), &expected),
        tolerance: 2e-3,
    })
}

/// In fp32, four sums at once: the products of fp16 numbers are exact, and the error of the sums is
/// far below what is compared.
fn product(input: &[f32], weights: &[f32]) -> f64 {
    let mut sums = [0.0_f64; 4];
    for (input, weights) in input.chunks(4).zip(weights.chunks(4)) {
        for (sum, (x, w)) in sums.iter_mut().zip(input.iter().zip(weights)) {
            *sum += f64::from(x * w);
        }
    }
    sums.iter().sum()
}

fn check_linear<M: Machine>(
    bench: &Workbench<'_, M>,
    [rows, inputs, outputs]: [usize; 3],
    tile: TileShape,
    finish: Finish,
    noise: &mut Noise,
) -> Result<Outcome, GpuFault> {
    let input = noise.halves(rows * inputs, 2.0);
    let weights = noise.halves(outputs * inputs, 4.0 / (inputs as f32).sqrt());
    let bias = noise.halves(outputs, 1.0);
    let residual = noise.halves(rows * outputs, 2.0);
    let placed = [
        bench.place(&input)?,
        bench.place(&weights)?,
        bench.place(&bias)?,
    ];
    let added = bench.place(&residual)?;
    let out = bench.poisoned::<f16>(rows * outputs)?;
    let launch = LinearLaunch {
        rows,
        inputs,
        outputs,
        input: placed[0].address(),
        weights: placed[1].address(),
        bias: placed[2].address(),
        out: out.address(),
        finish: match finish {
            Finish::Residual(_) => Finish::Residual(added.address()),
            other => other,
        },
        tile,
    }
    .launch();
    run(bench, std::slice::from_ref(&launch))?;
    let widened = |values: &[f16]| values.iter().map(|x| x.to_f32()).collect::<Vec<_>>();
    let (input, weights) = (widened(&input), widened(&weights));
    let expected: Vec<f64> = (0..rows * outputs)
        .map(|at| {
            let (row, output) = (at / outputs, at % outputs);
            let sum = product(
                &input[row * inputs..][..inputs],
                &weights[output * inputs..][..inputs],
            );
            let sum = sum + bias[output].to_f64();
            match finish {
                Finish::Plain => sum,
                Finish::Gelu => gelu_reference(sum),
                Finish::Residual(_) => sum + residual[at].to_f64(),
            }
        })
        .collect();
    Ok(Outcome {
        name: format!("{} {rows} x {inputs} x {outputs}", launch.kernel),
        error: largest_error(halves(&bench.read(&out)?), &expected),
        tolerance: 3e-3,
    })
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

fn check_attention<M: Machine>(
    bench: &Workbench<'_, M>,
    head_size: usize,
    effort: Effort,
    noise: &mut Noise,
) -> Result<Outcome, GpuFault> {
    let heads = if effort == Effort::Full { 12 } else { 2 };
    let lengths = lengths(effort);
    let (starts, tiles) = starts_and_tiles(&lengths);
    let rows: usize = lengths.iter().sum();
    let packed = noise.halves(rows * 3 * heads * head_size, 4.0);
    let placed = [bench.place(&starts)?, bench.place(&tiles)?];
    let inputs = bench.place(&packed)?;
    let out = bench.poisoned::<f16>(rows * heads * head_size)?;
    let launch = AttentionLaunch {
        heads,
        head_size,
        tile_count: tiles.len() / 2,
        packed: inputs.address(),
        starts: placed[0].address(),
        tiles: placed[1].address(),
        out: out.address(),
    };
    run(bench, &[launch.launch()])?;
    let packed: Vec<f64> = halves(&packed).collect();
    let expected = attention_reference(&packed, &lengths, heads, head_size);
    Ok(Outcome {
        name: format!("attention, heads of {head_size}, {} texts", lengths.len()),
        error: largest_error(halves(&bench.read(&out)?), &expected),
        tolerance: 2e-3,
    })
}

fn check_pooling<M: Machine>(
    bench: &Workbench<'_, M>,
    width: RowWidth,
    effort: Effort,
    noise: &mut Noise,
) -> Result<Outcome, GpuFault> {
    let (width, lengths) = (width.get(), lengths(effort));
    let (starts, _) = starts_and_tiles(&lengths);
    let total: usize = lengths.iter().sum();
    let rows = noise.halves(total * width, 2.0);
    let placed = (bench.place(&rows)?, bench.place(&starts)?);
    let mut error = 0.0_f64;
    for (pooling, dimensions) in [(Pooling::Mean, width), (Pooling::First, width / 3)] {
        let out = bench.poisoned::<f32>(lengths.len() * dimensions)?;
        let launch = PoolLaunch {
            texts: lengths.len(),
            width,
            dimensions,
            pooling,
            rows: placed.0.address(),
            starts: placed.1.address(),
            out: out.address(),
        };
        run(bench, &[launch.launch()])?;
        let expected: Vec<f64> = starts
            .windows(2)
            .flat_map(|text| {
                let own = &rows[text[0] as usize * width..text[1] as usize * width];
                pool_reference(&halves(own).collect::<Vec<_>>(), width, dimensions, pooling)
            })
            .collect();
        let found = bench.read::<f32>(&out)?;
        let own = largest_error(found.iter().map(|x| f64::from(*x)), &expected);
        error = if own.is_nan() { own } else { error.max(own) };
    }
    Ok(Outcome {
        name: format!("pooling, width {width}"),
        error,
        tolerance: 5e-6,
    })
}

/// Whole numbers, whose scores are exact and often equal: rows must be the same, in the same order.
fn check_nearest<M: Machine>(
    bench: &Workbench<'_, M>,
    k: usize,
    effort: Effort,
    noise: &mut Noise,
) -> Result<Outcome, GpuFault> {
    let (queries, rows, depth) = match effort {
        Effort::Small => (3, 150, 32),
        Effort::Full => (130, 20_011, 384),
    };
    let mut whole = |count: usize| -> Vec<f16> {
        (0..count)
            .map(|_| f16::from_f32(noise.below(5) as f32 - 2.0))
            .collect()
    };
    let (query_data, row_data) = (whole(queries * depth), whole(rows * depth));
    let live: Vec<u32> = (0..rows.div_ceil(32))
        .map(|_| noise.next_u64() as u32)
        .collect();
    let parts = NearestParts::choose(rows, queries, if effort == Effort::Full { 132 } else { 1 });
    let placed = [
        bench.place(&query_data)?,
        bench.place(&row_data)?,
        bench.place(&live)?,
    ];
    let lists = parts.parts * queries * k;
    let between = (bench.poisoned::<f32>(lists)?, bench.poisoned::<u32>(lists)?);
    let best = (
        bench.poisoned::<f32>(queries * k)?,
        bench.poisoned::<u32>(queries * k)?,
    );
    let launch = NearestLaunch {
        queries,
        rows,
        depth,
        k,
        parts,
        query_data: placed[0].address(),
        row_data: placed[1].address(),
        live: placed[2].address(),
        part_scores: between.0.address(),
        part_lists: between.1.address(),
        best_scores: best.0.address(),
        best_rows: best.1.address(),
    };
    run(bench, &launch.launches())?;
    let found = bench.read::<u32>(&best.1)?;
    let widened = |values: &[f16]| values.iter().map(|x| x.to_f32()).collect::<Vec<_>>();
    let (query_data, row_data) = (widened(&query_data), widened(&row_data));
    let is_live = |row: &usize| live[row / 32] >> (row % 32) & 1 == 1;
    let wrong = (0..queries).filter(|query| {
        let own = &query_data[query * depth..][..depth];
        let score = |row: usize| (product(own, &row_data[row * depth..][..depth]), row as u32);
        let mut hits: Vec<(f64, u32)> = (0..rows).filter(is_live).map(score).collect();
        hits.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        hits.truncate(k);
        let expected: Vec<u32> = hits.into_iter().map(|hit| hit.1).collect();
        found[query * k..][..k] != expected[..]
    });
    Ok(Outcome {
        name: format!("nearest {k} of {rows} rows, {queries} queries: wrong answers"),
        error: wrong.count() as f64,
        tolerance: 0.0,
    })
}

/// Both lanes of an encoder with random weights; the error is 1 - cosine at worst.
fn check_encoder<M: Machine>(
    machine: M,
    effort: Effort,
    noise: &mut Noise,
) -> Result<Outcome, GpuFault> {
    let layers = if effort == Effort::Full { 3 } else { 1 };
    let mut tiny = TinyModel::of(BertShape {
        positions: 512,
        ..TinyModel::shape(layers, 12, 32)
    });
    tiny.shape.pooling = Pooling::Mean;
    let file = as_safetensors(&tiny, Dtype::F32, "");
    let image = WeightLayout::of(&tiny.shape)
        .read(&file)
        .unwrap_or_default();
    let wrong = |detail: String| GpuFault {
        doing: "checking an encoder".into(),
        detail,
        kind: crate::machine::FaultKind::Refused,
    };
    let encoder = Encoder::open(machine, tiny.shape, &image, None)
        .map_err(|error| wrong(error.to_string()))?;
    let lengths = if effort == Effort::Full {
        vec![1, 5, 12, 64, 65, 200, 511]
    } else {
        vec![2, 9]
    };
    let texts: Vec<Vec<u32>> = (lengths.iter())
        .map(|length| (0..*length).map(|_| noise.below(100) as u32).collect())
        .collect();
    let texts: Vec<&[u32]> = texts.iter().map(Vec::as_slice).collect();
    let mut error = 0.0_f64;
    for lane in [Lane::Query, Lane::Bulk] {
        let vectors = encoder
            .encode(lane, &texts)
            .map_err(|error| wrong(error.to_string()))?;
        for (text, vector) in texts.iter().zip(&vectors) {
            let expected = encode_reference(&tiny, text);
            let products = vector.iter().zip(&expected).map(|(x, y)| f64::from(*x) * y);
            let own = 1.0 - products.sum::<f64>();
            error = if own.is_nan() { own } else { error.max(own) };
        }
    }
    Ok(Outcome {
        name: format!(
            "encoder of {layers} layers, {} texts: 1 - cosine",
            texts.len()
        ),
        error,
        tolerance: 5e-5,
    })
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
