//! The rows that are there at the start, handed over to the stream without gap or overlap.
//!
//! The slot is made first, and with it a snapshot that has exactly what was committed before a place
//! of the log, the cut. Connections that share the snapshot read ranges of pages side by side; the
//! stream, which begins where the slot was made, takes over at the cut.
//!
//! After a crash that snapshot is gone, but the slot is not. A new round makes a snapshot of its own
//! (by a temporary slot) with a later cut, and reads
//! - the pages that were not read yet, and
//! - of the pages that were read, the rows written by transactions which the first snapshot did not
//!   have: a row may have moved from a page not yet read into one that was.
//!
//! So after the last round every row that is there at its cut has its value of that time: either it
//! was read in that round, or it has not changed since it was read. What is held too much are rows
//! deleted meanwhile. The stream, which still begins where the slot was made, tells those deletes; of
//! the transactions before the cut it passes on nothing else ([`super::apply`]). A row that was
//! deleted and came again was read at the cut, a greater offset than its delete's, so the delete is
//! stale. A table whose file is another one (rewritten, truncated) is read from its first page.
//!
//! A statement that alters a table waits for the connections that have locked it, and all that lock it
//! later wait behind that statement. So a round locks every table on every one of its connections before
//! it reads, and waits for no lock for long: then it ends, which releases what it holds and lets the
//! statement through, and the next round sees the altered table.
//!
//! Rows held from before the slot was made (`--resnapshot`) that no round saw are deleted at the end.
//!
//! Invariant: the number of pages read enters a batch only after all rows of those pages were sent; no
//! connection holds a lock while another one of the round waits for longer than [`LOCK_TIMEOUT`].

use super::catalog::{self, VERSION_WITH_GENERATED, show_lsn};
use super::connection::{Connection, Purpose, quote_text};
use super::errors::{End, PgError};
use super::pgoutput::Lsn;
use super::reader::{Chunk, ColumnOptions, ReaderSays, read_chunks};
use super::session::{Session, temporary_name};
use super::tables::{ALL_BLOCKS, SWEEP, Table};
use crate::batch::{AGE_MAX, Unity};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};
use vectide_model::{Change, SourceSink};

/// Batches that wait in front of each reader: one in the making, some at hand.
const READER_QUEUE_BATCHES: usize = 4;

/// How often the log tells how far the snapshot is.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(10);

/// Longest wait of a round for a lock: DDL that only touches the catalog is done by then, and what waits
/// behind a longer one waits for no more than this for the round.
const LOCK_TIMEOUT: Duration = Duration::from_secs(5);

/// SQLSTATE of a name that is no column.
const UNDEFINED_COLUMN: &str = "42703";

/// Waits between tries after the connection broke: short at first, and never so long that a
/// database which is back is left alone.
pub(crate) const BACKOFF: [Duration; 5] = [
    Duration::from_millis(100),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(3),
    Duration::from_secs(10),
];

/// A snapshot that others may share for as long as its connection does nothing.
pub(crate) struct Exported {
    pub(crate) connection: Connection,
    pub(crate) cut: Lsn,
    pub(crate) name: String,
}

