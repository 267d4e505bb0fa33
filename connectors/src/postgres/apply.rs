//! The stream's messages to batches of whole transactions.
//!
//! All changes of a transaction have the place of its commit; the place behind it is where reading goes
//! on. Transactions come in the order of their commits. Several small ones may share a batch.
//!
//! Of a transaction before a table's cut only deletes are passed on: the snapshot has the rest
//! ([`super::snapshot`]).
//!
//! A transaction above the limit is handed on in parts, none of which moves the position in the log: when
//! the connection breaks or the process ends, the server tells it again from its beginning. By then
//! the rows held are those of its parts, and no longer those that its first changes found; a row
//! whose key changed would take another row's text. So each part says how many changes of the
//! transaction are behind it, and those are passed over when it is told again: the order within a
//! transaction is always the same.
//!
//! Invariant: the position in the log moves only with the commit of the last transaction in the batch,
//! or over a stretch without any transaction of ours; a change is applied once. Parts end between two
//! changes of the source, but for a TRUNCATE, which may be applied again: it only deletes.

use super::catalog::{KeyType, ReplicaIdentity, current_lsn};
use super::errors::{End, PgError};
use super::feed::Item;
use super::pgoutput::{Lsn, Message, OldTuple, Relation, Tuple, beginning, decode};
use super::reader::key_prefix;
use super::row::{Column, Columns, DecodedRow};
use super::session::Session;
use super::tables::{BARRIER, TRANSACTION, TRANSACTION_CHANGES, Table, WAL, is_partition_of};
use super::too_large::{Removed, removed};
use crate::batch::{RECORDS_MAX, Unity};
use crate::envelope::Rejected;
use bytes::Bytes;
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, SystemTime};
use vectide_model::{Change, DeadLetter, DeadLetterReason, Key, Position, Row, SourceSink};

/// Bytes of a transaction that are held; a longer one is split.
const TRANSACTION_BYTES_MAX: usize = 64 * 1024 * 1024;

/// What stands before a message of the plugin: kind, places, clock.
const FRAME_BYTES: usize = 25;

/// Seconds from 1970 to 2000, where PostgreSQL's clock begins.
const POSTGRES_EPOCH: Duration = Duration::from_secs(946_684_800);

/// Wait between looks at what is durable.
const BARRIER_WAIT: Duration = Duration::from_millis(2);

/// A transaction of which not all was read.
struct Open {
    commit_lsn: Lsn,
    committed_at: SystemTime,
    changes: Vec<Change>,
    letters: Vec<DeadLetter>,
    bytes: usize,
    is_split: bool,
    /// Changes of the source that were taken, of whatever table.
    taken: u64,
    /// As many of the first ones were handed on before.
    handed_on: u64,
}

/// How much of a transaction was handed on.
#[derive(Clone, Copy)]
struct Part {
    commit_lsn: Lsn,
    changes: u64,
}

/// A table as the stream describes it.
struct Known {
    table: usize,
    columns: Columns,
}

/// Turns messages into batches.
pub(crate) struct Applier<'a, 'b> {
    pub(crate) session: &'b mut Session<'a>,
    pub(crate) sink: &'b mut dyn SourceSink,
    /// By number; `None` for tables that are not ours.
    relations: HashMap<u32, Option<Known>>,
    open: Option<Open>,
    /// The last part of a transaction that was handed on, by this process or the one before.
    part: Option<Part>,
}

impl<'a, 'b> Applier<'a, 'b> {
    pub(crate) fn new(session: &'b mut Session<'a>, sink: &'b mut dyn SourceSink) -> Self {
        let recorded = |name: &str| session.start.positions.get(name).copied();
        let part = recorded(TRANSACTION).zip(recorded(TRANSACTION_CHANGES));
        Self {
            part: part.map(|(commit_lsn, changes)| Part {
                commit_lsn,
                changes,
            }),
            session,
            sink,
            relations: HashMap::new(),
            open: None,
        }
    }

