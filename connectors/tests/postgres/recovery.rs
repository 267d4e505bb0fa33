//! Restarts, lost slots, servers that go and come, trials: where reading goes on, and what the server
//! is told.

use crate::support::{Database, catch_up, failure, large, open, rows};
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use vectide_connectors::testing::{
    HeldMap, ModelState, PostgresClient, PostgresServer, RecordingSink, run_source,
};
use vectide_model::{ReadMode, SourceStart, StopSignal};

#[test]
fn what_is_not_durable_is_not_confirmed_and_idle_time_is() {
    let Some(database) = Database::new(
        "durable_is_confirmed",
        "CREATE TABLE pages (id int PRIMARY KEY); CREATE TABLE other (id int);",
    ) else {
        return;
    };
    let state = ModelState::default();
    let run = state.run(database.source(&["public.pages"]), ReadMode::Follow);
    state.wait_until("caught up", |it| it.times_caught_up() == 1);
    let before = database.confirmed();
    // Changes of a table that nobody reads: the slot must move over them.
    let mut client = database.client();
    client.execute("INSERT INTO other SELECT generate_series(1, 10000)");
    let end = client.query("SELECT pg_current_wal_lsn()")[0][0]
        .clone()
        .unwrap();
    let is_past = |at: &str| {
        let sql = format!(
            "SELECT '{}'::pg_lsn >= '{at}'::pg_lsn",
            database.confirmed()
        );
        database.client().query(&sql)[0][0].as_deref() == Some("t")
    };
    state.wait_until("the slot has moved", |_| is_past(&end));
    assert_ne!(before, end);
    run.stop().unwrap();
    // A state that was put back to an earlier place: what was confirmed meanwhile is gone for it.
    let error = failure_at(&state, &database, 8);
    assert!(error.contains("after the recorded 0/8"), "{error}");
    assert!(error.contains("--resnapshot source"), "{error}");
}

/// Runs the source from the place `at` of the log, else as recorded in `like`.
fn failure_at(like: &ModelState, database: &Database, at: u64) -> String {
    let mut resume = like.resume();
    resume.positions.insert("wal".into(), at);
    let source = database.source(&["public.pages"]);
    let mut run = run_source(
        source,
        resume,
        HeldMap::default(),
        ReadMode::UntilCaughtUp,
        RecordingSink::default(),
    );
    run.join().unwrap_err().to_string()
}

#[test]
fn a_slot_that_is_gone_is_told_and_reading_anew_removes_what_went() {
    let Some(database) = Database::new(
        "slot_is_gone",
        "CREATE TABLE pages (id int PRIMARY KEY, body text);
         INSERT INTO pages SELECT i, 'old' FROM generate_series(1, 50) i;",
    ) else {
        return;
    };
    let state = ModelState::default();
    catch_up(&state, database.source(&["public.pages"]));
    let mut client = database.client();
    client.drop_slot("slot_is_gone");
    client.execute("DELETE FROM pages WHERE id <= 10; UPDATE pages SET body = 'new' WHERE id = 11");
    let error = failure(&state, database.config(&["public.pages"]));
    assert!(error.contains("`slot_is_gone` is gone"), "{error}");
    assert!(
        error.contains("vectide run CONFIG --resnapshot source"),
        "{error}"
    );
    // Another table beside it would give every row another key.
    client.execute(
        "CREATE TABLE more (id int PRIMARY KEY); ALTER PUBLICATION vectide_source ADD TABLE more",
    );
    let error = failure(&state, database.config(&["public.pages", "public.more"]));
    assert!(error.contains("are made otherwise now"), "{error}");
    // Reading anew, killed in the middle and started again.
    state.forget_positions();
    state.kill_after(2, 0.5);
    let killed = state.run(database.source(&["public.pages"]), ReadMode::UntilCaughtUp);
    killed.join().unwrap();
    state.survive();
    catch_up(&state, database.source(&["public.pages"]));
    let found = rows(&state);
    assert_eq!(found.len(), 40);
    assert_eq!(found["11"]["body"], "new");
    client.execute(
        "DELETE FROM pages WHERE id = 11; TRUNCATE pages; INSERT INTO pages VALUES (1, 'x')",
    );
    catch_up(&state, database.source(&["public.pages"]));
    assert_eq!(rows(&state).into_keys().collect::<Vec<_>>(), ["1"]);
}

