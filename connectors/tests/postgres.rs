//! The PostgreSQL source against a real server. Every test has a database of its own; the state is a
//! model with upsert's rule, which a source may ask for its rows and which can be killed at any batch.

use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use vectide_connectors::PostgresConfig;
use vectide_connectors::envelope::format::RecordFormat;
use vectide_connectors::envelope::{Decoded, RawRecord};
use vectide_connectors::testing::{
    HeldMap, ModelState, PostgresClient, PostgresServer, RecordingSink, run_source,
};
use vectide_model::{
    ConnectionCheck, DeadLetterReason, OpenContext, ReadMode, Source, SourceConfig, SourceError,
    SourceStart, StopSignal,
};

/// One server for the tests that run at the same time; the last one stops it.
fn shared_server(test: &str) -> Option<Arc<PostgresServer>> {
    static SERVER: Mutex<Weak<PostgresServer>> = Mutex::new(Weak::new());
    let mut shared = SERVER.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(server) = shared.upgrade() {
        return Some(server);
    }
    let server = Arc::new(PostgresServer::start_or_skip(test)?);
    *shared = Arc::downgrade(&server);
    Some(server)
}

struct Database {
    server: Arc<PostgresServer>,
    name: String,
}

impl Database {
    fn new(test: &str, sql: &str) -> Option<Self> {
        let server = shared_server(test)?;
        server.client().execute(&format!("CREATE DATABASE {test}"));
        let database = Self {
            server,
            name: test.to_owned(),
        };
        database.client().execute(sql);
        Some(database)
    }

    fn client(&self) -> PostgresClient {
        self.server.client_of(&self.name)
    }

    fn config(&self, tables: &[&str]) -> Value {
        let mut config = self.server.source(tables);
        config["database"] = json!(self.name);
        config["slot"] = json!(self.name);
        config
    }

    fn source(&self, tables: &[&str]) -> Box<dyn Source> {
        open(self.config(tables))
    }

    fn confirmed(&self) -> String {
        let sql = format!(
            "SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = '{}'",
            self.name
        );
        self.client().query(&sql)[0][0].clone().unwrap()
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        // The slots of a database keep it, and the log of them all.
        let mut client = self.server.client();
        let _ = client.try_execute(&format!(
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots \
             WHERE database = '{}' AND NOT active",
            self.name
        ));
    }
}

fn context() -> OpenContext {
    OpenContext {
        config_dir: PathBuf::from("/"),
    }
}

fn parse(config: Value) -> PostgresConfig {
    serde_json::from_value(config).unwrap()
}

fn open(config: Value) -> Box<dyn Source> {
    parse(config).open(&context()).unwrap()
}

fn catch_up(state: &ModelState, source: Box<dyn Source>) {
    state.run(source, ReadMode::UntilCaughtUp).join().unwrap();
}

fn rows(state: &ModelState) -> BTreeMap<String, Value> {
    let rows = state.rows().into_iter();
    rows.map(|(key, row)| (key.to_string(), serde_json::from_str(&row).unwrap()))
        .collect()
}

fn failure(state: &ModelState, config: Value) -> String {
    let ended = state.run(open(config), ReadMode::UntilCaughtUp).join();
    ended.unwrap_err().to_string()
}

/// Text that PostgreSQL keeps apart from the row: long, and nothing that compresses well.
fn large(seed: u64) -> String {
    let mut state = seed.wrapping_add(1);
    let mut text = String::new();
    while text.len() < 12_000 {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        text.push_str(&format!("{:x} ", state >> 20));
    }
    text
}

