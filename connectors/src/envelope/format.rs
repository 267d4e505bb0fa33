//! The `format:` of keyed records, and the decoder that it opens.
//!
//! A format is an envelope (what a record means) in an encoding (how it is written). The encoding
//! turns key and value into JSON, the envelope decodes that.
//!
//! Invariant: what a decoder can't decide alone (a registry that does not answer) is told apart from
//! a record that is wrong: the first is tried again, only the second is a dead letter.

use super::content::Content;
use super::debezium::DebeziumDecoder;
use super::encoding::{FetchSchema, InlineSchemas, Part, Payloads, is_json};
use super::flattened::FlattenedDecoder;
use super::placeholder::{self, Placeholder};
use super::{Decoded, RawRecord, Rejected, canal, content, maxwell, upsert};
use crate::registry::{RegistryClient, RegistryConfig};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use vectide_model::ComponentError;

pub use super::encoding::Encoding;

/// What keyed records mean.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "kebab-case", deny_unknown_fields)]
pub enum RecordFormat {
    /// The key is the identity, the value (an object) the row; no value deletes.
    Upsert {
        /// How keys and values are written.
        #[serde(default, skip_serializing_if = "is_json")]
        encoding: Encoding,
        /// Where their schemas are; not for plain JSON.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        registry: Option<RegistryConfig>,
    },
    /// Debezium's change events.
    Debezium {
        /// How keys and values are written; JSON is with or without schema.
        #[serde(default, skip_serializing_if = "is_json")]
        encoding: Encoding,
        /// Where their schemas are; not for plain JSON.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        registry: Option<RegistryConfig>,
        /// The connector's `unavailable.value.placeholder`: what stands for a large value that an
        /// update did not change. `hex:` and hex digits for bytes.
        #[serde(default = "default_unavailable_value")]
        unavailable_value: String,
    },
    /// Debezium's change events after its transformation `ExtractNewRecordState`: rows, with deletes
    /// as tombstones or marked `__deleted`.
    DebeziumFlattened {
        /// How keys and values are written; JSON is with or without schema.
        #[serde(default, skip_serializing_if = "is_json")]
        encoding: Encoding,
        /// Where their schemas are; not for plain JSON.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        registry: Option<RegistryConfig>,
        /// The connector's `unavailable.value.placeholder`: what stands for a large value that an
        /// update did not change. `hex:` and hex digits for bytes.
        #[serde(default = "default_unavailable_value")]
        unavailable_value: String,
        /// The transformation's `add.fields.prefix`. Fields that begin with it are left out of the
        /// row; when it is empty, only `__deleted` is.
        #[serde(default = "default_metadata_prefix")]
        metadata_prefix: String,
    },
    /// Maxwell's events from MySQL, as JSON.
    Maxwell {},
    /// Canal's flat messages from MySQL, as JSON.
    Canal {},
    /// The key is the identity, the value the text of a document; no value deletes.
    Text {
        /// The field of the row that holds the text.
        #[serde(default = "default_field")]
        field: String,
    },
    /// The key is the identity, the value the bytes of a document; no value deletes.
    Bytes {
        /// The field of the row that holds the bytes as base64.
        #[serde(default = "default_field")]
        field: String,
    },
}

fn default_unavailable_value() -> String {
    placeholder::DEFAULT.to_owned()
}

fn default_metadata_prefix() -> String {
    "__".to_owned()
}

fn default_field() -> String {
    "content".to_owned()
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
    payloads: Payloads,
    envelope: Envelope,
}

enum Envelope {
    Upsert(InlineSchemas),
    Debezium(DebeziumDecoder),
    Flattened(FlattenedDecoder),
    Maxwell,
    Canal,
    Content(Content, String),
}

impl RecordFormat {
    /// Faults that can be seen in the configuration alone; their fields are within `format`.
    pub fn check(&self) -> Vec<ComponentError> {
        let mut errors = Vec::new();
        let (encoding, registry) = self.encoding();
        match registry {
            None if encoding != Encoding::Json => errors.push(ComponentError::new(
                "registry",
                "the encoding needs a registry, which has the schemas",
                "add `registry: {url: \"http://host:8081\"}`",
            )),
            Some(_) if encoding == Encoding::Json => errors.push(ComponentError::new(
                "registry",
                "plain JSON has no use for a registry",
                "leave it out, or write `encoding: json-schema`",
            )),
            Some(registry) => errors.extend(registry.check("registry")),
            None => {}
        }
        if let Some(Err(fault)) = self.unavailable_value().map(Placeholder::new) {
            errors.push(ComponentError::new(
                "unavailable_value",
                fault,
                "write what the connector's `unavailable.value.placeholder` says",
            ));
        }
        errors
    }

