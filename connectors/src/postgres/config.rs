//! The configuration of a PostgreSQL source.

use super::PostgresSource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use vectide_model::{
    ByteSize, ComponentError, ConnectionCheck, OpenContext, PositionProbe, Redecoder, Source,
    SourceConfig,
};

/// Tables of a PostgreSQL database (14 or newer), read by logical replication.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PostgresConfig {
    /// Name or address of the server.
    pub host: String,
    /// Its port.
    #[serde(default = "default_port")]
    pub port: u16,
    /// The database.
    pub database: String,
    /// A role with REPLICATION and SELECT on the tables.
    pub user: String,
    /// Its password; write `${PGPASSWORD}` and keep it in the environment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password: Option<Secret>,
    /// Encryption.
    #[serde(default)]
    pub tls: TlsConfig,
    /// The tables, `schema.table`. With more than one, keys begin with `schema.table/`.
    pub tables: Vec<String>,
    /// Columns that identify a row, by table, where the primary key (or the index of the replica
    /// identity) shall not: tables with REPLICA IDENTITY FULL only.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub keys: BTreeMap<String, Vec<String>>,
    /// The replication slot; it is made when it is missing at the first start. Default:
    /// `vectide_` and the source's name. No two pipelines may share one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slot: Option<String>,
    /// The publication; it is made when it is missing, which takes the owner of the tables.
    /// Default: `vectide_` and the source's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub publication: Option<String>,
    /// How the rows that are there at the first start are read.
    #[serde(default)]
    pub snapshot: SnapshotConfig,
    /// A transaction of more changes (or of more than 64 MiB) is split, and counted as such.
    #[serde(default = "default_max_transaction_changes")]
    pub max_transaction_changes: NonZeroUsize,
    /// A longer row becomes a dead letter and is not held in memory.
    #[serde(default = "default_max_row")]
    pub max_row: ByteSize,
}

/// A password: it is never shown.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    pub(crate) fn text(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("(hidden)")
    }
}

/// How the connection is encrypted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TlsConfig {
    /// What is asked for.
    #[serde(default)]
    pub mode: TlsMode,
    /// With `verify-full`: a PEM file of the authorities to trust instead of the public ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
}

/// What is asked of the connection's encryption.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum TlsMode {
    /// None.
    Disable,
    /// TLS if the server has it; who answers is not checked.
    #[default]
    Prefer,
    /// TLS, or an error; who answers is not checked.
    Require,
    /// TLS with a certificate that names the host and leads to a trusted authority.
    VerifyFull,
}

impl TlsMode {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Disable => "disable",
            Self::Prefer => "prefer",
            Self::Require => "require",
            Self::VerifyFull => "verify-full",
        }
    }
}

/// How the rows that are there at the first start are read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SnapshotConfig {
    /// Rows of one chunk, about: what is read again after a crash in the middle of it.
    #[serde(default = "default_chunk_rows")]
    pub chunk_rows: NonZeroUsize,
    /// Connections that read chunks side by side.
    #[serde(default = "default_parallelism")]
    pub parallelism: NonZeroUsize,
}

impl Default for SnapshotConfig {
    fn default() -> Self {
        Self {
            chunk_rows: default_chunk_rows(),
            parallelism: default_parallelism(),
        }
    }
}

fn default_port() -> u16 {
    5432
}

/// Some hundred pages: a fraction of a second to read, and far fewer positions than rows.
fn default_chunk_rows() -> NonZeroUsize {
    NonZeroUsize::new(10_000).unwrap_or(NonZeroUsize::MIN)
}

/// Reading is faster than embedding with one connection already; two hide each other's waits.
fn default_parallelism() -> NonZeroUsize {
    NonZeroUsize::new(2).unwrap_or(NonZeroUsize::MIN)
}

/// As for line logs: tens of megabytes of ordinary rows.
fn default_max_transaction_changes() -> NonZeroUsize {
    NonZeroUsize::new(10_000).unwrap_or(NonZeroUsize::MIN)
}

/// Far above any text worth embedding, and small enough to hold.
fn default_max_row() -> ByteSize {
    ByteSize::mebibytes(8)
}

