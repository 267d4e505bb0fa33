//! `openai`: a service that speaks OpenAI's embeddings interface (OpenAI's own, vLLM, TEI, Ollama, another
//! Vectide) as an embedder.
//!
//! A service can be away, and then nothing is wrong with the texts: an error says which of both it is, so
//! that an outage makes work wait and no dead letters. Invariant: only what the service said of the texts
//! themselves, or failed with again and again, while it took others, is told as a fault of texts.

mod breaker;
mod client;
mod config;
mod embedder;
mod kept;
mod pace;
mod retry_after;
mod telemetry;
mod tokenizer;
mod tokens;
mod wire;

pub use config::OpenAiConfig;