    fn encoding(&self) -> (Encoding, Option<&RegistryConfig>) {
        match self {
            Self::Upsert { encoding, registry }
            | Self::Debezium {
                encoding, registry, ..
            }
            | Self::DebeziumFlattened {
                encoding, registry, ..
            } => (*encoding, registry.as_ref()),
            Self::Maxwell {} | Self::Canal {} | Self::Text { .. } | Self::Bytes { .. } => {
                (Encoding::Json, None)
            }
        }
    }

    fn unavailable_value(&self) -> Option<&str> {
        match self {
            Self::Debezium {
                unavailable_value, ..
            }
            | Self::DebeziumFlattened {
                unavailable_value, ..
            } => Some(unavailable_value),
            _ => None,
        }
    }

    /// Makes a decoder. A registry is asked when the first record needs it.
    ///
    /// # Errors
    /// When it can't work as configured.
    pub fn open(&self) -> Result<RecordDecoder, ComponentError> {
        let fetch = match self.encoding() {
            (_, Some(registry)) => {
                let client = RegistryClient::new(registry)?;
                Some(Box::new(move |name| client.fetch(name)) as FetchSchema)
            }
            (_, None) => None,
        };
        self.open_with(fetch)
    }

    fn open_with(&self, fetch: Option<FetchSchema>) -> Result<RecordDecoder, ComponentError> {
        let placeholder = |configured: &str| {
            Placeholder::new(configured).map_err(|fault| {
                ComponentError::new("format.unavailable_value", fault, "write another one")
            })
        };
        let envelope = match self {
            Self::Upsert { .. } => Envelope::Upsert(InlineSchemas::default()),
            Self::Debezium {
                unavailable_value, ..
            } => Envelope::Debezium(DebeziumDecoder::new(placeholder(unavailable_value)?)),
            Self::DebeziumFlattened {
                unavailable_value,
                metadata_prefix,
                ..
            } => Envelope::Flattened(FlattenedDecoder::new(
                placeholder(unavailable_value)?,
                metadata_prefix,
            )),
            Self::Maxwell {} => Envelope::Maxwell,
            Self::Canal {} => Envelope::Canal,
            Self::Text { field } => Envelope::Content(Content::Text, field.clone()),
            Self::Bytes { field } => Envelope::Content(Content::Bytes, field.clone()),
        };
        Ok(RecordDecoder {
            payloads: Payloads::new(self.encoding().0, fetch),
            envelope,
        })
    }

    /// Makes a decoder that knows these schemas by their ids and asks no registry: for tests,
    /// benchmarks and fuzzing.
    ///
    /// # Errors
    /// When it can't work as configured.
    #[cfg(any(test, feature = "testing"))]
    pub fn open_with_schemas(
        &self,
        schemas: std::collections::HashMap<u32, crate::registry::RegisteredSchema>,
    ) -> Result<RecordDecoder, ComponentError> {
        use crate::registry::{FetchError, SchemaName};
        self.open_with(Some(Box::new(move |name| {
            let known = match name {
                SchemaName::Id(id) => schemas.get(&id),
                SchemaName::Guid(_) => None,
            };
            known
                .cloned()
                .ok_or_else(|| FetchError::Missing("it is not among those given".to_owned()))
        })))
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
        if self.payloads.is_json() {
            return Ok(self.envelope.decode(record, out)?);
        }
        let key = self.payloads.json(record, Part::Key)?;
        let value = self.payloads.json(record, Part::Value)?;
        let record = RawRecord {
            key: key.as_deref(),
            value: value.as_deref(),
            ..*record
        };
        Ok(self.envelope.decode(&record, out)?)
    }
}

impl Envelope {
    fn decode(&mut self, record: &RawRecord<'_>, out: &mut Vec<Decoded>) -> Result<(), Rejected> {
        out.push(match self {
            Self::Upsert(schemas) => upsert::decode(record, schemas)?,
            Self::Debezium(decoder) => decoder.decode(record)?,
            Self::Flattened(decoder) => decoder.decode(record)?,
            Self::Maxwell => return maxwell::decode(record, out),
            Self::Canal => return canal::decode(record, out),
            Self::Content(kind, field) => content::decode(record, *kind, field)?,
        });
        Ok(())
    }
}
