//! One PostgreSQL server for the tests of one process: started by `scripts/postgres.sh` in a temporary
//! folder on loopback, stopped when the value is dropped.
//!
//! Invariant: only the server that was started here is stopped, by the process id that it wrote.

use super::ports::free_ports;
use super::services::started_or_skip;
use crate::postgres::PostgresConfig;
use crate::postgres::client::{Connection, Connector, Purpose};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use vectide_model::StopSignal;

/// How long the server may take to notice that a reader of a slot has ended.
const SLOT_PATIENCE: Duration = Duration::from_secs(20);

/// A running server.
pub struct PostgresServer {
    directory: TempDir,
    port: u16,
    password: String,
    settings: Vec<String>,
}

impl PostgresServer {
    /// Starts a server on a free port, with settings on top of `wal_level=logical`.
    ///
    /// # Errors
    /// Why there is none: PostgreSQL is missing, or it did not start.
    pub fn start(settings: &[&str]) -> Result<Self, String> {
        Self::start_in(new_directory()?, settings)
    }

    /// The same with TLS: [`Self::certificate_authority`] is who signed for `localhost`.
    ///
    /// # Errors
    /// Why there is none.
    pub fn start_with_tls(settings: &[&str]) -> Result<Self, String> {
        let directory = new_directory()?;
        script(&["certificates", &directory.path().to_string_lossy()])?;
        Self::start_in(directory, settings)
    }

    fn start_in(directory: TempDir, settings: &[&str]) -> Result<Self, String> {
        let settings: Vec<String> = settings.iter().map(|it| (*it).to_owned()).collect();
        // A port that is free now may be taken when the server comes; then another one is tried.
        let mut last = String::new();
        for _ in 0..3 {
            let port = free_ports(1)?;
            match start_script(directory.path(), port, &settings) {
                Ok(()) => {
                    let path = directory.path().join("password");
                    let password = std::fs::read_to_string(path).map_err(|it| it.to_string())?;
                    return Ok(Self {
                        directory,
                        port,
                        password,
                        settings,
                    });
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// Starts a server, or tells why the test is skipped; with `VECTIDE_REQUIRE_SERVICES=1` a
    /// missing server fails the test instead.
    ///
    /// # Panics
    /// When services are required and there is none.
    pub fn start_or_skip(test: &str) -> Option<Self> {
        Self::or_skip(test, Self::start(&[]))
    }

    /// A server that was started, or why the test is skipped.
    ///
    /// # Panics
    /// When services are required and there is none.
    pub fn or_skip(test: &str, started: Result<Self, String>) -> Option<Self> {
        started_or_skip(test, "PostgreSQL", started)
    }

    /// Its port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The superuser's password.
    pub fn password(&self) -> &str {
        &self.password
    }

    /// The authority that signed the server's certificate.
    pub fn certificate_authority(&self) -> PathBuf {
        self.directory.path().join("tls/ca.pem")
    }

    /// The configuration of a source that reads these tables as the superuser.
    pub fn source(&self, tables: &[&str]) -> Value {
        json!({
            "host": "127.0.0.1", "port": self.port, "database": "postgres",
            "user": "postgres", "password": self.password, "tables": tables,
        })
    }

    /// A connection of the superuser.
    ///
    /// # Panics
    /// When the server refuses.
    pub fn client(&self) -> PostgresClient {
        self.client_of("postgres")
    }

    /// A connection of the superuser to a database.
    ///
    /// # Panics
    /// When the server refuses.
    pub fn client_of(&self, database: &str) -> PostgresClient {
        PostgresClient(self.connect(Purpose::Queries, database))
    }

    fn connect(&self, purpose: Purpose, database: &str) -> Connection {
        let mut config: PostgresConfig =
            serde_json::from_value(self.source(&[])).expect("a configuration");
        database.clone_into(&mut config.database);
        let connector = Connector {
            config,
            folder: PathBuf::new(),
            stop: StopSignal::new(),
        };
        connector.connect(purpose).expect("the server lets us in")
    }

    /// Reads the bytes of a slot's stream and throws them away until it has got past the log's end of
    /// now: what no reader can be faster than. Gives the messages and the bytes.
    ///
    /// # Panics
    /// When the server refuses.
    pub fn drain_slot(&self, slot: &str, publication: &str) -> (u64, u64) {
        let end = self
            .client()
            .query("SELECT pg_current_wal_lsn()")
            .remove(0)
            .remove(0);
        let connection = self.connect(Purpose::Replication, "postgres");
        let end = end.expect("a place of the log");
        crate::postgres::client::drain(connection, slot, publication, &end)
            .expect("the server streams")
    }

    /// Stops the server; its data stay.
    ///
    /// # Errors
    /// What the script says.
    pub fn stop(&self) -> Result<(), String> {
        script(&["stop", &self.directory.path().to_string_lossy()])
    }

    /// Starts the server again, with its data, on the same port.
    ///
    /// # Errors
    /// What the script says.
    pub fn start_again(&self) -> Result<(), String> {
        start_script(self.directory.path(), self.port, &self.settings)
    }
}

impl Drop for PostgresServer {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            eprintln!("the PostgreSQL server was not stopped: {error}");
        }
    }
}

/// A connection for the statements of a test.
pub struct PostgresClient(Connection);

impl PostgresClient {
    /// Runs statements; all of them are one transaction unless they say otherwise.
    ///
    /// # Panics
    /// When the server refuses.
    pub fn execute(&mut self, sql: &str) {
        self.query(sql);
    }

    /// Runs statements that may fail.
    ///
    /// # Errors
    /// What the server says.
    pub fn try_execute(&mut self, sql: &str) -> Result<(), String> {
        let done = self.0.query(sql);
        done.map(drop).map_err(|error| error.to_string())
    }

    /// Drops a replication slot, whose reader has ended: the server may not have noticed yet.
    ///
    /// # Panics
    /// When the server refuses, or somebody goes on reading.
    pub fn drop_slot(&mut self, slot: &str) {
        let sql = format!(
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots \
             WHERE slot_name = '{slot}' AND NOT active"
        );
        let start = Instant::now();
        while self.query(&sql).is_empty() {
            assert!(start.elapsed() < SLOT_PATIENCE, "slot {slot} is read");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Runs a query and gives its rows as text.
    ///
    /// # Panics
    /// When the server refuses.
    pub fn query(&mut self, sql: &str) -> Vec<Vec<Option<String>>> {
        let rows = self.0.query(sql);
        rows.unwrap_or_else(|error| {
            let shown: String = sql.chars().take(200).collect();
            panic!("{error}: {shown}")
        })
    }
}

fn new_directory() -> Result<TempDir, String> {
    let made = tempfile::Builder::new()
        .prefix("vectide-postgres-")
        .tempdir();
    made.map_err(|error| format!("no temporary folder: {error}"))
}

fn start_script(directory: &Path, port: u16, settings: &[String]) -> Result<(), String> {
    let (directory, port) = (directory.to_string_lossy(), port.to_string());
    let mut arguments = vec!["start", &*directory, &*port];
    arguments.extend(settings.iter().map(String::as_str));
    script(&arguments)
}

fn script(arguments: &[&str]) -> Result<(), String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/postgres.sh");
    let output = Command::new("bash")
        .arg(&path)
        .args(arguments)
        .output()
        .map_err(|error| format!("{} can't be run: {error}", path.display()))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let last = said.trim().lines().last().unwrap_or("no message");
    Err(format!("{} {}: {last}", path.display(), arguments[0]))
}
