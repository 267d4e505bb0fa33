//! Transactions of the source, by Debezium's transaction topic: each changes rows that lie in several
//! partitions, and no query sees one without the others.

use crate::pipeline::{CONTENT, Pipeline, TABLES, kafka, state_of};
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};
use vectide_tests::Running;
use vectide_tests::services::Services;

/// Rows that every transaction changes; enough for all three partitions.
const ROWS: usize = 8;

/// Transactions, with a pause after each, so that many of them become visible one by one.
const TRANSACTIONS: usize = 150;

/// Asks for all rows and gives the transactions whose texts are seen, and how many rows.
fn seen(running: &Running) -> (BTreeSet<String>, usize) {
    let question = r#"{"text": "transaction", "k": 100, "include": ["text"]}"#;
    let (status, answer) = running.post("/v1/indexes/pages/query", question);
    assert_eq!(status, 200, "{answer}");
    let hits = answer["hits"].as_array().unwrap();
    let texts = hits
        .iter()
        .map(|hit| hit["text"].as_str().unwrap().to_owned());
    (texts.collect(), hits.len())
}

#[test]
fn a_transaction_over_partitions_is_visible_at_once() {
    let Some(services) = Services::start_or_skip("a_transaction_over_partitions") else {
        return;
    };
    let name = "transactions";
    let database = services.create_database(name);
    database.execute(TABLES);
    let connect = services.connect();
    connect.capture(&database, name, &[("provide.transaction.metadata", "true")]);
    database.execute(&format!(
        "insert into pages select 'page-' || n, 'transaction 0' from generate_series(1, {ROWS}) n"
    ));
    connect.wait_until_delivered(&database, name);
    let source = kafka(
        services,
        &format!("{name}.public.pages"),
        "{type: debezium}",
        &format!(", transactions: {{topic: {name}.transaction}}"),
    );
    let pipeline = Pipeline::new(&source, CONTENT);
    let running = pipeline.start();
    let mut statements = String::new();
    for number in 1..=TRANSACTIONS {
        writeln!(
            statements,
            "update pages set content = 'transaction {number}'; select pg_sleep(0.02);"
        )
        .unwrap();
    }
    let is_written = AtomicBool::new(false);
    let versions = std::thread::scope(|scope| {
        scope.spawn(|| {
            database.execute(&statements);
            connect.wait_until_delivered(&database, name);
            is_written.store(true, Ordering::Relaxed);
        });
        let mut versions = BTreeSet::new();
        while !is_written.load(Ordering::Relaxed) {
            let (texts, rows) = seen(&running);
            if rows == 0 && versions.is_empty() {
                // It answers before it has read anything.
                continue;
            }
            assert_eq!(texts.len(), 1, "rows of several transactions: {texts:?}");
            assert_eq!(rows, ROWS);
            versions.extend(texts);
        }
        versions
    });
    println!(
        "{} of {TRANSACTIONS} transactions were seen",
        versions.len()
    );
    assert!(versions.len() > 5, "the queries ran beside the changes");
    assert!(running.terminate());
    pipeline.expect(&state_of(&database, "content"), "at the end");
}
