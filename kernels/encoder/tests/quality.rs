//! The published quality of the model: SciFact's nDCG@10, whole abstracts, exact search.
//!
//! It embeds a million tokens, a minute of two cores with AVX-512 and much longer without, so it is
//! run by name: `cargo test --release -p vectide-encoder --test quality -- --ignored --nocapture`.

// Helpers of tests fail like tests.
#![allow(clippy::unwrap_used)]

#[path = "support/corpora.rs"]
mod corpora;

use std::collections::HashMap;
use vectide_encoder::minilm::MiniLmConfig;
use vectide_encoder::{Backend, Products};
use vectide_model::{Embedder, EmbedderConfig, Lane, OpenContext, Precision};

/// What the model's authors and others report.
const PUBLISHED: f64 = 0.645;
const TOLERANCE: f64 = 0.005;
/// Texts of one call.
const BATCH: usize = 64;

/// Ids and texts of one file.
fn rows(file: &'static str, parts: &[&'static str]) -> Option<Vec<(String, String)>> {
    let mut columns = Vec::new();
    for field in ["id"].iter().chain(parts) {
        columns.push(corpora::Corpus { file, field }.texts("published_quality")?);
    }
    let ids = columns.remove(0);
    let rows = ids.into_iter().enumerate().map(|(row, id)| {
        let parts: Vec<&str> = columns.iter().map(|column| column[row].as_str()).collect();
        (id, parts.join(" "))
    });
    Some(rows.collect())
}

/// Vectors of all texts, by two threads.
fn embed(model: &dyn Embedder, lane: Lane, rows: &[(String, String)]) -> Vec<Vec<f32>> {
    let texts: Vec<&str> = rows.iter().map(|(_, text)| text.as_str()).collect();
    let half = |texts: &[&str]| -> Vec<Vec<f32>> {
        let batches = texts.chunks(BATCH);
        batches
            .flat_map(|it| model.embed(lane, it).unwrap())
            .collect()
    };
    let (first, second) = texts.split_at(texts.len() / 2);
    std::thread::scope(|scope| {
        let other = scope.spawn(|| half(second));
        let mut vectors = half(first);
        vectors.extend(other.join().unwrap());
        vectors
    })
}

/// The mean over all queries that have a judgement.
fn ndcg_at_10(documents: &[(&str, &[f32])], queries: &[(&str, &[f32])], judged: &str) -> f64 {
    let mut relevant: HashMap<&str, HashMap<&str, f64>> = HashMap::new();
    for line in judged.lines() {
        let mut fields = line.split('\t');
        let mut next = || fields.next().unwrap();
        let (query, document, gain) = (next(), next(), next());
        let gain = gain.parse().unwrap();
        relevant.entry(query).or_default().insert(document, gain);
    }
    let discount = |rank: usize| 1.0 / (rank as f64 + 2.0).log2();
    let mut total = 0.0;
    for (query, vector) in queries.iter().filter(|it| relevant.contains_key(it.0)) {
        let score = |it: &[f32]| -> f32 { it.iter().zip(*vector).map(|(x, y)| x * y).sum() };
        let mut ranked: Vec<(f32, &str)> =
            documents.iter().map(|(id, it)| (score(it), *id)).collect();
        ranked.sort_by(|x, y| y.0.total_cmp(&x.0));
        let gains = &relevant[query];
        let found = ranked.iter().take(10).enumerate();
        let gain = found.map(|(rank, (_, id))| gains.get(id).unwrap_or(&0.0) * discount(rank));
        let mut ideal: Vec<f64> = gains.values().copied().collect();
        ideal.sort_by(|x, y| y.total_cmp(x));
        let ideal = ideal.iter().take(10).enumerate();
        let best: f64 = ideal.map(|(rank, gain)| gain * discount(rank)).sum();
        total += gain.sum::<f64>() / best;
    }
    total / relevant.len() as f64
}

#[test]
#[ignore = "a minute and more: run by name"]
fn published_quality() {
    let documents = rows("scifact/corpus.jsonl.zst", &["title", "text"]);
    let queries = rows("scifact/queries.jsonl.zst", &["text"]);
    let (Some(documents), Some(queries)) = (documents, queries) else {
        return;
    };
    let judged = std::fs::read_to_string(corpora::folder().join("scifact/qrels.tsv")).unwrap();
    for (precision, products) in [
        (Precision::F32, Products::F32),
        (Precision::Bf16, Products::Bf16),
    ] {
        if !products.are_available(Backend::best()) {
            println!("skipped: published_quality in {precision:?}: this processor has none");
            continue;
        }
        let config = MiniLmConfig {
            precision,
            ..MiniLmConfig::default()
        };
        let context = OpenContext::in_folder(".");
        let model = config.open(&context).unwrap();
        let of_documents = embed(&*model, Lane::Bulk, &documents);
        let of_queries = embed(&*model, Lane::Query, &queries);
        let documents = documents.iter().zip(&of_documents);
        let documents: Vec<_> = documents
            .map(|((id, _), it)| (id.as_str(), it.as_slice()))
            .collect();
        let queries = queries.iter().zip(&of_queries);
        let queries: Vec<_> = queries
            .map(|((id, _), it)| (id.as_str(), it.as_slice()))
            .collect();
        let found = ndcg_at_10(&documents, &queries, &judged);
        println!("SciFact in {precision:?}: nDCG@10 {found:.4}, published {PUBLISHED}");
        assert!(
            (found - PUBLISHED).abs() <= TOLERANCE,
            "{precision:?}: {found}"
        );
    }
}
