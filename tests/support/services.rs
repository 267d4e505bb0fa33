//! PostgreSQL, Kafka, a schema registry and Kafka Connect with Debezium, once for all tests of a
//! program.
//!
//! Invariant: they end when the test's process has ended, however it ended: the script that starts
//! them watches its id. Only processes that were started here are ended.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};
use vectide_connectors::testing::started_or_skip;

/// Time for the slowest single step of a service on a busy machine.
const STEP_TIMEOUT: Duration = Duration::from_secs(240);

/// The running services.
pub struct Services {
    directory: PathBuf,
    variables: BTreeMap<String, String>,
}

impl Services {
    /// The services, started on first use. Where they can't be had, says which test is skipped
    /// and why.
    ///
    /// # Panics
    /// When `VECTIDE_REQUIRE_SERVICES=1` and they can't be had.
    pub fn start_or_skip(test: &str) -> Option<&'static Self> {
        static SERVICES: OnceLock<Result<Services, String>> = OnceLock::new();
        let started = SERVICES.get_or_init(Self::start).as_ref();
        started_or_skip(test, "services", started.map_err(String::clone))
    }

    fn start() -> Result<Self, String> {
        let directory = tempfile::Builder::new()
            .prefix("vectide-services-")
            .tempdir()
            .map_err(|error| format!("no temporary folder: {error}"))?
            .keep();
        let owner = std::process::id().to_string();
        script("services.sh", &["up", &text(&directory), &owner])?;
        let ports = std::fs::read_to_string(directory.join("ports.env"))
            .map_err(|error| format!("ports.env: {error}"))?;
        let variables = ports
            .lines()
            .filter_map(|line| line.split_once('='))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        Ok(Self {
            directory,
            variables,
        })
    }

    fn variable(&self, name: &str) -> &str {
        let value = self.variables.get(name);
        value.unwrap_or_else(|| panic!("ports.env has no {name}"))
    }

    /// `host:port` of the broker.
    pub fn brokers(&self) -> &str {
        self.variable("KAFKA_BROKERS")
    }

    /// The port of the database server.
    pub fn postgres_port(&self) -> &str {
        self.variable("POSTGRES_PORT")
    }

    /// The registry, as Confluent's clients address it.
    pub fn registry_url(&self) -> &str {
        self.variable("REGISTRY_URL")
    }

    /// Settings of a connector that writes Avro in Confluent's framing and registers its schemas.
    pub fn avro_settings(&self) -> Vec<(&str, &str)> {
        const CONVERTER: &str = "io.apicurio.registry.utils.converter.AvroConverter";
        let url = self.variable("APICURIO_URL");
        vec![
            ("key.converter", CONVERTER),
            ("value.converter", CONVERTER),
            ("key.converter.apicurio.registry.url", url),
            ("value.converter.apicurio.registry.url", url),
            ("key.converter.apicurio.registry.auto-register", "true"),
            ("value.converter.apicurio.registry.auto-register", "true"),
            ("key.converter.apicurio.registry.find-latest", "true"),
            ("value.converter.apicurio.registry.find-latest", "true"),
            ("key.converter.apicurio.registry.as-confluent", "true"),
            ("value.converter.apicurio.registry.as-confluent", "true"),
            // The id that the registry's Confluent API knows a schema by.
            ("key.converter.apicurio.registry.use-id", "contentId"),
            ("value.converter.apicurio.registry.use-id", "contentId"),
            ("key.converter.apicurio.registry.headers.enabled", "false"),
            ("value.converter.apicurio.registry.headers.enabled", "false"),
            ("schema.name.adjustment.mode", "avro"),
        ]
    }

    /// The Connect worker that tests share. One that kills its worker starts its own.
    pub fn connect(&self) -> ConnectWorker<'_> {
        ConnectWorker {
            directory: self.directory.join("connect"),
            port: self.variable("CONNECT_PORT").to_owned(),
            services: self,
            is_own: false,
        }
    }

    /// Starts another Connect worker.
    ///
    /// # Panics
    /// When it does not start.
    pub fn start_connect(&self, name: &str) -> ConnectWorker<'_> {
        let worker = ConnectWorker {
            directory: self.directory.join(name),
            port: super::free_port().to_string(),
            services: self,
            is_own: true,
        };
        worker.start();
        worker
    }

    /// Makes a database.
    ///
    /// # Panics
    /// When the server refuses.
    pub fn create_database(&self, name: &str) -> Database {
        let database = |name: &str| Database {
            port: self.postgres_port().to_owned(),
            password: self.variable("POSTGRES_PASSWORD").to_owned(),
            name: name.to_owned(),
        };
        database("postgres").execute(&format!("create database {name}"));
        database(name)
    }
}

