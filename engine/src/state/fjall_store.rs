//! The store on disk: fjall, an LSM tree with atomic batches over several keyspaces.
//!
//! Invariant: `commit` returns only after the journal was synced. fjall does not do that by default,
//! so every batch carries its durability, and a failed sync leaves it unknown what is on disk:
//! [`StoreError::Indeterminate`], after which the process ends.

use super::failure::explain;
use super::{journals, manifests, unfinished};
use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode, Readable, Snapshot};
use std::path::Path;
use std::sync::Arc;
use vectide_model::{Batch, Entry, Operation, Store, StoreError, StoreRead, Table};

/// Block cache: the hot part of texts and records that answers are made of.
const CACHE_BYTES: u64 = 64 * 1024 * 1024;

/// Threads for flushes and compactions; they compete with embedding, so few.
const WORKER_THREADS: usize = 2;

/// Journals beyond which tables are flushed, the least that fjall allows. All of them are replayed when the
/// store is opened: with its default of 512 MiB the first start after a load of a million documents took
/// 3.6 s until the first answer, with this 0.9 s, and the load itself took 22 s instead of 28 s.
const JOURNAL_BYTES: u64 = 64 * 1024 * 1024;

/// A fjall database with one keyspace a table.
pub(crate) struct FjallStore {
    database: Database,
    keyspaces: Arc<Keyspaces>,
}

struct Keyspaces(Vec<Keyspace>);

impl Keyspaces {
    fn of(&self, table: Table) -> &Keyspace {
        let at = Table::ALL
            .iter()
            .position(|(it, _)| *it == table)
            .unwrap_or_default();
        &self.0[at]
    }
}

struct FjallSnapshot {
    snapshot: Snapshot,
    keyspaces: Arc<Keyspaces>,
}

fn refused(error: fjall::Error) -> StoreError {
    StoreError::Refused(explain(&error))
}

impl FjallStore {
    /// Opens the store in a folder, making it when it is missing.
    pub(crate) fn open(directory: &Path) -> Result<Self, StoreError> {
        if !directory.exists() {
            Self::make(directory).map_err(refused)?;
        }
        let journals = journals::prepare(directory)?;
        manifests::refuse_damaged(directory)?;
        let opened = Self::open_folder(directory).map_err(refused);
        match journals.cut_off() {
            None => opened,
            Some(cut_off) => {
                drop(opened);
                Err(cut_off.put_back())
            }
        }
    }

    /// Makes an empty store beside the folder and moves it there whole: fjall can't open what it was
    /// killed at making.
    fn make(directory: &Path) -> fjall::Result<()> {
        let unfinished = unfinished::begin(directory)?;
        drop(Self::open_folder(&unfinished)?);
        Ok(unfinished::publish(&unfinished, directory)?)
    }

    fn open_folder(directory: &Path) -> fjall::Result<Self> {
        let database = Database::builder(directory)
            .cache_size(CACHE_BYTES)
            .worker_threads(WORKER_THREADS)
            .max_journaling_size(JOURNAL_BYTES)
            .open()?;
        let keyspaces = Table::ALL
            .iter()
            .map(|(_, name)| database.keyspace(name, KeyspaceCreateOptions::default))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            database,
            keyspaces: Arc::new(Keyspaces(keyspaces)),
        })
    }
}

impl Store for FjallStore {
    fn snapshot(&self) -> Arc<dyn StoreRead> {
        let snapshot = self.database.snapshot();
        Arc::new(FjallSnapshot {
            snapshot,
            keyspaces: self.keyspaces.clone(),
        })
    }

    fn commit(&self, batch: Batch) -> Result<(), StoreError> {
        let mut out = self.database.batch().durability(Some(PersistMode::SyncAll));
        for operation in last_of_each_key(batch.operations) {
            match operation {
                Operation::Put(table, key, value) => {
                    out.insert(self.keyspaces.of(table), key, value);
                }
                Operation::Delete(table, key) => out.remove(self.keyspaces.of(table), key),
            }
        }
        out.commit()
            .map_err(|error| StoreError::Indeterminate(explain(&error)))
    }

    fn compact(&self) -> Result<(), StoreError> {
        for keyspace in &self.keyspaces.0 {
            keyspace.rotate_memtable_and_wait().map_err(refused)?;
            keyspace.major_compact().map_err(refused)?;
        }
        Ok(())
    }
}

/// All entries of a fjall batch carry one sequence number, so which of two for the same key would
/// win is not defined there. They come in the order of the keys: neighbours find the way of the one
/// before them in the processor's caches, which takes some 5 % off the processor time of an ingest.
fn last_of_each_key(mut operations: Vec<Operation>) -> impl Iterator<Item = Operation> {
    fn place(operation: &Operation) -> (Table, &[u8]) {
        let (Operation::Put(table, key, _) | Operation::Delete(table, key)) = operation;
        (*table, key)
    }
    // Stable: operations on one key stay in their order.
    operations.sort_by(|left, right| place(left).cmp(&place(right)));
    let mut operations = operations.into_iter().peekable();
    std::iter::from_fn(move || {
        loop {
            let operation = operations.next()?;
            let next = operations.peek().map(place);
            if next != Some(place(&operation)) {
                return Some(operation);
            }
        }
    })
}

impl StoreRead for FjallSnapshot {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        let value = self
            .snapshot
            .get(self.keyspaces.of(table), key)
            .map_err(refused)?;
        Ok(value.map(|value| value.to_vec()))
    }

    fn scan<'a>(
        &'a self,
        table: Table,
        prefix: &[u8],
    ) -> Box<dyn Iterator<Item = Result<Entry, StoreError>> + 'a> {
        let entries = self.snapshot.prefix(self.keyspaces.of(table), prefix);
        Box::new(entries.map(|entry| {
            let (key, value) = entry.into_inner().map_err(refused)?;
            Ok((key.to_vec(), value.to_vec()))
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn keeps_the_contract_and_reopens() {
        let parent = tempfile::tempdir().unwrap();
        let directory = parent.path().join("store");
        // What a process that was killed at making it left behind.
        fs::create_dir(directory.with_extension("unfinished")).unwrap();
        fs::write(directory.with_extension("unfinished").join("0.jnl"), "").unwrap();
        {
            vectide_model::store_contract(&FjallStore::open(&directory).unwrap());
        }
        let store = FjallStore::open(&directory).unwrap();
        let kept = store.snapshot().get(Table::Texts, b"a").unwrap();
        assert_eq!(kept, Some(b"elsewhere".to_vec()));
    }
}