    /// Forgets what a broken connection left unfinished: the server tells it again. What was handed on
    /// of it is not taken again.
    pub(crate) fn begin_connection(&mut self) {
        self.open = None;
        self.relations.clear();
    }

    pub(crate) fn is_between_transactions(&self) -> bool {
        self.open.is_none()
    }

    pub(crate) fn send(&mut self) -> Result<(), End> {
        self.session.send_pending(self.sink, Unity::Transaction)
    }

    /// Takes what came off the connection.
    pub(crate) fn take(&mut self, item: Item) -> Result<(), End> {
        match item {
            Item::Keepalive(end) => {
                if self.open.is_none() && end > self.session.position {
                    self.session.position = end;
                }
                Ok(())
            }
            Item::TooLarge { bytes, start } => {
                let message = start.get(FRAME_BYTES..).unwrap_or_default();
                if !matches!(message.first(), Some(b'I' | b'U' | b'D')) {
                    return Err(End::failed(
                        format!(
                            "a message of {bytes} bytes about a table is longer than `max_row`"
                        ),
                        "raise `max_row`",
                    ));
                }
                if self.is_handed_on()? {
                    return Ok(());
                }
                self.take_too_large(bytes, message)?;
                self.end_change()
            }
            Item::Message(bytes) => self.take_message(&bytes),
        }
    }

    /// Counts a change; whether an earlier part of the transaction has it.
    fn is_handed_on(&mut self) -> Result<bool, End> {
        let open = self.open()?;
        let is_handed_on = open.taken < open.handed_on;
        open.taken += u64::from(is_handed_on);
        Ok(is_handed_on)
    }

    /// A change was taken in full.
    fn end_change(&mut self) -> Result<(), End> {
        self.open()?.taken += 1;
        self.split_if_long()
    }

    fn take_too_large(&mut self, bytes: usize, message: &[u8]) -> Result<(), End> {
        let change = beginning(message).map_err(|error| PgError::protocol(error.to_string()))?;
        let Some((table, position)) = self.place(change.relation)? else {
            return Ok(());
        };
        let removed = removed(self.columns(change.relation)?, &change);
        let unknown = match removed {
            Removed::None => "",
            Removed::Row(key) => {
                self.push_change(key, None, Vec::new(), position.clone())?;
                ""
            }
            Removed::Unknown(what) => what,
        };
        let Table { facts, cut, .. } = &self.session.tables[table];
        // A delete that is known leaves nothing to tell; the snapshot has the row of a change before it.
        let is_settled = change.is_delete || position.offset < *cut;
        if is_settled && unknown.is_empty() {
            return Ok(());
        }
        let name = &facts.name;
        let detail =
            format!("a change of table `{name}` has {bytes} bytes, more than `max_row`{unknown}");
        let reason = DeadLetterReason::TooLarge;
        self.push_letter(DeadLetter::new(reason, position, None, detail, message))
    }

    fn take_message(&mut self, bytes: &Bytes) -> Result<(), End> {
        let message = decode(bytes).map_err(|error| PgError::protocol(error.to_string()))?;
        match message {
            Message::Begin {
                commit_lsn,
                committed_at_us,
                ..
            } => {
                self.begin(commit_lsn, committed_at(committed_at_us));
                Ok(())
            }
            Message::Commit { end_lsn, .. } => self.commit(end_lsn),
            Message::Relation(relation) => self.relation(relation),
            Message::Other(kind) => {
                tracing::trace!(kind, "not a change of a row");
                Ok(())
            }
            _ if self.is_handed_on()? => Ok(()),
            change => {
                self.take_change(bytes, change)?;
                self.end_change()
            }
        }
    }

    fn begin(&mut self, commit_lsn: Lsn, committed_at: SystemTime) {
        let part = self.part.filter(|part| part.commit_lsn == commit_lsn);
        if let Some(part) = part {
            tracing::info!(
                source = &*self.session.start.name,
                changes = part.changes,
                "a split transaction is told again; it goes on behind what was handed on of it"
            );
        }
        self.open = Some(Open {
            commit_lsn,
            committed_at,
            changes: Vec::new(),
            letters: Vec::new(),
            bytes: 0,
            is_split: part.is_some(),
            taken: 0,
            handed_on: part.map_or(0, |part| part.changes),
        });
    }

