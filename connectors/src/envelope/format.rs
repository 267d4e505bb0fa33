//! The `format:` of keyed records, and the decoder that it opens.
//!
//! Invariant: what a decoder can't decide alone (a registry that does not answer) is told apart from
//! a record that is wrong: the first is tried again, only the second is a dead letter.

use super::{Decoded, RawRecord, Rejected, debezium, upsert};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use vectide_model::ComponentError;

/// What keyed records mean.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "lowercase", deny_unknown_fields)]
pub enum RecordFormat {
    /// The key is the identity, the value (a JSON object) the row; no value deletes.
    Upsert {},
    /// Debezium's change events as JSON, with or without schema.
    Debezium {},
}

/// Why a record could not be decoded.
#[derive(Clone, Debug, PartialEq)]
pub enum DecodeError {
    /// The record is a dead letter.
    Rejected(Rejected),
    /// Something outside did not answer (what, and why): try again later.
    Unavailable(String),
}

impl From<Rejected> for DecodeError {
    fn from(rejected: Rejected) -> Self {
        Self::Rejected(rejected)
    }
}

/// Decodes keyed records of one source.
pub struct RecordDecoder {
    format: RecordFormat,
}

impl RecordFormat {
    /// Faults that can be seen in the configuration alone.
    pub fn check(&self) -> Vec<ComponentError> {
        Vec::new()
    }

    /// Makes a decoder.
    ///
    /// # Errors
    /// When it can't work as configured.
    pub fn open(&self) -> Result<RecordDecoder, ComponentError> {
        Ok(RecordDecoder {
            format: self.clone(),
        })
    }
}

impl RecordDecoder {
    /// Adds what a record means to `out`: some envelopes hold several changes.
    ///
    /// # Errors
    /// When it is a dead letter, or can't be decoded now; then nothing was added.
    pub fn decode(
        &mut self,
        record: &RawRecord<'_>,
        out: &mut Vec<Decoded>,
    ) -> Result<(), DecodeError> {
        out.push(match self.format {
            RecordFormat::Upsert {} => upsert::decode(record)?,
            RecordFormat::Debezium {} => debezium::decode(record)?,
        });
        Ok(())
    }
}
