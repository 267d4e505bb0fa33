//! Quality with the real model: SciFact by whole documents, articles of squad-newwiki by chunks.

use crate::load::wait_for_documents;
use std::collections::BTreeMap;
use std::path::Path;
use vectide_app::evaluate::{JudgedQuery, Judgements, evaluate, read_judgements, read_queries};
use vectide_serve::{FusionField, ModeField, QueryRequest};
use vectide_tests::{Running, data_directory, free_port, read_lines};

/// Queries of squad-newwiki: every tenth of 7,938 tells as much.
const SQUAD_EVERY: usize = 10;

pub(crate) fn run() {
    if let Some(data) = data_directory("scifact", "scifact") {
        let queries = read_queries(&data.join("queries.jsonl.zst"));
        let judgements = read_judgements(&data.join("qrels.tsv"));
        if let (Ok(queries), Ok(judgements)) = (queries, judgements) {
            let corpus = data.join("corpus.jsonl.zst");
            measure(
                "scifact, whole documents",
                &corpus,
                "{type: whole}",
                &queries,
                &judgements,
            );
        }
    }
    if let Some(data) = data_directory("squad-newwiki", "squad-newwiki") {
        let (queries, judgements) = squad(&data);
        for chunk in [
            "{type: structured}",
            "{type: structured, target_tokens: 120, max_tokens: 160}",
        ] {
            let corpus = data.join("articles.jsonl.zst");
            measure(
                "squad-newwiki, articles",
                &corpus,
                chunk,
                &queries,
                &judgements,
            );
        }
    }
}

fn measure(
    what: &str,
    corpus: &Path,
    chunk: &str,
    queries: &[JudgedQuery],
    judgements: &Judgements,
) {
    let directory = tempfile::tempdir().unwrap_or_else(|error| panic!("{error}"));
    let lines: Vec<String> = read_lines(corpus).collect();
    let log = directory.path().join("docs.jsonl");
    std::fs::write(&log, lines.join("\n") + "\n").unwrap_or_else(|error| panic!("{error}"));
    let port = free_port();
    let yaml = format!(
        "apiVersion: vectide/v1\nstate: {{dir: ./state}}\nsources:\n  docs: {{type: jsonl, path: \
         docs.jsonl, follow: true, format: {{type: change, key: id}}}}\ndocuments:\n  docs: {{from: \
         docs, text: \"{{{{ title }}}}\\n\\n{{{{ text }}}}\"}}\nindexes:\n  docs: {{from: docs, chunk: \
         {chunk}, embed: {{model: all-MiniLM-L6-v2}}, keywords: {{language: english}}, shards: \
         2}}\nserver: {{listen: \
         \"127.0.0.1:{port}\"}}\n"
    );
    let config = directory.path().join("pipeline.yaml");
    std::fs::write(&config, yaml).unwrap_or_else(|error| panic!("{error}"));
    let start = std::time::Instant::now();
    let mut running = Running::start(&config, port);
    wait_for_documents(&mut running, "docs", lines.len());
    let seconds = start.elapsed().as_secs_f64();
    let index = running
        .client()
        .index("docs")
        .unwrap_or_else(|error| panic!("{error}"));
    println!(
        "{what}, chunk {chunk}: {} documents, {} chunks, indexed in {seconds:.0} s",
        index.documents, index.chunks,
    );
    let by = |mode, vector_weight: Option<f32>| {
        let request = |text: &str, k| QueryRequest {
            mode,
            fusion: vector_weight.map(|_| FusionField::Weighted),
            vector_weight,
            ..QueryRequest::text(text, k)
        };
        let result = evaluate(&running.client(), "docs", (queries, judgements), &request);
        let result = result.unwrap_or_else(|failure| panic!("{failure:?}"));
        let result = serde_json::to_string(&result).unwrap_or_default();
        println!("    {mode:?} {vector_weight:?}: {result}");
    };
    by(ModeField::Vector, None);
    by(ModeField::Keyword, None);
    by(ModeField::Hybrid, None);
    for weight in [0.3, 0.5, 0.7] {
        by(ModeField::Hybrid, Some(weight));
    }
}

/// Queries with the article that answers them.
pub(crate) fn squad(data: &Path) -> (Vec<JudgedQuery>, Judgements) {
    let mut judgements: Judgements = BTreeMap::new();
    for line in read_lines(&data.join("spans.jsonl.zst")).step_by(SQUAD_EVERY) {
        let span: serde_json::Value = serde_json::from_str(&line).unwrap_or_default();
        let field = |name: &str| span[name].as_str().unwrap_or_default().to_owned();
        judgements
            .entry(field("query"))
            .or_default()
            .insert(field("article"), 1);
    }
    let queries = read_queries(&data.join("queries.jsonl.zst")).unwrap_or_default();
    (queries, judgements)
}