    fn take_change(&mut self, bytes: &Bytes, change: Message<'_>) -> Result<(), End> {
        match change {
            Message::Insert { relation, new } => self.upsert(bytes, relation, None, &new),
            Message::Update { relation, old, new } => {
                self.upsert(bytes, relation, old.as_ref(), &new)
            }
            Message::Delete { relation, old } => self.delete(bytes, relation, &old),
            Message::Truncate { relations } => {
                relations.into_iter().try_for_each(|it| self.truncate(it))
            }
            _ => Ok(()),
        }
    }

    fn open(&mut self) -> Result<&mut Open, End> {
        let open = self.open.as_mut();
        open.ok_or_else(|| PgError::protocol("a change outside of a transaction").into())
    }

    /// The table of a change and the change's position; `None` for tables that are not ours.
    fn place(&mut self, relation: u32) -> Result<Option<(usize, Position)>, End> {
        let offset = self.open()?.commit_lsn;
        match self.relations.get(&relation) {
            None => Err(PgError::protocol("a change of a table that was not described").into()),
            Some(None) => Ok(None),
            Some(Some(known)) => {
                let table = &self.session.tables[known.table];
                let position = table.position(&self.session.start.name, offset);
                Ok(Some((known.table, position)))
            }
        }
    }

    fn columns(&self, relation: u32) -> Result<&Columns, End> {
        match self.relations.get(&relation) {
            Some(Some(known)) => Ok(&known.columns),
            _ => Err(PgError::protocol("a change of a table that was not described").into()),
        }
    }

    fn upsert(
        &mut self,
        bytes: &Bytes,
        relation: u32,
        old: Option<&OldTuple<'_>>,
        new: &Tuple<'_>,
    ) -> Result<(), End> {
        let Some((table, position)) = self.place(relation)? else {
            return Ok(());
        };
        let columns = self.columns(relation)?;
        let old_key = match old.map(|old| columns.key(&old.tuple)).transpose() {
            Ok(key) => key,
            Err(rejected) => return self.reject(rejected, position, bytes),
        };
        let decoded = columns.row(new, old);
        // The snapshot has it; only that the row under the old key went may not be known.
        let is_in_snapshot = position.offset < self.session.tables[table].cut;
        let new_key = match &decoded {
            Ok(decoded) => Some(decoded.key.clone()),
            Err(rejected) => rejected.key.clone(),
        };
        let moved_from = old_key.filter(|old| new_key.as_ref().is_some_and(|new| new != old));
        let mut decoded = match decoded {
            _ if is_in_snapshot => {
                return match moved_from {
                    Some(old_key) => self.push_change(old_key, None, Vec::new(), position),
                    None => Ok(()),
                };
            }
            Ok(decoded) => decoded,
            Err(rejected) => {
                self.reject(rejected, position.clone(), bytes)?;
                return match moved_from {
                    Some(old_key) => self.push_change(old_key, None, Vec::new(), position),
                    None => Ok(()),
                };
            }
        };
        if let Some(old_key) = moved_from {
            let is_whole = self.complete_moved(&old_key, &mut decoded)?;
            self.push_change(old_key, None, Vec::new(), position.clone())?;
            if !is_whole {
                let rejected = Rejected::new(
                    DeadLetterReason::Incomplete,
                    format!(
                        "the row's key changed, and the record leaves out `{}`, which did not change \
                         and which the row held under the old key does not have",
                        decoded.unchanged_fields.join("`, `")
                    ),
                );
                return self.reject(rejected.with_key(&decoded.key), position, bytes);
            }
        }
        self.push_change(
            decoded.key,
            Some(decoded.row),
            decoded.unchanged_fields,
            position,
        )
    }

