//! Where a model's vectors are computed: on the processor, or on an accelerator with the processor behind
//! it.
//!
//! ```text
//!   opened, checked                 call fails: the processor makes it
//!   ---------------> ACCELERATED --------------------------------------> ACCELERATED
//!                         |
//!                         +-- lost, or too many calls failed in a row --> GIVEN UP: the processor makes all
//! ```
//!
//! The processor's weights stay in memory beside an accelerator's. Read again when the accelerator is
//! lost they would cost a second of a query's time or many, and the files might be gone or others by
//! then, when nothing else is left; what they take is little beside the memory of machines with GPUs.
//!
//! Invariant: a call always has its vectors, and an accelerator's are used only if it has passed
//! [`crate::self_check`] when the model was opened.

use crate::cpu::{Backend, Encoder, EncoderShape, Pooling, Products, bf16_unit};
use crate::self_check;
use crate::sentence_encoder::EncoderOptions;
use crate::telemetry;
use crate::tokenize::Tokenizer;
use std::num::NonZero;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use vectide_model::{
    AcceleratedEncoder, Accelerator, AcceleratorFault, BertSizes, ComponentError, Device, Lane,
    NoAccelerator, Precision, TokenPooling,
};

/// Tokens of a micro-batch on the processor: enough rows to keep the weights' traffic small beside the
/// arithmetic, few enough that a small model takes less than a tenth of a second and 8 MB of scratch
/// memory (one of a width of 1,024 takes 21 MB). A text of more tokens is a micro-batch of its own.
const MICRO_BATCH_TOKENS: usize = 512;
/// Calls that fail one after the other before the accelerator is given up: each costs its time on the
/// device and the processor's as well, and what has failed eight times is no accident of one text.
const FAILURES_IN_A_ROW_MAX: usize = 8;

/// A model's sizes as accelerators know them. All that a shape has is named, so that nothing that is added
/// to it is left out in silence: what has no place in [`BertSizes`] must be an error here that names the
/// model's architecture.
fn sizes(shape: EncoderShape, dimensions: usize) -> Result<BertSizes, NoAccelerator> {
    if !shape.is_plain_bert() {
        return Err(NoAccelerator(
            "CUDA computes BERT as it was published, and this model is of another architecture"
                .into(),
        ));
    }
    let EncoderShape {
        vocabulary,
        positions,
        token_types,
        layers,
        attention,
        intermediate,
        variance_floor,
        pooling,
        architecture: _,
    } = shape;
    Ok(BertSizes {
        vocabulary,
        positions,
        first_position: 0,
        token_types,
        layers,
        heads: attention.heads,
        head_size: attention.head_size,
        intermediate,
        variance_floor,
        pooling: match pooling {
            Pooling::Mean => TokenPooling::Mean,
            Pooling::First => TokenPooling::First,
        },
        dimensions,
    })
}

/// Whether the configuration leaves it to an accelerator which numbers it computes with.
fn leaves_numbers_open(config: &EncoderOptions) -> Result<(), NoAccelerator> {
    match config.precision {
        Precision::Auto => Ok(()),
        Precision::F32 | Precision::Bf16 => Err(NoAccelerator(
            "CUDA computes in fp16, and `precision` asks for other numbers".into(),
        )),
    }
}

fn refused(NoAccelerator(why): NoAccelerator) -> ComponentError {
    ComponentError::new(
        "device",
        format!("`device: cuda` can't be had: {why}"),
        "put that right (vectide's docs/GPU.md says what is needed), or use `device: auto` or `device: cpu`",
    )
}

/// Tells before any large file is read that an accelerator is asked for by name and can't be had.
///
/// # Errors
/// When that is so.
pub(crate) fn look(
    config: &EncoderOptions,
    shape: EncoderShape,
    dimensions: usize,
    accelerator: &dyn Accelerator,
) -> Result<(), ComponentError> {
    if config.device != Device::Cuda {
        return Ok(());
    }
    let looked = leaves_numbers_open(config)
        .and_then(|()| sizes(shape, dimensions))
        .and_then(|sizes| accelerator.look(&sizes));
    looked.map(|_| ()).map_err(refused)
}

