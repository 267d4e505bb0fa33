//! A pipeline under test, and the table that all tests capture.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use tempfile::TempDir;
use vectide_tests::services::{Database, Services};
use vectide_tests::{Running, free_port, run_to_end, vectide};

/// The captured tables. Texts of more than a few hundred bytes are stored out of line, so that an
/// update of another column does not carry them; `marker` tells how far a connector is.
pub(crate) const TABLES: &str = "
    create table pages (path text primary key, content text, version integer not null default 0);
    alter table pages alter content set storage external;
    alter table pages set (toast_tuple_target = 128);
    create table marker (id bigserial primary key);
";

/// What a document is made of when only the content counts.
pub(crate) const CONTENT: &str = "{{ content }}";

/// Texts by the key of their row, as hashes.
pub(crate) type State = BTreeMap<String, String>;

/// A configuration in a folder of its own.
pub(crate) struct Pipeline {
    _directory: TempDir,
    config: PathBuf,
    port: u16,
}

impl Pipeline {
    /// A pipeline of one source, given as YAML in one line.
    pub(crate) fn new(source: &str, text: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let port = free_port();
        let config = directory.path().join("pipeline.yaml");
        let yaml = format!(
            r#"
apiVersion: vectide/v1
state: {{dir: ./state}}
sources:
  pages: {source}
documents:
  pages: {{from: pages, text: "{text}"}}
indexes:
  pages:
    from: pages
    chunk: {{type: structured}}
    embed: {{model: hashing}}
server: {{listen: "127.0.0.1:{port}"}}
"#
        );
        std::fs::write(&config, yaml).unwrap();
        Self {
            _directory: directory,
            config,
            port,
        }
    }

    /// Reads everything that is there.
    pub(crate) fn run_to_end(&self) -> serde_json::Value {
        run_to_end(&self.config)
    }

    /// Starts it as a server and waits until it answers.
    pub(crate) fn start(&self) -> Running {
        Running::start(&self.config, self.port)
    }

    /// Starts it as a server, to be killed at any time.
    pub(crate) fn launch(&self) -> Child {
        let mut command = vectide(&["run"]);
        let silent = command
            .arg(&self.config)
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        silent.spawn().unwrap()
    }

    fn export(&self, what: &str) -> Vec<serde_json::Value> {
        let mut command = vectide(&["export"]);
        let output = command.arg(&self.config).arg(what).output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{errors}");
        let lines = String::from_utf8(output.stdout).unwrap();
        lines
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    /// What it holds.
    pub(crate) fn documents(&self) -> State {
        let field =
            |document: &serde_json::Value, name: &str| document[name].as_str().unwrap().to_owned();
        self.export("documents")
            .iter()
            .map(|document| (field(document, "id"), field(document, "sha256")))
            .collect()
    }

    /// What it could not use.
    pub(crate) fn dead_letters(&self) -> Vec<serde_json::Value> {
        self.export("dead-letters")
    }

    /// Reads everything that is there and checks that it holds `expected`, and left nothing out.
    pub(crate) fn expect(&self, expected: &State, when: &str) -> serde_json::Value {
        let report = self.run_to_end();
        let letters = self.dead_letters();
        assert!(letters.is_empty(), "{when}: {}", letters[0]);
        expect_same(&self.documents(), expected, when);
        report
    }
}

/// Compares states and names the first rows that differ.
pub(crate) fn expect_same(held: &State, expected: &State, when: &str) {
    let keys = held.keys().chain(expected.keys());
    let differing: Vec<&String> = keys
        .filter(|key| held.get(*key) != expected.get(*key))
        .collect();
    assert!(
        differing.is_empty(),
        "{when}: {} rows differ, of {} held and {} expected; the first: {:?}",
        differing.len(),
        held.len(),
        expected.len(),
        &differing[..differing.len().min(5)]
    );
}

/// What a table holds, of an expression over its columns.
pub(crate) fn state_of(database: &Database, expression: &str) -> State {
    let rows = database.execute(&format!(
        "select path, encode(sha256(convert_to({expression}, 'UTF8')), 'hex') from pages"
    ));
    rows.lines()
        .map(|row| {
            let (path, hash) = row.rsplit_once('|').unwrap();
            (path.to_owned(), hash.to_owned())
        })
        .collect()
}

/// A Kafka source of topics with Debezium's events as JSON.
pub(crate) fn kafka_json(services: &Services, topics: &str) -> String {
    kafka(services, topics, "{type: debezium}", "")
}

/// A Kafka source; `more` are further fields, each after a comma.
pub(crate) fn kafka(services: &Services, topics: &str, format: &str, more: &str) -> String {
    let brokers = services.brokers();
    format!("{{type: kafka, brokers: \"{brokers}\", topics: [{topics}], format: {format}{more}}}")
}

/// A source that reads the database itself; `more` are further fields, each after a comma.
pub(crate) fn native(services: &Services, database: &Database, more: &str) -> String {
    let (port, name) = (services.postgres_port(), &database.name);
    let password = &database.password;
    format!(
        "{{type: postgres, host: 127.0.0.1, port: {port}, database: {name}, user: postgres, \
         password: \"{password}\", tables: [public.pages]{more}}}"
    )
}
