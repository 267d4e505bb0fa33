//! Whether chunks that survive edits cost answers: the structured chunker beside lines packed from the
//! top to the same size, with the real model, an exact search and the same queries.
//!
//! A document's rank is that of its best chunk.

use crate::model::{embed_all, embedder};
use crate::retrieval::squad;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;
use vectide_app::evaluate::{
    Evaluation, JudgedQuery, Judgements, measure, read_judgements, read_queries,
};
use vectide_app::registry::registry;
use vectide_model::{Chunker, Embedder, TokenCounter};
use vectide_tests::{data_directory, read_lines};

/// Tokens of a packed chunk: the most that the model reads, and the structured chunker's target.
const PACKED_TOKENS: [usize; 2] = [254, 200];

/// Texts that were embedded, with their vectors.
type Vectors = HashMap<String, Vec<f32>>;

/// A document: id and text.
type Document = (String, String);

pub(crate) fn run() {
    let embedder = embedder();
    let mut vectors = Vectors::new();
    if let Some(data) = data_directory("squad-newwiki", "squad-newwiki") {
        let (queries, judgements) = squad(&data);
        let documents = documents(&data.join("articles.jsonl.zst"));
        compare(
            "squad-newwiki, articles",
            &*embedder,
            &mut vectors,
            (&documents, &queries, &judgements),
        );
    }
    if let Some(data) = data_directory("scifact", "scifact") {
        let queries = read_queries(&data.join("queries.jsonl.zst")).unwrap_or_default();
        let judgements = read_judgements(&data.join("qrels.tsv")).unwrap_or_default();
        let documents = documents(&data.join("corpus.jsonl.zst"));
        compare(
            "scifact",
            &*embedder,
            &mut vectors,
            (&documents, &queries, &judgements),
        );
    }
}

fn documents(corpus: &std::path::Path) -> Vec<Document> {
    let document = |line: String| {
        let row: serde_json::Value = serde_json::from_str(&line).unwrap_or_default();
        let field = |name: &str| row[name].as_str().unwrap_or_default().to_owned();
        (
            field("id"),
            format!("{}\n\n{}", field("title"), field("text")),
        )
    };
    read_lines(corpus).map(document).collect()
}

fn compare(
    set: &str,
    embedder: &dyn Embedder,
    vectors: &mut Vectors,
    (documents, queries, judgements): (&[Document], &[JudgedQuery], &Judgements),
) {
    let tokens = embedder.token_counter();
    let structured = registry()
        .chunkers
        .iter()
        .find(|it| it.name == "structured")
        .map(|it| {
            let config = (it.parse)(serde_json::json!({}));
            config.and_then(|it| it.open(tokens.clone()).map_err(|error| error.to_string()))
        });
    let structured: std::sync::Arc<dyn Chunker> = match structured {
        Some(Ok(chunker)) => chunker,
        _ => panic!("no structured chunker"),
    };
    let cut = |text: &str| structured.chunk(text).unwrap_or_default();
    let result = evaluate(embedder, vectors, (documents, queries, judgements), &cut);
    println!("{set}: structured chunks: {result}");
    for limit in PACKED_TOKENS {
        let cut = |text: &str| packed(text, &*tokens, limit);
        let result = evaluate(embedder, vectors, (documents, queries, judgements), &cut);
        println!("{set}: lines packed to {limit} tokens: {result}");
    }
}

/// Lines from the top, as many as fit.
fn packed(text: &str, tokens: &dyn TokenCounter, limit: usize) -> Vec<Range<usize>> {
    let (mut spans, mut open, mut sum) = (Vec::new(), 0..0, 0);
    for line in text.split_inclusive('\n') {
        let count = tokens.count(line);
        if sum + count > limit && !open.is_empty() {
            spans.push(std::mem::replace(&mut open, 0..0));
            open = spans.last().map_or(0..0, |last| last.end..last.end);
            sum = 0;
        }
        sum += count;
        open.end += line.len();
    }
    spans.extend((!open.is_empty()).then_some(open));
    spans
}

fn evaluate(
    embedder: &dyn Embedder,
    vectors: &mut Vectors,
    (documents, queries, judgements): (&[Document], &[JudgedQuery], &Judgements),
    cut: &dyn Fn(&str) -> Vec<Range<usize>>,
) -> String {
    let chunks: Vec<(&str, &str)> = documents
        .iter()
        .flat_map(|(id, text)| cut(text).into_iter().map(move |span| (&**id, &text[span])))
        .collect();
    embed(embedder, vectors, chunks.iter().map(|(_, text)| *text));
    embed(embedder, vectors, queries.iter().map(|query| &*query.text));
    let mut sum = Evaluation::default();
    for query in queries {
        let Some(relevant) = judgements.get(&query.id) else {
            continue;
        };
        let ranked = rank(&chunks, vectors, &vectors[&query.text]);
        let one = measure(&ranked, relevant);
        sum.queries += 1;
        sum.ndcg_10 += one.ndcg_10;
        sum.recall_10 += one.recall_10;
        sum.mrr_10 += one.mrr_10;
    }
    let count = sum.queries.max(1) as f64;
    let characters: usize = chunks.iter().map(|(_, text)| text.chars().count()).sum();
    format!(
        "{} chunks of {} characters: nDCG@10 {:.4}, recall@10 {:.4}, MRR@10 {:.4} ({} queries)",
        chunks.len(),
        characters / chunks.len().max(1),
        sum.ndcg_10 / count,
        sum.recall_10 / count,
        sum.mrr_10 / count,
        sum.queries
    )
}

/// Documents by their best chunk.
fn rank<'a>(chunks: &[(&'a str, &str)], vectors: &Vectors, query: &[f32]) -> Vec<&'a str> {
    let mut best: BTreeMap<&str, f32> = BTreeMap::new();
    for (document, text) in chunks {
        let score: f32 = vectors[*text].iter().zip(query).map(|(a, b)| a * b).sum();
        let held = best.entry(document).or_insert(f32::MIN);
        *held = held.max(score);
    }
    let mut ranked: Vec<(&str, f32)> = best.into_iter().collect();
    ranked.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(b.0)));
    ranked.into_iter().map(|(document, _)| document).collect()
}

/// Embeds what is not yet known.
fn embed<'a>(embedder: &dyn Embedder, known: &mut Vectors, texts: impl Iterator<Item = &'a str>) {
    let wanted: HashSet<&str> = texts.filter(|text| !known.contains_key(*text)).collect();
    let wanted: Vec<&str> = wanted.into_iter().collect();
    let vectors = embed_all(embedder, &wanted);
    known.extend(wanted.into_iter().map(str::to_owned).zip(vectors));
}