/// What a model is computed of.
pub(crate) struct ComputeParts<'a> {
    /// For log lines.
    pub(crate) name: &'a str,
    /// Which device is wanted, and how much of it.
    pub(crate) config: &'a EncoderOptions,
    /// What the program has.
    pub(crate) accelerator: &'a dyn Accelerator,
    /// Contents of `model.safetensors`.
    pub(crate) weights: &'a [u8],
    /// Sizes and arithmetic.
    pub(crate) shape: EncoderShape,
    /// Dimensions kept.
    pub(crate) dimensions: usize,
    /// The processor's instruction set and numbers.
    pub(crate) processor: (Backend, Products),
    /// Of the model.
    pub(crate) tokenizer: &'a Tokenizer,
}

/// A model, ready to compute.
pub(crate) struct Compute {
    processor: Encoder,
    accelerated: Option<Accelerated>,
    device: String,
    dimensions: usize,
}

impl Compute {
    /// Reads the weights for the processor and opens the accelerator, as the configuration wants; tells
    /// in one line which of them computes, and why it is not the accelerator.
    ///
    /// # Errors
    /// When the weights do not fit the shape (`path`), or an accelerator is asked for by name and can't
    /// be had (`device`).
    pub(crate) fn open(parts: &ComputeParts<'_>) -> Result<Self, ComponentError> {
        let (backend, products) = parts.processor;
        let processor = Encoder::read(parts.weights, parts.shape, backend, products);
        let processor = processor.map_err(|error| {
            ComponentError::new(
                "path",
                format!("{}: {error}", parts.name),
                "copy all files again from the same revision of the model's repository",
            )
        })?;
        let accelerated = match parts.config.device {
            Device::Cpu => None,
            Device::Cuda => Some(open_accelerated(parts, &processor).map_err(refused)?),
            Device::Auto => open_accelerated(parts, &processor)
                .inspect_err(|why| {
                    tracing::info!(model = parts.name, %why, "embedding on the CPU");
                })
                .ok(),
        };
        let device = match (&accelerated, products) {
            (Some(accelerated), _) => accelerated.encoder.device().to_owned(),
            (None, Products::F32) => format!("cpu ({})", backend.name()),
            (None, Products::Bf16) => format!("cpu ({}, {})", backend.name(), bf16_unit()),
        };
        if accelerated.is_some() {
            tracing::info!(model = parts.name, device, "embedding on an accelerator");
        }
        Ok(Self {
            processor,
            accelerated,
            device,
            dimensions: parts.dimensions,
        })
    }

    /// For a person.
    pub(crate) fn device(&self) -> &str {
        &self.device
    }

    /// Tokens that a call of [`Compute::encode`] should have.
    pub(crate) fn tokens_per_call(&self) -> usize {
        let accelerated = self.in_use();
        accelerated.map_or(MICRO_BATCH_TOKENS, |it| it.encoder.tokens_per_call())
    }

    /// How many threads should embed in bulk. One a core, for they are of low priority and give way to
    /// whatever else runs; and for an accelerator one for each call that it takes and two more, which
    /// make tokens for the next meanwhile.
    pub(crate) fn bulk_threads(&self) -> usize {
        let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
        let accelerated = self.accelerated.as_ref();
        accelerated.map_or(cores, |it| cores.max(it.encoder.calls_at_once() + 2))
    }

    /// The vectors of texts given as token ids, as for [`Encoder::encode`]; of so many as there are, in
    /// calls of the size that the device wants.
    pub(crate) fn encode(&self, lane: Lane, texts: &[&[u32]]) -> Vec<Vec<f32>> {
        let calls = calls(texts, self.tokens_per_call());
        calls.flat_map(|call| self.call(lane, call)).collect()
    }

    fn call(&self, lane: Lane, texts: &[&[u32]]) -> Vec<Vec<f32>> {
        let accelerated = self.in_use();
        let vectors = accelerated.and_then(|it| it.encode(lane, texts, self.dimensions));
        vectors.unwrap_or_else(|| encode_on(&self.processor, texts, self.dimensions))
    }

    fn in_use(&self) -> Option<&Accelerated> {
        let accelerated = self.accelerated.as_ref();
        accelerated.filter(|it| !it.is_given_up.load(Ordering::Relaxed))
    }
}

/// On the processor, in micro-batches.
fn encode_on(processor: &Encoder, texts: &[&[u32]], dimensions: usize) -> Vec<Vec<f32>> {
    let batches = calls(texts, MICRO_BATCH_TOKENS);
    let vectors = batches.flat_map(|batch| processor.encode(batch, dimensions));
    vectors.collect()
}