#[test]
fn snapshot_then_stream_and_a_restart() {
    let Some(database) = Database::new(
        "snapshot_then_stream",
        "CREATE TABLE pages (id bigint PRIMARY KEY, title text);
         CREATE TABLE \"Odd names\" (\"B\" int, a text, v bool, PRIMARY KEY (\"B\", a));
         INSERT INTO pages SELECT i, 'page ' || i FROM generate_series(1, 2500) i;
         INSERT INTO \"Odd names\" VALUES (1, 'x', true), (2, 'y', NULL);",
    ) else {
        return;
    };
    let tables = ["public.pages", "public.Odd names"];
    let mut config = database.config(&tables);
    config["snapshot"] = json!({"chunk_rows": 300, "parallelism": 3});
    let state = ModelState::default();
    catch_up(&state, open(config.clone()));
    let first = rows(&state);
    assert_eq!(first.len(), 2502);
    assert_eq!(first["public.pages/7"], json!({"id": 7, "title": "page 7"}));
    assert_eq!(
        first["public.Odd names/{\"B\":1,\"a\":\"x\"}"],
        json!({"B": 1, "a": "x", "v": true})
    );
    assert_eq!(state.times_caught_up(), 1);
    let mut client = database.client();
    client.execute(
        "UPDATE pages SET title = 'new' WHERE id = 7; DELETE FROM pages WHERE id = 8;
         INSERT INTO pages VALUES (9999, 'last')",
    );
    client.execute("UPDATE \"Odd names\" SET v = false WHERE a = 'y'");
    let positions = state.resume().positions;
    catch_up(&state, open(config.clone()));
    let second = rows(&state);
    assert_eq!(second.len(), 2502);
    assert_eq!(second["public.pages/7"]["title"], "new");
    assert!(!second.contains_key("public.pages/8"));
    assert_eq!(second["public.Odd names/{\"B\":2,\"a\":\"y\"}"]["v"], false);
    assert!(state.resume().positions["wal"] > positions["wal"]);
    // Nothing is read twice: the third run has nothing to say about rows.
    state.observe(|batch| assert_eq!(batch.changes, []));
    catch_up(&state, open(config));
    assert_eq!(rows(&state), second);
    assert_eq!(state.dead_letters(), []);
}

#[test]
fn types_become_stable_json_in_snapshot_and_stream() {
    let Some(database) = Database::new(
        "types_become_json",
        "CREATE TYPE mood AS ENUM ('sad', 'ok');
         CREATE DOMAIN positive AS int CHECK (VALUE > 0);
         CREATE TABLE all_types (id int PRIMARY KEY, small smallint, big bigint, num numeric,
           nan numeric, real4 real, double8 double precision, inf double precision, yes bool,
           txt text, fixed char(4), day date, at timestamp, zoned timestamptz, clock time,
           span interval, raw bytea, doc json, docb jsonb, ids uuid, how mood, pos positive,
           texts text[], numbers int[], moods mood[], nested int[], blobs bytea[], docs jsonb[],
           address inet, span_of int4range, nothing text,
           twice int GENERATED ALWAYS AS (id * 2) STORED);",
    ) else {
        return;
    };
    let values = r#"-32768, 9007199254740993, 12345678901234567890.1200, 'NaN', 1.5, 0.1, '-Infinity',
        true, E'a "q" \n é', 'ab', '2024-02-29', '2024-02-29 10:11:12.5', '2024-02-29 12:11:12+02',
        '10:11:12', '1 day 2 hours', '\x00ff', '{"b": 1.10,"a":null}', '{"b": 1.10,"a":null}',
        'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', 'ok', 5, ARRAY['a,b', NULL, 'NULL', '"'],
        '{1,-2}', '{sad,ok}', '{{1,2},{3,4}}', ARRAY['\x00ff'::bytea], ARRAY['{"x": [1]}'::jsonb],
        '10.0.0.0/8', '[1,5)', NULL"#;
    let mut client = database.client();
    // Settings of the database must not change how values are written.
    client.execute(&format!(
        "ALTER DATABASE {} SET DateStyle = 'German'; ALTER DATABASE {} SET TimeZone = 'Asia/Tokyo';
         ALTER DATABASE {} SET bytea_output = 'escape'",
        database.name, database.name, database.name
    ));
    client.execute(&format!("INSERT INTO all_types VALUES (1, {values})"));
    let state = ModelState::default();
    catch_up(&state, database.source(&["public.all_types"]));
    client.execute(&format!("INSERT INTO all_types VALUES (2, {values})"));
    catch_up(&state, database.source(&["public.all_types"]));
    let texts = state.rows();
    let expected = r#"{"id":1,"small":-32768,"big":9007199254740993,"num":12345678901234567890.1200,"nan":"NaN","real4":1.5,"double8":0.1,"inf":"-Infinity","yes":true,"txt":"a \"q\" \n é","fixed":"ab  ","day":"2024-02-29","at":"2024-02-29T10:11:12.5","zoned":"2024-02-29T10:11:12Z","clock":"10:11:12","span":"P1DT2H","raw":"AP8=","doc":{"b": 1.10,"a":null},"docb":{"a": null, "b": 1.10},"ids":"a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11","how":"ok","pos":5,"texts":["a,b",null,"NULL","\""],"numbers":[1,-2],"moods":["sad","ok"],"nested":[[1,2],[3,4]],"blobs":["AP8="],"docs":[{"x": [1]}],"address":"10.0.0.0/8","span_of":"[1,5)","nothing":null}"#;
    assert_eq!(&*texts["1"], expected);
    assert_eq!(&*texts["2"], expected.replacen("\"id\":1", "\"id\":2", 1));
    assert_eq!(state.dead_letters(), []);
}

