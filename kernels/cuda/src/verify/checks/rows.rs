//! Checks of what is done row by row, and of pooling.
//!
//! Invariant: expected numbers are computed in f64 from the very numbers that were placed.

use super::super::noise::Noise;
use super::super::reference::{normalise_reference, pool_reference};
use super::super::workbench::Workbench;
use super::super::worst::{worst, worst_difference};
use super::{Effort, Outcome, halves, lengths, run, starts_and_tiles};
use crate::launch::Address;
use crate::launches::{EmbedLaunch, NormaliseLaunch, PoolLaunch, Pooling, RowWidth};
use crate::machine::{GpuFault, Machine};
use half::f16;

pub(super) fn check_embeddings<M: Machine>(
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
        error: worst_difference(halves(&bench.read(&out)?), &expected),
        tolerance: 3e-3,
    })
}

pub(super) fn check_norm<M: Machine>(
    bench: &Workbench<'_, M>,
    width: RowWidth,
    rows: usize,
    noise: &mut Noise,
) -> Result<Outcome, GpuFault> {
    let columns = width.get();
    let input = noise.halves(rows * columns, 4.0);
    let (scale, shift) = (noise.floats(columns, 2.0), noise.floats(columns, 1.0));
    let placed = bench.place(&input)?;
    let norm = [bench.place(&scale)?, bench.place(&shift)?];
    let out = bench.poisoned::<f16>(rows * columns)?;
    let launch = NormaliseLaunch {
        width,
        rows,
        input: placed.address(),
        scale: norm[0].address(),
        shift: norm[1].address(),
        out: out.address(),
        epsilon: 1e-12,
    };
    run(bench, &[launch.launch()])?;
    let input: Vec<f64> = halves(&input).collect();
    let expected: Vec<f64> = (input.chunks_exact(columns))
        .flat_map(|row| normalise_reference(row, &scale, &shift, 1e-12))
        .collect();
    Ok(Outcome {
        name: format!("layer normalisation, width {columns}"),
        error: worst_difference(halves(&bench.read(&out)?), &expected),
        tolerance: 3e-3,
    })
}

pub(super) fn check_pooling<M: Machine>(
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
    let mut errors = Vec::new();
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
        let found = found.iter().map(|x| f64::from(*x));
        errors.push(worst_difference(found, &expected));
    }
    Ok(Outcome {
        name: format!("pooling, width {width}"),
        error: worst(errors),
        tolerance: 5e-6,
    })
}
