//! Checks of what is multiplied: layers, attention, exact search.
//!
//! Invariant: expected numbers are computed from the very numbers that were placed.

use super::super::noise::Noise;
use super::super::reference::{attention_reference, gelu_reference};
use super::super::workbench::Workbench;
use super::super::worst::worst_difference;
use super::{Effort, Outcome, halves, lengths, run, starts_and_tiles};
use crate::launches::{
    AttentionLaunch, Finish, LinearLaunch, NearestLaunch, NearestParts, TileShape,
};
use crate::machine::{GpuFault, Machine};
use half::f16;

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

pub(super) fn check_linear<M: Machine>(
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
        error: worst_difference(halves(&bench.read(&out)?), &expected),
        tolerance: 3e-3,
    })
}

pub(super) fn check_attention<M: Machine>(
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
        error: worst_difference(halves(&bench.read(&out)?), &expected),
        tolerance: 2e-3,
    })
}

/// Whole numbers, whose scores are exact and often equal: rows must be the same, in the same order.
pub(super) fn check_nearest<M: Machine>(
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
