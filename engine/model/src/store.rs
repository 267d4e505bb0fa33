//! The contract of the store: ordered tables of bytes, changed by atomic, synced batches and read
//! through snapshots.
//!
//! Invariant: a batch is applied as a whole or not at all, also across a crash, and once `commit`
//! has returned it is never lost.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

/// The tables of the state. Each holds keys in byte order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Table {
    /// The commit record and the format version.
    Meta,
    /// source, key -> position and row.
    Rows,
    /// index, document id -> metadata, position, chunks.
    Documents,
    /// index, document id -> text.
    Texts,
    /// index, chunk id -> document id.
    Chunks,
    /// index, shard, chunk id -> vector of a row in the shard's head.
    Head,
    /// index, shard, segment -> manifest.
    Segments,
    /// index, shard, segment, row -> nothing: a dead row of a segment.
    Tombstones,
    /// model, content hash -> vector: what was embedded before. May forget its oldest entries.
    Embeddings,
    /// epoch, number -> dead letter.
    DeadLetters,
}

impl Table {
    /// All tables, with the names they have on disk.
    pub const ALL: [(Table, &'static str); 10] = [
        (Table::Meta, "meta"),
        (Table::Rows, "rows"),
        (Table::Documents, "documents"),
        (Table::Texts, "texts"),
        (Table::Chunks, "chunks"),
        (Table::Head, "head"),
        (Table::Segments, "segments"),
        (Table::Tombstones, "tombstones"),
        (Table::Embeddings, "embeddings"),
        (Table::DeadLetters, "dead_letters"),
    ];
}

/// One change of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Sets a key.
    Put(Table, Vec<u8>, Vec<u8>),
    /// Removes a key, present or not.
    Delete(Table, Vec<u8>),
}

/// Changes applied together, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// The changes.
    pub operations: Vec<Operation>,
}

impl Batch {
    /// Sets a key.
    pub fn put(&mut self, table: Table, key: Vec<u8>, value: Vec<u8>) {
        self.operations.push(Operation::Put(table, key, value));
    }

    /// Removes a key.
    pub fn delete(&mut self, table: Table, key: Vec<u8>) {
        self.operations.push(Operation::Delete(table, key));
    }
}

/// A failure of the store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The operation surely had no effect.
    #[error("the store refused: {0}")]
    Refused(String),
    /// It is not known whether the operation took effect: the process must end and open the store
    /// anew to find out.
    #[error("the store failed and may or may not have applied the change: {0}")]
    Indeterminate(String),
}

/// A key with its value.
pub type Entry = (Vec<u8>, Vec<u8>);

/// A state of the store that does not change any more.
pub trait StoreRead: Send + Sync {
    /// The value under a key.
    ///
    /// # Errors
    /// When the store can't be read.
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError>;

    /// All entries whose key starts with `prefix`, in byte order.
    fn scan<'a>(
        &'a self,
        table: Table,
        prefix: &[u8],
    ) -> Box<dyn Iterator<Item = Result<Entry, StoreError>> + 'a>;
}

/// The store.
pub trait Store: Send + Sync {
    /// The state after the last batch that was committed.
    fn snapshot(&self) -> Arc<dyn StoreRead>;

    /// Applies a batch and syncs it to disk.
    ///
    /// # Errors
    /// Of either kind of [`StoreError`].
    fn commit(&self, batch: Batch) -> Result<(), StoreError>;

    /// Gives back the room of what was removed or replaced. What is read does not change.
    ///
    /// # Errors
    /// When the store can't be read or written.
    fn compact(&self) -> Result<(), StoreError>;
}

type Tables = BTreeMap<(Table, Vec<u8>), Vec<u8>>;

/// A store in memory, for tests and for [`Table::Embeddings`] of throw-away runs.
#[derive(Default)]
pub struct MemoryStore {
    tables: RwLock<Arc<Tables>>,
}

struct MemorySnapshot(Arc<Tables>);

impl StoreRead for MemorySnapshot {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.0.get(&(table, key.to_vec())).cloned())
    }

    fn scan<'a>(
        &'a self,
        table: Table,
        prefix: &[u8],
    ) -> Box<dyn Iterator<Item = Result<Entry, StoreError>> + 'a> {
        let prefix = prefix.to_vec();
        let entries = self.0.range((table, prefix.clone())..);
        Box::new(
            entries
                .take_while(move |((at, key), _)| *at == table && key.starts_with(&prefix))
                .map(|((_, key), value)| Ok((key.clone(), value.clone()))),
        )
    }
}

impl Store for MemoryStore {
    fn snapshot(&self) -> Arc<dyn StoreRead> {
        let tables = self.tables.read().unwrap_or_else(PoisonError::into_inner);
        Arc::new(MemorySnapshot(tables.clone()))
    }

    fn commit(&self, batch: Batch) -> Result<(), StoreError> {
        let mut tables = self.tables.write().unwrap_or_else(PoisonError::into_inner);
        let tables = Arc::make_mut(&mut *tables);
        for operation in batch.operations {
            match operation {
                Operation::Put(table, key, value) => drop(tables.insert((table, key), value)),
                Operation::Delete(table, key) => drop(tables.remove(&(table, key))),
            }
        }
        Ok(())
    }

    fn compact(&self) -> Result<(), StoreError> {
        Ok(())
    }
}

/// Checks the obligations of a store that opens empty.
///
/// # Panics
/// When one of them does not hold.
pub fn store_contract(store: &dyn Store) {
    let read_all = |read: &dyn StoreRead, prefix: &[u8]| -> Vec<Entry> {
        read.scan(Table::Rows, prefix)
            .map(|entry| entry.expect("readable"))
            .collect()
    };
    let empty = store.snapshot();
    let mut batch = Batch::default();
    for key in ["b", "a", "ab", "ac", "b"] {
        batch.put(
            Table::Rows,
            key.into(),
            format!("value of {key}").into_bytes(),
        );
    }
    batch.put(Table::Texts, b"a".to_vec(), b"elsewhere".to_vec());
    store.commit(batch).expect("a batch");
    let first = store.snapshot();
    let mut batch = Batch::default();
    batch.put(Table::Rows, b"a".to_vec(), b"put".to_vec());
    batch.delete(Table::Rows, b"a".to_vec());
    batch.delete(Table::Rows, b"never there".to_vec());
    store.commit(batch).expect("a second batch");
    let second = store.snapshot();
    store.compact().expect("a compaction");

    assert!(read_all(&*empty, b"").is_empty(), "an old snapshot moved");
    let keys = |entries: &[Entry]| -> Vec<String> {
        entries
            .iter()
            .map(|(key, _)| String::from_utf8_lossy(key).into_owned())
            .collect()
    };
    assert_eq!(keys(&read_all(&*first, b"")), ["a", "ab", "ac", "b"]);
    assert_eq!(keys(&read_all(&*first, b"a")), ["a", "ab", "ac"]);
    assert_eq!(keys(&read_all(&*second, b"a")), ["ab", "ac"]);
    assert_eq!(second.get(Table::Rows, b"a").expect("readable"), None);
    assert_eq!(
        second.get(Table::Texts, b"a").expect("readable"),
        Some(b"elsewhere".to_vec())
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_store_keeps_the_contract() {
        store_contract(&MemoryStore::default());
    }
}
