//! Whatever the bytes are: no panic, no unbounded work, and every problem points into the file.

use crate::pipeline::{GOOD, lookup, schema};
use proptest::prelude::*;
use std::fmt::Write;
use std::time::{Duration, Instant};
use vectide_config::Document;

/// Generous: the hardest of these files take well under a second on a slow machine.
const TIME_MAX: Duration = Duration::from_secs(20);

fn check(bytes: &[u8]) -> String {
    let report = match Document::parse("x.yaml", bytes, &lookup) {
        Err(report) => report,
        Ok(mut document) => {
            let mut report = document.check(&schema());
            report.extend(document.check_references("documents.*.from", "sources", "source"));
            let _ = document.parse_at::<crate::pipeline::Pipeline>("");
            report
        }
    };
    let lines = bytes.split(|byte| matches!(byte, b'\n' | b'\r')).count() + 1;
    for problem in report.problems() {
        assert!((1..=lines).contains(&problem.position.line), "{report}");
        assert!(
            (1..=bytes.len() + 2).contains(&problem.position.column),
            "{report}"
        );
    }
    let text = report.to_string();
    assert!(
        text.chars().all(|c| c == '\n' || !c.is_control()),
        "{text:?}"
    );
    text
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        check(&bytes);
    }

    /// The characters that mean something in YAML, in any order.
    #[test]
    fn any_punctuation(text in "[-:,\\[\\]{}&*!|>'\"%@`#?<=~$ab1\\n \\t]{0,200}") {
        check(text.as_bytes());
    }

    /// A good configuration with a few bytes changed.
    #[test]
    fn near_misses(changes in prop::collection::vec((0..GOOD.len(), any::<u8>()), 1..6)) {
        let mut bytes = GOOD.as_bytes().to_vec();
        for (place, byte) in changes {
            bytes[place] = byte;
        }
        check(&bytes);
    }

    /// A good configuration with a piece taken out.
    #[test]
    fn truncations(from in 0..GOOD.len(), length in 0..200_usize) {
        let mut bytes = GOOD.as_bytes().to_vec();
        bytes.drain(from..(from + length).min(GOOD.len()));
        check(&bytes);
    }
}

#[test]
fn hostile_files_end_soon() {
    let size = 1024 * 1024 - 64;
    let repeated = |unit: &str| unit.repeat(size / unit.len());
    let mut laughs = "a0: &a0 [x,x,x,x,x,x,x,x,x]\n".to_owned();
    for level in 1..30 {
        let below = level - 1;
        let aliases = vec![format!("*a{below}"); 9].join(",");
        writeln!(laughs, "a{level}: &a{level} [{aliases}]").unwrap();
    }
    let nested: String = (0..1000)
        .map(|depth| format!("{}a:\n", " ".repeat(depth)))
        .collect();
    let files = [
        ("laughs", laughs),
        (
            "long text",
            format!(
                "a: &a '{}'\nb: [{}]",
                "x".repeat(size / 2),
                "*a,".repeat(1000)
            ),
        ),
        ("anchors", format!("a: {}", repeated("&a [ "))),
        ("itself", "a: &a [*a]\n".to_owned()),
        ("nested", nested),
        ("lists", repeated("[")),
        ("maps", repeated("{a: ")),
        ("dashes", repeated("- ")),
        ("keys", repeated("? ")),
        ("colons", repeated(": ")),
        ("open keys", repeated("a:\n")),
        (
            "variables",
            format!("a: \"{}\"", "${PASSWORD}".repeat(90_000)),
        ),
        ("defaults", format!("a: \"{}\"", "${A:-".repeat(200_000))),
        ("values", format!("sources: [{}]", "1,".repeat(size / 4))),
        (
            "unknown keys",
            (0..45_000).map(|key| format!("key{key}: 1\n")).collect(),
        ),
        (
            "bad sources",
            format!(
                "sources:\n{}",
                (0..45_000).fold(String::new(), |mut text, key| {
                    writeln!(text, " S{key}: 1").unwrap();
                    text
                })
            ),
        ),
        ("one key", format!("{}: 1", "k".repeat(size))),
        ("tags", repeated("!a ")),
        ("quotes", repeated("'")),
        ("block", format!("a: |\n{}", repeated(" \n"))),
        ("directives", repeated("%a b\n")),
        ("documents", repeated("---\n")),
        ("plain", format!("a: {}", repeated("b c\n  "))),
    ];
    for (name, text) in files {
        let start = Instant::now();
        let report = check(text.as_bytes());
        let took = start.elapsed();
        println!(
            "{name}: {took:?}: {}",
            report.lines().next().unwrap_or("good")
        );
        assert!(took < TIME_MAX, "{name} took {took:?}");
        assert!(
            report.len() < 200_000,
            "{name}: report of {} bytes",
            report.len()
        );
        assert!(!report.is_empty(), "{name}");
    }
}
