//! What the kernels compute, by its definition and in f64.
//!
//! Invariant: nothing here is fast or clever.

use crate::launches::Pooling;

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
