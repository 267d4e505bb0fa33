//! A check of a whole encoder.
//!
//! Invariant: both lanes are asked for every text.

use super::super::model::{TinyModel, as_safetensors, encode_reference};
use super::super::noise::Noise;
use super::{Effort, Outcome};
use crate::encoder::Encoder;
use crate::launches::Pooling;
use crate::machine::{FaultKind, GpuFault, Machine};
use crate::shape::BertShape;
use crate::weights::WeightLayout;
use safetensors::Dtype;
use vectide_model::Lane;

/// Both lanes of an encoder with random weights; the error is 1 - cosine at worst.
pub(super) fn check_encoder<M: Machine>(
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
        kind: FaultKind::Refused,
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
