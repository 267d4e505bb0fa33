//! From the bytes of a key or value to JSON text, by the `encoding:` of the format.
//!
//! Envelopes (Debezium, upsert) are functions of JSON text. What arrives as Avro, Protobuf or with a
//! JSON Schema is written as JSON first, by the schema that the registry has for it; so every
//! envelope works in every encoding, and a value has the same JSON whichever way it came.
//!
//! Invariant: a schema is asked for and compiled once while it is remembered, and what is
//! remembered is bounded.

mod avro;
mod connect_schema;
mod json_schema;
mod logical;
mod payloads;
mod protobuf;
mod shape;
mod time_text;

pub(crate) use connect_schema::InlineSchemas;
pub(crate) use logical::{write_bytes, write_string};
pub(crate) use payloads::{FetchSchema, Part, Payloads};
pub(crate) use shape::Shape;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How keys and values are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Encoding {
    /// JSON, with or without Kafka Connect's schema in each message.
    #[default]
    Json,
    /// Avro; needs `registry`.
    Avro,
    /// Protobuf; needs `registry`.
    Protobuf,
    /// JSON with a schema in a registry; needs `registry`.
    JsonSchema,
}

/// Serde's test of whether to leave the field out.
pub(crate) fn is_json(encoding: &Encoding) -> bool {
    *encoding == Encoding::Json
}
