//! No report, and no `Debug` output, ever shows the value of a variable.

use crate::pipeline::schema;
use proptest::prelude::*;
use serde::Deserialize;
use vectide_config::Document;

const SECRET: &str = "s3cr3t-Value";

fn lookup(name: &str) -> Option<String> {
    match name {
        "SECRET" => Some(SECRET.to_owned()),
        "NUMBER" => Some("90210777".to_owned()),
        _ => None,
    }
}

/// The secret in every place, where it is wrong in every way.
const BAD: &str = r#"
apiVersion: ${SECRET}
state: ${SECRET}
sources:
  a: {type: "${SECRET}"}
  b: ${SECRET}
  c: {type: jsonl, path: ["${SECRET}"], format: {type: "x${SECRET}"}}
  d:
    type: kafka
    brokers: ${SECRET}
    topic: {x: "${SECRET}"}
    poll: ${SECRET}
    format: "${SECRET}"
documents:
  p: {from: "${SECRET}", text: {a: "${SECRET}"}, metadata: {k: ["${SECRET}"]}}
indexes:
  i:
    from: "${SECRET}"
    chunk:
      type: structured
      target_tokens: "${SECRET}"
      max_tokens: ${NUMBER}
    embed:
      model: {m: "${SECRET}"}
      device: ${SECRET}
      share: ${NUMBER}
    shards: ${NUMBER}
    metric: ${SECRET}
server:
  listen: ["${SECRET}"]
  timeout: ${NUMBER}
  tls: ${SECRET}
  allow: {a: "${SECRET}"}
"#;

#[test]
fn reports_show_no_secret() {
    let mut document = Document::parse("x.yaml", BAD.as_bytes(), &lookup).unwrap();
    let mut report = document.check(&schema());
    report.extend(document.check_references("documents.*.from", "sources", "source"));
    report.extend(document.check_references("indexes.*.from", "documents", "entry"));
    assert!(report.problems().len() >= 20, "{report}");
    let json = serde_json::to_string(&report).unwrap();
    for text in [
        report.to_string(),
        json,
        format!("{report:?}"),
        format!("{document:?}"),
    ] {
        assert!(!text.contains(SECRET), "{text}");
        assert!(!text.contains("90210777"), "{text}");
    }
    assert!(
        report.to_string().contains("`${SECRET}`"),
        "the variable's name is shown"
    );
}

#[test]
fn problems_of_others_are_struck() {
    let text = "server: {listen: '${SECRET}'}\n";
    let mut document = Document::parse("x.yaml", text.as_bytes(), &lookup).unwrap();
    let mut report = document.check(&schema());
    let careless = document.problem("server.listen", format!("can't listen on {SECRET}"));
    report.push(careless.hint(format!("not {SECRET}")).allowed(SECRET));
    assert!(!report.to_string().contains(SECRET), "{report}");
    assert!(
        report.to_string().contains("can't listen on ***"),
        "{report}"
    );
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Typed {
    #[allow(dead_code)]
    port: u16,
}

#[test]
fn messages_of_types_are_withheld_where_secrets_are() {
    let parse = |text: &str| {
        let document = Document::parse("x.yaml", text.as_bytes(), &lookup).unwrap();
        document.parse_at::<Typed>("").unwrap_err().fact
    };
    assert_eq!(
        parse("port: ${SECRET}"),
        "invalid type: string \"`${SECRET}`\", expected u16"
    );
    assert_eq!(
        parse("port: ${NUMBER}"),
        "the number of `${NUMBER}` does not fit here"
    );
    assert_eq!(
        parse("other: ${NUMBER}"),
        "unknown field `other`, expected `port`"
    );
    assert_eq!(parse("port: x"), "invalid type: string \"x\", expected u16");
}

#[test]
fn a_default_is_not_shown_either() {
    let text = "server: {listen: x, tls: '${NONE:-pa55word}'}\n";
    let mut document = Document::parse("x.yaml", text.as_bytes(), &lookup).unwrap();
    let report = document.check(&schema()).to_string();
    assert!(
        report.contains("server.tls") && !report.contains("pa55word"),
        "{report}"
    );
}

proptest! {
    /// Wherever a secret is put into a good configuration, and whatever it is.
    #[test]
    fn no_place_leaks(line in 1_usize..32, secret in "[a-zA-Z0-9:{}\\[\\]'\"#-]{8,20}") {
        prop_assume!(!crate::pipeline::GOOD.contains(&secret));
        let with_secret = |name: &str| match name {
            "LEAK" => Some(secret.clone()),
            other => crate::pipeline::lookup(other),
        };
        let text: String = crate::pipeline::GOOD.lines().enumerate().map(|(index, text)| {
            match text.split_once(": ") {
                Some((key, _)) if index == line => format!("{key}: ${{LEAK}}\n"),
                _ => format!("{text}\n"),
            }
        }).collect();
        if let Ok(mut document) = Document::parse("x.yaml", text.as_bytes(), &with_secret) {
            let report = document.check(&schema()).to_string();
            prop_assert!(!report.contains(&secret), "{report}");
        }
    }
}
