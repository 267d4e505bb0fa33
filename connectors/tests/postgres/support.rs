//! A database for each test, on one server for all that run at the same time.
//!
//! Invariant: the last test stops the server; a test's slots go with it.

use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use vectide_connectors::PostgresConfig;
use vectide_connectors::testing::{ModelState, PostgresClient, PostgresServer};
use vectide_model::{OpenContext, ReadMode, Source, SourceConfig};

/// One server for the tests that run at the same time; the last one stops it.
pub(crate) fn shared_server(test: &str) -> Option<Arc<PostgresServer>> {
    static SERVER: Mutex<Weak<PostgresServer>> = Mutex::new(Weak::new());
    let mut shared = SERVER.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(server) = shared.upgrade() {
        return Some(server);
    }
    let server = Arc::new(PostgresServer::start_or_skip(test)?);
    *shared = Arc::downgrade(&server);
    Some(server)
}

pub(crate) struct Database {
    pub(crate) server: Arc<PostgresServer>,
    pub(crate) name: String,
}

impl Database {
    pub(crate) fn new(test: &str, sql: &str) -> Option<Self> {
        let server = shared_server(test)?;
        server.client().execute(&format!("CREATE DATABASE {test}"));
        let database = Self {
            server,
            name: test.to_owned(),
        };
        database.client().execute(sql);
        Some(database)
    }

    pub(crate) fn client(&self) -> PostgresClient {
        self.server.client_of(&self.name)
    }

    pub(crate) fn config(&self, tables: &[&str]) -> Value {
        let mut config = self.server.source(tables);
        config["database"] = json!(self.name);
        config["slot"] = json!(self.name);
        config
    }

    pub(crate) fn source(&self, tables: &[&str]) -> Box<dyn Source> {
        open(self.config(tables))
    }

    pub(crate) fn confirmed(&self) -> String {
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

pub(crate) fn context() -> OpenContext {
    OpenContext::in_folder("/")
}

pub(crate) fn parse(config: Value) -> PostgresConfig {
    serde_json::from_value(config).unwrap()
}

pub(crate) fn open(config: Value) -> Box<dyn Source> {
    parse(config).open(&context()).unwrap()
}

pub(crate) fn catch_up(state: &ModelState, source: Box<dyn Source>) {
    state.run(source, ReadMode::UntilCaughtUp).join().unwrap();
}

pub(crate) fn rows(state: &ModelState) -> BTreeMap<String, Value> {
    let rows = state.rows().into_iter();
    rows.map(|(key, row)| (key.to_string(), serde_json::from_str(&row).unwrap()))
        .collect()
}

pub(crate) fn failure(state: &ModelState, config: Value) -> String {
    let ended = state.run(open(config), ReadMode::UntilCaughtUp).join();
    ended.unwrap_err().to_string()
}

/// Text that PostgreSQL keeps apart from the row: long, and nothing that compresses well.
pub(crate) fn large(seed: u64) -> String {
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
