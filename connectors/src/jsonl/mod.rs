//! A log of changes, one JSON object a line: plain, gzip or Zstandard, read to its end or followed.
//!
//! Positions: the partition is the path as the configuration has it, the offset the byte at which a
//! line starts in the uncompressed log. The fingerprint of a log is that of its first line: a log
//! that was replaced is told by it.
//!
//! Batches: without `transaction` in the format, changes stand alone and travel in groups. With it,
//! consecutive lines of one transaction are one batch. At the end of a file that is followed the
//! last transaction may still grow: it is held until another begins or nothing came for 200 ms.
//! What arrives after such a pause is a batch of its own.
//!
//! A last line without a line feed counts where a log has an end, and is waited for where it is
//! followed.
//!
//! Invariant: every line that is not white space becomes one change or one dead letter.

mod config;
mod input;
mod lines;
mod transactions;

pub use config::{JsonlConfig, JsonlFormat};

use crate::envelope::Rejected;
use crate::envelope::change::{ChangeDecoder, LineChange};
use input::{LogBytes, LogFile, OpenError, StoredFile};
use lines::{Line, LineReader};
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
use transactions::TransactionBatches;
use vectide_model::{
    Change, DeadLetter, DeadLetterReason, Partition, Position, ReadMode, Row, Source, SourceBatch,
    SourceError, SourceSink, SourceStart, StopSignal, Stopped,
};

/// How long the last transaction of a followed log is held for more of its lines. Writers append a
/// transaction in one go; a fifth of a second covers a slow disk and is hardly felt.
const TRANSACTION_QUIET: Duration = Duration::from_millis(200);

/// How often a followed log is asked for more: well below what a person notices, and a thousandth
/// of a core.
const FOLLOW_INTERVAL: Duration = Duration::from_millis(10);

/// How often a followed log is compared with what its path leads to.
const REPLACED_INTERVAL: Duration = Duration::from_millis(200);

/// A line log that is ready to run.
struct JsonlSource {
    file: LogFile,
    partition: Partition,
    decoder: ChangeDecoder,
    is_followed: bool,
    line_bytes_max: usize,
    transaction_changes_max: usize,
}

impl Source for JsonlSource {
    fn run(
        self: Box<Self>,
        start: SourceStart,
        sink: &mut dyn SourceSink,
    ) -> Result<(), SourceError> {
        match Run::start(&self, &start, sink).and_then(Run::read) {
            Ok(()) | Err(End::Stopped) => Ok(()),
            Err(End::Io(error)) => Err(SourceError::Failed {
                source_name: start.name.to_string(),
                detail: format!("can't read {}: {error}", self.file.path.display()),
                hint: "check that the file exists, can be read by this user and is whole".into(),
            }),
            Err(End::PositionLost(detail)) => Err(SourceError::PositionLost {
                source_name: start.name.to_string(),
                detail: format!("{}: {detail}", self.file.path.display()),
                hint: format!(
                    "a log may only grow; bring the old file back, or read this one from its start \
                     and keep what is unchanged: vectide run CONFIG --resnapshot {}",
                    start.name
                ),
            }),
        }
    }
}

/// Why reading ends before its end.
enum End {
    Stopped,
    PositionLost(String),
    Io(io::Error),
}

impl From<Stopped> for End {
    fn from(_: Stopped) -> Self {
        Self::Stopped
    }
}

impl From<io::Error> for End {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<OpenError> for End {
    fn from(error: OpenError) -> Self {
        match error {
            OpenError::PositionLost(detail) => Self::PositionLost(detail),
            OpenError::Stopped => Self::Stopped,
            OpenError::Io(error) => Self::Io(error),
        }
    }
}

/// One reading of a log from its recorded position.
struct Run<'a> {
    source: &'a JsonlSource,
    name: Arc<str>,
    stop: &'a StopSignal,
    sink: &'a mut dyn SourceSink,
    lines: LineReader<LogBytes>,
    batches: TransactionBatches,
    /// Known once the log has a first line.
    fingerprint: Option<u64>,
    is_fingerprint_sent: bool,
    opened: StoredFile,
    /// Until caught up, a followed log ends at its length at the start.
    ends_at: Option<u64>,
}

impl<'a> Run<'a> {
    fn start(
        source: &'a JsonlSource,
        start: &'a SourceStart,
        sink: &'a mut dyn SourceSink,
    ) -> Result<Self, End> {
        let offset = start.positions.get(&source.partition).copied().unwrap_or(0);
        let recorded = start.fingerprints.get(&source.partition).copied();
        let opened = source.file.stored()?;
        let fingerprint = source.file.fingerprint(!source.is_followed)?;
        if offset > 0 && recorded.is_some() && recorded != fingerprint {
            return Err(End::PositionLost(
                "the first line is another one than when the position was recorded".into(),
            ));
        }
        let lines = source
            .file
            .open(offset, source.line_bytes_max, &start.stop)?;
        let ends_at =
            (source.is_followed && start.mode == ReadMode::UntilCaughtUp).then_some(opened.bytes);
        Ok(Self {
            source,
            name: start.name.clone(),
            stop: &start.stop,
            sink,
            lines,
            batches: TransactionBatches::new(
                source.partition.clone(),
                source.transaction_changes_max,
            ),
            fingerprint,
            is_fingerprint_sent: offset > 0 && recorded.is_some(),
            opened,
            ends_at,
        })
    }

