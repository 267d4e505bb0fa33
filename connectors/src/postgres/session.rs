//! A source at its start: everything is looked at, slot and publication are made or checked, and what
//! is recorded is compared with what is there.
//!
//! Invariant: nothing is read before all of it is known to fit. A slot is only made when nothing is
//! recorded, and a recorded place is never given up silently.

use super::altered::Watched;
use super::catalog::{self, Server, Slot, show_lsn};
use super::config::PostgresConfig;
use super::connection::{Connection, Connector, Purpose};
use super::errors::{End, PgError};
use super::monitor::Difference;
use super::pgoutput::Lsn;
use super::snapshot::{BACKOFF, Exported, create_slot};
use super::tables::{BARRIER, SWEEP, SYSTEM, TIMELINE, Table, WAL, left_name, left_out};
use super::types::Types;
use crate::batch::{PendingBatch, Unity};
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use vectide_model::{Key, Partition, ReadMode, SourceSink, SourceStart};

/// Tries at the start before an unreachable database ends the source: about a minute.
const START_TRIES: usize = 8;

/// A running source.
pub(crate) struct Session<'a> {
    pub(crate) start: &'a SourceStart,
    pub(crate) config: &'a PostgresConfig,
    pub(crate) connector: Connector,
    pub(crate) server: Server,
    pub(crate) slot: String,
    pub(crate) publication: String,
    pub(crate) tables: Vec<Table>,
    pub(crate) types: Types,
    /// Whether keys begin with their table.
    pub(crate) has_prefix: bool,
    /// Number of the cluster.
    pub(crate) system: u64,
    pub(crate) timeline: u64,
    /// Everything before this place of the log was put into batches.
    pub(crate) position: Lsn,
    /// Everything before this place of the log was handed on, as the stream's thread asks for it.
    pub(crate) handed_on: Arc<AtomicU64>,
    pub(crate) barrier: u64,
    /// A difference of the tables that was found meanwhile.
    pub(crate) difference: Difference,
    pub(crate) pending: PendingBatch,
    /// Rows held from an earlier reading that were not seen so far.
    pub(crate) unseen: HashSet<Key>,
}

/// Tries what may fail for a while.
fn with_patience<T>(
    start: &SourceStart,
    mut attempt: impl FnMut() -> Result<T, End>,
) -> Result<T, End> {
    let mut tries = 0;
    loop {
        match attempt() {
            Err(End::Broken(error)) if tries < START_TRIES => {
                tracing::warn!(source = &*start.name, %error, "the database can't be used yet");
                let wait = BACKOFF[tries.min(BACKOFF.len() - 1)];
                tries += 1;
                if start.stop.wait(wait) {
                    return Err(End::Stopped);
                }
            }
            done => return done,
        }
    }
}

impl<'a> Session<'a> {
    /// Looks at the database.
    pub(crate) fn open(
        config: &'a PostgresConfig,
        connector: Connector,
        start: &'a SourceStart,
    ) -> Result<Self, End> {
        with_patience(start, || Self::try_open(config, connector.clone(), start))
    }

    fn try_open(
        config: &'a PostgresConfig,
        connector: Connector,
        start: &'a SourceStart,
    ) -> Result<Self, End> {
        let mut queries = connector.connect(Purpose::Queries)?;
        let server = catalog::server(&mut queries)?;
        server.check_version()?;
        server.check_wal_level()?;
        server.check_role(&config.user)?;
        let publication = config.publication_name(&start.name);
        let facts = config.table_names();
        let facts = facts
            .map(|name| catalog::table(&mut queries, config, name))
            .collect::<Result<Vec<_>, _>>()?;
        let may_create = !start.is_trial;
        let published =
            catalog::ensure_publication(&mut queries, &server, &publication, &facts, may_create)?;
        let mut replication = connector.connect(Purpose::Replication)?;
        let (system, timeline) = catalog::identify(&mut replication)?;
        replication.close();
        queries.close();
        let generation = generation_of(start);
        let has_prefix = facts.len() > 1;
        let tables = facts.into_iter().zip(published);
        let tables = tables
            .map(|(facts, published)| Table::of(facts, published, start, &generation, has_prefix))
            .collect::<Result<Vec<_>, _>>()?;
        let recorded = |name: &str| start.positions.get(name).copied();
        Ok(Self {
            has_prefix,
            slot: config.slot_name(&start.name),
            position: recorded(WAL).unwrap_or(0),
            handed_on: Arc::default(),
            difference: Difference::default(),
            barrier: recorded(BARRIER).unwrap_or(0),
            start,
            config,
            connector,
            server,
            publication,
            tables,
            types: Types::default(),
            system,
            timeline,
            pending: PendingBatch::default(),
            unseen: HashSet::new(),
        })
    }

