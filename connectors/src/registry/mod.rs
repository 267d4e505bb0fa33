//! Schemas from a registry that speaks Confluent's REST interface (Confluent, Karapace, Apicurio's
//! compatible one).
//!
//! Invariant: a schema that does not exist is told apart from a registry that does not answer, or
//! answers something that is not about the schema: the first makes a dead letter, the second waits.

mod client;
mod config;

pub use config::RegistryConfig;

pub(crate) use client::{RegistryClient, trusted};

use std::fmt;

/// How a record names its schema.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum SchemaName {
    /// The number within one registry.
    Id(u32),
    /// The identifier among all registries, which newer clients write into headers.
    Guid([u8; 16]),
}

impl fmt::Display for SchemaName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id(id) => write!(formatter, "{id}"),
            Self::Guid(bytes) => {
                for (index, byte) in bytes.iter().enumerate() {
                    if matches!(index, 4 | 6 | 8 | 10) {
                        formatter.write_str("-")?;
                    }
                    write!(formatter, "{byte:02x}")?;
                }
                Ok(())
            }
        }
    }
}

/// The language of a schema.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SchemaLanguage {
    /// Avro.
    Avro,
    /// Protobuf.
    Protobuf,
    /// JSON Schema.
    Json,
}

impl fmt::Display for SchemaLanguage {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Avro => "Avro",
            Self::Protobuf => "Protobuf",
            Self::Json => "JSON Schema",
        })
    }
}

/// A schema as a registry has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegisteredSchema {
    /// Its language.
    pub language: SchemaLanguage,
    /// Its text.
    pub text: String,
    /// The schemas that it uses, by the name it does so; each uses only those before it.
    pub references: Vec<(String, String)>,
}

/// Why a schema could not be had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum FetchError {
    /// The registry says that there is none, or gives one that is of no use.
    Missing(String),
    /// The registry did not answer, or not about schemas.
    Unavailable(String),
}