/// A database, spoken to by `psql`.
#[derive(Clone)]
pub struct Database {
    port: String,
    /// The password of its superuser, `postgres`.
    pub password: String,
    /// Its name.
    pub name: String,
}

impl Database {
    /// What clients connect with.
    pub fn url(&self) -> String {
        let Self {
            port,
            password,
            name,
        } = self;
        format!("postgresql://postgres:{password}@127.0.0.1:{port}/{name}")
    }

    /// Runs statements in one session, in order, and gives what they print: rows as lines, columns
    /// with `|` between them.
    ///
    /// # Panics
    /// When one of them fails.
    pub fn execute(&self, statements: &str) -> String {
        let mut session = Command::new("psql");
        session.args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", &self.url()]);
        session.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = session.spawn().unwrap_or_else(|error| panic!("{error}"));
        let mut input = child.stdin.take().unwrap_or_else(|| panic!("no input"));
        let statements = statements.to_owned();
        // From another thread: psql stops reading while nobody takes what it prints.
        let writer = std::thread::spawn(move || {
            use std::io::Write as _;
            // A failed statement closes the input; the status tells.
            let _ = input.write_all(statements.as_bytes());
        });
        let output = child.wait_with_output();
        let output = output.unwrap_or_else(|error| panic!("{error}"));
        writer.join().unwrap_or_else(|_| panic!("the writer"));
        assert!(output.status.success(), "a statement failed");
        String::from_utf8_lossy(&output.stdout)
            .trim_end()
            .to_owned()
    }
}

/// A string as SQL.
pub fn quoted(value: &str) -> String {
    format!("'{}'", value.replace('\'', "''"))
}

/// A Kafka Connect worker.
pub struct ConnectWorker<'a> {
    directory: PathBuf,
    port: String,
    services: &'a Services,
    is_own: bool,
}

