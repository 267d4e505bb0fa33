//! The real model, for benchmarks that embed texts themselves.

use std::sync::Arc;
use vectide_app::registry::registry;
use vectide_model::{Embedder, Lane, OpenContext, Precision};

const MODEL: &str = "all-MiniLM-L6-v2";

/// Texts embedded in one call.
const TEXTS_PER_CALL: usize = 32;

/// The model, on whatever this machine has.
pub(crate) fn embedder() -> Arc<dyn Embedder> {
    open(Precision::Auto)
}

/// The model in a precision.
pub(crate) fn open(precision: Precision) -> Arc<dyn Embedder> {
    let context = OpenContext::in_folder(".");
    let config = registry().embedder(MODEL, serde_json::json!({ "precision": precision }));
    let opened = config.and_then(|config| config.open(&context));
    opened.unwrap_or_else(|error| panic!("{error}"))
}

/// One vector a text, made on all the threads that the model wants.
pub(crate) fn embed_all(embedder: &dyn Embedder, texts: &[&str]) -> Vec<Vec<f32>> {
    let share = texts.len().div_ceil(embedder.bulk_threads()).max(1);
    std::thread::scope(|scope| {
        let threads = texts.chunks(share).map(|share| {
            scope.spawn(move || -> Vec<Vec<f32>> {
                let batches = share.chunks(TEXTS_PER_CALL).flat_map(|batch| {
                    let vectors = embedder.embed(Lane::Bulk, batch);
                    vectors.unwrap_or_else(|error| panic!("{error}"))
                });
                batches.collect()
            })
        });
        let threads: Vec<_> = threads.collect();
        let vectors = threads.into_iter().map(|it| it.join().unwrap_or_default());
        vectors.flatten().collect()
    })
}