#[test]
fn a_server_that_goes_and_comes_is_followed_again() {
    let test = "server_comes_again";
    let Some(server) = PostgresServer::start_or_skip(test) else {
        return;
    };
    server
        .client()
        .execute("CREATE TABLE pages (id int PRIMARY KEY)");
    let state = ModelState::default();
    let run = state.run(open(server.source(&["public.pages"])), ReadMode::Follow);
    state.wait_until("caught up", |it| it.times_caught_up() == 1);
    for round in 1..=3 {
        server
            .client()
            .execute(&format!("INSERT INTO pages VALUES ({round})"));
        server.stop().unwrap();
        server.start_again().unwrap();
        server
            .client()
            .execute(&format!("INSERT INTO pages VALUES ({})", round + 100));
        state.wait_until("both came", |it| it.rows().len() == 2 * round);
    }
    run.stop().unwrap();
    // The same name and place, another cluster.
    drop(server);
    let other = PostgresServer::start_or_skip(test).unwrap();
    other
        .client()
        .execute("CREATE TABLE pages (id int PRIMARY KEY)");
    let error = failure(&state, other.source(&["public.pages"]));
    assert!(
        error.contains("no longer has the recorded position"),
        "{error}"
    );
}

#[test]
fn a_trial_reads_and_leaves_nothing_behind() {
    let Some(database) = Database::new(
        "trial_leaves_nothing",
        "CREATE TABLE pages (id int PRIMARY KEY); INSERT INTO pages VALUES (1);",
    ) else {
        return;
    };
    let trial = |state: &ModelState| {
        let start = SourceStart {
            name: "source".into(),
            positions: BTreeMap::new(),
            fingerprints: BTreeMap::new(),
            held: Arc::new(HeldMap::default()),
            mode: ReadMode::UntilCaughtUp,
            is_trial: true,
            stop: StopSignal::new(),
        };
        let source = database.source(&["public.pages"]);
        source.run(start, &mut state.clone())
    };
    let state = ModelState::default();
    let error = trial(&state).unwrap_err().to_string();
    assert!(error.contains("there is no publication"), "{error}");
    let mut client = database.client();
    client.execute("CREATE PUBLICATION vectide_source FOR TABLE pages");
    trial(&state).unwrap();
    assert_eq!(state.rows().len(), 1);
    let slots = "SELECT 1 FROM pg_replication_slots WHERE database = 'trial_leaves_nothing'";
    state.wait_until("the slot is gone", |_| {
        database.client().query(slots).is_empty()
    });
}

/// A trial holds nothing and nothing of it becomes durable: it waited for ever for what it had sent,
/// and told the server that nothing was taken, so that the log grew while somebody looked.
#[test]
fn a_trial_waits_for_nothing_and_moves_its_slot() {
    let Some(database) = Database::new(
        "trial_moves_on",
        "CREATE TABLE pages (id int PRIMARY KEY, body text);
         ALTER TABLE pages ALTER body SET STORAGE EXTERNAL;
         CREATE PUBLICATION vectide_source FOR TABLE pages;",
    ) else {
        return;
    };
    let mut client = database.client();
    client.execute(&format!("INSERT INTO pages VALUES (1, '{}')", large(1)));
    let state = ModelState::default();
    let partial = Arc::new(Mutex::new(Vec::new()));
    let seen = partial.clone();
    state.observe(move |batch| {
        let left_out = batch.changes.iter().map(|it| it.unchanged_fields.clone());
        seen.lock()
            .unwrap()
            .extend(left_out.filter(|it| !it.is_empty()));
    });
    let stop = StopSignal::new();
    let start = SourceStart {
        name: "source".into(),
        positions: BTreeMap::new(),
        fingerprints: BTreeMap::new(),
        held: Arc::new(HeldMap::default()),
        mode: ReadMode::Follow,
        is_trial: true,
        stop: stop.clone(),
    };
    let source = database.source(&["public.pages"]);
    let mut sink = state.clone();
    let thread = std::thread::spawn(move || source.run(start, &mut sink));
    state.wait_until("caught up", |it| it.times_caught_up() == 1);
    client.execute("UPDATE pages SET id = 2");
    client.execute("TRUNCATE pages; INSERT INTO pages VALUES (3, 'c')");
    state.wait_until("the row behind it is there", |it| {
        it.rows().contains_key("3")
    });
    assert_eq!(*partial.lock().unwrap(), [vec!["body".into()]]);
    let end = client.query("SELECT pg_current_wal_lsn()")[0][0]
        .clone()
        .unwrap();
    let moved = format!(
        "SELECT FROM pg_replication_slots WHERE database = 'trial_moves_on' \
         AND confirmed_flush_lsn >= '{end}'"
    );
    state.wait_until("the slot has moved", |_| {
        !database.client().query(&moved).is_empty()
    });
    stop.stop();
    thread.join().unwrap().unwrap();
}