    fn delete(&mut self, bytes: &Bytes, relation: u32, old: &OldTuple<'_>) -> Result<(), End> {
        let Some((_, position)) = self.place(relation)? else {
            return Ok(());
        };
        match self.columns(relation)?.key(&old.tuple) {
            Ok(key) => self.push_change(key, None, Vec::new(), position),
            Err(rejected) => self.reject(rejected, position, bytes),
        }
    }

    fn reject(&mut self, rejected: Rejected, position: Position, bytes: &Bytes) -> Result<(), End> {
        self.push_letter(DeadLetter::new(
            rejected.reason,
            position,
            rejected.key,
            rejected.detail,
            bytes,
        ))
    }

    /// Takes what the record of a row with a new key leaves out from the row under the old one: from
    /// this transaction, or from what is held. Whether it has all of it.
    fn complete_moved(&mut self, old_key: &Key, decoded: &mut DecodedRow) -> Result<bool, End> {
        let open = self.open()?;
        for change in open.changes.iter().rev() {
            if decoded.unchanged_fields.is_empty() {
                return Ok(true);
            }
            if change.key != *old_key {
                continue;
            }
            let Some(row) = &change.row else {
                return Ok(false);
            };
            take_fields(decoded, row);
        }
        // A trial holds nothing: what it shows leaves the fields out, as for a row that has not moved.
        if decoded.unchanged_fields.is_empty() || self.session.start.is_trial {
            return Ok(true);
        }
        self.wait_until_durable()?;
        let held = self.session.start.held.row(old_key);
        let held = held.map_err(|error| End::failed(error.to_string(), "see the state folder"))?;
        if let Some(row) = held {
            take_fields(decoded, &row);
        }
        Ok(decoded.unchanged_fields.is_empty())
    }

    /// Deletes every row of a table: those held, and those that this transaction wrote.
    fn truncate(&mut self, relation: u32) -> Result<(), End> {
        let Some((table, position)) = self.place(relation)? else {
            return Ok(());
        };
        self.wait_until_durable()?;
        let name = self.session.tables[table].facts.name.clone();
        let is_of = |partition: &str| is_partition_of(&name, partition);
        let held = self.session.start.held.keys_from(&is_of);
        let held = held.map_err(|error| End::failed(error.to_string(), "see the state folder"))?;
        let mut keys: BTreeSet<Key> = held.into_iter().collect();
        let written = self.open()?.changes.iter();
        let written = written.filter(|change| change.position.partition == position.partition);
        keys.extend(written.map(|change| change.key.clone()));
        tracing::info!(table = &*name, rows = keys.len(), "the table was truncated");
        for key in keys {
            self.push_change(key, None, Vec::new(), position.clone())?;
            // It may delete more rows than a part has room for.
            self.split_if_long()?;
        }
        Ok(())
    }

    /// Sends what is whole and waits until it is durable.
    fn wait_until_durable(&mut self) -> Result<(), End> {
        // What is only looked at never becomes durable.
        if self.session.start.is_trial {
            return Ok(());
        }
        self.session.barrier += 1;
        let barrier = self.session.barrier;
        self.session.pending.set_position(&BARRIER.into(), barrier);
        self.send()?;
        let held = &self.session.start.held;
        while held
            .durable_positions()
            .get(BARRIER)
            .is_none_or(|at| *at < barrier)
        {
            if self.session.start.stop.wait(BARRIER_WAIT) {
                return Err(End::Stopped);
            }
        }
        Ok(())
    }

    fn push_change(
        &mut self,
        key: Key,
        row: Option<Row>,
        unchanged_fields: Vec<std::sync::Arc<str>>,
        position: Position,
    ) -> Result<(), End> {
        let open = self.open()?;
        open.bytes += key.len() + row.as_ref().map_or(0, |row| row.len());
        let changed_at = open.committed_at;
        open.changes.push(Change {
            key,
            row,
            unchanged_fields,
            position,
            changed_at,
        });
        Ok(())
    }

