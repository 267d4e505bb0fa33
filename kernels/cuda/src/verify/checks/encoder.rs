//! A check of a whole encoder.
//!
//! Invariant: both lanes are asked for every text.

use super::super::model::{TinyModel, as_safetensors, encode_reference};
use super::super::noise::Noise;
use super::super::worst::{inner_product, worst, worst_of_pairs};
use super::{Effort, Outcome};
use crate::encoder::{EncodeError, Encoder, OpenError};
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
    let encoder =
        Encoder::open(machine, tiny.shape, &image, None).map_err(|error| match error {
            OpenError::Fault(fault) => fault,
            other => refused(&other.to_string()),
        })?;
    let lengths = if effort == Effort::Full {
        vec![1, 5, 12, 64, 65, 200, 511]
    } else {
        vec![2, 9]
    };
    let texts: Vec<Vec<u32>> = (lengths.iter())
        .map(|length| (0..*length).map(|_| noise.below(100) as u32).collect())
        .collect();
    let texts: Vec<&[u32]> = texts.iter().map(Vec::as_slice).collect();
    let mut errors = Vec::new();
    for lane in [Lane::Query, Lane::Bulk] {
        let vectors = encoder.encode(lane, &texts).map_err(|error| match error {
            EncodeError::Fault(fault) => fault,
            other => refused(&other.to_string()),
        })?;
        errors.push(worst_of_pairs(&vectors, &texts, |vector, text| {
            1.0 - inner_product(vector, encode_reference(&tiny, text).into_iter())
        }));
    }
    Ok(Outcome {
        name: format!(
            "encoder of {layers} layers, {} texts: 1 - cosine",
            texts.len()
        ),
        error: worst(errors),
        tolerance: 5e-5,
    })
}

/// The machine is whole, and the encoder is not what it should be.
fn refused(detail: &str) -> GpuFault {
    GpuFault {
        doing: "checking an encoder".into(),
        detail: detail.into(),
        kind: FaultKind::Refused,
    }
}