impl Session<'_> {
    /// Reads all tables that were not read yet. `first` is the snapshot of the slot that was just
    /// made; without it each round makes its own.
    pub(crate) fn read_snapshot(
        &mut self,
        mut first: Option<Exported>,
        sink: &mut dyn SourceSink,
    ) -> Result<Option<Connection>, End> {
        let mut slot_connection = None;
        let mut tries = 0;
        while self.tables.iter().any(|table| !table.is_read()) {
            match self.read_round(first.take(), sink) {
                Ok(connection) => slot_connection = Some(connection),
                Err(End::Broken(error)) if !self.start.is_trial => {
                    let wait = BACKOFF[tries.min(BACKOFF.len() - 1)];
                    tries += 1;
                    tracing::warn!(
                        source = &*self.start.name, %error,
                        "the snapshot was interrupted; it goes on where it stands"
                    );
                    if self.start.stop.wait(wait) {
                        return Err(End::Stopped);
                    }
                }
                Err(end) => return Err(end),
            }
        }
        self.sweep(sink)?;
        Ok(slot_connection)
    }

    fn read_round(
        &mut self,
        first: Option<Exported>,
        sink: &mut dyn SourceSink,
    ) -> Result<Connection, End> {
        let exported = match first {
            Some(exported) => exported,
            None => self.export_temporary()?,
        };
        let mut shared = self.connector.connect(Purpose::Queries)?;
        share(&mut shared, &exported.name)?;
        let chunks = self.plan(&mut shared, exported.cut)?;
        self.read_all(&chunks, &exported, sink)?;
        shared.close();
        Ok(exported.connection)
    }

    /// A snapshot of now, by a slot that goes with its connection.
    fn export_temporary(&mut self) -> Result<Exported, End> {
        self.note_filenodes()?;
        let mut connection = self.connector.connect(Purpose::Replication)?;
        let name = temporary_name(&self.slot);
        let (cut, snapshot) = create_slot(&mut connection, &name, "TEMPORARY ")?;
        Ok(Exported {
            connection,
            cut,
            name: snapshot,
        })
    }

    /// Remembers the tables' files before a snapshot is made: a table that is rewritten between the
    /// snapshot and the first look at it seems empty in it.
    pub(crate) fn note_filenodes(&mut self) -> Result<(), End> {
        let mut queries = self.connector.connect(Purpose::Queries)?;
        for table in self.tables.iter_mut().filter(|table| !table.is_read()) {
            let now = filenode(&mut queries, table)?;
            if table.blocks_read > 0 && table.filenode != now {
                tracing::info!(
                    table = &*table.facts.name,
                    "rewritten: it is read from its start"
                );
                table.blocks_read = 0;
            }
            table.filenode = now;
        }
        queries.close();
        Ok(())
    }

    /// The chunks of all tables not yet read, and the columns to read.
    fn plan(&mut self, shared: &mut Connection, cut: Lsn) -> Result<Vec<Chunk>, End> {
        let rows = shared.query("SELECT txid_snapshot_xmin(txid_current_snapshot())")?;
        let xmin = first_number(&rows)?;
        self.lock_tables(shared)?;
        self.read_publication(shared)?;
        let options = ColumnOptions {
            has_generated: self.server.version_number >= VERSION_WITH_GENERATED,
            has_prefix: self.has_prefix,
        };
        let mut chunks = Vec::new();
        for (index, table) in self.tables.iter_mut().enumerate() {
            if table.is_read() {
                continue;
            }
            table.cut = cut;
            if table.blocks_read == 0 {
                table.xmin = xmin;
            }
            let columns = super::reader::columns(shared, table, &mut self.types, options)?;
            table.columns = Some(columns);
            let size = shared.query(&format!("SELECT pg_relation_size({})", table.facts.oid))?;
            let blocks = first_number(&size)?.div_ceil(self.server.block_bytes);
            let rows = self.config.snapshot.chunk_rows.get() as f64;
            let step = (rows / table.facts.rows_per_page).ceil().max(1.0) as u64;
            plan_table(index, table, blocks, step, &mut chunks);
        }
        let states = self.tables.iter().flat_map(Table::positions);
        states.for_each(|(partition, at)| self.pending.set_position(&partition, at));
        let files = self
            .tables
            .iter()
            .map(|table| (table.blocks_name(), table.filenode));
        files.for_each(|(partition, file)| self.pending.set_fingerprint(&partition, file));
        Ok(chunks)
    }

    fn lock_tables(&self, shared: &mut Connection) -> Result<(), End> {
        for table in self.tables.iter().filter(|table| !table.is_read()) {
            lock(shared, &table.facts.quoted())?;
            if filenode(shared, table)? != table.filenode {
                return Err(End::Broken(PgError::Connection(format!(
                    "table `{}` was rewritten while the snapshot was made",
                    table.facts.name
                ))));
            }
        }
        Ok(())
    }

    /// Reads what of the tables is published again: making a slot may take long, and between two rounds
    /// much can happen.
    fn read_publication(&mut self, shared: &mut Connection) -> Result<(), End> {
        let facts: Vec<_> = self.tables.iter().map(|it| it.facts.clone()).collect();
        let (server, name) = (&self.server, &self.publication);
        let published = catalog::ensure_publication(shared, server, name, &facts, false)?;
        for (table, published) in self.tables.iter_mut().zip(published) {
            table.published = published;
        }
        Ok(())
    }

    fn read_all(
        &mut self,
        chunks: &[Chunk],
        exported: &Exported,
        sink: &mut dyn SourceSink,
    ) -> Result<(), End> {
        self.send_pending(sink, Unity::Changes)?;
        tracing::info!(
            source = &*self.start.name,
            chunks = chunks.len(),
            cut = show_lsn(exported.cut),
            "reading the tables"
        );
        let readers = self.config.snapshot.parallelism.get().min(chunks.len());
        // The readers take what they need of the tables with them; how far these are changes here.
        let plans: Vec<_> = self
            .tables
            .iter()
            .map(super::reader::TablePlan::of)
            .collect();
        let (connector, source) = (self.connector.clone(), self.start.name.clone());
        std::thread::scope(|scope| {
            let mut receivers = Vec::new();
            for number in 0..readers {
                let (sender, receiver) = sync_channel(READER_QUEUE_BATCHES);
                receivers.push(receiver);
                let (connector, source, plans) = (&connector, &source, &plans);
                let mine = chunks.iter().skip(number).step_by(readers);
                let snapshot = &exported.name;
                scope.spawn(move || {
                    read_chunks(
                        connector,
                        snapshot,
                        mine,
                        plans,
                        source,
                        exported.cut,
                        &sender,
                    );
                });
            }
            // Dropped with the end of this closure, which ends the readers.
            let receivers = receivers;
            for receiver in &receivers {
                match self.next(receiver, sink)? {
                    ReaderSays::Ready => {}
                    _ => return Err(PgError::protocol("a reader began before it was ready").into()),
                }
            }
            let mut told_at = Instant::now();
            for (number, chunk) in chunks.iter().enumerate() {
                self.read_chunk(chunk, &receivers[number % readers], sink)?;
                if told_at.elapsed() >= PROGRESS_INTERVAL {
                    told_at = Instant::now();
                    tracing::info!(
                        source = &*self.start.name,
                        table = &*self.tables[chunk.table].facts.name,
                        chunks_read = number + 1,
                        chunks = chunks.len(),
                        "reading the tables"
                    );
                }
                let share = (number + 1) as f64 / chunks.len() as f64;
                metrics::gauge!("vectide_postgres_snapshot_ratio", "source" => source.to_string())
                    .set(share);
            }
            self.send_pending(sink, Unity::Changes)
        })
    }

    /// What a reader says next. While it says nothing, what was read goes on.
    fn next(
        &mut self,
        receiver: &Receiver<ReaderSays>,
        sink: &mut dyn SourceSink,
    ) -> Result<ReaderSays, End> {
        loop {
            if self.start.stop.is_stopped() {
                return Err(End::Stopped);
            }
            match receiver.recv_timeout(AGE_MAX) {
                // A column that the snapshot has, by a name that the table no longer has: it was altered
                // before it was locked. The next snapshot has the new name.
                Ok(ReaderSays::Failed(error)) if error.code() == UNDEFINED_COLUMN => {
                    return Err(End::Broken(error));
                }
                Ok(ReaderSays::Failed(error)) => return Err(error.into()),
                Ok(says) => return Ok(says),
                Err(RecvTimeoutError::Timeout) if self.pending.records() > 0 => {
                    self.send_pending(sink, Unity::Changes)?;
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(PgError::Connection("a reader ended early".to_owned()).into());
                }
            }
        }
    }

    fn read_chunk(
        &mut self,
        chunk: &Chunk,
        receiver: &Receiver<ReaderSays>,
        sink: &mut dyn SourceSink,
    ) -> Result<(), End> {
        loop {
            match self.next(receiver, sink)? {
                ReaderSays::Rows(changes) => {
                    for change in changes {
                        self.unseen.remove(&change.key);
                        self.pending.push_change(change);
                    }
                }
                ReaderSays::Letters(letters) => {
                    for letter in letters {
                        // What is held under its key stays as it is.
                        letter.key.as_ref().map(|key| self.unseen.remove(key));
                        self.pending.push_dead_letter(letter);
                    }
                }
                ReaderSays::ChunkEnd { rows } => {
                    let table = &mut self.tables[chunk.table];
                    metrics::counter!(
                        "vectide_postgres_snapshot_rows_total",
                        "source" => self.start.name.to_string(), "table" => table.facts.name.clone()
                    )
                    .increment(rows);
                    if let Some(blocks) = chunk.blocks_read_after {
                        table.blocks_read = blocks;
                        let states = table.positions();
                        self.send_pending(sink, Unity::Changes)?;
                        states
                            .iter()
                            .for_each(|(at, place)| self.pending.set_position(at, *place));
                    }
                    return Ok(());
                }
                ReaderSays::Ready | ReaderSays::Failed(_) => {
                    return Err(PgError::protocol("a reader was ready twice").into());
                }
            }
            if self.pending.is_due() {
                self.send_pending(sink, Unity::Changes)?;
            }
        }
    }

    /// Deletes what is held from an earlier reading and was not seen.
    fn sweep(&mut self, sink: &mut dyn SourceSink) -> Result<(), End> {
        let Some(table) = self.tables.first() else {
            return Ok(());
        };
        let position = table.position(&self.start.name, table.cut);
        let unseen = std::mem::take(&mut self.unseen);
        if !unseen.is_empty() {
            tracing::info!(
                rows = unseen.len(),
                "removing rows that the tables no longer have"
            );
        }
        for key in unseen {
            self.pending.push_change(Change {
                key,
                row: None,
                unchanged_fields: Vec::new(),
                position: position.clone(),
                changed_at: std::time::SystemTime::now(),
            });
            if self.pending.is_due() {
                self.send_pending(sink, Unity::Changes)?;
            }
        }
        self.send_pending(sink, Unity::Changes)?;
        self.pending.set_position(&SWEEP.into(), 0);
        self.send_pending(sink, Unity::Changes)
    }
}