/// A long transaction is handed on in parts. When its beginning had become durable and the server told
/// it again, a moved row took its text from under its old key, where the first part had put another
/// row's.
#[test]
fn a_split_transaction_that_is_told_again_goes_on_behind_its_parts() {
    let Some(database) = Database::new("split_told_again", &shifted_table(300)) else {
        return;
    };
    let mut config = database.config(&["public.pages"]);
    config["max_transaction_changes"] = json!(50);
    let state = ModelState::default();
    catch_up(&state, open(config.clone()));
    let changes = Arc::new(Mutex::new(0));
    let counted = changes.clone();
    state.observe(move |batch| *counted.lock().unwrap() += batch.changes.len());
    let mut client = database.client();
    client.execute("UPDATE pages SET id = id - 1");
    // Each moved row waits for what is durable with a batch of its own, so this is far in it.
    state.kill_after(120, 0.0);
    catch_up(&state, open(config.clone()));
    state.survive();
    let first = *changes.lock().unwrap();
    assert!((100..500).contains(&first), "killed in the middle: {first}");
    catch_up(&state, open(config));
    assert_eq!(wrong_texts(&state, &mut client), BTreeMap::new());
    assert_eq!(state.dead_letters(), []);
    assert_eq!(state.split_transactions(), 1);
    assert_eq!(*changes.lock().unwrap(), 600, "nothing is handed on twice");
}

#[test]
fn a_split_transaction_goes_on_over_a_broken_connection() {
    // More than the queues and the sockets between server and source take.
    let Some(database) = Database::new("split_reconnects", &shifted_table(10_000)) else {
        return;
    };
    let mut config = database.config(&["public.pages"]);
    config["max_transaction_changes"] = json!(1000);
    let state = ModelState::default();
    let run = state.run(open(config), ReadMode::Follow);
    state.wait_until("caught up", |it| it.times_caught_up() == 1);
    let changes = Arc::new(Mutex::new(0));
    let counted = changes.clone();
    let mut breaking = Some(database.client());
    state.observe(move |batch| {
        *counted.lock().unwrap() += batch.changes.len();
        if let Some(mut client) = breaking.take_if(|_| batch.split_transactions > 0) {
            client.execute(
                "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots \
                 WHERE slot_name = 'split_reconnects'",
            );
        }
    });
    let mut client = database.client();
    client.execute("UPDATE pages SET id = id - 1; INSERT INTO pages VALUES (0, 'p', 'the end')");
    state.wait_until("the end is there", |it| it.rows().contains_key("0"));
    run.stop().unwrap();
    assert_eq!(wrong_texts(&state, &mut client), BTreeMap::new());
    assert_eq!(state.split_transactions(), 1);
    assert_eq!(
        *changes.lock().unwrap(),
        20_001,
        "nothing is handed on twice"
    );
}

/// Rows of which an update tells about 1.5 kB; the bodies lie beside the table.
fn shifted_table(count: usize) -> String {
    let last = 100 + count;
    format!(
        "CREATE TABLE pages (id int PRIMARY KEY, pad text, body text);
         ALTER TABLE pages ALTER pad SET STORAGE PLAIN, ALTER body SET STORAGE EXTERNAL;
         INSERT INTO pages SELECT i, repeat('p', 1500), 'text of ' || i || repeat('x', 1000)
           FROM generate_series(101, {last}) i;"
    )
}

/// Rows whose text is not that of the table, with both.
fn wrong_texts(
    state: &ModelState,
    client: &mut PostgresClient,
) -> BTreeMap<String, [Option<String>; 2]> {
    let mut texts = BTreeMap::<String, [Option<String>; 2]>::new();
    for (key, row) in rows(state) {
        texts.entry(key).or_default()[0] = row["body"].as_str().map(str::to_owned);
    }
    for row in client.query("SELECT id, body FROM pages") {
        texts.entry(row[0].clone().unwrap()).or_default()[1].clone_from(&row[1]);
    }
    texts.retain(|_, [held, there]| held != there);
    for text in texts.values_mut().flatten().flatten() {
        *text = text.trim_end_matches('x').to_owned();
    }
    texts
}
