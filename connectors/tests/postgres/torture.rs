//! A snapshot while writers write at full speed, killed again and again: the end state is exact.
//! `VECTIDE_TORTURE=1` makes twenty runs of it instead of five.

use crate::support::{Database, catch_up, large, open, rows};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use vectide_connectors::testing::{ModelState, PostgresClient, is_torture};
use vectide_model::ReadMode;

/// What the table has, as the source would give it.
fn truth(client: &mut PostgresClient) -> BTreeMap<String, Value> {
    let found = client.query("SELECT id, n, body FROM pages");
    found
        .into_iter()
        .map(|row| {
            let [id, n, body] = &row[..] else {
                panic!("three columns");
            };
            let number = |it: &Option<String>| it.as_ref().unwrap().parse::<i64>().unwrap();
            let value = json!({"id": number(id), "n": number(n), "body": body});
            (id.clone().unwrap(), value)
        })
        .collect()
}

/// Writes at full speed until told to stop: inserts, updates that leave large values alone, updates of
/// large values, deletes, rows that come again, new keys, transactions that are rolled back.
fn write_until(database: &Database, writer: u64, done: &AtomicBool) -> u64 {
    let mut client = database.client();
    let mut random = 0x9E37_79B9_7F4A_7C15_u64.wrapping_mul(writer + 1);
    let mut next = |below: u64| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random % below
    };
    let mut written = 0;
    while !done.load(Ordering::Relaxed) {
        // Each writer has the keys of its own remainder, so that writers do not wait for each other.
        let id = next(1500) * 4 + writer;
        let (n, seed) = (next(1_000_000), next(1_000_000));
        let body = if next(4) == 0 {
            large(seed)
        } else {
            format!("short {seed}")
        };
        let statement = match next(8) {
            0 | 1 => format!(
                "INSERT INTO pages VALUES ({id}, {n}, '{body}') ON CONFLICT (id) DO UPDATE SET n = {n}"
            ),
            2 | 3 => format!("UPDATE pages SET n = {n} WHERE id = {id}"),
            4 => format!("UPDATE pages SET body = '{body}' WHERE id = {id}"),
            5 => format!("DELETE FROM pages WHERE id = {id}"),
            6 => format!(
                "BEGIN; DELETE FROM pages WHERE id = {id}; INSERT INTO pages VALUES ({id}, {n}, '{body}'); \
                 UPDATE pages SET n = n + 1 WHERE id = {id}; {}",
                if next(3) == 0 { "ROLLBACK" } else { "COMMIT" }
            ),
            _ => {
                let to = next(1500) * 4 + writer;
                format!(
                    "BEGIN; DELETE FROM pages WHERE id = {to} AND {to} <> {id}; \
                     UPDATE pages SET id = {to} WHERE id = {id}; COMMIT"
                )
            }
        };
        client.execute(&statement);
        written += 1;
    }
    written
}

#[test]
fn a_snapshot_while_writers_write_and_the_source_is_killed() {
    let Some(database) = Database::new(
        "snapshot_while_writing",
        "CREATE TABLE pages (id bigint PRIMARY KEY, n bigint, body text);
         ALTER TABLE pages ALTER COLUMN body SET STORAGE EXTERNAL;",
    ) else {
        return;
    };
    let is_long = is_torture();
    for run in 0..if is_long { 20_u64 } else { 5 } {
        let mut client = database.client();
        client.execute("TRUNCATE pages");
        client.execute(&format!(
            "INSERT INTO pages SELECT i, 0, repeat(md5((i * {run})::text), 100) \
             FROM generate_series(0, 5999) i WHERE i % 3 <> 0"
        ));
        client.execute("ANALYZE pages");
        let mut config = database.config(&["public.pages"]);
        config["snapshot"] = json!({"chunk_rows": 150, "parallelism": 1 + run % 3});
        let state = ModelState::default();
        let done = AtomicBool::new(false);
        let mut kills = 0;
        let written: u64 = std::thread::scope(|scope| {
            let writers: Vec<_> = (0..3)
                .map(|writer| {
                    let (database, done) = (&database, &done);
                    scope.spawn(move || write_until(database, writer, done))
                })
                .collect();
            // Killed in the snapshot, more than once, and in the stream; also between two changes of a
            // batch, and once the table is rewritten in between.
            for kill in 0..6_u64 {
                let share = (kill * 37 + run * 11) % 100;
                state.kill_after(2 + (kill * 7 + run * 3) % 17, share as f64 / 100.0);
                let mode = ReadMode::UntilCaughtUp;
                state.run(open(config.clone()), mode).join().unwrap();
                state.survive();
                kills += 1;
                if kill == 2 && run % 2 == 1 {
                    database.client().execute("VACUUM FULL pages");
                }
            }
            done.store(true, Ordering::Relaxed);
            writers.into_iter().map(|it| it.join().unwrap()).sum()
        });
        catch_up(&state, open(config));
        let (expected, found) = (truth(&mut client), rows(&state));
        let wrong: Vec<_> = expected
            .keys()
            .chain(found.keys())
            .filter(|key| expected.get(*key) != found.get(*key))
            .collect();
        assert!(
            wrong.is_empty(),
            "run {run}: {} rows differ: {:?}",
            wrong.len(),
            &wrong[..wrong.len().min(5)]
        );
        println!(
            "run {run}: {} rows, {written} statements, {kills} kills, {} dead letters",
            found.len(),
            state.dead_letters().len()
        );
        assert_eq!(state.dead_letters(), [], "run {run}");
        client.drop_slot("snapshot_while_writing");
    }
}