    /// Makes the slot where nothing is recorded, or checks it; gives the snapshot of a slot that was
    /// just made.
    pub(crate) fn prepare_slot(&mut self) -> Result<Option<Exported>, End> {
        let start = self.start;
        if start.is_trial {
            return with_patience(start, || self.begin_trial()).map(Some);
        }
        if start.positions.contains_key(WAL) {
            self.check_cluster()?;
            with_patience(start, || self.check_slot())?;
            self.note_left_out();
            if start.positions.get(SWEEP) == Some(&1) {
                // The rows not yet seen are not recorded, so all are looked at again.
                self.unseen = self.held_keys()?;
                self.tables
                    .iter_mut()
                    .for_each(|table| table.blocks_read = 0);
            }
            return Ok(None);
        }
        with_patience(start, || self.begin()).map(Some)
    }

    /// Marks tables that were read and are no longer among the configured ones, before the stream goes
    /// on without them: the mark is in the next batch, and no place behind this one before it.
    fn note_left_out(&mut self) {
        let tables = self.tables.iter();
        let configured: Vec<&str> = tables.map(|it| &*it.facts.name).collect();
        let recorded = &self.start.positions;
        for partition in left_out(recorded, &configured) {
            tracing::warn!(
                source = &*self.start.name,
                table = &**partition,
                "the table is no longer among `tables`: its rows stay as they are until the source is \
                 read anew (--resnapshot)"
            );
            let mark = left_name(partition);
            if !recorded.contains_key(&mark) {
                self.pending.set_position(&mark, self.position);
            }
        }
    }

    fn held_keys(&self) -> Result<HashSet<Key>, End> {
        let keys = self.start.held.keys();
        let keys = keys.map_err(|error| End::failed(error.to_string(), "see the state folder"))?;
        Ok(keys.into_iter().collect())
    }

    /// Nothing is recorded: makes the slot, in place of one left behind.
    fn begin(&mut self) -> Result<Exported, End> {
        self.drop_old_slot()?;
        self.note_filenodes()?;
        let mut connection = self.connector.connect(Purpose::Replication)?;
        let (cut, name) = create_slot(&mut connection, &self.slot, "")?;
        tracing::info!(
            slot = &*self.slot,
            at = show_lsn(cut),
            "made the replication slot"
        );
        self.unseen = self.held_keys()?;
        if !self.unseen.is_empty() {
            for table in &mut self.tables {
                table.partition = Partition::from(format!("{}@{cut:X}", table.facts.name));
            }
        }
        let has_unseen = u64::from(!self.unseen.is_empty());
        self.pending.set_position(&SWEEP.into(), has_unseen);
        self.record_beginning(cut);
        Ok(Exported {
            connection,
            cut,
            name,
        })
    }

    /// Only a look: the slot goes with its connection.
    fn begin_trial(&mut self) -> Result<Exported, End> {
        self.note_filenodes()?;
        let mut connection = self.connector.connect(Purpose::Replication)?;
        self.slot = temporary_name("vectide_trial");
        let (cut, name) = create_slot(&mut connection, &self.slot, "TEMPORARY ")?;
        self.tables
            .iter_mut()
            .for_each(|table| table.blocks_read = 0);
        self.record_beginning(cut);
        Ok(Exported {
            connection,
            cut,
            name,
        })
    }

    fn record_beginning(&mut self, cut: Lsn) {
        self.position = cut;
        self.pending.set_position(&WAL.into(), cut);
        self.pending.set_fingerprint(&SYSTEM.into(), self.system);
        self.pending
            .set_fingerprint(&TIMELINE.into(), self.timeline);
        self.record_tables();
    }

    /// Puts what tells the tables from others into the next batch.
    pub(crate) fn record_tables(&mut self) {
        let fingerprints = self.tables.iter().flat_map(Table::fingerprints);
        fingerprints.for_each(|(at, it)| self.pending.set_fingerprint(&at, it));
    }

    fn drop_old_slot(&mut self) -> Result<(), End> {
        let mut queries = self.connector.connect(Purpose::Queries)?;
        let Some(old) = catalog::slot(&mut queries, &self.slot)? else {
            return Ok(());
        };
        self.check_owner(&old)?;
        self.check_idle(&old)?;
        tracing::warn!(
            slot = &*self.slot,
            "dropping the slot of an earlier reading, as nothing is recorded that was read from it"
        );
        queries.query(&format!("SELECT pg_drop_replication_slot('{}')", self.slot))?;
        queries.close();
        Ok(())
    }

