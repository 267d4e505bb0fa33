//! What a table can do to its rows, each through the real connector: every form of delete, changed
//! keys, truncation, texts that an update does not carry.

use crate::pipeline::{Pipeline, State, TABLES, expect_same, kafka, kafka_json, state_of};
use vectide_tests::services::{ConnectWorker, Database, Services};

/// A text that is stored out of line.
const LARGE: &str = "repeat('A long text that is stored out of line. ', 100)";

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

#[test]
fn a_text_that_an_update_does_not_carry_is_kept() {
    let Some(case) = Case::start("a_text_that_an_update", "toast", &[]) else {
        return;
    };
    case.step(
        "inserted",
        &format!("insert into pages values ('a', {LARGE}), ('b', {LARGE} || 'b'), ('c', 'small')"),
    );
    case.step("touched", "update pages set version = version + 1");
    case.step(
        "touched often, in one transaction with others",
        "begin; update pages set version = 7 where path = 'a'; \
         update pages set content = content || '!' where path = 'b'; \
         update pages set version = 8 where path in ('a', 'b'); commit",
    );
    case.step(
        "the old rows are told as well",
        "alter table pages replica identity full; update pages set version = 9; \
         update pages set path = 'd', version = 10 where path = 'a'",
    );
}

#[test]
fn a_truncated_table_is_empty() {
    let settings = [
        ("skipped.operations", "none"),
        ("topic.creation.default.partitions", "1"),
    ];
    let Some(case) = Case::start("a_truncated_table", "truncated", &settings) else {
        return;
    };
    case.step(
        "inserted",
        "insert into pages values ('a', 'one'), ('b', 'two')",
    );
    let none = case.step("truncated", "truncate pages");
    assert!(none.is_empty());
    case.step("inserted again", "insert into pages values ('b', 'three')");
}

/// Debezium makes a delete of the old key and a create of the new one, and the create holds only the
/// placeholder: the text can't be had from the row that is held under the new key, as there is none.
#[test]
fn a_key_change_without_its_text_is_a_dead_letter() {
    let Some(case) = Case::start("a_key_change_without_its_text", "keychange", &[]) else {
        return;
    };
    case.step(
        "inserted",
        &format!("insert into pages values ('a', {LARGE}), ('b', 'small')"),
    );
    case.deliver("update pages set path = 'c' where path = 'a'");
    case.pipeline.run_to_end();
    let letters = case.pipeline.dead_letters();
    assert_eq!(letters.len(), 1, "{letters:?}");
    assert_eq!(letters[0]["key"], "c");
    let held: Vec<String> = case.pipeline.documents().into_keys().collect();
    assert_eq!(held, ["b"], "the old row is gone, the new one is parked");
    // The whole row comes: it is held again.
    case.deliver("update pages set content = content || '!' where path = 'c'");
    case.pipeline.run_to_end();
    let expected = state_of(&case.database, BOTH_AS_SQL);
    expect_same(&case.pipeline.documents(), &expected, "told whole");
}

/// Heartbeats and markers of transactions stand in topics of their own; whoever reads them along
/// holds no row more.
#[test]
fn signs_of_life_are_no_rows() {
    let settings = [("provide.transaction.metadata", "true")];
    let Some(case) = Case::start("signs_of_life_are_no_rows", "signs", &settings) else {
        return;
    };
    case.step(
        "inserted",
        "insert into pages values ('a', 'one'), ('b', 'two')",
    );
    let services = Services::start_or_skip("signs_of_life_are_no_rows").unwrap();
    let topics = "signs.public.pages, signs.transaction, __debezium-heartbeat.signs";
    let pipeline = Pipeline::new(&kafka_json(services, topics), BOTH);
    let expected = state_of(&case.database, BOTH_AS_SQL);
    pipeline.expect(&expected, "with all topics");
}

/// Debezium's transformation to plain rows, in each of its ways to tell a delete.
#[test]
fn flattened_rows_come_change_and_go() {
    let test = "flattened_rows_come_change_and_go";
    let Some(services) = Services::start_or_skip(test) else {
        return;
    };
    let database = services.create_database("flattened");
    database.execute(TABLES);
    let connect = services.connect();
    let modes = ["tombstone", "rewrite", "rewrite-with-tombstone"];
    let names = modes.map(|mode| format!("flattened_{}", mode.replace('-', "_")));
    for (mode, name) in modes.iter().zip(&names) {
        let settings = [
            ("transforms", "unwrap"),
            (
                "transforms.unwrap.type",
                "io.debezium.transforms.ExtractNewRecordState",
            ),
            ("transforms.unwrap.delete.tombstone.handling.mode", mode),
            ("transforms.unwrap.add.fields", "op,table,lsn,source.ts_ms"),
        ];
        connect.capture(&database, name, &settings);
    }
    let pipelines = names.each_ref().map(|name| {
        let topic = format!("{name}.public.pages");
        let source = kafka(services, &topic, "{type: debezium-flattened}", "");
        Pipeline::new(&source, BOTH)
    });
    let steps = [
        format!("insert into pages values ('a', {LARGE}), ('b', 'two'), ('c', 'three')"),
        "update pages set version = version + 1".to_owned(),
        "delete from pages where path = 'a'; update pages set path = 'd' where path = 'b'"
            .to_owned(),
    ];
    for step in steps {
        database.execute(&step);
        let expected = state_of(&database, BOTH_AS_SQL);
        for (name, pipeline) in names.iter().zip(&pipelines) {
            connect.wait_until_delivered(&database, name);
            pipeline.expect(&expected, name);
        }
    }
}
