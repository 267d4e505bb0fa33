//! Tables that are altered while a source reads them: it goes on and has what they have.

use crate::support::{Database, rows};
use serde_json::json;
use std::time::Duration;
use vectide_connectors::testing::ModelState;
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