/// Cuts texts into runs of at most so many tokens; a text of more is a run of its own.
fn calls<'a>(texts: &'a [&'a [u32]], tokens_max: usize) -> impl Iterator<Item = &'a [&'a [u32]]> {
    let mut rest = texts;
    std::iter::from_fn(move || {
        let mut tokens = 0;
        let fits = |ids: &&&[u32]| {
            tokens += ids.len();
            tokens <= tokens_max
        };
        let count = rest.iter().take_while(fits).count().max(1);
        let call;
        (call, rest) = rest.split_at_checked(count)?;
        Some(call)
    })
}

/// Opens the accelerator and compares it with the processor, which must compute in 32 bits for that: what
/// bfloat16 loses is no fault of the accelerator.
fn open_accelerated(
    parts: &ComputeParts<'_>,
    processor: &Encoder,
) -> Result<Accelerated, NoAccelerator> {
    leaves_numbers_open(parts.config)?;
    let sizes = sizes(parts.shape, parts.dimensions)?;
    let memory_bytes_max = parts.config.device_memory.map(|size| size.as_usize());
    let encoder = (parts.accelerator).open(&sizes, parts.weights, memory_bytes_max)?;
    let texts = self_check::texts(parts.tokenizer);
    let (backend, products) = parts.processor;
    let in_32_bits = match products {
        Products::F32 => None,
        Products::Bf16 => {
            let read = Encoder::read(parts.weights, parts.shape, backend, Products::F32);
            Some(read.map_err(|error| NoAccelerator(error.to_string()))?)
        }
    };
    let reference = in_32_bits.as_ref().unwrap_or(processor);
    let texts: Vec<&[u32]> = texts.iter().map(Vec::as_slice).collect();
    let expected = encode_on(reference, &texts, parts.dimensions);
    self_check::compare(&*encoder, &texts, &expected)?;
    Ok(Accelerated {
        encoder,
        is_given_up: AtomicBool::new(false),
        failures_in_a_row: AtomicUsize::new(0),
    })
}

/// An accelerator that has passed its check.
struct Accelerated {
    encoder: Box<dyn AcceleratedEncoder>,
    is_given_up: AtomicBool,
    failures_in_a_row: AtomicUsize,
}

impl Accelerated {
    /// The vectors, or `None` where the processor has to make them.
    fn encode(&self, lane: Lane, texts: &[&[u32]], dimensions: usize) -> Option<Vec<Vec<f32>>> {
        let fault = match self.encoder.encode(lane, texts) {
            Ok(vectors) if self_check::are_of(&vectors, texts.len(), dimensions) => {
                self.failures_in_a_row.store(0, Ordering::Relaxed);
                return Some(vectors);
            }
            Ok(_) => AcceleratorFault::Failed("not a vector of finite numbers a text".into()),
            Err(fault) => fault,
        };
        telemetry::count_failed_call();
        match fault {
            AcceleratorFault::Failed(why) => {
                let failures = 1 + self.failures_in_a_row.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(
                    why,
                    "a call has failed on the accelerator; the CPU makes it"
                );
                if failures >= FAILURES_IN_A_ROW_MAX {
                    self.give_up(&format!("{failures} calls in a row have failed"));
                }
            }
            AcceleratorFault::Lost(why) => self.give_up(&why),
        }
        None
    }

    /// Told and counted once: calls that were under way end here too.
    fn give_up(&self, why: &str) {
        if !self.is_given_up.swap(true, Ordering::Relaxed) {
            telemetry::count_given_up();
            let device = self.encoder.device();
            tracing::error!(device, why, "embedding goes on on the CPU");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_cut_into_calls_by_their_tokens() {
        let ids = [0; 20];
        let lengths = |lengths: &[usize]| {
            let texts: Vec<&[u32]> = lengths.iter().map(|length| &ids[..*length]).collect();
            let calls = calls(&texts, 10);
            calls.map(<[_]>::len).collect::<Vec<_>>()
        };
        assert_eq!(lengths(&[]), [0; 0]);
        assert_eq!(lengths(&[2, 8, 3, 7, 1]), [2, 2, 1]);
        assert_eq!(lengths(&[11, 20, 1, 9, 12]), [1, 1, 2, 1]);
        assert_eq!(lengths(&[0, 0, 10, 0]), [4]);
    }
}
