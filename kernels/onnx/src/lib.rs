//! Sentence encoders in ONNX format: any architecture that can be exported, computed by ONNX Runtime.
//!
//! [`onnx`] is the embedder and its configuration. ONNX Runtime is a shared library that is looked for when a
//! model is opened; nothing of it is needed to build, and nothing is downloaded.
//!
//! Invariant: a model is opened only when a few texts went through it and came out as unit vectors that do not
//! depend on their neighbours; whatever a file or the library says against that is an error, never a panic.

mod batches;
mod encoder;
mod external_data;
mod library;
mod model_file;
pub mod onnx;
mod sessions;
mod signature;
mod texts;
mod tokenizers;

pub use onnx::{OnnxConfig, locate, open};
pub use tokenizers::Tokenizers;