#[test]
fn large_values_that_did_not_change_are_kept() {
    let Some(database) = Database::new(
        "large_values",
        "CREATE TABLE partly (id int PRIMARY KEY, n int, t text, j jsonb, b bytea, a text[]);
         CREATE TABLE fully (id int PRIMARY KEY, n int, t text, j jsonb, b bytea, a text[]);
         ALTER TABLE fully REPLICA IDENTITY FULL;",
    ) else {
        return;
    };
    let mut client = database.client();
    for table in ["partly", "fully"] {
        for column in ["t", "j", "b", "a"] {
            client.execute(&format!(
                "ALTER TABLE {table} ALTER COLUMN {column} SET STORAGE EXTERNAL"
            ));
        }
        for id in 1..=4 {
            let text = large(id);
            client.execute(&format!(
                "INSERT INTO {table} VALUES ({id}, 0, '{text}', '{{\"x\": \"{text}\"}}', \
                 convert_to('{text}', 'UTF8'), ARRAY['{text}', 'b'])"
            ));
        }
    }
    let tables = ["public.partly", "public.fully"];
    let state = ModelState::default();
    catch_up(&state, database.source(&tables));
    let mut expected = rows(&state);
    let seen = Arc::new(Mutex::new(0));
    let counted = seen.clone();
    state.observe(move |batch| {
        let partial = batch
            .changes
            .iter()
            .filter(|it| !it.unchanged_fields.is_empty());
        *counted.lock().unwrap() += partial.count();
    });
    for table in ["partly", "fully"] {
        // An update that touches none of them; one that touches one; a new key; a new key of a row
        // that the same transaction changed before; two keys in a row.
        client.execute(&format!("UPDATE {table} SET n = 1 WHERE id = 1"));
        client.execute(&format!(
            "UPDATE {table} SET n = 2, t = 'short' WHERE id = 2"
        ));
        client.execute(&format!("UPDATE {table} SET id = 30 WHERE id = 3"));
        client.execute(&format!(
            "UPDATE {table} SET n = 5 WHERE id = 4; UPDATE {table} SET id = 40 WHERE id = 4;
             UPDATE {table} SET id = 41 WHERE id = 40"
        ));
        let key = |id: u32| format!("public.{table}/{id}");
        expected.get_mut(&key(1)).unwrap()["n"] = json!(1);
        let second = expected.get_mut(&key(2)).unwrap();
        (second["n"], second["t"]) = (json!(2), json!("short"));
        for (old, new) in [(3, 30), (4, 41)] {
            let mut row = expected.remove(&key(old)).unwrap();
            row["id"] = json!(new);
            if new == 41 {
                row["n"] = json!(5);
            }
            expected.insert(key(new), row);
        }
    }
    catch_up(&state, database.source(&tables));
    assert_eq!(state.dead_letters(), []);
    assert_eq!(rows(&state), expected);
    // With FULL the server tells them in the row before; with DEFAULT they come from what is held.
    assert_eq!(
        *seen.lock().unwrap(),
        3,
        "changes of `partly` that left fields out"
    );
}

