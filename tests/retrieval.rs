//! Quality with the real model, through the real endpoint: a slice of SciFact small enough for every
//! run of the tests. The whole set is a benchmark.

use std::collections::BTreeSet;
use std::time::Duration;
use vectide_app::evaluate::{evaluate, read_judgements, read_queries};
use vectide_serve::{ModeField, QueryRequest};
use vectide_tests::{Running, data_directory, free_port, read_lines};

const QUERIES: usize = 60;
const DISTRACTORS: usize = 200;

#[test]
fn a_slice_of_scifact_is_answered_well() {
    let Some(data) = data_directory("scifact", "a_slice_of_scifact") else {
        return;
    };
    let directory = tempfile::tempdir().unwrap();
    let mut judgements = read_judgements(&data.join("qrels.tsv")).unwrap();
    judgements = judgements.into_iter().take(QUERIES).collect();
    let queries = read_queries(&data.join("queries.jsonl.zst")).unwrap();
    let relevant: BTreeSet<&String> = judgements.values().flat_map(|it| it.keys()).collect();
    let mut others = 0;
    let corpus: Vec<String> = read_lines(&data.join("corpus.jsonl.zst"))
        .filter(|line| {
            let document: serde_json::Value = serde_json::from_str(line).unwrap();
            let is_relevant = relevant.contains(&document["id"].as_str().unwrap().to_owned());
            others += usize::from(!is_relevant);
            is_relevant || others <= DISTRACTORS
        })
        .collect();
    std::fs::write(
        directory.path().join("corpus.jsonl"),
        corpus.join("\n") + "\n",
    )
    .unwrap();
    let port = free_port();
    let yaml = format!(
        r#"
apiVersion: vectide/v1
state: {{dir: ./state}}
sources:
  corpus: {{type: jsonl, path: corpus.jsonl, follow: true, format: {{type: change, key: id}}}}
documents:
  abstracts: {{from: corpus, text: "{{{{ title }}}}\n{{{{ text }}}}"}}
indexes:
  abstracts:
    from: abstracts
    chunk: {{type: whole}}
    embed: {{model: all-MiniLM-L6-v2}}
    keywords: {{language: english}}
server: {{listen: "127.0.0.1:{port}"}}
"#
    );
    let config = directory.path().join("pipeline.yaml");
    std::fs::write(&config, yaml).unwrap();
    let mut running = Running::start(&config, port);
    let all = corpus.len() as u64;
    running.wait_until("indexed", Duration::from_secs(300), |it| {
        it.client()
            .index("abstracts")
            .is_ok_and(|index| index.documents == all)
    });
    let client = running.client();
    let measured = |mode: ModeField| {
        let request = |text: &str, k| QueryRequest {
            mode,
            ..QueryRequest::text(text, k)
        };
        let result = evaluate(&client, "abstracts", (&queries, &judgements), &request).unwrap();
        println!("{mode:?}: {}", serde_json::to_string(&result).unwrap());
        assert_eq!(result.queries, QUERIES);
        assert!(result.recall_100 > 0.95, "{mode:?}: {result:?}");
        result.ndcg_10
    };
    // Measured 0.87 by vectors when this was written; far below it something is broken.
    let vector = measured(ModeField::Vector);
    let keyword = measured(ModeField::Keyword);
    let hybrid = measured(ModeField::Hybrid);
    assert!(vector > 0.80 && keyword > 0.80, "{vector} {keyword}");
    // Over the whole set it beats both (the benchmark); of so few queries that can't be said.
    assert!(
        hybrid > vector.max(keyword) - 0.01,
        "{hybrid} of {vector} and {keyword}"
    );
}
