//! What rows are found by besides their vectors, through the real binary: filters on metadata, keyword and
//! hybrid search, all of one epoch, also after metadata alone has changed and after a restart.

use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;
use vectide_tests::{Running, append, call, expect_sound, free_port, vectide};

const PATH: &str = "/v1/indexes/pages/query";
const DOCUMENTS: usize = 400;
const WORDS: [&str; 7] = [
    "glaciers", "engines", "violins", "harbours", "markets", "comets", "orchards",
];

/// A document of one chunk.
fn row(document: usize, team: &str) -> Value {
    let word = |at: usize| WORDS[(document / (at + 1) + at) % WORDS.len()];
    let tags: Vec<String> = (0..document % 3).map(|at| format!("tag{at}")).collect();
    json!({
        "id": format!("doc{document}"),
        "text": format!("Page{document} is about {} and the {}.", word(0), word(1)),
        "year": 2000 + document % 30,
        "tags": tags,
        "owner": {"team": team},
        "draft": document.is_multiple_of(4),
    })
}

fn rows() -> Vec<Value> {
    (0..DOCUMENTS)
        .map(|document| row(document, ["core", "docs", "ops"][document % 3]))
        .collect()
}

fn write_config(directory: &Path, port: u16, index: &str) -> PathBuf {
    let yaml = format!(
        r#"
apiVersion: vectide/v1
state: {{dir: ./state}}
sources:
  pages: {{type: jsonl, path: ./pages.jsonl, follow: true, format: {{type: change, key: id}}}}
documents:
  pages:
    from: pages
    text: "{{{{ text }}}}"
    metadata:
      year: "{{{{ year }}}}"
      tags: "{{{{ tags }}}}"
      owner: "{{{{ owner }}}}"
      draft: "{{{{ draft }}}}"
indexes:
  pages:
    from: pages
    chunk: {{type: structured}}
    embed: {{model: hashing}}
    shards: 2
{index}
server: {{listen: "127.0.0.1:{port}"}}
"#
    );
    let config = directory.join("pipeline.yaml");
    fs::write(&config, yaml).unwrap();
    config
}

const FIELDS: &str =
    "    filterable: [year, tags, owner.team, draft]\n    keywords: {language: english}";

fn start(directory: &Path, rows: &[Value]) -> (Running, PathBuf, String) {
    let log = directory.join("pages.jsonl");
    let lines: String = rows.iter().map(|row| format!("{row}\n")).collect();
    fs::write(log, lines).unwrap();
    let port = free_port();
    let config = write_config(directory, port, FIELDS);
    let running = caught_up(&config, port);
    (running, config, format!("http://127.0.0.1:{port}"))
}

fn caught_up(config: &Path, port: u16) -> Running {
    let mut running = Running::start(config, port);
    running.wait_until("all documents", Duration::from_secs(60), |running| {
        let index = running.client().index("pages");
        index.is_ok_and(|index| index.documents == DOCUMENTS as u64)
    });
    running
}

fn ask(running: &Running, question: &Value) -> Value {
    let (status, answer) = running.post(PATH, &question.to_string());
    assert_eq!(status, 200, "{question}: {answer}");
    answer
}

fn documents(answer: &Value) -> BTreeSet<String> {
    let hits = answer["hits"].as_array().unwrap().iter();
    hits.map(|hit| hit["document"].as_str().unwrap().to_owned())
        .collect()
}

fn ids<'a>(rows: impl IntoIterator<Item = &'a Value>) -> BTreeSet<String> {
    let ids = rows.into_iter().map(|row| row["id"].as_str().unwrap());
    ids.map(str::to_owned).collect()
}

type Passes = fn(&Value) -> bool;

/// Filters, and what they say of a row.
fn filters() -> Vec<(Value, Passes)> {
    fn year(row: &Value) -> u64 {
        row["year"].as_u64().unwrap()
    }
    fn has(row: &Value, tag: &str) -> bool {
        row["tags"].as_array().unwrap().iter().any(|it| it == tag)
    }
    vec![
        (json!({"owner.team": "docs"}), |row| {
            row["owner"]["team"] == "docs"
        }),
        (json!({"year": {"$gte": 2010, "$lt": 2012.5}}), |row| {
            (2010..2013).contains(&year(row))
        }),
        (json!({"tags": {"$in": ["tag1", "tag9"]}}), |row| {
            has(row, "tag1")
        }),
        (json!({"tags": {"$exists": false}}), |row| !has(row, "tag0")),
        (
            json!({"$or": [{"draft": true}, {"year": 2001}], "owner.team": {"$ne": "core"}}),
            |row| (row["draft"] == true || year(row) == 2001) && row["owner"]["team"] != "core",
        ),
        (json!({"owner.team": {"$prefix": "o"}}), |row| {
            row["owner"]["team"] == "ops"
        }),
        (json!({"year": 1066}), |_| false),
        (json!({}), |_| true),
    ]
}