/// Lengths of messages are signed 32 bits, and PostgreSQL's rows end at 1 GiB.
const MAX_ROW_LIMIT: ByteSize = ByteSize::mebibytes(1024);

/// A server's own messages must pass, too.
const MAX_ROW_LEAST: ByteSize = ByteSize::from_bytes(64 * 1024);

/// Each takes one of the server's connections (100 by default) and a core.
const PARALLELISM_MAX: usize = 32;

/// PostgreSQL cuts longer names.
const NAME_BYTES_MAX: usize = 63;

impl PostgresConfig {
    /// The slot's name for a source.
    pub(crate) fn slot_name(&self, source: &str) -> String {
        self.slot.clone().unwrap_or_else(|| default_name(source))
    }

    /// The publication's name for a source.
    pub(crate) fn publication_name(&self, source: &str) -> String {
        self.publication
            .clone()
            .unwrap_or_else(|| default_name(source))
    }

    /// Schema and name of each table.
    pub(crate) fn table_names(&self) -> impl Iterator<Item = (&str, &str)> {
        self.tables.iter().filter_map(|name| name.split_once('.'))
    }

    fn check_tables(&self, errors: &mut Vec<ComponentError>) {
        if self.tables.is_empty() {
            errors.push(ComponentError::new(
                "tables",
                "no table is named",
                "name at least one: [public.pages]",
            ));
        }
        let mut seen = BTreeSet::new();
        for (index, table) in self.tables.iter().enumerate() {
            let field = format!("tables[{index}]");
            let is_whole = table.split_once('.').is_some_and(|(schema, name)| {
                [schema, name]
                    .iter()
                    .all(|it| (1..=NAME_BYTES_MAX).contains(&it.len()) && !it.contains('\0'))
            });
            if !is_whole {
                errors.push(ComponentError::new(
                    field,
                    format!("`{table}` is not schema.table"),
                    "name the schema, too: public.pages (as in the catalog, without quotes)",
                ));
            } else if !seen.insert(table) {
                errors.push(ComponentError::new(
                    field,
                    format!("table `{table}` is named twice"),
                    "name every table once",
                ));
            }
        }
        for (table, columns) in &self.keys {
            let is_known = self.tables.contains(table);
            if !is_known || columns.is_empty() {
                let fact = match is_known {
                    true => format!("`{table}` has no column"),
                    false => format!("`{table}` is not under `tables`"),
                };
                errors.push(ComponentError::new(
                    format!("keys.{table}"),
                    fact,
                    "keys: {public.events: [day, number]}",
                ));
            }
        }
    }

    fn check_sizes(&self, errors: &mut Vec<ComponentError>) {
        if self.max_row < MAX_ROW_LEAST || self.max_row > MAX_ROW_LIMIT {
            errors.push(ComponentError::new(
                "max_row",
                format!(
                    "{} is not between {MAX_ROW_LEAST} and {MAX_ROW_LIMIT}",
                    self.max_row
                ),
                "rows are documents; 8MiB is the default",
            ));
        }
        if self.snapshot.parallelism.get() > PARALLELISM_MAX {
            errors.push(ComponentError::new(
                "snapshot.parallelism",
                format!(
                    "{} is more than {PARALLELISM_MAX}",
                    self.snapshot.parallelism
                ),
                "every one of them is a connection to the server",
            ));
        }
    }
}

/// `vectide_` and a name of which only the characters remain that a slot's name may have.
fn default_name(source: &str) -> String {
    let is_allowed = |it: char| it.is_ascii_lowercase() || it.is_ascii_digit();
    let lower = source.to_lowercase();
    let kept = lower
        .chars()
        .map(|it| if is_allowed(it) { it } else { '_' });
    let mut name = format!("vectide_{}", kept.collect::<String>());
    name.truncate(NAME_BYTES_MAX);
    name
}