/// Cuts what is left of a table into chunks.
fn plan_table(index: usize, table: &Table, blocks: u64, step: u64, chunks: &mut Vec<Chunk>) {
    let read = table.blocks_read;
    let changed = (0..read).step_by(usize::try_from(step).unwrap_or(usize::MAX));
    chunks.extend(changed.map(|from| Chunk {
        table: index,
        from,
        to: Some((from + step).min(read)),
        changed_since: Some(table.xmin),
        blocks_read_after: None,
    }));
    let mut from = read;
    loop {
        let to = from + step;
        let is_last = to >= blocks;
        chunks.push(Chunk {
            table: index,
            from,
            to: (!is_last).then_some(to),
            changed_since: None,
            blocks_read_after: Some(if is_last { ALL_BLOCKS } else { to }),
        });
        if is_last {
            return;
        }
        from = to;
    }
}

/// Makes a slot and exports its snapshot; gives the cut and the snapshot's name.
pub(crate) fn create_slot(
    replication: &mut Connection,
    name: &str,
    kind: &str,
) -> Result<(Lsn, String), PgError> {
    // Waits for the transactions that run now: a long one is worth a line in the log.
    tracing::info!(
        slot = name,
        "making a slot, once the transactions that run now have ended"
    );
    let rows = replication.query(&format!(
        "CREATE_REPLICATION_SLOT \"{name}\" {kind}LOGICAL pgoutput EXPORT_SNAPSHOT"
    ))?;
    let row = rows.into_iter().next().unwrap_or_default();
    let text = |at: usize| row.get(at).and_then(Option::as_deref);
    match (text(1).and_then(super::catalog::parse_lsn), text(2)) {
        (Some(cut), Some(snapshot)) => Ok((cut, snapshot.to_owned())),
        _ => Err(PgError::protocol(
            "the server made a slot without a snapshot",
        )),
    }
}