#[test]
fn a_truncated_table_loses_its_rows_and_no_other() {
    let Some(database) = Database::new(
        "truncated_table",
        "CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY);
         INSERT INTO a SELECT generate_series(1, 100); INSERT INTO b VALUES (1);",
    ) else {
        return;
    };
    let tables = ["public.a", "public.b"];
    let state = ModelState::default();
    catch_up(&state, database.source(&tables));
    let mut client = database.client();
    client.execute("INSERT INTO a VALUES (200)");
    client.execute("INSERT INTO a VALUES (201); TRUNCATE a; INSERT INTO a VALUES (5), (202)");
    catch_up(&state, database.source(&tables));
    let keys: Vec<String> = rows(&state).into_keys().collect();
    assert_eq!(keys, ["public.a/202", "public.a/5", "public.b/1"]);
}

#[test]
fn columns_come_go_and_are_renamed_while_it_runs() {
    let Some(database) = Database::new(
        "columns_change",
        "CREATE TABLE pages (id int PRIMARY KEY, title text, old int); INSERT INTO pages VALUES (1, 'a', 1);",
    ) else {
        return;
    };
    let state = ModelState::default();
    let run = state.run(database.source(&["public.pages"]), ReadMode::Follow);
    state.wait_until("the snapshot is there", |it| it.times_caught_up() == 1);
    let mut client = database.client();
    client.execute("ALTER TABLE pages ADD COLUMN extra jsonb DEFAULT '[1]'");
    client.execute("INSERT INTO pages VALUES (2, 'b', 2, '{}')");
    client.execute("ALTER TABLE pages DROP COLUMN old");
    client.execute("ALTER TABLE pages RENAME COLUMN title TO heading");
    client.execute("INSERT INTO pages VALUES (3, 'c', '{}')");
    client.execute("ALTER TABLE pages RENAME COLUMN id TO number");
    state.wait_until("all are there", |it| it.rows().len() == 3);
    let found = rows(&state);
    assert_eq!(found["1"], json!({"id": 1, "title": "a", "old": 1}));
    assert_eq!(
        found["2"],
        json!({"id": 2, "title": "b", "old": 2, "extra": {}})
    );
    assert_eq!(found["3"], json!({"id": 3, "heading": "c", "extra": {}}));
    // A column of the key is another matter.
    client.execute("UPDATE pages SET heading = 'd' WHERE number = 1");
    let error = run.join().unwrap_err();
    assert!(matches!(error, SourceError::PositionLost { .. }), "{error}");
    assert!(error.to_string().contains("public.pages"), "{error}");
}