    fn push_letter(&mut self, letter: DeadLetter) -> Result<(), End> {
        let open = self.open()?;
        open.bytes += letter.raw.len() + letter.detail.len();
        open.letters.push(letter);
        Ok(())
    }

    fn split_if_long(&mut self) -> Result<(), End> {
        let records_max = self.session.config.max_transaction_changes.get();
        let open = self.open()?;
        // One more than the limit, so that a transaction of just as many stays whole.
        let records = open.changes.len() + open.letters.len();
        if records <= records_max && open.bytes <= TRANSACTION_BYTES_MAX {
            return Ok(());
        }
        let is_first = !std::mem::replace(&mut open.is_split, true);
        open.bytes = 0;
        let changes = std::mem::take(&mut open.changes);
        let letters = std::mem::take(&mut open.letters);
        let part = Part {
            commit_lsn: open.commit_lsn,
            changes: open.taken,
        };
        self.send()?;
        let pending = &mut self.session.pending;
        if is_first {
            pending.count_split_transaction();
        }
        pending.set_position(&TRANSACTION.into(), part.commit_lsn);
        pending.set_position(&TRANSACTION_CHANGES.into(), part.changes);
        self.fill_pending(changes, letters);
        self.send()?;
        self.part = Some(part);
        Ok(())
    }

    fn fill_pending(&mut self, changes: Vec<Change>, letters: Vec<DeadLetter>) {
        let pending = &mut self.session.pending;
        changes.into_iter().for_each(|it| pending.push_change(it));
        letters
            .into_iter()
            .for_each(|it| pending.push_dead_letter(it));
    }

    fn commit(&mut self, end_lsn: Lsn) -> Result<(), End> {
        let Some(open) = self.open.take() else {
            return Err(PgError::protocol("the end of a transaction that did not begin").into());
        };
        let records = open.changes.len() + open.letters.len();
        let held = self.session.pending.records();
        if held > 0 && held + records > RECORDS_MAX {
            self.send()?;
        }
        self.fill_pending(open.changes, open.letters);
        self.session.position = end_lsn;
        if records > 0 || open.is_split {
            self.note_position();
        }
        if self.session.pending.is_due() {
            self.send()?;
        }
        Ok(())
    }

    /// Lets the next batch say where reading goes on.
    pub(crate) fn note_position(&mut self) {
        let position = self.session.position;
        self.session.pending.set_position(&WAL.into(), position);
    }

    fn relation(&mut self, relation: Relation) -> Result<(), End> {
        let (oid, name) = (
            relation.oid,
            format!("{}.{}", relation.schema, relation.name),
        );
        let of_name = |table: &Table| table.facts.name == name;
        let Some(index) = self.session.tables.iter().position(of_name) else {
            let renamed = self.session.tables.iter().find(|it| it.facts.oid == oid);
            if let Some(table) = renamed {
                return Err(End::renamed(&table.facts.name, &name));
            }
            self.relations.insert(oid, None);
            return Ok(());
        };
        self.check_relation(index, &relation)?;
        let columns = self.describe(index, &relation)?;
        if let Some(Some(before)) = self.relations.get(&oid) {
            let names = |columns: &Columns| -> Vec<_> {
                columns
                    .all
                    .iter()
                    .map(|column| column.name.to_string())
                    .collect()
            };
            tracing::info!(
                table = name, before = ?names(&before.columns), now = ?names(&columns),
                "the table's columns changed"
            );
        }
        self.relations.insert(
            oid,
            Some(Known {
                table: index,
                columns,
            }),
        );
        Ok(())
    }

