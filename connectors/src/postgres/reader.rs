//! One of the connections that read a snapshot side by side.
//!
//! Invariant: rows of a chunk are said before its end, and chunks in their order; a reader that is ready
//! has locked all its tables.

use super::connection::{Answer, Connection, Connector, Purpose, quote_name};
use super::errors::{End, PgError};
use super::pgoutput::{Cell, Lsn};
use super::row::{Column, Columns};
use super::snapshot::{lock, share};
use super::tables::Table;
use super::types::Types;
use crate::batch::{BYTES_MAX, RECORDS_MAX};
use fallible_iterator::FallibleIterator;
use postgres_protocol::message::backend::DataRowBody;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::time::SystemTime;
use vectide_model::{Change, DeadLetter, DeadLetterReason, Partition, Position};

/// A range of a table's pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Chunk {
    pub(crate) table: usize,
    pub(crate) from: u64,
    /// One past the last page; without it all that are left.
    pub(crate) to: Option<u64>,
    /// Only rows that were written by transactions from this number on.
    pub(crate) changed_since: Option<u64>,
    /// How many pages of the table are read when the chunk is.
    pub(crate) blocks_read_after: Option<u64>,
}

/// What a reader says.
pub(crate) enum ReaderSays {
    /// It shares the snapshot and has locked its tables.
    Ready,
    /// Some rows.
    Rows(Vec<Change>),
    /// Some rows that can't be used.
    Letters(Vec<DeadLetter>),
    /// The end of a chunk.
    ChunkEnd { rows: u64 },
    /// It can't go on.
    Failed(PgError),
}

/// What a reader has to know of a table.
pub(crate) struct TablePlan {
    quoted: String,
    condition: Option<String>,
    columns: Option<Columns>,
    partition: Partition,
}

impl TablePlan {
    pub(crate) fn of(table: &Table) -> Self {
        Self {
            quoted: table.facts.quoted(),
            condition: table.published.condition.clone(),
            columns: table.columns.clone(),
            partition: table.partition.clone(),
        }
    }

    fn sql(&self, columns: &Columns, chunk: &Chunk) -> String {
        let names = columns.all.iter().map(|column| quote_name(&column.name));
        let names: Vec<String> = names.collect();
        let mut sql = format!(
            "SELECT {} FROM ONLY {} WHERE ctid >= '({},0)'::tid",
            names.join(", "),
            self.quoted,
            chunk.from
        );
        if let Some(to) = chunk.to {
            sql.push_str(&format!(" AND ctid < '({to},0)'::tid"));
        }
        if let Some(since) = chunk.changed_since {
            let xid = since & 0xFFFF_FFFF;
            sql.push_str(&format!(" AND age(xmin) <= age('{xid}'::xid)"));
        }
        if let Some(condition) = &self.condition {
            sql.push_str(&format!(" AND ({condition})"));
        }
        sql
    }
}

/// What decides which columns there are and how keys begin.
#[derive(Clone, Copy)]
pub(crate) struct ColumnOptions {
    /// Whether the server publishes generated columns that are listed.
    pub(crate) has_generated: bool,
    /// Whether keys begin with their table.
    pub(crate) has_prefix: bool,
}

/// The columns of a table that are published, in their order, with their kinds.
pub(crate) fn columns(
    queries: &mut Connection,
    table: &Table,
    types: &mut Types,
    options: ColumnOptions,
) -> Result<Columns, End> {
    let rows = queries.query(&format!(
        "SELECT attname, atttypid, attgenerated FROM pg_catalog.pg_attribute \
         WHERE attrelid = {} AND attnum > 0 AND NOT attisdropped ORDER BY attnum",
        table.facts.oid
    ))?;
    let mut all = Vec::with_capacity(rows.len());
    for row in &rows {
        let text = |at: usize| row[at].as_deref().unwrap_or_default();
        let name = text(0);
        let is_listed = match &table.published.columns {
            Some(columns) => columns.iter().any(|column| column == name),
            None => true,
        };
        // Before version 18 generated columns are listed but not told.
        let is_published = is_listed && (text(2).is_empty() || options.has_generated);
        if is_published {
            let kind = types.resolve(text(1).parse().unwrap_or(0), queries)?;
            all.push(Column::new(name, kind));
        }
    }
    let prefix = key_prefix(&table.facts.name, options.has_prefix);
    Columns::new(all, &table.facts.key, prefix).map_err(|column| {
        End::failed(
            format!(
                "column `{column}` of the key of table `{}` is not there or not published",
                table.facts.name
            ),
            "publish it: without the key rows have no identity",
        )
    })
}