#[test]
fn filters_pass_what_they_say_in_every_mode() {
    let directory = tempfile::tempdir().unwrap();
    let rows = rows();
    let (running, ..) = start(directory.path(), &rows);
    for (filter, passes) in filters() {
        let expected = ids(rows.iter().filter(|row| passes(row)));
        for mode in ["vector", "hybrid"] {
            let question = json!({"text": "pages about comets", "k": 1000, "exact": true, "filter": filter, "mode": mode});
            let found = documents(&ask(&running, &question));
            assert_eq!(found, expected, "{mode} {filter}");
        }
        let about = |row: &&Value| {
            let text = row["text"].as_str().unwrap();
            passes(row) && (text.contains("comets") || text.contains("violins"))
        };
        let question = json!({"text": "a comet or the VIOLIN", "k": 1000, "filter": filter, "mode": "keyword"});
        let found = documents(&ask(&running, &question));
        assert_eq!(found, ids(rows.iter().filter(about)), "keywords, {filter}");
    }
}

#[test]
fn metadata_alone_moves_a_document_and_a_restart_changes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let rows = rows();
    let (mut running, config, _) = start(directory.path(), &rows);
    let log = directory.path().join("pages.jsonl");
    let of_team = |team: &str| json!({"text": "comets", "k": 1000, "filter": {"owner.team": team}});
    let before = ask(&running, &of_team("core"));
    for document in (0..DOCUMENTS).step_by(3) {
        append(&log, &format!("{}\n", row(document, "moved")));
    }
    let moved = ids(rows.iter().step_by(3));
    running.wait_until("the moved", Duration::from_secs(60), |running| {
        documents(&ask(running, &of_team("moved"))) == moved
    });
    assert_eq!(documents(&ask(&running, &of_team("core"))), BTreeSet::new());
    let mut earlier = of_team("core");
    earlier["as_of"] = before["as_of"]["epoch"].clone();
    assert_eq!(
        ask(&running, &earlier)["hits"],
        before["hits"],
        "as of then"
    );

    let questions: Vec<Value> = ["vector", "keyword", "hybrid"]
        .iter()
        .map(|mode| json!({"text": "engines of Page17", "k": 50, "mode": mode, "filter": {"owner.team": "moved"}}))
        .collect();
    let answers: Vec<Value> = questions
        .iter()
        .map(|it| ask(&running, it)["hits"].clone())
        .collect();
    assert!(running.terminate());
    expect_sound(&config, "after metadata has moved");
    let port = free_port();
    let config = write_config(directory.path(), port, FIELDS);
    let running = caught_up(&config, port);
    for (question, hits) in questions.iter().zip(answers) {
        assert_eq!(ask(&running, question)["hits"], hits, "{question}");
    }
}

#[test]
fn hybrid_hits_say_both_of_their_scores() {
    let directory = tempfile::tempdir().unwrap();
    let (running, _, url) = start(directory.path(), &rows());
    let question = |mode: &str| json!({"text": "Page17", "k": 5, "mode": mode, "exact": true});
    let of = |answer: &Value, document: &str| {
        let hits = answer["hits"].as_array().unwrap();
        hits.iter().find(|hit| hit["document"] == document).cloned()
    };
    let keyword = of(&ask(&running, &question("keyword")), "doc17").expect("found by its word");
    assert_eq!(keyword["scores"], Value::Null, "the score says it");
    let hybrid = ask(&running, &question("hybrid"));
    let first = &hybrid["hits"][0];
    assert_eq!(first["document"], "doc17");
    assert_eq!(first["scores"]["keyword"], keyword["score"]);
    assert!(first["scores"]["vector"].as_f64().unwrap() > 0.1, "{first}");
    let scores = hybrid["hits"].as_array().unwrap().iter();
    let all_have_vectors = scores
        .clone()
        .all(|hit| hit["scores"]["vector"].is_number());
    assert!(all_have_vectors, "{hybrid}");
    assert!(
        scores.skip(1).all(|hit| hit["scores"]["keyword"].is_null()),
        "{hybrid}"
    );
    let mut weighted = question("hybrid");
    weighted["fusion"] = json!("weighted");
    weighted["vector_weight"] = json!(0.0);
    let weighted = ask(&running, &weighted);
    assert_eq!(weighted["hits"][0]["score"], 1.0, "{weighted}");
    let mut grouped = question("hybrid");
    grouped["group_by"] = json!("document");
    assert_eq!(documents(&ask(&running, &grouped)).len(), 5);

    let output = vectide(&["query", "--json", "--url", &url, "--index", "pages"])
        .args([
            "--mode",
            "keyword",
            "--filter",
            r#"{"year": 2017}"#,
            "Page17",
        ])
        .output()
        .unwrap();
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(documents(&answer), BTreeSet::from(["doc17".to_owned()]));
}