/// Lets a connection see the snapshot, and wait for locks no longer than a round may.
pub(crate) fn share(queries: &mut Connection, snapshot: &str) -> Result<(), PgError> {
    queries.query("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")?;
    queries.query(&format!(
        "SET TRANSACTION SNAPSHOT {}",
        quote_text(snapshot)
    ))?;
    let timeout_ms = LOCK_TIMEOUT.as_millis();
    queries.query(&format!("SET LOCAL lock_timeout = {timeout_ms}"))?;
    Ok(())
}

/// Locks a table until the round is over, so that it is not rewritten under the readers.
pub(crate) fn lock(queries: &mut Connection, quoted: &str) -> Result<(), PgError> {
    let sql = format!("LOCK TABLE ONLY {quoted} IN ACCESS SHARE MODE");
    queries.query(&sql).map(drop)
}

fn first_number(rows: &[Vec<Option<String>>]) -> Result<u64, PgError> {
    let first = rows
        .first()
        .and_then(|row| row.first()?.as_deref()?.parse().ok());
    first.ok_or_else(|| PgError::protocol("the server did not answer with a number"))
}

fn filenode(queries: &mut Connection, table: &Table) -> Result<u64, PgError> {
    first_number(&queries.query(&format!("SELECT pg_relation_filenode({})", table.facts.oid))?)
}
