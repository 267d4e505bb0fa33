//! The configuration of a line log.

use super::JsonlSource;
use super::input::{Compression, LogFile, end_of_lines};
use crate::envelope::RawRecord;
use crate::envelope::change::ChangeDecoder;
use crate::redecode::RecordRedecoder;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::SystemTime;
use vectide_model::{
    ByteSize, Change, ComponentError, ConnectionCheck, DeadLetter, OpenContext, Partition,
    PositionProbe, Redecoder, Row, Source, SourceConfig,
};

/// A log of changes, one JSON object a line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct JsonlConfig {
    /// The file; `.gz` and `.zst` are decompressed while they are read.
    pub path: PathBuf,
    /// What the lines mean.
    pub format: JsonlFormat,
    /// Wait for lines that are appended (plain files only) instead of ending at the end.
    #[serde(default)]
    pub follow: bool,
    /// A longer line becomes a dead letter and is not held in memory.
    #[serde(default = "default_max_line")]
    pub max_line: ByteSize,
    /// A transaction of more changes is split, and counted as such.
    #[serde(default = "default_max_transaction_changes")]
    pub max_transaction_changes: NonZeroUsize,
}

/// What the lines of a log mean.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "lowercase", deny_unknown_fields)]
pub enum JsonlFormat {
    /// Every line is a change of the row that is the whole object.
    Change {
        /// Name of the field that holds the key (string, number or boolean); dots lead into nested
        /// objects.
        key: String,
        /// Name of the field that holds the operation: c, u, r (upserts) or d (delete). Without it
        /// every line is an upsert.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        op: Option<String>,
        /// Name of the field whose value consecutive lines of one transaction share. Without it
        /// every change stands alone.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        transaction: Option<String>,
    },
}

/// Rows are documents: 8 MiB is far above any text worth embedding, and small enough to hold.
fn default_max_line() -> ByteSize {
    ByteSize::mebibytes(8)
}

/// A transaction becomes visible at once, so it is held in memory: 10,000 rows of an ordinary size
/// are tens of megabytes.
fn default_max_transaction_changes() -> NonZeroUsize {
    NonZeroUsize::new(10_000).unwrap_or(NonZeroUsize::MIN)
}

/// Lines are held whole, and the parser needs them twice; more than this asks for a mistake.
const MAX_LINE_LIMIT: ByteSize = ByteSize::mebibytes(1024);

impl SourceConfig for JsonlConfig {
    const TYPE: &'static str = "jsonl";

    fn check(&self) -> Vec<ComponentError> {
        let mut errors = Vec::new();
        if self.path.as_os_str().is_empty() {
            errors.push(ComponentError::new(
                "path",
                "the path is empty",
                "name a file with one JSON object a line",
            ));
        }
        if self.follow && Compression::of(&self.path) != Compression::Plain {
            errors.push(ComponentError::new(
                "follow",
                "a compressed log can't be followed",
                "set `follow: false`, or write the log as a plain file",
            ));
        }
        if self.max_line.as_bytes() == 0 || self.max_line > MAX_LINE_LIMIT {
            errors.push(ComponentError::new(
                "max_line",
                format!(
                    "{} is not between 1 byte and {MAX_LINE_LIMIT}",
                    self.max_line
                ),
                "rows are documents; 8MiB is the default",
            ));
        }
        let JsonlFormat::Change {
            key,
            op,
            transaction,
        } = &self.format;
        let names = [
            ("format.key", Some(key)),
            ("format.op", op.as_ref()),
            ("format.transaction", transaction.as_ref()),
        ];
        for (field, name) in names {
            if name.is_some_and(|name| name.split('.').any(str::is_empty)) {
                errors.push(ComponentError::new(
                    field,
                    "a field name is empty",
                    "name a field of the objects, or a path such as `meta.key`",
                ));
            }
        }
        errors
    }

    fn open(self, context: &OpenContext) -> Result<Box<dyn Source>, ComponentError> {
        if let Some(error) = self.check().into_iter().next() {
            return Err(error);
        }
        let path = context.config_dir.join(&self.path);
        check_file(&path)?;
        Ok(Box::new(JsonlSource {
            decoder: self.format.decoder(),
            partition: Partition::from(self.path.to_string_lossy()),
            is_followed: self.follow,
            line_bytes_max: self.max_line.as_usize(),
            transaction_changes_max: self.max_transaction_changes.get(),
            file: LogFile {
                compression: Compression::of(&path),
                path,
            },
        }))
    }

    fn position_probe(&self, context: &OpenContext) -> Box<dyn PositionProbe> {
        let path = context.config_dir.join(&self.path);
        let partition = Partition::from(self.path.to_string_lossy());
        Box::new(move || {
            if Compression::of(&path) != Compression::Plain {
                let fact = "where a compressed log ends is not known before it is read";
                return Err(ComponentError::new(
                    "path",
                    fact,
                    "write it as a plain file",
                ));
            }
            let end = end_of_lines(&path).map_err(|error| {
                let fact = format!("`{}` can't be read: {error}", path.display());
                ComponentError::new("path", fact, "check the path and its permissions")
            })?;
            Ok(BTreeMap::from([(partition.clone(), end)]))
        })
    }

    fn check_connection(&self, _: &str, context: &OpenContext) -> Vec<ConnectionCheck> {
        let path = context.config_dir.join(&self.path);
        vec![ConnectionCheck {
            what: format!("log {}", path.display()),
            result: check_file(&path).map(|bytes| format!("{bytes} bytes")),
        }]
    }

    fn redecoder(&self, _: &OpenContext) -> Result<Box<dyn Redecoder>, ComponentError> {
        let decoder = self.format.decoder();
        Ok(Box::new(RecordRedecoder(
            move |record: &RawRecord<'_>, letter: &DeadLetter| {
                let decoded = decoder.decode(record.value.unwrap_or_default())?;
                let changes = decoded.map(|line| Change {
                    key: line.key,
                    row: line.row.map(Row::from),
                    unchanged_fields: Vec::new(),
                    position: letter.position.clone(),
                    changed_at: SystemTime::now(),
                });
                Ok(changes.into_iter().collect())
            },
        )))
    }
}

impl JsonlFormat {
    fn decoder(&self) -> ChangeDecoder {
        let Self::Change {
            key,
            op,
            transaction,
        } = self;
        ChangeDecoder::new(key, op.as_deref(), transaction.as_deref())
    }
}

/// The size of the log in bytes.
fn check_file(path: &Path) -> Result<u64, ComponentError> {
    let fault = match std::fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => "is a folder".to_owned(),
        Ok(metadata) => match std::fs::File::open(path) {
            Ok(_) => return Ok(metadata.len()),
            Err(error) => format!("can't be read: {error}"),
        },
        Err(error) => format!("can't be read: {error}"),
    };
    Err(ComponentError::new(
        "path",
        format!("{} {fault}", path.display()),
        "name an existing file; relative paths start at the configuration's folder",
    ))
}
