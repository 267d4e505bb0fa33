//! The fields of rows in heads, made again of the documents that the state holds.
//!
//! Segments have files of their rows' fields. Of the rows in a head only vectors are committed: everything else
//! is a function of the document, which stands in the same commit.
//!
//! Invariant: the fields are those that the row was inserted with.

use crate::hits::Held;
use crate::state::{chunk_key, shard_state};
use std::collections::HashMap;
use vectide_model::{Attributes, IndexRow, RowFields, ShardState, StoreError, StoreRead, Table};
use vectide_operators::{FieldPlan, WordCache};

/// The committed state of a shard with the fields of its head's rows.
pub(crate) fn shard_state_with_fields(
    read: &dyn StoreRead,
    index: &str,
    shard: u32,
    fields: &FieldPlan,
) -> Result<ShardState, StoreError> {
    let mut state = shard_state(read, index, shard)?;
    if fields.is_empty() {
        return Ok(state);
    }
    let mut documents = Documents {
        read,
        index,
        fields,
        held: HashMap::new(),
        words: WordCache::default(),
    };
    for row in &mut state.head {
        row.fields = documents.fields_of(row)?;
    }
    Ok(state)
}

struct Documents<'a> {
    read: &'a dyn StoreRead,
    index: &'a str,
    fields: &'a FieldPlan,
    /// Each read once, however many of its chunks are in the head.
    held: HashMap<String, (Held, Attributes)>,
    words: WordCache,
}

impl Documents<'_> {
    fn fields_of(&mut self, row: &IndexRow) -> Result<RowFields, StoreError> {
        let lost = || StoreError::Refused(format!("chunk {} has no document", row.chunk));
        let key = chunk_key(self.index, &row.chunk);
        let id = self.read.get(Table::Chunks, &key)?.ok_or_else(lost)?;
        let id = String::from_utf8_lossy(&id).into_owned();
        if !self.held.contains_key(&id) {
            let held = Held::read(self.read, self.index, &id)?.ok_or_else(lost)?;
            let attributes = self.fields.attributes(&held.record.metadata);
            self.held.insert(id.clone(), (held, attributes));
        }
        let (held, attributes) = &self.held[&id];
        let mut chunks = held.record.chunks.iter();
        let chunk = chunks.find(|chunk| chunk.id == row.chunk);
        let text = held.text_of(chunk.ok_or_else(lost)?)?;
        let attributes = attributes.clone();
        Ok(self.fields.of_chunk(attributes, text, &mut self.words))
    }
}