    fn check_owner(&self, slot: &Slot) -> Result<(), End> {
        if slot.plugin == "pgoutput" && slot.database == self.config.database {
            return Ok(());
        }
        Err(End::failed(
            format!(
                "the replication slot `{}` is another program's (plugin `{}`, database `{}`)",
                self.slot, slot.plugin, slot.database
            ),
            "name another one under `slot`",
        ))
    }

    /// A slot has one reader. One that has just ended may not be noticed yet, so this may pass.
    fn check_idle(&self, slot: &Slot) -> Result<(), End> {
        let Some(pid) = &slot.active_pid else {
            return Ok(());
        };
        Err(End::Broken(PgError::Server(super::errors::ServerError {
            code: "55006".to_owned(),
            message: format!(
                "replication slot `{}` is in use by process {pid}",
                self.slot
            ),
            hint: String::new(),
        })))
    }

    fn check_cluster(&self) -> Result<(), End> {
        for (name, now) in [(SYSTEM, self.system), (TIMELINE, self.timeline)] {
            let recorded = self.start.fingerprints.get(name);
            if let Some(before) = recorded.filter(|before| **before != now) {
                return Err(End::PositionLost(format!(
                    "the recorded place is of {name} {before}, the server has {name} {now}: places of \
                     its log can't be compared (another database, a restored one, or a standby that \
                     took over)"
                )));
            }
        }
        Ok(())
    }

    /// Whether the slot still has everything from the recorded place on.
    pub(crate) fn check_slot(&self) -> Result<(), End> {
        let mut queries = self.connector.connect(Purpose::Queries)?;
        let slot = catalog::slot(&mut queries, &self.slot)?;
        let end = catalog::current_lsn(&mut queries)?;
        queries.close();
        let (name, position) = (&self.slot, self.position);
        let Some(slot) = slot else {
            return Err(End::PositionLost(format!(
                "the replication slot `{name}` is gone; {} was recorded",
                show_lsn(position)
            )));
        };
        self.check_owner(&slot)?;
        self.check_idle(&slot)?;
        if slot.wal_status == "lost" {
            return Err(End::PositionLost(format!(
                "the server has invalidated the replication slot `{name}` (its log was longer than \
                 max_slot_wal_keep_size)"
            )));
        }
        if slot.confirmed > position {
            return Err(End::PositionLost(format!(
                "the replication slot `{name}` begins at {}, after the recorded {}: it was made anew or \
                 read by another program",
                show_lsn(slot.confirmed),
                show_lsn(position)
            )));
        }
        if position > end {
            return Err(End::PositionLost(format!(
                "{} was recorded, and the server's log ends at {}",
                show_lsn(position),
                show_lsn(end)
            )));
        }
        Ok(())
    }

    /// Hands on what was put together.
    pub(crate) fn send_pending(
        &mut self,
        sink: &mut dyn SourceSink,
        unity: Unity,
    ) -> Result<(), End> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let batch = self.pending.take(unity);
        let place = batch.positions.get(WAL).copied();
        sink.send(batch)?;
        if let Some(place) = place {
            self.handed_on.store(place, Ordering::Relaxed);
        }
        Ok(())
    }

    /// What of the tables must stay as it is.
    pub(crate) fn watched(&self) -> Watched {
        Watched {
            publication: self.publication.clone(),
            tables: self.tables.iter().map(|it| it.facts.clone()).collect(),
            server_version_number: self.server.version_number,
        }
    }

    /// Whether the tables are still those that were looked at at the start.
    pub(crate) fn check_tables(&self) -> Result<(), End> {
        let mut queries = self.queries()?;
        let difference = self.watched().difference(&mut queries)?;
        queries.close();
        difference.map_or(Ok(()), Err)
    }

    pub(crate) fn is_until_caught_up(&self) -> bool {
        self.start.mode == ReadMode::UntilCaughtUp
    }

    /// A connection for a question in between.
    pub(crate) fn queries(&self) -> Result<Connection, End> {
        Ok(self.connector.connect(Purpose::Queries)?)
    }
}

/// A name for a slot that goes with its connection: one before it may not be gone yet, and processes in
/// containers share their numbers.
pub(crate) fn temporary_name(of: &str) -> String {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let end = format!("_{:x}", since.map_or(0, |it| it.as_nanos() as u64));
    // Names end at 63 bytes.
    format!("{:.*}{end}", 63 - end.len(), of)
}

/// What the recorded partitions have behind their table's name: nothing, or `@` and a place.
fn generation_of(start: &SourceStart) -> String {
    let names = start.positions.keys();
    let mut generations = names.filter_map(|partition| {
        let table = partition.strip_suffix("/snapshot")?;
        let (_, generation) = table.rsplit_once('@')?;
        let is_hex = generation.bytes().all(|it| it.is_ascii_hexdigit());
        is_hex.then(|| format!("@{generation}"))
    });
    generations.next().unwrap_or_default()
}
