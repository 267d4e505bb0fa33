//! Tables that are altered, swapped, taken out and put back while a source reads them: either it goes on
//! and has what they have, or it ends and says what happened.

use crate::support::{Database, catch_up, failure, open, rows};
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use vectide_connectors::testing::{HeldMap, ModelState, RecordingSink, Resume, run_source};
use vectide_model::ReadMode;

/// The connection that plans a round held the table and did nothing; an ALTER waited for it, and the
/// readers' first SELECT behind the ALTER. All of them, and every query on that table, waited for ever.
#[test]
fn a_table_that_is_altered_while_it_is_copied_is_copied_again() {
    let Some(database) = Database::new(
        "altered_while_copied",
        "CREATE TABLE pages (id int PRIMARY KEY);
         INSERT INTO pages SELECT generate_series(1, 1000);",
    ) else {
        return;
    };
    let state = ModelState::default();
    let (mut client, mut watching) = (Some(database.client()), database.client());
    state.observe(move |batch| {
        // The round is planned, and nothing was read yet.
        let is_planned = batch.positions.contains_key("public.pages/snapshot");
        let Some(mut client) = client.take_if(|_| is_planned) else {
            return;
        };
        std::thread::spawn(move || {
            client.execute("ALTER TABLE pages ADD COLUMN extra int DEFAULT 7");
        });
        let waits = "SELECT FROM pg_locks WHERE NOT granted AND mode = 'AccessExclusiveLock' \
                     AND relation = 'pages'::regclass";
        while watching.query(waits).is_empty() {
            std::thread::sleep(Duration::from_millis(5));
        }
    });
    let run = state.run(database.source(&["public.pages"]), ReadMode::UntilCaughtUp);
    state.wait_until("the table is read", |_| run.is_finished());
    run.join().unwrap();
    let found = rows(&state);
    assert_eq!(found.len(), 1000);
    assert_eq!(found["7"], json!({"id": 7, "extra": 7}));
}

/// The published columns were read at the start. Making the slot waits for every transaction that runs,
/// for as long as it runs; a column that came meanwhile was missing from the whole copy.
#[test]
fn a_column_that_comes_while_the_slot_is_made_is_in_the_copy() {
    let Some(database) = Database::new(
        "column_while_slot_is_made",
        "CREATE TABLE pages (id int PRIMARY KEY, title text); INSERT INTO pages VALUES (1, 'a');",
    ) else {
        return;
    };
    let mut long = database.client();
    long.execute("BEGIN");
    long.execute("SELECT txid_current()");
    let state = ModelState::default();
    let run = state.run(database.source(&["public.pages"]), ReadMode::UntilCaughtUp);
    let mut client = database.client();
    let slots = "SELECT FROM pg_replication_slots WHERE slot_name = 'column_while_slot_is_made'";
    while client.query(slots).is_empty() {
        assert!(!run.is_finished(), "{:?}", run.join());
        std::thread::sleep(Duration::from_millis(5));
    }
    client.execute("ALTER TABLE pages ADD COLUMN extra int DEFAULT 7");
    client.execute("ALTER TABLE pages RENAME COLUMN title TO heading");
    long.execute("COMMIT");
    run.join().unwrap();
    assert_eq!(
        rows(&state)["1"],
        json!({"id": 1, "heading": "a", "extra": 7})
    );
}

/// A key column that becomes another type has other texts: rows came under new keys, and those under
/// the old ones stayed for ever.
#[test]
fn a_key_of_another_type_is_told() {
    let Some(database) = Database::new(
        "key_of_another_type",
        "CREATE TABLE pages (id int, lang varchar(2), PRIMARY KEY (id, lang));
         INSERT INTO pages VALUES (1, 'en');",
    ) else {
        return;
    };
    let state = ModelState::default();
    let mut client = database.client();
    catch_up(&state, database.source(&["public.pages"]));
    // Numbers are told as numbers, however wide; texts as texts, however long.
    client.execute("ALTER TABLE pages ALTER id TYPE bigint, ALTER lang TYPE text");
    client.execute("INSERT INTO pages VALUES (2, 'de')");
    catch_up(&state, database.source(&["public.pages"]));
    assert_eq!(rows(&state).len(), 2);
    let run = state.run(database.source(&["public.pages"]), ReadMode::Follow);
    state.wait_until("caught up", |it| it.times_caught_up() == 3);
    client.execute("ALTER TABLE pages ALTER id TYPE numeric(8,2)");
    client.execute("INSERT INTO pages VALUES (3, 'fr')");
    state.wait_until("the source has ended", |_| run.is_finished());
    let error = run.join().unwrap_err().to_string();
    assert!(error.contains("column `id`"), "{error}");
    assert!(error.contains("--resnapshot source"), "{error}");
    // Also when it happened while the source did not run.
    let error = failure(&state, database.config(&["public.pages"]));
    assert!(error.contains("another type"), "{error}");
    // A state from before types were recorded is no false alarm.
    let mut config = database.config(&["public.pages"]);
    config["slot"] = json!("key_of_another_type_anew");
    let fresh = ModelState::default();
    catch_up(&fresh, open(config.clone()));
    let (mut before, kinds) = (fresh.resume(), "public.pages/key_types");
    assert!(before.fingerprints.remove(kinds).is_some());
    let mut run = run_source(
        open(config),
        before,
        HeldMap::default(),
        ReadMode::UntilCaughtUp,
        RecordingSink::default(),
    );
    run.join().unwrap();
    let after = run.resume(Resume::default()).fingerprints;
    assert!(after.contains_key(kinds));
}