impl ConnectWorker<'_> {
    /// Starts it (again), with the connectors it had.
    ///
    /// # Panics
    /// When it does not start.
    pub fn start(&self) {
        let directory = text(&self.directory);
        let brokers = self.services.brokers();
        script("connect.sh", &["start", &directory, &self.port, brokers])
            .unwrap_or_else(|error| panic!("{error}"));
    }

    /// Ends it without warning.
    ///
    /// # Panics
    /// When it does not run.
    pub fn kill(&self) {
        assert!(self.is_own, "others use this worker");
        script("connect.sh", &["kill", &text(&self.directory)])
            .unwrap_or_else(|error| panic!("{error}"));
    }

    /// Makes a connector that captures tables of a database into topics `NAME.schema.table`, and
    /// waits until it runs. `settings` add to or replace what it has.
    ///
    /// # Panics
    /// When the worker refuses, or the connector fails.
    pub fn capture(&self, database: &Database, name: &str, settings: &[(&str, &str)]) {
        let mut config: BTreeMap<&str, &str> = BTreeMap::from([
            (
                "connector.class",
                "io.debezium.connector.postgresql.PostgresConnector",
            ),
            ("plugin.name", "pgoutput"),
            ("database.hostname", "127.0.0.1"),
            ("database.port", &database.port),
            ("database.user", "postgres"),
            ("database.password", &database.password),
            ("database.dbname", &database.name),
            ("topic.prefix", name),
            ("slot.name", name),
            ("publication.name", name),
            ("publication.autocreate.mode", "filtered"),
            ("table.include.list", "public.pages,public.marker"),
            ("heartbeat.interval.ms", "500"),
            ("poll.interval.ms", "50"),
            ("topic.creation.default.partitions", "3"),
            ("topic.creation.default.replication.factor", "1"),
            // One partition tells the order of all transactions.
            ("topic.creation.groups", "markers"),
            ("topic.creation.markers.include", ".*\\.transaction"),
            ("topic.creation.markers.partitions", "1"),
            ("topic.creation.markers.replication.factor", "1"),
        ]);
        config.extend(settings.iter().copied());
        let connector = serde_json::json!({"name": name, "config": config}).to_string();
        // For a worker that is started again.
        let kept = self.directory.join("connectors");
        std::fs::write(kept.join(format!("{name}.json")), &connector)
            .unwrap_or_else(|error| panic!("{error}"));
        let made = agent()
            .post(self.address("/connectors"))
            .header("content-type", "application/json")
            .send(connector.as_str());
        let mut made = made.unwrap_or_else(|error| panic!("{error}"));
        let answer = made.body_mut().read_to_string().unwrap_or_default();
        assert_eq!(made.status().as_u16(), 201, "{answer}");
        wait_until(&format!("connector {name} runs"), || self.is_running(name));
    }

    /// Whether a connector's task runs.
    ///
    /// # Panics
    /// When it failed.
    pub fn is_running(&self, name: &str) -> bool {
        let status = self.get(&format!("/connectors/{name}/status"));
        let task = &status["tasks"][0];
        assert!(task["state"] != "FAILED", "{name}: {task}");
        task["state"] == "RUNNING"
    }

    /// Waits until a connector has written to a topic: before that there is none.
    ///
    /// # Panics
    /// When it takes too long.
    pub fn wait_for_topic(&self, name: &str, topic: &str) {
        wait_until(&format!("topic {topic} is there"), || {
            let answer = self.get(&format!("/connectors/{name}/topics"));
            let topics = answer[name]["topics"].as_array();
            topics.is_some_and(|topics| topics.iter().any(|known| known == topic))
        });
    }

    fn get(&self, path: &str) -> serde_json::Value {
        let answer = agent().get(self.address(path)).call();
        let text = answer.and_then(|mut answer| answer.body_mut().read_to_string());
        serde_json::from_str(&text.unwrap_or_default()).unwrap_or_default()
    }

    fn address(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    /// Waits until Kafka has everything that was committed in a database before this call: its
    /// slot was confirmed beyond it, which Debezium does after Kafka's acknowledgement.
    ///
    /// # Panics
    /// When it takes too long.
    pub fn wait_until_delivered(&self, database: &Database, name: &str) {
        // A change of a captured table after the position: the slot moves with changes.
        let position = database.execute(
            "select pg_current_wal_lsn(); \
             insert into marker default values;",
        );
        let confirmed = format!(
            "select confirmed_flush_lsn >= '{position}' from pg_replication_slots \
             where slot_name = {}",
            quoted(name)
        );
        let start = Instant::now();
        while database.execute(&confirmed) != "t" {
            self.is_running(name);
            let waited = start.elapsed();
            assert!(
                waited < STEP_TIMEOUT,
                "{name} has not delivered: {}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// The end of its log.
    fn log(&self) -> String {
        const LINES: usize = 60;
        let log = std::fs::read_to_string(self.directory.join("connect.log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(LINES)..].join("\n")
    }
}

impl Drop for ConnectWorker<'_> {
    fn drop(&mut self) {
        if self.is_own {
            // A worker that is left ends nothing but itself later; its failure hides no other.
            let _ = script("connect.sh", &["stop", &text(&self.directory)]);
        }
    }
}

/// Waits until something holds.
///
/// # Panics
/// When it takes too long.
pub fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(
            start.elapsed() < STEP_TIMEOUT,
            "waited too long until {what}"
        );
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn agent() -> ureq::Agent {
    ureq::Agent::config_builder()
        .http_status_as_error(false)
        .timeout_global(Some(Duration::from_secs(60)))
        .build()
        .into()
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn script(name: &str, arguments: &[&str]) -> Result<(), String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts");
    let mut command = Command::new(folder.join(name));
    // Files and not pipes: the servers inherit them, and a pipe would stay open as long as they.
    let errors = tempfile::NamedTempFile::new().map_err(|error| error.to_string())?;
    let handle = errors.reopen().map_err(|error| error.to_string())?;
    let status = command
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(handle)
        .status()
        .map_err(|error| format!("{name}: {error}"))?;
    if status.success() {
        return Ok(());
    }
    let told = std::fs::read_to_string(errors.path()).unwrap_or_default();
    Err(told.trim().to_owned())
}
