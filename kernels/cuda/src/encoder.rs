//! A model on one device: tokens of texts in, vectors out, from any thread.
//!
//! Each lane has slots of its own. A query's go on queues of high priority and replay what they have
//! recorded; bulk calls cut their texts into pieces and keep as many under way as there are idle slots,
//! so the next piece is written and copied while one is computed.
//!
//! Invariant: vectors come in the order of the texts, one each, of finite numbers; a text without tokens
//! has zeros. Errors name a text by its place in the call.

use crate::batch::{BatchError, BatchSize, RaggedBatch, check_text};
use crate::forward::PlacedModel;
use crate::launches::QUERIES_PER_TILE;
use crate::machine::{DeviceMemory, GpuFault, Machine, Urgency};
use crate::shape::{BertShape, ShapeError};
use crate::sizes::{BULK_SLOTS, QUERY_SLOTS, Sizes, TooSmall};
use crate::slot::{Replay, Slot};
use crate::slot_pool::{SlotPool, Taken};
use crate::upload::upload;
use crate::weights::WeightLayout;
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use vectide_model::Lane;

/// Why a model can't be opened on a device.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// There are no kernels for it.
    #[error(transparent)]
    Shape(#[from] ShapeError),
    /// It does not fit.
    #[error(transparent)]
    Size(#[from] TooSmall),
    /// The device failed.
    #[error(transparent)]
    Fault(#[from] GpuFault),
    /// The image is another shape's.
    #[error("the weights' image has {found} bytes, and the model's shape needs {expected}")]
    Image {
        /// Bytes of the image.
        found: usize,
        /// Bytes of the layout.
        expected: usize,
    },
}

/// Why texts have no vectors.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// A text can't be the model's.
    #[error(transparent)]
    Batch(#[from] BatchError),
    /// A number inside of the model was too large for fp16, and what was computed of it is not a number.
    #[error("text {text} has no vector: the model overflows fp16 on it")]
    Overflow {
        /// Which text.
        text: usize,
    },
    /// The device failed.
    #[error(transparent)]
    Fault(#[from] GpuFault),
}

/// The encoder.
pub struct Encoder<M: Machine> {
    // Slots are dropped before the weights they read, and all before the machine.
    query: SlotPool<Slot<M>>,
    bulk: SlotPool<Slot<M>>,
    model: Arc<PlacedModel>,
    sizes: Sizes,
    _weights: M::Memory,
    _machine: M,
}

impl<M: Machine> Encoder<M> {
    /// Opens a model whose weights are `image` (see [`WeightLayout::read`]), with at most
    /// `budget_bytes` of the device's memory.
    ///
    /// # Errors
    /// When there are no kernels for the model, it does not fit, or the device fails.
    pub fn open(
        machine: M,
        shape: BertShape,
        image: &[u8],
        budget_bytes: Option<usize>,
    ) -> Result<Self, OpenError> {
        shape.check()?;
        let expected = WeightLayout::of(&shape).bytes;
        if image.len() != expected {
            return Err(OpenError::Image {
                found: image.len(),
                expected,
            });
        }
        let sizes = Sizes::choose(&shape, machine.free_bytes()?, budget_bytes)?;
        let weights = upload(&machine, image.len(), |range, to| {
            to.copy_from_slice(&image[range]);
        })?;
        let model = PlacedModel::new(shape, weights.address(), machine.multiprocessors())?;
        let model = Arc::new(model);
        let slots = |count, largest, urgency, replay| {
            (0..count)
                .map(|_| Slot::new(&machine, model.clone(), largest, urgency, replay))
                .collect::<Result<Vec<_>, _>>()
        };
        let mut query = slots(QUERY_SLOTS, sizes.query, Urgency::High, Replay::Short)?;
        for slot in &mut query {
            slot.record_all()?;
        }
        let bulk = slots(BULK_SLOTS, sizes.bulk, Urgency::Low, Replay::Never)?;
        Ok(Self {
            query: SlotPool::new(query),
            bulk: SlotPool::new(bulk),
            model,
            sizes,
            _weights: weights,
            _machine: machine,
        })
    }

    /// The model's sizes.
    pub fn shape(&self) -> &BertShape {
        &self.model.shape
    }

    /// What the device's memory is used for.
    pub fn sizes(&self) -> Sizes {
        self.sizes
    }

    /// The vectors of texts' tokens.
    ///
    /// # Errors
    /// When a text is not the model's, or the device failed; no vector is of use then.
    pub fn encode(&self, lane: Lane, texts: &[&[u32]]) -> Result<Vec<Vec<f32>>, EncodeError> {
        let (pool, largest) = match lane {
            Lane::Query => (&self.query, self.sizes.query),
            Lane::Bulk => (&self.bulk, self.sizes.bulk),
        };
        // All of them before the first is computed: a call that is refused costs nothing.
        for (text, tokens) in texts.iter().enumerate() {
            check_text(text, tokens, &self.model.shape)?;
        }
        let places: Vec<usize> = (0..texts.len())
            .filter(|at| !texts[*at].is_empty())
            .collect();
        let lengths: Vec<usize> = places.iter().map(|at| texts[*at].len()).collect();
        let mut vectors = vec![vec![0.0; self.model.shape.dimensions]; texts.len()];
        let mut keep = |under_way: &mut UnderWay<'_, M>| -> Result<(), EncodeError> {
            let found = under_way.slot.collect()?;
            for (place, vector) in places[under_way.piece.clone()].iter().zip(found) {
                if !vector.iter().all(|x| x.is_finite()) {
                    return Err(EncodeError::Overflow { text: *place });
                }
                vectors[*place] = vector;
            }
            Ok(())
        };
        let mut all_under_way: VecDeque<UnderWay<'_, M>> = VecDeque::new();
        for piece in pieces(&lengths, largest) {
            let own: Vec<&[u32]> = places[piece.clone()].iter().map(|at| texts[*at]).collect();
            let batch = RaggedBatch::new(&own, &self.model.shape)?;
            let mut slot = match pool.try_take() {
                Some(slot) => slot,
                None => match all_under_way.pop_front() {
                    Some(mut oldest) => {
                        keep(&mut oldest)?;
                        oldest.slot
                    }
                    None => pool.take(),
                },
            };
            slot.submit(&batch)?;
            all_under_way.push_back(UnderWay { slot, piece });
        }
        for under_way in &mut all_under_way {
            keep(under_way)?;
        }
        Ok(vectors)
    }
}

/// A piece of a call that a slot computes.
struct UnderWay<'a, M: Machine> {
    slot: Taken<'a, Slot<M>>,
    piece: Range<usize>,
}

/// Cuts texts of these lengths into batches, in order, none above `largest`. Every slot holds the model's
/// longest text.
fn pieces(lengths: &[usize], largest: BatchSize) -> Vec<Range<usize>> {
    let mut pieces = Vec::new();
    let mut start = 0;
    let mut size = BatchSize {
        rows: 0,
        texts: 0,
        tiles: 0,
    };
    for (at, length) in lengths.iter().enumerate() {
        let with = BatchSize {
            rows: size.rows + length,
            texts: size.texts + 1,
            tiles: size.tiles + length.div_ceil(QUERIES_PER_TILE),
        };
        if size.texts > 0 && !largest.holds(with) {
            pieces.push(start..at);
            start = at;
            size = BatchSize {
                rows: *length,
                texts: 1,
                tiles: length.div_ceil(QUERIES_PER_TILE),
            };
        } else {
            size = with;
        }
    }
    if size.texts > 0 {
        pieces.push(start..lengths.len());
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::FaultKind;
    use crate::testing::{EmulatedMachine, Noise, TinyModel, as_safetensors, encode_reference};
    use proptest::prelude::*;
    use safetensors::Dtype;

    fn open(
        tiny: &TinyModel,
        machine: EmulatedMachine,
    ) -> Result<Encoder<EmulatedMachine>, OpenError> {
        let layout = WeightLayout::of(&tiny.shape);
        let image = layout.read(&as_safetensors(tiny, Dtype::F32, "")).unwrap();
        Encoder::open(machine, tiny.shape, &image, None)
    }

    fn random_texts(lengths: &[usize]) -> Vec<Vec<u32>> {
        let mut noise = Noise::new(3);
        (lengths.iter())
            .map(|length| (0..*length).map(|_| noise.below(100) as u32).collect())
            .collect()
    }

    #[test]
    fn both_lanes_give_every_text_its_vector() {
        let tiny = TinyModel::new(1, 12, 32);
        let encoder = open(&tiny, EmulatedMachine::new()).unwrap();
        let texts = random_texts(&[4, 0, 20, 70, 1, 33, 0, 2]);
        let texts: Vec<&[u32]> = texts.iter().map(Vec::as_slice).collect();
        let bulk = encoder.encode(Lane::Bulk, &texts).unwrap();
        let query = encoder.encode(Lane::Query, &texts).unwrap();
        assert_eq!(bulk, query);
        for (text, vector) in texts.iter().zip(&bulk) {
            let expected = encode_reference(&tiny, text);
            let products = vector.iter().zip(&expected).map(|(x, y)| f64::from(*x) * y);
            let cosine: f64 = products.sum();
            assert!(
                if text.is_empty() {
                    cosine == 0.0
                } else {
                    cosine > 0.999_98
                },
                "{cosine}"
            );
        }
        assert!(encoder.encode(Lane::Bulk, &[]).unwrap().is_empty());
    }

    /// More pieces than slots: slots are used again while others are under way. No layers: only where
    /// vectors go is looked at.
    #[test]
    fn a_call_of_many_pieces_keeps_its_order() {
        let tiny = TinyModel::new(0, 12, 32);
        let mut encoder = open(&tiny, EmulatedMachine::new()).unwrap();
        encoder.sizes.bulk = BatchSize::of_at_most(80, 2);
        let texts = random_texts(&[9; 11]);
        let texts: Vec<&[u32]> = texts.iter().map(Vec::as_slice).collect();
        let together = encoder.encode(Lane::Bulk, &texts).unwrap();
        for (text, vector) in texts.iter().zip(&together) {
            assert_eq!(encoder.encode(Lane::Query, &[text]).unwrap()[0], *vector);
        }
    }

    #[test]
    fn a_fault_is_told_and_slots_go_back() {
        let tiny = TinyModel::new(0, 12, 32);
        let machine = EmulatedMachine::new();
        let faults = machine.faults();
        let encoder = open(&tiny, machine).unwrap();
        let text: &[u32] = &[1, 2, 3];
        let right = encoder.encode(Lane::Bulk, &[text]).unwrap();
        // Upload, two launches, download, wait.
        for calls in 0..5 {
            faults.fail_after(calls, FaultKind::Refused);
            let failed = encoder.encode(Lane::Bulk, &[text; 4]);
            assert!(matches!(failed, Err(EncodeError::Fault(_))), "{calls}");
        }
        faults.never();
        for _ in 0..2 * BULK_SLOTS {
            assert_eq!(encoder.encode(Lane::Bulk, &[text]).unwrap(), right);
        }
    }

    /// Errors once named a text by its place in its own piece, and without those that have no tokens.
    #[test]
    fn a_text_that_is_refused_is_named_before_anything_is_computed() {
        let tiny = TinyModel::new(0, 12, 32);
        let machine = EmulatedMachine::new();
        let faults = machine.faults();
        let mut encoder = open(&tiny, machine).unwrap();
        encoder.sizes.bulk = BatchSize::of_at_most(80, 2);
        faults.fail_after(0, FaultKind::Refused);
        let mut texts: Vec<&[u32]> = vec![&[], &[1], &[2], &[3], &[], &[4]];
        texts.push(&[100]);
        let error = encoder.encode(Lane::Bulk, &texts).unwrap_err();
        assert!(
            error.to_string().starts_with("text 6 has token 100"),
            "{error}"
        );
        let long = [1; 81];
        texts[5] = &long;
        let error = encoder.encode(Lane::Bulk, &texts).unwrap_err();
        assert!(
            error.to_string().starts_with("text 5 has 81 tokens"),
            "{error}"
        );
    }

    /// A norm whose scale fp32 holds and fp16 does not.
    #[test]
    fn a_vector_that_is_not_finite_is_an_error_that_names_its_text() {
        let mut tiny = TinyModel::new(0, 12, 32);
        let norm =
            (tiny.tensors.iter_mut()).find(|tensor| tensor.0 == "embeddings.LayerNorm.weight");
        norm.unwrap().2[7] = 1e30;
        let encoder = open(&tiny, EmulatedMachine::new()).unwrap();
        for lane in [Lane::Query, Lane::Bulk] {
            let error = encoder.encode(lane, &[&[], &[], &[1, 2]]);
            assert_eq!(error, Err(EncodeError::Overflow { text: 2 }));
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let tiny = TinyModel::new(1, 12, 32);
        let encoder = open(&tiny, EmulatedMachine::new()).unwrap();
        let error = encoder.encode(Lane::Query, &[&[1; 81]]).unwrap_err();
        assert!(error.to_string().contains("81 tokens"), "{error}");
        let error = encoder.encode(Lane::Query, &[&[100]]).unwrap_err();
        assert!(error.to_string().contains("token 100"), "{error}");
        let error = Encoder::open(EmulatedMachine::new(), tiny.shape, &[0; 8], None);
        assert!(matches!(error, Err(OpenError::Image { found: 8, .. })));
        let small = Encoder::open(
            EmulatedMachine::new(),
            tiny.shape,
            &vec![0; WeightLayout::of(&tiny.shape).bytes],
            Some(1 << 20),
        );
        assert!(matches!(small, Err(OpenError::Size(_))));
    }

    proptest! {
        #[test]
        fn pieces_hold_all_texts_once(lengths in prop::collection::vec(1..80_usize, 0..60)) {
            let largest = BatchSize::of_at_most(200, 8);
            let pieces = pieces(&lengths, largest);
            let mut next = 0;
            for piece in pieces {
                prop_assert_eq!(piece.start, next);
                let own = &lengths[piece.clone()];
                prop_assert!(!own.is_empty() && own.len() <= 8);
                prop_assert!(own.iter().sum::<usize>() <= 200);
                next = piece.end;
            }
            prop_assert_eq!(next, lengths.len());
        }
    }
}