/// A table that was not among `tables` for a time is not told of for that time: the stream moved on
/// without it.
#[test]
fn a_table_that_was_left_out_for_a_time_is_told() {
    let Some(database) = Database::new(
        "left_out_for_a_time",
        "CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY);
         CREATE TABLE c (id int PRIMARY KEY); INSERT INTO c VALUES (1);",
    ) else {
        return;
    };
    let (all, some) = (
        ["public.a", "public.b", "public.c"],
        ["public.a", "public.b"],
    );
    let state = ModelState::default();
    catch_up(&state, database.source(&all));
    catch_up(&state, database.source(&some));
    let mut client = database.client();
    client.execute("DELETE FROM c; INSERT INTO c VALUES (2); INSERT INTO a VALUES (3)");
    catch_up(&state, database.source(&some));
    let error = failure(&state, database.config(&all));
    assert!(error.contains("table `public.c`"), "{error}");
    assert!(error.contains("--resnapshot source"), "{error}");
    catch_up(&state, database.source(&some));
    // Read anew, by a new slot in place of the old one, it has no gap.
    state.forget_positions();
    catch_up(&state, database.source(&all));
    let keys: Vec<String> = rows(&state).into_keys().collect();
    assert_eq!(keys, ["public.a/3", "public.c/2"]);
}

/// A running source looks at its tables every ten seconds; this is three of them.
const LOOK_MAX: Duration = Duration::from_secs(30);

/// Tables, what is done to them, and what the source says then; nothing where it goes on.
const ALTERATIONS: [(&str, &str, &str); 8] = [
    (
        "w",
        "ALTER TABLE w RENAME TO w_old; ALTER TABLE w_new RENAME TO w",
        "dropped and made anew",
    ),
    ("dropped", "DROP TABLE dropped", "is gone"),
    (
        "left_out",
        "ALTER PUBLICATION p_left_out DROP TABLE left_out",
        "no longer in publication `p_left_out`",
    ),
    (
        "narrowed",
        "ALTER PUBLICATION p_narrowed SET (publish = 'insert')",
        "leaves out some kinds of changes",
    ),
    (
        "unidentified",
        "ALTER TABLE unidentified REPLICA IDENTITY NOTHING",
        "REPLICA IDENTITY",
    ),
    (
        "moved",
        "ALTER TABLE moved RENAME TO moved_away",
        "is named `public.moved_away` now",
    ),
    // Told under the root's name from then on.
    (
        "leaf",
        "ALTER PUBLICATION p_leaf SET (publish_via_partition_root)",
        "no longer in publication `p_leaf`",
    ),
    // Nothing of this is a reason to end.
    (
        "altered",
        "ALTER TABLE altered ADD COLUMN x int; ALTER TABLE altered REPLICA IDENTITY FULL",
        "",
    ),
];

/// Nothing in the stream tells of a table that took another one's place, or is no longer published:
/// the source was stale for ever, and said that it had caught up.
#[test]
fn tables_that_are_swapped_or_no_longer_published_end_the_source() {
    let Some(database) = Database::new(
        "swapped_or_unpublished",
        "CREATE TABLE w (id int PRIMARY KEY); CREATE TABLE w_new (id int PRIMARY KEY);
         CREATE TABLE dropped (id int PRIMARY KEY); CREATE TABLE left_out (id int PRIMARY KEY);
         CREATE TABLE narrowed (id int PRIMARY KEY); CREATE TABLE unidentified (id int PRIMARY KEY);
         CREATE TABLE moved (id int PRIMARY KEY); CREATE TABLE root (id int PRIMARY KEY)
           PARTITION BY RANGE (id);
         CREATE TABLE leaf PARTITION OF root FOR VALUES FROM (0) TO (100);
         CREATE TABLE altered (id int PRIMARY KEY);",
    ) else {
        return;
    };
    let mut client = database.client();
    let runs = ALTERATIONS.map(|(table, _, _)| {
        let published = if table == "leaf" { "root" } else { table };
        client.execute(&format!(
            "CREATE PUBLICATION p_{table} FOR TABLE {published}"
        ));
        let mut config: Value = database.config(&[&format!("public.{table}")]);
        (config["slot"], config["publication"]) = (
            json!(format!("swapped_{table}")),
            json!(format!("p_{table}")),
        );
        let state = ModelState::default();
        let run = state.run(open(config), ReadMode::Follow);
        state.wait_until("caught up", |it| it.times_caught_up() == 1);
        run
    });
    for (_, statements, _) in ALTERATIONS {
        client.execute(statements);
    }
    let began_at = Instant::now();
    for ((table, _, expected), run) in ALTERATIONS.into_iter().zip(runs) {
        if expected.is_empty() {
            std::thread::sleep(Duration::from_secs(1));
            assert!(!run.is_finished(), "{table}: {:?}", run.join());
            continue;
        }
        while !run.is_finished() {
            assert!(began_at.elapsed() < LOOK_MAX, "{table} goes on");
            std::thread::sleep(Duration::from_millis(20));
        }
        let error = run.join().unwrap_err().to_string();
        assert!(error.contains(expected), "{table}: {error}");
        assert!(error.contains(&format!("public.{table}")), "{error}");
    }
}
