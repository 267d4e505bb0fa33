//! The `vectide` command, as a library so that tests, benchmarks and the demo run the same code.

pub mod backup;
pub mod bench_embed;
mod bench_texts;
pub mod check;
pub mod dlq;
pub mod embed;
pub mod embed_arguments;
pub mod evaluate;
pub mod export;
pub mod failure;
pub mod lines;
pub mod logging;
pub mod model;
pub mod position;
pub mod progress;
pub mod query;
pub mod rebuild;
pub mod recall;
pub mod registry;
pub mod run;
pub mod search_arguments;
pub mod tap;
pub mod text;
pub mod validate;
