//! Encoder models and tokenization: texts to unit vectors, on the processor's vector units.
//!
//! Two models stand behind the [`vectide_model::Embedder`] contract: [`minilm`], a real sentence
//! encoder, and [`hashing`], feature hashing for tests and engine benchmarks. [`model_files`] finds
//! and checks what the first one needs; nothing here downloads anything while a query waits.
//!
//! Invariant: a text's vector is a function of the text, the weights and the instruction set alone;
//! its neighbours in a batch, the thread and the lane never change a bit of it.

mod cpu;
pub mod hashing;
mod lane_priority;
pub mod minilm;
pub mod model_files;
mod tokenize;

pub use cpu::Backend;
pub use tokenize::{Tokenizer, TokenizerError};
