//! Checks of every kernel on a machine with fresh random data, for a GPU that no test has seen.
//!
//! The tests run them on the emulator, so that the checks themselves are known to be right; the binary
//! `vectide-gpu-verify` runs them on a GPU, larger. Compiled for tests and with the feature `verify`.
//!
//! Invariant: outputs are NaN before and guarded around; a check that passes has compared every number
//! of its kernel's result, with two exceptions: exact search is compared by the rows of its answers, not
//! by their scores, and encoders by the cosine of each vector.

mod checks;
mod golden;
mod measure;
mod model;
mod noise;
mod reference;
mod workbench;
mod worst;

pub use checks::{Effort, Outcome, check_all};
pub use golden::{Golden, check_golden, read_golden};
pub use measure::{Measured, measure_encoder, measure_linear, measure_memory, measure_nearest};
pub use model::{TinyModel, as_safetensors, encode_reference};
pub use noise::Noise;
#[cfg(test)]
pub(crate) use reference::{
    attention_reference, gelu_reference, normalise_reference, pool_reference,
};
pub use workbench::Workbench;
