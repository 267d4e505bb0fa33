//! What is read: rows, types, large values, transactions, changed tables.

use crate::support::{Database, catch_up, large, open, rows};
use serde_json::json;
use std::sync::{Arc, Mutex};
use vectide_connectors::testing::ModelState;
use vectide_model::{DeadLetterReason, ReadMode, SourceError};

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

/// A row grew above the limit and was then deleted: the delete tells the whole row with REPLICA
/// IDENTITY FULL, so it was above the limit as well, and the row held stayed for ever.
#[test]
fn a_delete_above_the_limit_is_a_delete() {
    let Some(database) = Database::new(
        "delete_above_the_limit",
        "CREATE TABLE fully (id int PRIMARY KEY, body text); ALTER TABLE fully REPLICA IDENTITY FULL;
         INSERT INTO fully SELECT i, 'small' FROM generate_series(1, 4) i;
         CREATE TABLE keyed (body text, id int NOT NULL); ALTER TABLE keyed REPLICA IDENTITY FULL;
         INSERT INTO keyed VALUES ('small', 1);",
    ) else {
        return;
    };
    let mut config = database.config(&["public.fully", "public.keyed"]);
    config["max_row"] = json!("128KiB");
    config["keys"] = json!({"public.keyed": ["id"]});
    let state = ModelState::default();
    catch_up(&state, open(config.clone()));
    assert_eq!(state.rows().len(), 5);
    let mut client = database.client();
    let grown = "repeat('x', 300000)";
    client.execute(&format!("UPDATE fully SET body = {grown} WHERE id = 1"));
    client.execute("DELETE FROM fully WHERE id = 1");
    // The new row is above the limit, and the old one is gone; the same key is no delete.
    client.execute(&format!(
        "UPDATE fully SET id = 20, body = {grown} WHERE id = 2"
    ));
    client.execute(&format!("UPDATE fully SET body = {grown} WHERE id = 3"));
    // The key stands behind the text, so what becomes of the row held is not known.
    client.execute(&format!("UPDATE keyed SET body = {grown}"));
    client.execute("DELETE FROM keyed");
    catch_up(&state, open(config));
    let keys: Vec<String> = rows(&state).into_keys().collect();
    assert_eq!(keys, ["public.fully/3", "public.fully/4", "public.keyed/1"]);
    let letters = state.dead_letters();
    let details: Vec<&str> = letters.iter().map(|it| &*it.detail).collect();
    assert_eq!(letters.len(), 5, "{details:?}");
    let lost: Vec<_> = details.iter().filter(|it| it.contains("delete")).collect();
    assert_eq!(lost.len(), 2, "{details:?}");
    assert!(lost[1].contains("`public.keyed`"), "{details:?}");
}
