//! The contract of a device that computes an encoder's vectors in the processor's place.
//!
//! An encoder knows texts and tokens, an accelerator knows arithmetic on a device of another kind, and
//! neither crate imports the other: they meet here, and the registry hands the one to the other. What
//! goes over are token ids, the lane and vectors.
//!
//! Invariant: an accelerator is never needed. Whatever it can't do is a value that says why, in one line,
//! and the processor computes instead.

use crate::Lane;

/// How the rows of a text's tokens become its vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenPooling {
    /// Their mean.
    Mean,
    /// The first of them.
    First,
}

/// Sizes and choices of an encoder of the BERT type: layers normalised after each part, absolute
/// positions, GELU by the error function. There is no other here, so a model of another type has no
/// value of this type and can't be handed to an accelerator by mistake.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BertSizes {
    /// Word pieces in the vocabulary.
    pub vocabulary: usize,
    /// Rows of the position table.
    pub positions: usize,
    /// The position of a text's first token: 0, or 2 where the first rows stand for padding.
    pub first_position: usize,
    /// Rows of the type table.
    pub token_types: usize,
    /// Layers.
    pub layers: usize,
    /// Attention heads.
    pub heads: usize,
    /// Numbers of a head.
    pub head_size: usize,
    /// Width between the two halves of the feed-forward network.
    pub intermediate: usize,
    /// Added to the variance in layer normalisations.
    pub variance_floor: f32,
    /// How a text's rows become one.
    pub pooling: TokenPooling,
    /// Numbers of a vector: the first so many of the width.
    pub dimensions: usize,
}

/// Why a model does not run on an accelerator, in one line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NoAccelerator(pub String);

/// Devices of one kind, all that a machine has.
///
/// Obligations, checked by the tests of each implementation:
/// - nothing here panics or ends the process, whatever of drivers and devices is installed;
/// - [`Accelerator::look`] takes no longer than asking a driver, and keeps nothing.
pub trait Accelerator: Send + Sync {
    /// Whether such a model may run here, without its weights; the devices, for a person.
    ///
    /// # Errors
    /// When there is no device, or none that can compute it.
    fn look(&self, sizes: &BertSizes) -> Result<String, NoAccelerator>;

    /// Opens the model on the devices, with at most `memory_bytes_max` of each one's memory. `weights`
    /// are the contents of a safetensors file, named as `BertModel` does.
    ///
    /// # Errors
    /// As for [`Accelerator::look`]; and when the model does not fit, or no device takes it.
    fn open(
        &self,
        sizes: &BertSizes,
        weights: &[u8],
        memory_bytes_max: Option<usize>,
    ) -> Result<Box<dyn AcceleratedEncoder>, NoAccelerator>;
}

/// The accelerator of a program that has none.
pub struct NoBackend;

impl NoBackend {
    fn refusal() -> NoAccelerator {
        NoAccelerator("this build has no CUDA backend".into())
    }
}

impl Accelerator for NoBackend {
    fn look(&self, _: &BertSizes) -> Result<String, NoAccelerator> {
        Err(Self::refusal())
    }

    fn open(
        &self,
        _: &BertSizes,
        _: &[u8],
        _: Option<usize>,
    ) -> Result<Box<dyn AcceleratedEncoder>, NoAccelerator> {
        Err(Self::refusal())
    }
}

/// A call that an accelerator has no vectors for. The processor makes it instead.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AcceleratorFault {
    /// This call; others may be served.
    #[error("{0}")]
    Failed(String),
    /// Every call from now on.
    #[error("{0}")]
    Lost(String),
}

/// A model on an accelerator.
///
/// Obligations. Encoders check the first by comparing with the processor when they open a model, and the
/// second of every answer:
/// - vectors keep a cosine of 0.9999 to those computed in 32 bits;
/// - one vector for each text, in order, of finite numbers;
/// - calls come from many threads at once and block; one on [`Lane::Query`] waits for no bulk work.
pub trait AcceleratedEncoder: Send + Sync {
    /// The devices, for a person: `cuda (NVIDIA H100 80GB HBM3, fp16)`.
    fn device(&self) -> &str;

    /// Tokens that a call should have to keep its devices busy. More is allowed.
    fn tokens_per_call(&self) -> usize;

    /// Bulk calls that are computed or copied at the same time.
    fn calls_at_once(&self) -> usize;

    /// The vectors of texts' tokens, each of length 1, from whichever device has least to do.
    ///
    /// # Errors
    /// When it has none for this call, or for any.
    fn encode(&self, lane: Lane, texts: &[&[u32]]) -> Result<Vec<Vec<f32>>, AcceleratorFault>;

    /// The same call on every device, for the check when the model is opened: each one's name and answer.
    fn encode_on_each(&self, lane: Lane, texts: &[&[u32]]) -> Vec<DeviceAnswer>;
}

/// A device, for a person, and what it gave for a call's texts.
pub type DeviceAnswer = (String, Result<Vec<Vec<f32>>, AcceleratorFault>);
