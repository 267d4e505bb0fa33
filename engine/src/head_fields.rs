//! The fields of rows in heads, made again of the documents that the state holds.
//!
//! Segments have files of their rows' fields. Of the rows in a head only vectors are committed: everything else
//! is a function of the document, which stands in the same commit.
//!
//! Invariant: the fields are those that the row was inserted with.

use crate::hits::Held;
use crate::state::{chunk_key, shard_state};
use std::collections::HashMap;
use vectide_model::{IndexRow, ShardState, StoreError, StoreRead, Table};
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
    // By document, so that each is read once and its text is held no longer.
    let mut of_documents: HashMap<Vec<u8>, Vec<usize>> = HashMap::new();
    for (at, row) in state.head.iter().enumerate() {
        let document = read.get(Table::Chunks, &chunk_key(index, &row.chunk))?;
        let rows = of_documents.entry(document.ok_or_else(|| lost(row))?);
        rows.or_default().push(at);
    }
    let mut words = WordCache::default();
    for (document, rows) in of_documents {
        let document = String::from_utf8_lossy(&document).into_owned();
        let held = Held::read(read, index, &document)?;
        let held = held.ok_or_else(|| lost(&state.head[rows[0]]))?;
        let attributes = fields.attributes(&held.record.metadata);
        for at in rows {
            let row = &mut state.head[at];
            let mut chunks = held.record.chunks.iter();
            let chunk = chunks.find(|chunk| chunk.id == row.chunk);
            let text = held.text_of(chunk.ok_or_else(|| lost(row))?)?;
            row.fields = fields.of_chunk(attributes.clone(), text, &mut words);
        }
    }
    Ok(state)
}

fn lost(row: &IndexRow) -> StoreError {
    StoreError::Refused(format!("chunk {} has no document", row.chunk))
}
