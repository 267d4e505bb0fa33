//! `vectide tap`: what a source says, decoded, as it comes.
//!
//! Invariant: it looks only. No state is opened, and the source is told that nothing of it will be
//! committed, so it leaves no trace in the outside world.

use crate::failure::Failure;
use crate::run::{runtime, stop_on_signals};
use crate::text::shortened;
use crate::validate;
use serde::Serialize;
use serde_json::{Value, json, value::RawValue};
use std::collections::BTreeMap;
use std::io::{self, ErrorKind, Write};
use std::path::Path;
use std::sync::Arc;
use vectide_connectors::dead_letters::time_text;
use vectide_model::{
    Change, DeadLetter, HeldRows, Key, Partition, Position, ReadMode, Row, SourceBatch,
    SourceError, SourceSink, SourceStart, StopSignal, Stopped,
};

/// Characters of a row, a detail or a dead letter's bytes on a line.
const TEXT_CHARACTERS_MAX: usize = 120;

/// How changes are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// A shortened line for a person.
    Text,
    /// One JSON object a line.
    Json,
}

/// What to print, and until when.
pub struct TapOptions {
    /// Whether to end when caught up.
    pub mode: ReadMode,
    /// Leaves out what was there before: it is read, but not printed.
    pub skips_present: bool,
    /// Ends after so many changes and dead letters.
    pub count: Option<u64>,
    /// How.
    pub style: Style,
}

/// Prints the changes of a source.
///
/// # Errors
/// A bad configuration, a source that is not there, or what ended it.
pub fn tap(config: &Path, source: &str, options: &TapOptions) -> Result<(), Failure> {
    let opened = validate::load(config)?
        .open_source(source)
        .map_err(|report| Failure::config(&report))?;
    let stop = StopSignal::new();
    let signals = runtime()?;
    signals.block_on(stop_on_signals(&stop))?;
    let start = SourceStart {
        name: source.into(),
        positions: BTreeMap::new(),
        fingerprints: BTreeMap::new(),
        held: Arc::new(NoRows),
        mode: options.mode,
        is_trial: true,
        stop: stop.clone(),
    };
    let mut sink = PrintingSink {
        out: io::stdout(),
        style: options.style,
        left: options.count.unwrap_or(u64::MAX),
        is_silent: options.skips_present,
        stop,
        failure: None,
    };
    opened.run(start, &mut sink)?;
    match sink.failure {
        Some(error) if error.kind() != ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

/// A state in which nothing is held.
struct NoRows;

impl HeldRows for NoRows {
    fn row(&self, _: &str) -> Result<Option<Row>, SourceError> {
        Ok(None)
    }
    fn keys(&self) -> Result<Vec<Key>, SourceError> {
        Ok(Vec::new())
    }
    fn keys_from(&self, _: &dyn Fn(&str) -> bool) -> Result<Vec<Key>, SourceError> {
        Ok(Vec::new())
    }
    fn durable_positions(&self) -> BTreeMap<Partition, u64> {
        BTreeMap::new()
    }
}

/// Prints what the source sends.
struct PrintingSink<W> {
    out: W,
    style: Style,
    left: u64,
    is_silent: bool,
    stop: StopSignal,
    /// Why nothing can be printed any more.
    failure: Option<io::Error>,
}

impl<W: Write + Send> SourceSink for PrintingSink<W> {
    fn send(&mut self, batch: SourceBatch) -> Result<(), Stopped> {
        if self.stop.is_stopped() {
            return Err(Stopped);
        }
        if self.is_silent {
            return Ok(());
        }
        if let Err(error) = self.print(&batch) {
            self.failure = Some(error);
            self.stop.stop();
        }
        if self.left == 0 || self.failure.is_some() {
            self.stop.stop();
            return Err(Stopped);
        }
        Ok(())
    }

    fn caught_up(&mut self) {
        self.is_silent = false;
    }
}

impl<W: Write> PrintingSink<W> {
    fn print(&mut self, batch: &SourceBatch) -> io::Result<()> {
        let style = self.style;
        let changes = batch.changes.iter().map(|change| match style {
            Style::Text => Ok(change_text(change)),
            Style::Json => change_json(change),
        });
        let letters = batch.dead_letters.iter().map(|letter| match style {
            Style::Text => Ok(letter_text(letter)),
            Style::Json => Ok(letter_json(letter).to_string()),
        });
        for line in changes.chain(letters) {
            if self.left == 0 {
                break;
            }
            self.left -= 1;
            self.out.write_all(line?.as_bytes())?;
            self.out.write_all(b"\n")?;
        }
        self.out.flush()
    }
}

fn change_text(change: &Change) -> String {
    let Change {
        key,
        row,
        unchanged_fields,
        position,
        ..
    } = change;
    let key = shortened(key, TEXT_CHARACTERS_MAX);
    let at = format!(
        "{}@{}",
        shortened(&position.partition, TEXT_CHARACTERS_MAX),
        position.offset
    );
    let Some(row) = row else {
        return format!("delete  {key}  {at}");
    };
    let mut line = format!(
        "upsert  {key}  {at}  {}",
        shortened(row, TEXT_CHARACTERS_MAX)
    );
    if !unchanged_fields.is_empty() {
        line += &format!("  unchanged: {}", unchanged_fields.join(", "));
    }
    line
}

/// A change as JSON.
#[derive(Serialize)]
struct ChangeJson<'a> {
    op: &'static str,
    key: &'a str,
    row: Option<RowJson<'a>>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    unchanged_fields: &'a [Arc<str>],
    position: &'a Position,
    changed_at: String,
}

/// A row goes as it stands, also its numbers; one that is no JSON, which a fault of its decoder would
/// give, as a text.
#[derive(Serialize)]
#[serde(untagged)]
enum RowJson<'a> {
    Whole(&'a RawValue),
    Text(&'a str),
}

fn change_json(change: &Change) -> serde_json::Result<String> {
    let row = change.row.as_deref().map(|row| {
        let parsed = serde_json::from_str(row);
        parsed.map_or(RowJson::Text(row), RowJson::Whole)
    });
    serde_json::to_string(&ChangeJson {
        op: if row.is_some() { "upsert" } else { "delete" },
        key: &change.key,
        row,
        unchanged_fields: &change.unchanged_fields,
        position: &change.position,
        changed_at: time_text(change.changed_at),
    })
}

fn letter_text(letter: &DeadLetter) -> String {
    format!(
        "dead letter: {}  {}@{}  {}  {}",
        letter.reason.as_str(),
        shortened(&letter.position.partition, TEXT_CHARACTERS_MAX),
        letter.position.offset,
        shortened(&letter.detail, TEXT_CHARACTERS_MAX),
        shortened(&String::from_utf8_lossy(&letter.raw), TEXT_CHARACTERS_MAX),
    )
}

fn letter_json(letter: &DeadLetter) -> Value {
    json!({
        "op": "dead_letter",
        "key": letter.key.as_deref(),
        "reason": letter.reason.as_str(),
        "detail": letter.detail,
        "raw": String::from_utf8_lossy(&letter.raw),
        "position": letter.position,
    })
}
