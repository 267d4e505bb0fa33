//! What is told before anything is lost: settings, privileges, replica identities, certificates.

use crate::support::{Database, catch_up, context, failure, open, parse, rows};
use serde_json::{Value, json};
use vectide_connectors::testing::{ModelState, PostgresServer};
use vectide_model::{ConnectionCheck, ReadMode, SourceConfig};

#[test]
fn what_would_lose_changes_is_a_named_error() {
    let Some(database) = Database::new(
        "named_errors",
        "CREATE TABLE good (id int PRIMARY KEY); CREATE TABLE keyless (id int);
         CREATE TABLE nothing (id int PRIMARY KEY); ALTER TABLE nothing REPLICA IDENTITY NOTHING;
         CREATE TABLE fully (day date, n int); ALTER TABLE fully REPLICA IDENTITY FULL;
         CREATE VIEW seen AS SELECT 1; CREATE UNLOGGED TABLE unlogged (id int PRIMARY KEY);
         CREATE TABLE parted (id int PRIMARY KEY) PARTITION BY RANGE (id);",
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
}

#[test]
fn missing_privileges_and_publications_are_named_with_the_statement() {
    let Some(database) = Database::new(
        "missing_privileges",
        "CREATE TABLE good (id int PRIMARY KEY);
         CREATE ROLE reader LOGIN PASSWORD 'r'; CREATE ROLE replica LOGIN REPLICATION PASSWORD 'r';",
    ) else {
        return;
    };
    let state = ModelState::default();
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
}

#[test]
fn keys_of_ones_own_where_the_whole_row_is_told() {
    let Some(database) = Database::new(
        "keys_of_ones_own",
        "CREATE TABLE fully (day date, n int); ALTER TABLE fully REPLICA IDENTITY FULL;",
    ) else {
        return;
    };
    let state = ModelState::default();
    let mut client = database.client();
    client.execute("INSERT INTO fully VALUES ('2024-01-01', 1), ('2024-01-01', 2)");
    let mut config = database.config(&["public.fully"]);
    config["keys"] = json!({"public.fully": ["n", "day"]});
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
    let checks = parse(with("localhost", verified.clone())).check_connection("pages", &context());
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
    let checks = parse(config).check_connection("pages", &context());
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
    let probe = parse(database.config(&["public.good"])).position_probe(&context());
    let end = || probe.end().unwrap()["wal"];
    let before = end();
    database.client().query("INSERT INTO good VALUES (1)");
    assert!(end() > before, "a write moves the end");
    let mut unnamed = database.config(&["public.good"]);
    unnamed.as_object_mut().unwrap().remove("slot");
    let checks = parse(unnamed).check_connection("my-pages", &context());
    let slot = checks.iter().find(|it| it.what == "slot vectide_my_pages");
    assert!(slot.is_some_and(|it| it.result.is_ok()), "{checks:?}");
    // It leaves nothing behind.
    let left = database.client().query("SELECT 1 FROM pg_publication");
    assert!(left.is_empty());
    let mut unreachable = database.config(&["public.good"]);
    unreachable["port"] = json!(1);
    let checks = parse(unreachable).check_connection("pages", &context());
    assert_eq!(checks.len(), 1);
    assert!(checks[0].result.is_err());
}