#[test]
fn a_transaction_is_one_batch_up_to_the_limit() {
    let Some(database) = Database::new(
        "transaction_is_one_batch",
        "CREATE TABLE pages (id int PRIMARY KEY, body text);",
    ) else {
        return;
    };
    let mut config = database.config(&["public.pages"]);
    config["max_transaction_changes"] = json!(1000);
    let state = ModelState::default();
    catch_up(&state, open(config.clone()));
    let sizes = Arc::new(Mutex::new(Vec::new()));
    let noted = sizes.clone();
    state.observe(move |batch| {
        if !batch.changes.is_empty() {
            assert!(!batch.divisible);
            let first = &batch.changes[0];
            let same = batch.changes.iter().all(|it| it.position == first.position);
            noted.lock().unwrap().push((batch.changes.len(), same));
        }
    });
    let mut client = database.client();
    client.execute("INSERT INTO pages SELECT i, 'x' FROM generate_series(1, 1000) i");
    catch_up(&state, open(config.clone()));
    assert_eq!(*sizes.lock().unwrap(), [(1000, true)]);
    assert_eq!(state.split_transactions(), 0);
    client.execute("UPDATE pages SET body = 'y'; INSERT INTO pages SELECT i, 'z' FROM generate_series(1001, 1500) i");
    catch_up(&state, open(config));
    assert_eq!(state.split_transactions(), 1);
    assert_eq!(state.rows().len(), 1500);
    assert_eq!(rows(&state)["7"]["body"], "y");
}