    fn check_relation(&self, index: usize, relation: &Relation) -> Result<(), End> {
        let facts = &self.session.tables[index].facts;
        if facts.oid != relation.oid {
            return Err(End::PositionLost(format!(
                "table `{}` was dropped and made anew",
                facts.name
            )));
        }
        for (name, before) in facts.key.iter().zip(&facts.key_types) {
            let column = relation.columns.iter().find(|it| it.name == *name);
            let now = column.map(|it| KeyType::new(it.type_oid, it.type_modifier));
            if now.is_some_and(|now| now != *before) {
                return Err(End::PositionLost(format!(
                    "column `{name}`, which identifies the rows of table `{}`, is of another type now: \
                     keys are told otherwise",
                    facts.name
                )));
            }
        }
        // With FULL every column is of the identity, whatever the key is.
        if facts.replica_identity == ReplicaIdentity::Full || relation.replica_identity == b'f' {
            return Ok(());
        }
        let of_identity = relation.columns.iter().filter(|column| column.is_identity);
        let now: BTreeSet<&str> = of_identity.map(|column| &*column.name).collect();
        let before: BTreeSet<&str> = facts.key.iter().map(String::as_str).collect();
        if now == before {
            return Ok(());
        }
        Err(End::PositionLost(format!(
            "the rows of table `{}` were identified by {before:?} and are by {now:?} now",
            facts.name
        )))
    }

    fn describe(&mut self, index: usize, relation: &Relation) -> Result<Columns, End> {
        let mut queries = None;
        let mut all = Vec::with_capacity(relation.columns.len());
        for column in &relation.columns {
            let kind = match self.session.types.known(column.type_oid) {
                Some(kind) => kind,
                None => {
                    let queries = match &mut queries {
                        Some(queries) => queries,
                        none => none.insert(self.session.queries()?),
                    };
                    self.session.types.resolve(column.type_oid, queries)?
                }
            };
            all.push(Column::new(&column.name, kind));
        }
        let facts = &self.session.tables[index].facts;
        let prefix = key_prefix(&facts.name, self.session.has_prefix);
        Columns::new(all, &facts.key, prefix).map_err(|column| {
            End::failed(
                format!(
                    "column `{column}`, which identifies the rows of table `{}`, is gone",
                    facts.name
                ),
                "read the source anew: vectide run CONFIG --resnapshot SOURCE",
            )
        })
    }

    /// Where the log ends now.
    pub(crate) fn current_lsn(&self) -> Result<Lsn, End> {
        let mut queries = self.session.queries()?;
        let lsn = current_lsn(&mut queries)?;
        queries.close();
        Ok(lsn)
    }
}

fn committed_at(microseconds: i64) -> SystemTime {
    let since = Duration::from_micros(u64::try_from(microseconds).unwrap_or(0));
    let at = SystemTime::UNIX_EPOCH.checked_add(POSTGRES_EPOCH + since);
    at.unwrap_or(SystemTime::UNIX_EPOCH)
}

/// Moves fields that a row leaves out from another version of it, those that this one has.
fn take_fields(decoded: &mut DecodedRow, from: &str) {
    // Rows are the text of one JSON object.
    let fields: BTreeMap<Cow<'_, str>, &RawValue> = serde_json::from_str(from).unwrap_or_default();
    let mut text = String::from(decoded.row.strip_suffix('}').unwrap_or(&decoded.row));
    decoded.unchanged_fields.retain(|name| {
        let Some(value) = fields.get(&**name) else {
            return true;
        };
        if !text.ends_with('{') {
            text.push(',');
        }
        super::value::write_string(name, &mut text);
        text.push(':');
        text.push_str(value.get());
        false
    });
    text.push('}');
    decoded.row = text.into();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_moved_as_they_stand() {
        let mut decoded = DecodedRow {
            key: "1".into(),
            row: r#"{"id":1}"#.into(),
            unchanged_fields: vec!["body".into(), "x".into()],
        };
        take_fields(&mut decoded, r#"{"body":"a\u00e9","n":1.10}"#);
        assert_eq!(&*decoded.row, r#"{"id":1,"body":"a\u00e9"}"#);
        assert_eq!(decoded.unchanged_fields, ["x".into()]);
    }

    #[test]
    fn the_clock_begins_in_2000() {
        let at = committed_at(1_500_000).duration_since(SystemTime::UNIX_EPOCH);
        assert_eq!(at.unwrap(), Duration::from_millis(946_684_801_500));
    }
}
