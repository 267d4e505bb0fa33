//! Tables that are altered while a source reads them: it goes on and has what they have.

use crate::support::{Database, rows};
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
    assert_eq!(rows(&state).len(), 1000);
}