#[test]
fn groups_are_filled_by_words_too() {
    let directory = tempfile::tempdir().unwrap();
    let mut rows = rows();
    let paragraph = |at: usize| format!("The quasar of part {at} is told. ").repeat(30);
    let text: Vec<String> = (0..6).map(paragraph).collect();
    rows[7]["text"] = json!(text.join("\n\n"));
    let (running, ..) = start(directory.path(), &rows);
    for mode in ["vector", "keyword", "hybrid"] {
        let answer = ask(
            &running,
            &json!({"text": "quasar", "k": 1, "mode": mode, "group_by": "document", "group_size": 5}),
        );
        assert_eq!(documents(&answer), BTreeSet::from(["doc7".to_owned()]));
        let hits = answer["hits"].as_array().unwrap();
        assert_eq!(hits.len(), 5, "{mode}: {answer}");
    }
}

#[test]
fn what_the_index_does_not_keep_is_refused_with_the_way_out() {
    let directory = tempfile::tempdir().unwrap();
    let (running, ..) = start(directory.path(), &rows());
    let refused = |running: &Running, question: Value| {
        let (status, problem) = running.post(PATH, &question.to_string());
        assert_eq!(status, 400, "{problem}");
        format!("{} {}", problem["detail"], problem["hint"])
    };
    let problem = refused(&running, json!({"text": "a", "filter": {"owner": "core"}}));
    assert!(
        problem.contains("`owner`") && problem.contains("owner.team"),
        "{problem}"
    );
    let vector = vec![0.1; 384];
    let problem = refused(&running, json!({"vector": vector, "mode": "hybrid"}));
    assert!(problem.contains("a vector has no words"), "{problem}");
    // Each component is finite, but no score would be.
    let mut vector = vec![3e38; 384];
    vector[1] = -3e38;
    for exact in [true, false] {
        let problem = refused(&running, json!({"vector": vector, "exact": exact}));
        assert!(
            problem.contains("has length 5.8") && problem.contains("at most 1e18"),
            "{problem}"
        );
    }
    let long = "x".repeat(300);
    let problem = refused(
        &running,
        json!({"text": "a", "filter": {"lang": {"$prefix": long}}}),
    );
    assert!(problem.contains("has 300 bytes"), "{problem}");
    drop(running);

    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("pages.jsonl"), "").unwrap();
    let port = free_port();
    let config = write_config(directory.path(), port, "");
    let mut running = Running::start(&config, port);
    running.wait_until("the index", Duration::from_secs(60), |running| {
        running.client().index("pages").is_ok()
    });
    let problem = refused(&running, json!({"text": "a", "filter": {"year": 2000}}));
    assert!(problem.contains("`filterable`"), "{problem}");
    let problem = refused(&running, json!({"text": "a", "mode": "keyword"}));
    assert!(
        problem.contains("keywords: {language: english}"),
        "{problem}"
    );
    drop(running);

    for (fields, fact) in [
        ("    filterable: [years]", "did you mean `year`?"),
        ("    filterable: [year, year]", "`year` is named twice"),
        ("    keywords: {language: klingon}", "klingon"),
        ("    quantization: sq4", "did you mean `sq8`?"),
    ] {
        let config = write_config(directory.path(), port, fields);
        let (code, out, error) = call(&["validate"], &config, &[]);
        assert_ne!(code, Some(0), "{fields}");
        assert!(format!("{out}{error}").contains(fact), "{out}{error}");
    }
}