#[test]
fn a_row_above_the_limit_is_a_dead_letter_and_the_rest_goes_on() {
    let Some(database) = Database::new(
        "row_above_the_limit",
        "CREATE TABLE pages (id int PRIMARY KEY, body text); INSERT INTO pages VALUES (1, repeat('x', 300000)), (2, 'b');",
    ) else {
        return;
    };
    let mut config = database.config(&["public.pages"]);
    config["max_row"] = json!("128KiB");
    let state = ModelState::default();
    catch_up(&state, open(config.clone()));
    let mut client = database.client();
    client.execute("INSERT INTO pages VALUES (3, repeat('y', 300000)), (4, 'd')");
    client.execute("INSERT INTO pages VALUES (5, 'e')");
    catch_up(&state, open(config));
    let keys: Vec<String> = rows(&state).into_keys().collect();
    assert_eq!(keys, ["2", "4", "5"]);
    let letters = state.dead_letters();
    assert_eq!(letters.len(), 2);
    for letter in letters {
        assert_eq!(letter.reason, DeadLetterReason::TooLarge);
        assert!(
            letter.is_cut && letter.position.offset > 0,
            "{}",
            letter.detail
        );
    }
}

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
    client.execute("SELECT pg_drop_replication_slot('slot_is_gone')");
    client.execute("DELETE FROM pages WHERE id <= 10; UPDATE pages SET body = 'new' WHERE id = 11");
    let error = failure(&state, database.config(&["public.pages"]));
    assert!(error.contains("`slot_is_gone` is gone"), "{error}");
    assert!(
        error.contains("vectide run CONFIG --resnapshot source"),
        "{error}"
    );
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
fn what_would_lose_changes_is_a_named_error() {
    let Some(database) = Database::new(
        "named_errors",
        "CREATE TABLE good (id int PRIMARY KEY); CREATE TABLE keyless (id int);
         CREATE TABLE nothing (id int PRIMARY KEY); ALTER TABLE nothing REPLICA IDENTITY NOTHING;
         CREATE TABLE fully (day date, n int); ALTER TABLE fully REPLICA IDENTITY FULL;
         CREATE VIEW seen AS SELECT 1; CREATE UNLOGGED TABLE unlogged (id int PRIMARY KEY);
         CREATE TABLE parted (id int PRIMARY KEY) PARTITION BY RANGE (id);
         CREATE ROLE reader LOGIN PASSWORD 'r'; CREATE ROLE replica LOGIN REPLICATION PASSWORD 'r';",
    ) else {
        return;
    };
    let state = ModelState::default();
    let of_table = |table: &str| failure(&state, database.config(&[table]));
    for (table, fact, hint) in [
        ("public.missing", "there is no table", "as in the catalog"),
        (
            "public.keyless",
            "has no primary key",
            "REPLICA IDENTITY FULL",
        ),
        (
            "public.nothing",
            "REPLICA IDENTITY NOTHING",
            "REPLICA IDENTITY DEFAULT",
        ),
        (
            "public.fully",
            "its rows have no identity",
            "keys: {public.fully:",
        ),
        ("public.seen", "is a view", "the tables that it is made of"),
        ("public.unlogged", "unlogged", "SET LOGGED"),
        (
            "public.parted",
            "a partitioned table",
            "name its partitions",
        ),
    ] {
        let error = of_table(table);
        assert!(
            error.contains(fact) && error.contains(hint),
            "{table}: {error}"
        );
    }
    let mut config = database.config(&["public.good"]);
    (config["user"], config["password"]) = (json!("reader"), json!("r"));
    let error = failure(&state, config.clone());
    assert!(error.contains("may not replicate"), "{error}");
    assert!(
        error.contains("ALTER ROLE \"reader\" REPLICATION"),
        "{error}"
    );
    config["user"] = json!("replica");
    let error = failure(&state, config.clone());
    assert!(
        error.contains("GRANT SELECT ON \"public\".\"good\" TO \"replica\""),
        "{error}"
    );
    database.client().execute("GRANT SELECT ON good TO replica");
    let error = failure(&state, config.clone());
    assert!(
        error.contains("CREATE PUBLICATION \"vectide_source\" FOR TABLE"),
        "{error}"
    );
    config["password"] = json!("wrong secret");
    let error = failure(&state, config);
    assert!(
        error.contains("28P01") && !error.contains("wrong secret"),
        "{error}"
    );
    let mut client = database.client();
    client.execute("CREATE PUBLICATION narrow FOR TABLE good WITH (publish = 'insert')");
    client.execute("CREATE PUBLICATION empty");
    for (publication, expected) in [
        (
            "narrow",
            "SET (publish = 'insert, update, delete, truncate')",
        ),
        ("empty", "ADD TABLE \"public\".\"good\""),
    ] {
        let mut config = database.config(&["public.good"]);
        config["publication"] = json!(publication);
        let error = failure(&state, config);
        assert!(error.contains(expected), "{error}");
    }
    // Keys of one's own, where the whole row is told.
    client.execute("INSERT INTO fully VALUES ('2024-01-01', 1), ('2024-01-01', 2)");
    let mut config = database.config(&["public.fully"]);
    config["keys"] = json!({"public.fully": ["n", "day"]});
    client.execute("DROP PUBLICATION IF EXISTS vectide_source");
    catch_up(&state, open(config.clone()));
    client.execute("DELETE FROM fully WHERE n = 1");
    catch_up(&state, open(config));
    let keys: Vec<String> = rows(&state).into_keys().collect();
    assert_eq!(keys, [r#"{"day":"2024-01-01","n":2}"#]);
}

#[test]
fn a_server_without_logical_log_is_told() {
    let test = "without_logical_log";
    let started = PostgresServer::start(&["wal_level=replica"]);
    let Some(server) = PostgresServer::or_skip(test, started) else {
        return;
    };
    server
        .client()
        .execute("CREATE TABLE pages (id int PRIMARY KEY)");
    let error = failure(&ModelState::default(), server.source(&["public.pages"]));
    assert!(error.contains("wal_level is `replica`"), "{error}");
    assert!(
        error.contains("ALTER SYSTEM SET wal_level = logical"),
        "{error}"
    );
}

#[test]
fn scram_over_tls() {
    let test = "scram_over_tls";
    let started = PostgresServer::start_with_tls(&[]);
    let Some(server) = PostgresServer::or_skip(test, started) else {
        return;
    };
    server
        .client()
        .execute("CREATE TABLE pages (id int PRIMARY KEY); INSERT INTO pages VALUES (1)");
    let ca = server.certificate_authority();
    let with = |host: &str, tls: Value| {
        let mut config = server.source(&["public.pages"]);
        (config["host"], config["tls"]) = (json!(host), tls);
        config
    };
    let verified = json!({"mode": "verify-full", "ca": ca});
    let state = ModelState::default();
    catch_up(&state, open(with("localhost", verified.clone())));
    assert_eq!(state.rows().len(), 1);
    let checks = parse(with("localhost", verified.clone())).check_connection(&context());
    assert!(
        checks[0].result.as_ref().unwrap().contains("TLS"),
        "{checks:?}"
    );
    // The server really sees encrypted connections.
    let run = state.run(
        open(with("localhost", json!({"mode": "require"}))),
        ReadMode::Follow,
    );
    state.wait_until("caught up", |it| it.times_caught_up() == 2);
    let encrypted = server
        .client()
        .query("SELECT bool_and(s.ssl) FROM pg_stat_ssl s JOIN pg_stat_replication r USING (pid)");
    assert_eq!(encrypted[0][0].as_deref(), Some("t"));
    run.stop().unwrap();
    // A certificate that names another host, and an authority that nobody knows.
    for config in [
        with("127.0.0.1", verified),
        with("localhost", json!({"mode": "verify-full"})),
    ] {
        let error = failure(&state, config);
        assert!(error.contains("TLS failed"), "{error}");
    }
    let unencrypted = PostgresServer::start(&[]).unwrap();
    let mut config = unencrypted.source(&["public.pages"]);
    config["tls"] = json!({"mode": "require"});
    let error = failure(&state, config);
    assert!(error.contains("does not speak TLS"), "{error}");
}

#[test]
fn every_connection_is_checked_in_one_line() {
    let Some(database) = Database::new(
        "connection_is_checked",
        "CREATE TABLE good (id int PRIMARY KEY); CREATE TABLE keyless (id int);",
    ) else {
        return;
    };
    let mut config = database.config(&["public.good", "public.keyless"]);
    config["publication"] = json!("not_there");
    let checks = parse(config).check_connection(&context());
    let said: Vec<(String, bool)> = checks
        .iter()
        .map(|ConnectionCheck { what, result }| (what.clone(), result.is_ok()))
        .collect();
    let port = database.server.port();
    let expected = [
        (&*format!("server 127.0.0.1:{port}"), true),
        ("wal_level", true),
        ("role postgres", true),
        ("table public.good", true),
        ("table public.keyless", false),
        ("publication not_there", true),
        ("slot connection_is_checked", true),
    ];
    let expected: Vec<(String, bool)> = expected.map(|(it, ok)| (it.to_owned(), ok)).to_vec();
    assert_eq!(said, expected);
    // It leaves nothing behind.
    let left = database.client().query("SELECT 1 FROM pg_publication");
    assert!(left.is_empty());
    let mut unreachable = database.config(&["public.good"]);
    unreachable["port"] = json!(1);
    let checks = parse(unreachable).check_connection(&context());
    assert_eq!(checks.len(), 1);
    assert!(checks[0].result.is_err());
}

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
    let is_long = std::env::var("VECTIDE_TORTURE").is_ok_and(|value| value == "1");
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
        client.execute("SELECT pg_drop_replication_slot('snapshot_while_writing')");
    }
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

#[test]
fn keys_are_those_of_debezium() {
    let Some(database) = Database::new(
        "keys_of_debezium",
        "CREATE TABLE one (id bigint PRIMARY KEY); INSERT INTO one VALUES (9007199254740993);
         CREATE TABLE two (b text, a int, PRIMARY KEY (b, a)); INSERT INTO two VALUES ('x \"é\"', 7);",
    ) else {
        return;
    };
    for (table, key) in [
        ("public.one", r#"{"id":9007199254740993}"#),
        ("public.two", r#"{"b":"x \"é\"","a":7}"#),
    ] {
        let mut config = database.config(&[table]);
        config["publication"] = json!(table.replace('.', "_"));
        config["slot"] = json!(format!("keys_{}", table.replace('.', "_")));
        let state = ModelState::default();
        catch_up(&state, open(config));
        let format: RecordFormat = serde_json::from_value(json!({"type": "debezium"})).unwrap();
        let mut events = Vec::new();
        let record = RawRecord {
            topic: "t",
            key: Some(key.as_bytes()),
            value: Some(br#"{"op":"c","after":{},"source":{}}"#),
            headers: &[],
        };
        format.open().unwrap().decode(&record, &mut events).unwrap();
        let [Decoded::Change(change)] = &events[..] else {
            panic!("{events:?}");
        };
        assert_eq!(
            state.rows().into_keys().collect::<Vec<_>>(),
            [change.key.clone()]
        );
    }
}

/// `path NUL sha256 LF` of all documents, as the history's checkpoints define it.
fn state_hash(state: &ModelState) -> (u64, String) {
    use sha2::{Digest, Sha256};
    let hex = |bytes: &[u8]| {
        bytes
            .iter()
            .map(|it| format!("{it:02x}"))
            .collect::<String>()
    };
    let mut hash = Sha256::new();
    let found = rows(state);
    for (path, row) in &found {
        let content = row["content"].as_str().unwrap();
        hash.update(format!("{path}\0{}\n", hex(&Sha256::digest(content))));
    }
    (found.len() as u64, hex(&hash.finalize()))
}

/// A real history, a commit as a transaction: the first 500 events are there before the source is,
/// the others come while it follows.
#[test]
fn a_real_history_ends_in_its_checkpoint() {
    use std::io::BufRead;
    let beside = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared/data");
    let data = std::env::var_os("VECTIDE_TEST_DATA").map_or(beside, PathBuf::from);
    let data = data.join("otel-docs-changes");
    if !data.is_dir() {
        println!("skipped: a_real_history: the data set `otel-docs-changes` is not there");
        return;
    }
    let Some(database) = Database::new(
        "real_history",
        "CREATE TABLE documents (path text PRIMARY KEY, content text, at timestamptz);",
    ) else {
        return;
    };
    let file = std::fs::File::open(data.join("events.jsonl.zst")).unwrap();
    let reader = std::io::BufReader::new(zstd::Decoder::new(file).unwrap());
    let events: Vec<Value> = reader
        .lines()
        .take(1000)
        .map(|line| serde_json::from_str(&line.unwrap()).unwrap())
        .collect();
    let quote = |value: &Value| format!("'{}'", value.as_str().unwrap().replace('\'', "''"));
    let write = |events: &[Value]| {
        let mut client = database.client();
        for commit in events.chunk_by(|left, right| left["commit"] == right["commit"]) {
            let statements = commit.iter().map(|event| {
                let path = quote(&event["path"]);
                if event["op"] == "d" {
                    return format!("DELETE FROM documents WHERE path = {path};");
                }
                let (content, at) = (quote(&event["content"]), quote(&event["commit_time"]));
                format!(
                    "INSERT INTO documents VALUES ({path}, {content}, {at}) ON CONFLICT (path) \
                     DO UPDATE SET content = EXCLUDED.content, at = EXCLUDED.at;"
                )
            });
            client.execute(&statements.collect::<String>());
        }
    };
    write(&events[..500]);
    let state = ModelState::default();
    let run = state.run(database.source(&["public.documents"]), ReadMode::Follow);
    write(&events[500..]);
    let checkpoints = std::fs::read_to_string(data.join("checkpoints.jsonl")).unwrap();
    let expected: Value = serde_json::from_str(checkpoints.lines().next().unwrap()).unwrap();
    assert_eq!(expected["seq"], 1000);
    let expected = (
        expected["live_docs"].as_u64().unwrap(),
        expected["state_sha256"].as_str().unwrap().to_owned(),
    );
    state.wait_until("the checkpoint is reached", |it| state_hash(it) == expected);
    run.stop().unwrap();
    assert_eq!(state.dead_letters(), []);
}