/// What stands before the keys of a table.
pub(crate) fn key_prefix(table: &str, has_prefix: bool) -> Arc<str> {
    if has_prefix {
        format!("{table}/").into()
    } else {
        "".into()
    }
}

/// Reads chunks until all are read or nobody listens any more.
pub(crate) fn read_chunks<'a>(
    connector: &Connector,
    snapshot: &str,
    chunks: impl Iterator<Item = &'a Chunk>,
    plans: &[TablePlan],
    source: &Arc<str>,
    cut: Lsn,
    sender: &SyncSender<ReaderSays>,
) {
    let read = || -> Result<(), PgError> {
        let mut queries = connector.connect(Purpose::Queries)?;
        share(&mut queries, snapshot)?;
        let chunks: Vec<&Chunk> = chunks.collect();
        let tables: BTreeSet<usize> = chunks.iter().map(|chunk| chunk.table).collect();
        for table in tables {
            lock(&mut queries, &plans[table].quoted)?;
        }
        say(sender, ReaderSays::Ready)?;
        for chunk in chunks {
            let plan = &plans[chunk.table];
            let Some(columns) = &plan.columns else {
                continue;
            };
            let mut rows = Rows {
                columns,
                position: Position {
                    source: source.clone(),
                    partition: plan.partition.clone(),
                    offset: cut,
                },
                read_at: SystemTime::now(),
                changes: Vec::new(),
                bytes: 0,
                count: 0,
                sender,
            };
            queries.query_each(&plan.sql(columns, chunk), &mut |answer| rows.take(answer))?;
            rows.flush()?;
            say(sender, ReaderSays::ChunkEnd { rows: rows.count })?;
        }
        queries.close();
        Ok(())
    };
    if let Err(error) = read() {
        // Nobody listens when the source ends.
        let _ = sender.send(ReaderSays::Failed(error));
    }
}

fn say(sender: &SyncSender<ReaderSays>, says: ReaderSays) -> Result<(), PgError> {
    sender.send(says).map_err(|_| PgError::Stopped)
}

struct Rows<'a> {
    columns: &'a Columns,
    position: Position,
    /// Rows do not tell when they were written.
    read_at: SystemTime,
    changes: Vec<Change>,
    bytes: usize,
    count: u64,
    sender: &'a SyncSender<ReaderSays>,
}

impl Rows<'_> {
    fn take(&mut self, answer: Answer) -> Result<(), PgError> {
        self.count += 1;
        match answer {
            Answer::Row(row) => self.take_row(&row),
            Answer::TooLarge { bytes, start } => {
                let detail = format!("the row has {bytes} bytes, more than `max_row`");
                let reason = DeadLetterReason::TooLarge;
                let letter = DeadLetter::new(reason, self.position.clone(), None, detail, &start);
                say(self.sender, ReaderSays::Letters(vec![letter]))
            }
        }
    }

    fn take_row(&mut self, row: &DataRowBody) -> Result<(), PgError> {
        let buffer = row.buffer();
        let mut cells = Vec::with_capacity(self.columns.all.len());
        let mut ranges = row.ranges();
        let malformed = |error: std::io::Error| PgError::protocol(error.to_string());
        while let Some(range) = ranges.next().map_err(malformed)? {
            cells.push(match range {
                Some(range) => Cell::Text(&buffer[range]),
                None => Cell::Null,
            });
        }
        match self.columns.row(&cells, None) {
            Ok(decoded) => {
                self.bytes += decoded.key.len() + decoded.row.len();
                self.changes.push(Change {
                    key: decoded.key,
                    row: Some(decoded.row),
                    unchanged_fields: Vec::new(),
                    position: self.position.clone(),
                    changed_at: self.read_at,
                });
                if self.bytes >= BYTES_MAX || self.changes.len() >= RECORDS_MAX {
                    self.flush()?;
                }
                Ok(())
            }
            Err(rejected) => {
                let letter = DeadLetter::new(
                    rejected.reason,
                    self.position.clone(),
                    rejected.key,
                    rejected.detail,
                    buffer,
                );
                say(self.sender, ReaderSays::Letters(vec![letter]))
            }
        }
    }

    fn flush(&mut self) -> Result<(), PgError> {
        self.bytes = 0;
        match std::mem::take(&mut self.changes) {
            changes if changes.is_empty() => Ok(()),
            changes => say(self.sender, ReaderSays::Rows(changes)),
        }
    }
}