fn is_slot_name(name: &str) -> bool {
    let is_allowed = |it: u8| it.is_ascii_lowercase() || it.is_ascii_digit() || it == b'_';
    (1..=NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(is_allowed)
}

impl SourceConfig for PostgresConfig {
    const TYPE: &'static str = "postgres";

    fn check(&self) -> Vec<ComponentError> {
        let mut errors = Vec::new();
        let named = [
            ("host", &self.host),
            ("database", &self.database),
            ("user", &self.user),
        ];
        for (field, value) in named {
            if value.is_empty() || value.contains('\0') {
                errors.push(ComponentError::new(
                    field,
                    format!("`{field}` is empty"),
                    "name it as you would for psql",
                ));
            }
        }
        self.check_tables(&mut errors);
        if let Some(slot) = self.slot.as_ref().filter(|slot| !is_slot_name(slot)) {
            errors.push(ComponentError::new(
                "slot",
                format!("`{slot}` is not the name of a slot"),
                "1 to 63 lower-case letters, digits and underscores",
            ));
        }
        let is_name = |name: &String| (1..=NAME_BYTES_MAX).contains(&name.len());
        if self.publication.as_ref().is_some_and(|name| !is_name(name)) {
            errors.push(ComponentError::new(
                "publication",
                "not the name of a publication",
                "1 to 63 bytes",
            ));
        }
        if self.tls.ca.is_some() && self.tls.mode != TlsMode::VerifyFull {
            errors.push(ComponentError::new(
                "tls.ca",
                format!(
                    "`tls.mode: {}` does not look at certificates",
                    self.tls.mode.as_str()
                ),
                "tls: {mode: verify-full, ca: ca.pem}",
            ));
        }
        self.check_sizes(&mut errors);
        errors
    }

    fn open(self, context: &OpenContext) -> Result<Box<dyn Source>, ComponentError> {
        match self.check().into_iter().next() {
            Some(error) => Err(error),
            None => Ok(Box::new(PostgresSource {
                config: self,
                folder: context.config_dir.clone(),
            })),
        }
    }

    fn position_probe(&self, context: &OpenContext) -> Box<dyn PositionProbe> {
        let (config, folder) = (self.clone(), context.config_dir.clone());
        Box::new(move || super::check::end_of_log(&config, &folder))
    }

    fn check_connection(&self, source: &str, context: &OpenContext) -> Vec<ConnectionCheck> {
        super::check::check(self, source, &context.config_dir)
    }

    fn redecoder(&self, _: &OpenContext) -> Result<Box<dyn Redecoder>, ComponentError> {
        Err(ComponentError::new(
            "",
            "a row of a table can't be decoded without what the server says of its columns",
            "have the server send it again: UPDATE the_table SET id = id WHERE id = ...",
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(json: serde_json::Value) -> Result<PostgresConfig, serde_json::Error> {
        serde_json::from_value(json)
    }

    #[test]
    fn all_faults_are_told_at_once() {
        let faulty = config(serde_json::json!({
            "host": "", "database": "shop", "user": "v", "password": "hush",
            "tables": ["pages", "a.b", "a.b"],
            "keys": {"x.y": ["id"], "a.b": []},
            "slot": "Big",
            "tls": {"mode": "require", "ca": "ca.pem"},
            "max_row": "1B",
            "snapshot": {"parallelism": 1000},
        }))
        .unwrap();
        let fields: Vec<String> = faulty.check().into_iter().map(|it| it.field).collect();
        assert_eq!(
            fields,
            [
                "host",
                "tables[0]",
                "tables[2]",
                "keys.a.b",
                "keys.x.y",
                "slot",
                "tls.ca",
                "max_row",
                "snapshot.parallelism"
            ]
        );
        assert!(!format!("{faulty:?}").contains("hush"));
    }

    #[test]
    fn defaults_and_names() {
        let good = config(serde_json::json!({
            "host": "db", "database": "shop", "user": "v", "tables": ["public.pages"],
        }))
        .unwrap();
        assert_eq!(good.check(), []);
        assert_eq!((good.port, good.tls.mode), (5432, TlsMode::Prefer));
        assert_eq!(good.slot_name("My docs"), "vectide_my_docs");
        assert_eq!(good.publication_name(&"x".repeat(80)).len(), 63);
        for wrong in [
            serde_json::json!({"host": "db", "database": "shop", "user": "v", "tables": [], "x": 1}),
            serde_json::json!({"host": "db", "database": "shop", "user": "v", "tables": [], "tls": {"mode": "on"}}),
        ] {
            assert!(config(wrong).is_err());
        }
    }
}
