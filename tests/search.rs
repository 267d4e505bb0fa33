//! What a query may ask of the real binary beside its hits: by document, of an earlier epoch, exactly, within a
//! budget, in batches; and `vectide recall`, which compares.

use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;
use vectide_tests::{Running, append, free_port, vectide, write_config};

const PATH: &str = "/v1/indexes/pages/query";
const DOCUMENTS: usize = 300;

/// A document of some chunks: paragraphs about topics of their own.
fn line(document: usize, version: usize) -> String {
    let paragraph = |number: usize| {
        let topic = (document * 7 + number * 13) % 41;
        let sentence = format!("The topic{topic} of page{document} in version{version} is told. ");
        sentence.repeat(12)
    };
    let text: Vec<String> = (0..document % 4 + 1).map(paragraph).collect();
    let text = text.join("\n\n");
    format!(
        "{}\n",
        json!({"id": format!("doc{document}"), "text": text})
    )
}

/// The pipeline with all documents in, its log and its address.
fn start(directory: &Path) -> (Running, PathBuf, String) {
    let log = directory.join("pages.jsonl");
    let lines: String = (0..DOCUMENTS).map(|document| line(document, 1)).collect();
    fs::write(&log, lines).unwrap();
    let port = free_port();
    let source =
        "{type: jsonl, path: ./pages.jsonl, follow: true, format: {type: change, key: id}}";
    let server = format!("server: {{listen: \"127.0.0.1:{port}\"}}");
    let config = write_config(directory, "pipeline", source, &server);
    let mut running = Running::start(&config, port);
    running.wait_until("all documents", Duration::from_secs(60), |running| {
        let index = running.client().index("pages");
        index.is_ok_and(|index| index.documents == DOCUMENTS as u64)
    });
    (running, log, format!("http://127.0.0.1:{port}"))
}

fn ask(running: &Running, question: &Value) -> Value {
    let (status, answer) = running.post(PATH, &question.to_string());
    assert_eq!(status, 200, "{answer}");
    answer
}

/// Document, chunk and score of each hit.
fn hits(answer: &Value) -> Vec<(String, String, f64)> {
    let hit = |hit: &Value| {
        let field = |name: &str| hit[name].as_str().unwrap().to_owned();
        let score = hit["score"].as_f64().unwrap();
        (field("document"), field("chunk"), score)
    };
    answer["hits"].as_array().unwrap().iter().map(hit).collect()
}

#[test]
fn documents_stand_together_with_their_best_chunks() {
    let directory = tempfile::tempdir().unwrap();
    let (running, ..) = start(directory.path());
    let question = |more: Value| {
        let mut question = json!({"text": "The topic5 of page17 is told.", "include": []});
        let fields = more.as_object().unwrap().clone();
        question.as_object_mut().unwrap().extend(fields);
        question
    };
    let all = hits(&ask(&running, &question(json!({"k": 10_000}))));
    let mut by_document: BTreeMap<&str, Vec<&(String, String, f64)>> = BTreeMap::new();
    let mut order: Vec<&str> = Vec::new();
    for hit in &all {
        let chunks = by_document.entry(&hit.0).or_default();
        if chunks.is_empty() {
            order.push(&hit.0);
        }
        chunks.push(hit);
    }
    assert_eq!(order.len(), DOCUMENTS);
    assert!(
        all.len() > DOCUMENTS + DOCUMENTS / 2,
        "{} chunks",
        all.len()
    );
    for (k, size) in [(5, 1), (20, 2), (300, 3), (7, 100)] {
        let grouped = json!({"k": k, "group_by": "document", "group_size": size});
        let grouped = hits(&ask(&running, &question(grouped)));
        let documents = order.iter().take(k);
        let expected = documents.flat_map(|it| by_document[it].iter().take(size).copied());
        assert_eq!(
            grouped,
            expected.cloned().collect::<Vec<_>>(),
            "{k} of {size}"
        );
    }
}

#[test]
fn an_epoch_is_asked_again_after_it_has_passed() {
    let directory = tempfile::tempdir().unwrap();
    let (mut running, log, _) = start(directory.path());
    let question = json!({"text": "The topic5 of page17 is told.", "k": 20});
    let before = ask(&running, &question);
    let epoch = before["as_of"]["epoch"].as_u64().unwrap();
    for document in 0..DOCUMENTS / 2 {
        append(&log, &line(document * 2 + 1, 2));
    }
    running.wait_until("the changes", Duration::from_secs(60), |running| {
        let hits = ask(running, &json!({"text": "version2 of page299", "k": 1}));
        let text = hits["hits"][0]["text"].as_str().unwrap_or_default();
        text.contains("page299 in version2")
    });
    let mut again = question.clone();
    again["as_of"] = json!(epoch);
    let again = ask(&running, &again);
    assert_eq!(again["hits"], before["hits"]);
    assert_eq!(again["as_of"], before["as_of"]);
    assert_ne!(ask(&running, &question)["hits"], before["hits"]);
    let mut unseen = question;
    unseen["as_of"] = json!(epoch - 1);
    let (status, problem) = running.post(PATH, &unseen.to_string());
    assert_eq!(status, 410, "{problem}");
    let hint = problem["hint"].as_str().unwrap();
    assert!(hint.contains("state.history"), "{problem}");
}

#[test]
fn a_budget_ends_a_search_and_a_batch_has_one_epoch() {
    let directory = tempfile::tempdir().unwrap();
    let (running, ..) = start(directory.path());
    let question = json!({"text": "The topic5 of page17 is told.", "k": 5});
    let whole = ask(&running, &question);
    assert_eq!(whole["partial"], Value::Null);
    let mut hurried = question.clone();
    hurried["budget"] = json!("0ms");
    assert_eq!(ask(&running, &hurried)["partial"], true);
    hurried["budget"] = json!("10s");
    assert_eq!(ask(&running, &hurried)["hits"], whole["hits"]);

    let other = json!({"text": "The topic9 of page3 is told.", "k": 3, "exact": true});
    let grouped = json!({"text": "The topic9 is told.", "k": 3, "group_by": "document"});
    let queries = [question, other, grouped];
    let batch = json!({ "queries": queries }).to_string();
    let (status, answers) = running.post(&format!("{PATH}/batch"), &batch);
    assert_eq!(status, 200, "{answers}");
    for (query, answer) in queries.iter().zip(answers["answers"].as_array().unwrap()) {
        assert_eq!(answer["hits"], ask(&running, query)["hits"]);
        assert_eq!(answer["as_of"], answers["answers"][0]["as_of"]);
    }
}

#[test]
fn recall_is_told() {
    let directory = tempfile::tempdir().unwrap();
    let (_running, _, url) = start(directory.path());
    let queries = directory.path().join("queries.jsonl");
    let query = |at: usize| {
        let text = format!("topic{} of page{at}", at % 41);
        format!("{}\n", json!({"id": at.to_string(), "text": text}))
    };
    fs::write(&queries, (0..30).map(query).collect::<String>()).unwrap();
    let output = vectide(&["recall", "--url", &url, "--index", "pages", "--queries"])
        .arg(&queries)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["queries"], 30);
    assert_eq!(report["recall"], 1.0, "all rows are in the head: {report}");
    assert_eq!(report["incomplete"], 0);
}
