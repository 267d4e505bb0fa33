//! Encoder models and tokenization: texts to unit vectors, on the processor's vector units or on an
//! accelerator that the program hands in.
//!
//! Three models stand behind the [`vectide_model::Embedder`] contract: [`minilm`], a sentence encoder
//! that is fetched by name; [`bert`], any BERT-type sentence encoder in a folder of its files; and
//! [`hashing`], feature hashing for tests and engine benchmarks. [`model_files`] finds and checks
//! what the first two need; nothing here downloads anything while a query waits. [`measure`] says what a
//! model does of what the processor can, and on which of its stages a thread spends its time.
//!
//! Invariant: a text's vector is a function of the text, its lane's prefix, the model and the arithmetic
//! (device, instruction set and precision) alone; its neighbours in a batch and the thread never change a bit of it.

pub mod bert;
mod compute;
mod cpu;
mod distinct;
pub mod hashing;
mod lane_priority;
pub mod measure;
pub mod minilm;
pub mod model_files;
mod self_check;
mod sentence_encoder;
mod telemetry;
mod tokenize;

pub use cpu::{Backend, Pooling, Products};
pub use distinct::encode_distinct;
pub use lane_priority::lower_for_bulk;
pub use sentence_encoder::{SentenceEncoder, dimension};
pub use tokenize::{Tokenizer, TokenizerError, check_library_file};
