//! What a table can do to its rows, each through the real connector: every form of delete, changed
//! keys, truncation, texts that an update does not carry.

use crate::pipeline::{Pipeline, State, TABLES, kafka_json, state_of};
use vectide_tests::services::{ConnectWorker, Database, Services};

/// Shows both columns, so a lost text and a lost number are both seen.
const BOTH: &str = "{{ version }} {{ content }}";

/// What [`BOTH`] makes, in SQL.
const BOTH_AS_SQL: &str = "version || ' ' || content";

/// A captured database with a pipeline that reads it, step by step.
struct Case {
    database: Database,
    connect: ConnectWorker<'static>,
    name: String,
    pipeline: Pipeline,
}

impl Case {
    fn start(test: &str, name: &str, settings: &[(&str, &str)]) -> Option<Self> {
        let services = Services::start_or_skip(test)?;
        let database = services.create_database(name);
        database.execute(TABLES);
        let connect = services.connect();
        connect.capture(&database, name, settings);
        let source = kafka_json(services, &format!("{name}.public.pages"));
        Some(Self {
            database,
            connect,
            name: name.to_owned(),
            pipeline: Pipeline::new(&source, BOTH),
        })
    }

    /// Changes the table and waits until Kafka has it.
    fn deliver(&self, statements: &str) {
        self.database.execute(statements);
        self.connect
            .wait_until_delivered(&self.database, &self.name);
    }

    /// Changes the table; what is held is then what the table holds, and nothing was left out.
    fn step(&self, when: &str, statements: &str) -> State {
        self.deliver(statements);
        let expected = state_of(&self.database, BOTH_AS_SQL);
        self.pipeline.expect(&expected, when);
        expected
    }
}

#[test]
fn rows_come_change_and_go() {
    let Some(case) = Case::start("rows_come_change_and_go", "rows", &[]) else {
        return;
    };
    case.step(
        "inserted",
        "insert into pages values ('a', 'one'), ('b', 'two'), ('c', 'three'), ('ü \" \\ 语', 'four')",
    );
    case.step("updated", "update pages set content = content || ' again'");
    case.step(
        "deleted",
        "delete from pages where path in ('a', 'ü \" \\ 语')",
    );
    case.step(
        "a key changed",
        "update pages set path = 'd' where path = 'b'",
    );
    case.step(
        "keys changed places",
        "begin; update pages set path = 'x' where path = 'c'; \
         update pages set path = 'c' where path = 'd'; \
         update pages set path = 'd' where path = 'x'; commit",
    );
    case.step(
        "deleted and made again at once",
        "begin; delete from pages where path = 'c'; insert into pages values ('c', 'new'); commit",
    );
    case.step(
        "rolled back",
        "begin; delete from pages; insert into pages values ('e', 'never'); rollback; \
         insert into pages values ('f', 'after')",
    );
    let rest = case.step("all went", "delete from pages");
    assert!(rest.is_empty());
}

#[test]
fn deletes_without_tombstones_delete() {
    let settings = [("tombstones.on.delete", "false")];
    let Some(case) = Case::start("deletes_without_tombstones", "notombstones", &settings) else {
        return;
    };
    case.step(
        "inserted",
        "insert into pages values ('a', 'one'), ('b', 'two')",
    );
    case.step("deleted", "delete from pages where path = 'a'");
    case.step(
        "a key changed",
        "update pages set path = 'c' where path = 'b'",
    );
}