    fn read(mut self) -> Result<(), End> {
        if !self.source.is_followed {
            while self.read_line()? {}
            self.read_last_line()?;
            self.finish()?;
            self.sink.caught_up();
            return Ok(());
        }
        while !self.is_at_end() && self.read_line()? {}
        self.wait_for_transaction()?;
        self.sink.caught_up();
        if self.ends_at.is_some() {
            return Ok(());
        }
        self.follow()
    }

    /// Whether a followed log that is read until caught up has come to its end: everything before
    /// it was read, and no transaction that began before it is still open.
    fn is_at_end(&self) -> bool {
        let Some(end) = self.ends_at else {
            return false;
        };
        self.lines.offset() >= end && self.batches.open_since().is_none_or(|began| began >= end)
    }

    /// Lets the last transaction grow until nothing more comes, and sends it.
    fn wait_for_transaction(&mut self) -> Result<(), End> {
        let mut quiet_since = Instant::now();
        while self.batches.open_since().is_some() && quiet_since.elapsed() < TRANSACTION_QUIET {
            if self.is_at_end() {
                // What is open began behind the end: the next start reads it.
                return Ok(());
            }
            let mut is_growing = false;
            while !self.is_at_end() && self.read_line()? {
                is_growing = true;
            }
            if is_growing {
                quiet_since = Instant::now();
            } else {
                self.pause()?;
            }
        }
        self.finish()
    }

    fn follow(&mut self) -> Result<(), End> {
        let mut compared_at = Instant::now();
        loop {
            while self.read_line()? {}
            self.wait_for_transaction()?;
            if compared_at.elapsed() >= REPLACED_INTERVAL {
                self.check_not_replaced()?;
                compared_at = Instant::now();
            }
            self.pause()?;
        }
    }

    fn pause(&self) -> Result<(), End> {
        if self.stop.wait(FOLLOW_INTERVAL) {
            return Err(End::Stopped);
        }
        Ok(())
    }

    fn check_not_replaced(&self) -> Result<(), End> {
        let now = match self.source.file.stored() {
            // Between two steps of a rotation; the open file goes on.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other?,
        };
        if now.identity != self.opened.identity {
            return Err(End::PositionLost(
                "another file took the place of the one that was followed".into(),
            ));
        }
        let offset = self.lines.offset();
        if now.bytes < offset {
            return Err(End::PositionLost(format!(
                "it was read up to byte {offset} and ends at byte {} now",
                now.bytes
            )));
        }
        Ok(())
    }

    /// Reads one line; false when no whole line is at hand.
    fn read_line(&mut self) -> Result<bool, End> {
        let line = self.lines.next_line()?;
        if line == Line::Pending {
            return Ok(false);
        }
        let batch = self.source.take_line(&self.name, &line, &mut self.batches);
        self.send(batch)?;
        let due = self.batches.take_due();
        self.send(due)?;
        if self.stop.is_stopped() {
            return Err(End::Stopped);
        }
        Ok(true)
    }

    fn read_last_line(&mut self) -> Result<(), End> {
        let Some(line) = self.lines.last_line() else {
            return Ok(());
        };
        let batch = self.source.take_line(&self.name, &line, &mut self.batches);
        self.send(batch)
    }

    fn finish(&mut self) -> Result<(), End> {
        let rest = self.batches.finish();
        self.send(rest)
    }

    fn send(&mut self, batch: Option<SourceBatch>) -> Result<(), End> {
        let Some(mut batch) = batch else {
            return Ok(());
        };
        if !self.is_fingerprint_sent {
            if self.fingerprint.is_none() {
                self.fingerprint = self.source.file.fingerprint(!self.source.is_followed)?;
            }
            if let Some(fingerprint) = self.fingerprint {
                let partition = self.source.partition.clone();
                batch.fingerprints.insert(partition, fingerprint);
                self.is_fingerprint_sent = true;
            }
        }
        self.sink.send(batch)?;
        Ok(())
    }
}

impl JsonlSource {
    /// Adds a line to the batches; returns the batch that is complete before it.
    fn take_line(
        &self,
        name: &Arc<str>,
        line: &Line<'_>,
        batches: &mut TransactionBatches,
    ) -> Option<SourceBatch> {
        let (decoded, raw, offset, next_offset) = match *line {
            Line::Pending => return None,
            Line::Whole {
                bytes,
                offset,
                next_offset,
            } => (self.decoder.decode(bytes), bytes, offset, next_offset),
            Line::TooLong {
                start,
                length,
                offset,
                next_offset,
            } => (Err(self.too_long(length)), start, offset, next_offset),
        };
        let position = Position {
            source: name.clone(),
            partition: self.partition.clone(),
            offset,
        };
        match decoded {
            Ok(None) => None,
            Ok(Some(LineChange {
                key,
                row,
                transaction,
            })) => {
                let change = Change {
                    key,
                    row: row.map(Row::from),
                    unchanged_fields: Vec::new(),
                    position,
                    changed_at: SystemTime::now(),
                };
                batches.add_change(change, transaction, next_offset)
            }
            Err(rejected) => {
                let letter = DeadLetter::new(
                    rejected.reason,
                    position,
                    rejected.key,
                    rejected.detail,
                    raw,
                );
                batches.add_dead_letter(letter, next_offset)
            }
        }
    }

    fn too_long(&self, length: u64) -> Rejected {
        Rejected::new(
            DeadLetterReason::TooLarge,
            format!(
                "the line has {length} bytes, `max_line` is {}",
                self.line_bytes_max
            ),
        )
    }
}
