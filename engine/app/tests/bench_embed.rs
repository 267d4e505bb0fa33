//! `vectide bench embed`: what it measures of a model that has stages and of one computed elsewhere, and what bad
//! input gets. Figures are only looked at for being possible: the machine may do anything beside.

// Helpers of tests fail like tests.
#![allow(clippy::unwrap_used)]

use serde_json::Value;
use std::process::{Command, Output};
use vectide_encoder::minilm::{self, MiniLmConfig};
use vectide_model::{EmbedderConfig, OpenContext};

fn bench(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_vectide"))
        .args(["bench", "embed"])
        .args(arguments)
        .output()
        .unwrap_or_else(|error| panic!("{error}"))
}

fn measured(arguments: &[&str]) -> Value {
    let done = bench(&[arguments, &["--json", "--seconds", "0.2"]].concat());
    assert!(done.status.success(), "{done:?}");
    serde_json::from_slice(&done.stdout).unwrap()
}

#[test]
fn a_model_that_is_computed_elsewhere_says_so() {
    let report = measured(&["--model", "hashing", "--threads", "2"]);
    assert_eq!(report["threads"], 2);
    assert!(report["texts"].as_u64() > Some(0), "{report}");
    assert!(report["tokens_per_second"].as_f64() > Some(1.0), "{report}");
    assert_eq!(report["share_of_peak"], Value::Null);
    assert_eq!(report["tokens_per_thread_second"], Value::Null);
    assert_eq!(report["stages"], Value::Array(Vec::new()));
    let text = bench(&["--model", "hashing", "--seconds", "0.1"]);
    let text = String::from_utf8(text.stdout).unwrap();
    assert!(
        text.contains("hashing is computed elsewhere") && !text.contains("a thread computes"),
        "{text}"
    );
}

/// A text is computed as far as the model looks at it: 8,192 tokens here.
#[test]
fn tokens_behind_the_models_limit_are_not_counted() {
    let folder = tempfile::tempdir().unwrap();
    let texts = folder.path().join("texts.jsonl");
    let text = "word ".repeat(10_000);
    std::fs::write(&texts, format!("{{\"text\": \"{text}\"}}\n")).unwrap();
    let texts = texts.to_str().unwrap();
    let report = measured(&["--model", "hashing", "--threads", "1", "--texts", texts]);
    let (texts, tokens) = (report["texts"].as_u64(), report["tokens"].as_u64());
    assert_eq!(tokens, texts.map(|it| it * 8_192), "{report}");
}

#[test]
fn the_stages_of_a_model_make_up_its_time() {
    let name = minilm::MODEL_NAME;
    let context = OpenContext::in_folder(".");
    let place = MiniLmConfig::default().locate(&context);
    let required = std::env::var("VECTIDE_REQUIRE_SERVICES");
    let is_required = required.is_ok_and(|value| value == "1");
    // The command fetches it where it must be there.
    if !is_required && !place.as_ref().is_ok_and(|it| it.starts_with("in ")) {
        println!(
            "skipped: the_stages_of_a_model_make_up_its_time: {name} is not cached: {place:?}"
        );
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let texts = folder.path().join("texts.jsonl");
    std::fs::write(
        &texts,
        "{\"text\": \"ten words of text are quickly embedded by this model\"}\n",
    )
    .unwrap();
    let report = measured(&[
        "--texts",
        texts.to_str().unwrap(),
        "--threads",
        "1",
        "--precision",
        "f32",
    ]);
    let (texts, tokens) = (report["texts"].as_u64(), report["tokens"].as_u64());
    assert_eq!(tokens, texts.map(|it| it * 12), "{report}");
    let stages = report["stages"].as_array().unwrap();
    let shares: Vec<f64> = stages
        .iter()
        .map(|it| it["share_of_time"].as_f64().unwrap())
        .collect();
    assert!((shares.iter().sum::<f64>() - 1.0).abs() < 0.05, "{report}");
    let share = |name: &str| {
        let stage = stages.iter().position(|it| it["stage"] == name);
        shares[stage.unwrap_or_else(|| panic!("no {name}: {report}"))]
    };
    assert!(
        share("feed-forward product 1, GELU") > share("pooling"),
        "{report}"
    );
    assert!(
        share("attention") > 0.0 && share("tokenization") > 0.0,
        "{report}"
    );
    if let Some(share) = report["share_of_peak"].as_f64() {
        assert!(share > 0.0 && share < 1.5, "{report}");
    }
}

#[test]
fn bad_input_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, content: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (empty, bad) = (file("empty.jsonl", ""), file("bad.jsonl", "{\"txt\": 1}\n"));
    for (arguments, status, told) in [
        (&["--model", "none"][..], 1, "there is no model `none`"),
        (&["--texts", "/nonexistent.jsonl"], 1, "/nonexistent.jsonl"),
        (&["--texts", &empty], 1, "has no texts"),
        (&["--texts", &bad], 1, "bad.jsonl:1: missing field `text`"),
        (&["--threads", "0"], 2, "--threads"),
        (&["--seconds", "never"], 2, "give a number above 0"),
    ] {
        let done = bench(arguments);
        assert_eq!(done.status.code(), Some(status), "{arguments:?}: {done:?}");
        let error = String::from_utf8_lossy(&done.stderr);
        assert!(error.contains(told), "{arguments:?}: {error}");
    }
}
