//! The committed state as lines of JSON, for comparing, moving and looking.
//!
//! Invariant: it reads one snapshot of a state that no process writes.

use crate::state::{
    DocumentRecord, StateError, decode, entity_key, kept_letter, name_prefix, open_at_rest,
    read_commit,
};
use serde::Serialize;
use std::io::Write;
use std::path::Path;
use vectide_model::{Position, Store, StoreError, StoreRead, Table};

/// What to export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExportKind {
    /// `{"id","sha256","bytes","chunks"}` sorted by id.
    Documents,
    /// `{"id","document","span","text","position"}` in the order of documents and texts.
    Chunks,
    /// `{"id","reason","position","key","detail","raw"}` in the order in which they were written.
    DeadLetters,
}

/// A failure of an export.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The state.
    #[error(transparent)]
    State(#[from] StateError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The output.
    #[error("the output can't be written: {0}")]
    Output(#[from] std::io::Error),
}

#[derive(Serialize)]
struct DocumentLine<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    index: Option<&'a str>,
    id: &'a str,
    sha256: String,
    bytes: u64,
    chunks: usize,
}

#[derive(Serialize)]
struct ChunkLine<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    index: Option<&'a str>,
    id: String,
    document: &'a str,
    span: SpanLine,
    text: &'a str,
    position: &'a Position,
}

#[derive(Serialize)]
struct SpanLine {
    start: usize,
    end: usize,
}

#[derive(Serialize)]
struct DeadLetterLine<'a> {
    id: u64,
    reason: &'a str,
    position: &'a Position,
    key: Option<&'a str>,
    detail: &'a str,
    raw: std::borrow::Cow<'a, str>,
}

/// Writes what a state holds, index by index; lines name their index when there are several.
///
/// # Errors
/// When the state is in use or damaged, or the output can't be written.
pub fn export(
    state_directory: &Path,
    kind: ExportKind,
    out: &mut dyn Write,
) -> Result<(), ExportError> {
    let (_lock, store) = open_at_rest(state_directory)?;
    let read = store.snapshot();
    if kind == ExportKind::DeadLetters {
        return dead_letters(&*read, out);
    }
    let record = read_commit(&*read)?.unwrap_or_default();
    let names: Vec<&str> = record
        .pipeline
        .keys()
        .filter_map(|part| part.strip_prefix("indexes."))
        .collect();
    for name in &names {
        let shown = (names.len() > 1).then_some(*name);
        for entry in read.scan(Table::Documents, &name_prefix(name)) {
            let (key, value) = entry?;
            let id = String::from_utf8_lossy(&key[name.len() + 1..]);
            let record: DocumentRecord = decode("a document", &value)?;
            match kind {
                ExportKind::Documents => document(shown, &id, &record, out)?,
                _ => chunks(&*read, (name, shown), &id, &record, out)?,
            }
        }
    }
    Ok(())
}

fn line<T: Serialize>(value: &T, out: &mut dyn Write) -> Result<(), ExportError> {
    serde_json::to_writer(&mut *out, value).map_err(std::io::Error::from)?;
    Ok(out.write_all(b"\n")?)
}

fn document(
    index: Option<&str>,
    id: &str,
    record: &DocumentRecord,
    out: &mut dyn Write,
) -> Result<(), ExportError> {
    let sha256 = record
        .sha256
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    line(
        &DocumentLine {
            index,
            id,
            sha256,
            bytes: record.bytes,
            chunks: record.chunks.len(),
        },
        out,
    )
}

fn chunks(
    read: &dyn StoreRead,
    (name, index): (&str, Option<&str>),
    id: &str,
    record: &DocumentRecord,
    out: &mut dyn Write,
) -> Result<(), ExportError> {
    let text = read
        .get(Table::Texts, &entity_key(name, id))?
        .unwrap_or_default();
    let text = String::from_utf8(text)
        .map_err(|_| StoreError::Refused("a text in the state is damaged".into()))?;
    let (mut at, mut counted) = (0, 0);
    for chunk in record.chunks.iter() {
        let (start, end) = (chunk.start as usize, chunk.end as usize);
        let damaged = || StoreError::Refused("a chunk's span in the state is damaged".into());
        counted += text.get(at..start).ok_or_else(damaged)?.chars().count();
        let chunk_text = text.get(start..end).ok_or_else(damaged)?;
        let span = SpanLine {
            start: counted,
            end: counted + chunk_text.chars().count(),
        };
        (at, counted) = (end, span.end);
        let chunk_line = ChunkLine {
            index,
            id: chunk.id.to_string(),
            document: id,
            span,
            text: chunk_text,
            position: &record.position,
        };
        line(&chunk_line, out)?;
    }
    Ok(())
}

fn dead_letters(read: &dyn StoreRead, out: &mut dyn Write) -> Result<(), ExportError> {
    for entry in read.scan(Table::DeadLetters, &[]) {
        let (key, value) = entry?;
        let kept = kept_letter(&key, &value)?;
        let letter = &kept.letter;
        let shown = DeadLetterLine {
            id: kept.id,
            reason: letter.reason.as_str(),
            position: &letter.position,
            key: letter.key.as_deref(),
            detail: &letter.detail,
            raw: String::from_utf8_lossy(&letter.raw),
        };
        line(&shown, out)?;
    }
    Ok(())
}
