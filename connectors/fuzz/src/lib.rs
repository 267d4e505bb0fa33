//! What the fuzz targets share: an input as a record, and schemas that need no registry.
//!
//! The envelopes' files are taken in as they are, rather than by their crate: that one brings the
//! Kafka client's C library, which would be compiled with the fuzzer's flags and is not meant here.
//!
//! Invariant: a target decodes with one decoder for its whole run, so what it remembers (schemas,
//! shapes) is seen to stay bounded by the limit on memory.

#[path = "../../src/envelope/mod.rs"]
pub mod envelope;
pub mod postgres;
#[path = "../../src/registry/mod.rs"]
pub mod registry;

use envelope::RawRecord;
use envelope::format::{RecordDecoder, RecordFormat};
use registry::{RegisteredSchema, SchemaLanguage};
use std::collections::HashMap;

/// The schemas of [`decoder`], by their ids.
pub const AVRO_ID: u32 = 1;
/// Protobuf.
pub const PROTOBUF_ID: u32 = 2;
/// JSON Schema.
pub const JSON_ID: u32 = 3;

/// A decoder of a format that knows the schemas of this crate.
pub fn decoder(format: &str) -> RecordDecoder {
    let format: RecordFormat = serde_json::from_str(format).expect("a format");
    let schema = |language, text: &str| RegisteredSchema {
        language,
        text: text.to_owned(),
        references: Vec::new(),
    };
    let schemas = HashMap::from([
        (
            AVRO_ID,
            schema(
                SchemaLanguage::Avro,
                include_str!("../schemas/envelope.avsc"),
            ),
        ),
        (
            PROTOBUF_ID,
            schema(
                SchemaLanguage::Protobuf,
                include_str!("../schemas/envelope.proto"),
            ),
        ),
        (
            JSON_ID,
            schema(
                SchemaLanguage::Json,
                include_str!("../schemas/envelope.json"),
            ),
        ),
    ]);
    format.open_with_schemas(schemas).expect("opened")
}

/// Decodes an input: its key up to the first byte `ff`, which no UTF-8 has, then its value; without
/// that byte all of it is the value of a record with a key.
pub fn decode(decoder: &mut RecordDecoder, input: &[u8]) {
    let mut parts = input.splitn(2, |byte| *byte == 0xff);
    let first = parts.next();
    let (key, value) = match parts.next() {
        Some(value) => (first, Some(value).filter(|value| !value.is_empty())),
        None => (Some(&br#"{"id":1}"#[..]), first),
    };
    let record = RawRecord {
        topic: "shop.transaction",
        key,
        value,
        headers: &[],
    };
    decode_record(decoder, &record);
}

/// Decodes an input as the payload behind a schema's id.
pub fn decode_framed(decoder: &mut RecordDecoder, id: u32, input: &[u8]) {
    let mut value = vec![0];
    value.extend(id.to_be_bytes());
    value.extend(input);
    let record = RawRecord {
        topic: "shop.public.pages",
        key: Some(br#"{"id":1}"#),
        value: Some(&value),
        headers: &[],
    };
    decode_record(decoder, &record);
}

fn decode_record(decoder: &mut RecordDecoder, record: &RawRecord<'_>) {
    let mut decoded = Vec::new();
    let _ = decoder.decode(record, &mut decoded);
    for decoded in decoded {
        let envelope::Decoded::Change(change) = decoded else {
            continue;
        };
        if let Some(row) = change.row {
            let is_object = row.trim_start().starts_with('{');
            assert!(
                is_object && serde_json::from_str::<Valid>(&row).is_ok(),
                "{row}"
            );
        }
    }
}

/// Any JSON.
pub(crate) type Valid = serde::de::IgnoredAny;
