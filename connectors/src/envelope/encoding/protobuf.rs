//! Protobuf's records as JSON, by the `.proto` text of a registry.
//!
//! Invariant: a message's fields are written in the order of its definition, and every field is
//! there: what has no presence has its default, what has one and is unset is null.

use super::super::Rejected;
use super::logical::{
    JSON_BYTES_MAX, check_length, misfit, write_bytes, write_decimal, write_float, write_single,
    write_string,
};
use super::time_text::{Unit, Zone, write_date_time, write_duration_nanoseconds, write_time};
use prost_reflect::{
    DynamicMessage, FieldDescriptor, FileDescriptor, Kind, MapKey, MessageDescriptor,
    ReflectMessage, Value,
};
use protox::file::{ChainFileResolver, File, FileResolver, GoogleFileResolver};
use std::fmt::Write;

/// Messages nested in each other when they are named by indexes; schemas are shallow.
const INDEXES_MAX: usize = 32;

/// The name that the registry's own text gets; it has none there.
const ROOT_FILE: &str = "vectide-root.proto";

/// What Confluent's converter knows without asking the registry.
const KNOWN_FILES: [(&str, &str); 4] = [
    (
        "google/type/date.proto",
        "syntax = \"proto3\"; package google.type;
         message Date { int32 year = 1; int32 month = 2; int32 day = 3; }",
    ),
    (
        "google/type/timeofday.proto",
        "syntax = \"proto3\"; package google.type;
         message TimeOfDay { int32 hours = 1; int32 minutes = 2; int32 seconds = 3; int32 nanos = 4; }",
    ),
    (
        "confluent/type/decimal.proto",
        "syntax = \"proto3\"; package confluent.type;
         message Decimal { bytes value = 1; uint32 precision = 2; int32 scale = 3; }",
    ),
    (
        "confluent/meta.proto",
        "syntax = \"proto3\"; package confluent;
         import \"google/protobuf/descriptor.proto\";
         message Meta { string doc = 1; map<string, string> params = 2; repeated string tags = 3; }
         extend google.protobuf.FileOptions { Meta file_meta = 1088; }
         extend google.protobuf.MessageOptions { Meta message_meta = 1088; }
         extend google.protobuf.FieldOptions { Meta field_meta = 1088; }
         extend google.protobuf.EnumOptions { Meta enum_meta = 1088; }
         extend google.protobuf.EnumValueOptions { Meta enum_value_meta = 1088; }",
    ),
];

/// A file of messages to read records by.
#[derive(Clone, Debug)]
pub(crate) struct ProtobufSchema {
    file: FileDescriptor,
}

struct Texts(Vec<(String, String)>);

impl FileResolver for Texts {
    fn open_file(&self, name: &str) -> Result<File, protox::Error> {
        let found = self.0.iter().find(|(known, _)| known == name);
        match found {
            Some((name, text)) => File::from_source(name, text),
            None => Err(protox::Error::file_not_found(name)),
        }
    }
}

impl ProtobufSchema {
    /// Compiles a schema; `references` are the texts that it imports, by the name it does so.
    ///
    /// # Errors
    /// `Schema` for what is no such text.
    pub(crate) fn compile(text: &str, references: &[(String, String)]) -> Result<Self, Rejected> {
        let refused = |error: protox::Error| misfit(format!("the schema can't be read: {error}"));
        let mut files = references.to_vec();
        files.push((ROOT_FILE.to_owned(), text.to_owned()));
        let own = |(name, text): (&str, &str)| (name.to_owned(), text.to_owned());
        let mut resolver = ChainFileResolver::new();
        resolver.add(Texts(files));
        resolver.add(Texts(KNOWN_FILES.map(own).to_vec()));
        resolver.add(GoogleFileResolver::new());
        let mut compiler = protox::Compiler::with_file_resolver(resolver);
        compiler.include_imports(true);
        compiler.open_file(ROOT_FILE).map_err(refused)?;
        let pool = compiler.descriptor_pool();
        let file = pool.get_file_by_name(ROOT_FILE);
        let file = file.ok_or_else(|| misfit("the schema has no messages"))?;
        Ok(Self { file })
    }

    /// Writes the message in `bytes` as JSON; they begin with the message's indexes, unless those
    /// are given.
    ///
    /// # Errors
    /// `Schema` where the bytes don't fit.
    pub(crate) fn read(
        &self,
        indexes: Option<&[u8]>,
        bytes: &[u8],
        out: &mut String,
    ) -> Result<(), Rejected> {
        let (indexes, body) = match indexes {
            Some(indexes) => (message_indexes(indexes)?.0, bytes),
            None => message_indexes(bytes)?,
        };
        let message = self.message(&indexes)?;
        let decoded = DynamicMessage::decode(message, body)
            .map_err(|error| misfit(format!("the message does not fit its schema: {error}")))?;
        write_message(&decoded, out)
    }

    /// The message at a path of indexes: the first among the file's, the others among those nested.
    fn message(&self, indexes: &[usize]) -> Result<MessageDescriptor, Rejected> {
        let mut found: Option<MessageDescriptor> = None;
        for index in indexes {
            let written = |message: &MessageDescriptor| !message.is_map_entry();
            let next = match &found {
                None => self.file.messages().nth(*index),
                Some(outer) => outer.child_messages().filter(written).nth(*index),
            };
            found = Some(next.ok_or_else(|| {
                misfit(format!(
                    "the schema has no message at the indexes {indexes:?}"
                ))
            })?);
        }
        found.ok_or_else(|| misfit("the record names no message"))
    }
}

/// The path to the message's definition: a count and as many numbers, or a single zero for the
/// first message.
fn message_indexes(bytes: &[u8]) -> Result<(Vec<usize>, &[u8]), Rejected> {
    let (count, mut rest) = zigzag(bytes)?;
    if count == 0 {
        return Ok((vec![0], rest));
    }
    let count = usize::try_from(count).ok().filter(|it| *it <= INDEXES_MAX);
    let count = count.ok_or_else(|| misfit("the record's message indexes are none"))?;
    let mut indexes = Vec::with_capacity(count);
    for _ in 0..count {
        let (index, after) = zigzag(rest)?;
        let index = usize::try_from(index).map_err(|_| misfit("a negative message index"))?;
        indexes.push(index);
        rest = after;
    }
    Ok((indexes, rest))
}

fn zigzag(bytes: &[u8]) -> Result<(i64, &[u8]), Rejected> {
    let mut value = 0_u64;
    for (index, byte) in bytes.iter().enumerate().take(5) {
        value |= u64::from(byte & 0x7f) << (7 * index);
        if *byte < 0x80 {
            let number = (value >> 1).cast_signed() ^ -(value & 1).cast_signed();
            return Ok((number, &bytes[index + 1..]));
        }
    }
    Err(misfit("the record's message indexes are cut off"))
}

fn write_message(message: &DynamicMessage, out: &mut String) -> Result<(), Rejected> {
    check_length(out, JSON_BYTES_MAX)?;
    let descriptor = message.descriptor();
    if write_well_known(descriptor.full_name(), message, out)? {
        return Ok(());
    }
    let mut separator = '{';
    for field in descriptor.fields() {
        out.push(separator);
        separator = ',';
        write_string(field.name(), out);
        out.push(':');
        if field.supports_presence() && !message.has_field(&field) {
            out.push_str("null");
        } else {
            write_value(&message.get_field(&field), &field.kind(), out)?;
        }
    }
    out.push_str(if separator == '{' { "{}" } else { "}" });
    Ok(())
}

fn write_value(value: &Value, kind: &Kind, out: &mut String) -> Result<(), Rejected> {
    match value {
        Value::Bool(value) => out.push_str(if *value { "true" } else { "false" }),
        Value::I32(value) => push(out, format_args!("{value}")),
        Value::I64(value) => push(out, format_args!("{value}")),
        Value::U32(value) => push(out, format_args!("{value}")),
        Value::U64(value) => push(out, format_args!("{value}")),
        Value::F32(value) => write_single(*value, out),
        Value::F64(value) => write_float(*value, out),
        Value::String(text) => write_string(text, out),
        Value::Bytes(bytes) => write_bytes(bytes, out),
        Value::EnumNumber(number) => match kind.as_enum().and_then(|it| it.get_value(*number)) {
            Some(symbol) => write_string(symbol.name(), out),
            None => push(out, format_args!("{number}")),
        },
        Value::Message(message) => write_message(message, out)?,
        Value::List(items) => {
            out.push('[');
            for (index, item) in items.iter().enumerate() {
                if index > 0 {
                    out.push(',');
                }
                write_value(item, kind, out)?;
            }
            out.push(']');
        }
        Value::Map(entries) => {
            let values = kind
                .as_message()
                .map(MessageDescriptor::map_entry_value_field);
            let kind = values
                .as_ref()
                .map_or_else(|| kind.clone(), FieldDescriptor::kind);
            // Their order in memory is another one in every run.
            let mut entries: Vec<_> = entries
                .iter()
                .map(|(key, it)| (key_text(key), it))
                .collect();
            entries.sort_by(|(left, _), (right, _)| left.cmp(right));
            let mut separator = '{';
            for (key, value) in &entries {
                out.push(separator);
                separator = ',';
                write_string(key, out);
                out.push(':');
                write_value(value, &kind, out)?;
            }
            out.push_str(if entries.is_empty() { "{}" } else { "}" });
        }
    }
    Ok(())
}

fn key_text(key: &MapKey) -> String {
    match key {
        MapKey::Bool(key) => key.to_string(),
        MapKey::I32(key) => key.to_string(),
        MapKey::I64(key) => key.to_string(),
        MapKey::U32(key) => key.to_string(),
        MapKey::U64(key) => key.to_string(),
        MapKey::String(key) => key.clone(),
    }
}

/// Writes a message whose meaning is known by its name; whether it was one.
fn write_well_known(
    name: &str,
    message: &DynamicMessage,
    out: &mut String,
) -> Result<bool, Rejected> {
    let number = |field: &str| match message.get_field_by_name(field).as_deref() {
        Some(Value::I32(value)) => i64::from(*value),
        Some(Value::I64(value)) => *value,
        _ => 0,
    };
    match name {
        "google.protobuf.Timestamp" => {
            write_timestamp(number("seconds"), number("nanos"), out);
        }
        "google.protobuf.Duration" => {
            let seconds = i128::from(number("seconds")) * 1_000_000_000;
            out.push('"');
            write_duration_nanoseconds(seconds + i128::from(number("nanos")), out);
            out.push('"');
        }
        "google.type.Date" => push(
            out,
            format_args!(
                "\"{:04}-{:02}-{:02}\"",
                number("year"),
                number("month"),
                number("day")
            ),
        ),
        "google.type.TimeOfDay" => {
            let seconds = number("hours") * 3600 + number("minutes") * 60 + number("seconds");
            let nanoseconds = seconds.checked_mul(1_000_000_000);
            let nanoseconds = nanoseconds.and_then(|it| it.checked_add(number("nanos")));
            let nanoseconds = nanoseconds.ok_or_else(|| misfit("a time of day out of range"))?;
            out.push('"');
            write_time(nanoseconds, Unit::Nanoseconds, out);
            out.push('"');
        }
        "confluent.type.Decimal" => {
            let scale = i32::try_from(number("scale")).unwrap_or(i32::MAX);
            let value = message.get_field_by_name("value");
            let bytes = value.as_deref().and_then(Value::as_bytes);
            write_decimal(bytes.map_or(&[], |bytes| bytes), scale, out)?;
        }
        "google.protobuf.Struct" | "google.protobuf.ListValue" | "google.protobuf.Value" => {
            return write_dynamic(name, message, out);
        }
        _ if is_wrapper(name) => match message.descriptor().get_field_by_name("value") {
            Some(field) => write_value(&message.get_field(&field), &field.kind(), out)?,
            None => return Ok(false),
        },
        _ => return Ok(false),
    }
    Ok(true)
}

/// JSON that is carried as messages.
fn write_dynamic(name: &str, message: &DynamicMessage, out: &mut String) -> Result<bool, Rejected> {
    let only = match name {
        "google.protobuf.Struct" => message.descriptor().get_field_by_name("fields"),
        "google.protobuf.ListValue" => message.descriptor().get_field_by_name("values"),
        _ => {
            let descriptor = message.descriptor();
            let mut fields = descriptor.fields();
            match fields.find(|field| message.has_field(field)) {
                Some(field) if field.name() != "null_value" => Some(field),
                _ => {
                    out.push_str("null");
                    return Ok(true);
                }
            }
        }
    };
    let Some(field) = only else {
        return Ok(false);
    };
    write_value(&message.get_field(&field), &field.kind(), out)?;
    Ok(true)
}

fn is_wrapper(name: &str) -> bool {
    matches!(
        name,
        "google.protobuf.DoubleValue"
            | "google.protobuf.FloatValue"
            | "google.protobuf.Int64Value"
            | "google.protobuf.UInt64Value"
            | "google.protobuf.Int32Value"
            | "google.protobuf.UInt32Value"
            | "google.protobuf.BoolValue"
            | "google.protobuf.StringValue"
            | "google.protobuf.BytesValue"
    )
}

/// Nanoseconds of 64 bits end in 2262; beyond, the text is of milliseconds.
fn write_timestamp(seconds: i64, nanoseconds: i64, out: &mut String) {
    let begin = out.len();
    out.push('"');
    let exact = seconds.checked_mul(1_000_000_000);
    let is_written = match exact.and_then(|it| it.checked_add(nanoseconds)) {
        Some(exact) => write_date_time(exact, Unit::Nanoseconds, Zone::Utc, out),
        None => {
            let coarse = seconds.checked_mul(1000);
            let coarse = coarse.and_then(|it| it.checked_add(nanoseconds / 1_000_000));
            coarse.is_some_and(|at| write_date_time(at, Unit::Milliseconds, Zone::Utc, out))
        }
    };
    if is_written {
        out.push('"');
    } else {
        out.truncate(begin);
        push(out, format_args!("{seconds}"));
    }
}

/// Writing to a string never fails.
fn push(out: &mut String, arguments: std::fmt::Arguments<'_>) {
    let _ = out.write_fmt(arguments);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use prost_reflect::prost::Message;

    const SCHEMA: &str = r#"
        syntax = "proto3";
        package shop;
        import "google/protobuf/timestamp.proto";
        import "google/protobuf/wrappers.proto";
        import "google/type/date.proto";
        import "confluent/type/decimal.proto";
        import "confluent/meta.proto";
        import "other.proto";
        message First { int32 id = 1; }
        message Page {
          int64 id = 1;
          optional string title = 2;
          google.protobuf.Timestamp at = 3;
          google.type.Date day = 4;
          confluent.type.Decimal price = 5 [(confluent.field_meta) = { doc: "x" }];
          map<int32, string> names = 6;
          repeated bytes blobs = 7;
          Kind kind = 8;
          google.protobuf.StringValue note = 9;
          other.Thing thing = 10;
          double ratio = 11;
          enum Kind { NONE = 0; SOME = 1; }
          message Inner { string x = 1; }
        }"#;

    fn schema() -> ProtobufSchema {
        let other = r#"syntax = "proto3"; package other; message Thing { bool ok = 1; }"#;
        let references = [("other.proto".to_owned(), other.to_owned())];
        ProtobufSchema::compile(SCHEMA, &references).unwrap()
    }

    fn read(bytes: &[u8]) -> Result<String, Rejected> {
        let mut out = String::new();
        schema().read(None, bytes, &mut out)?;
        Ok(out)
    }

    #[test]
    fn every_type() {
        let descriptor = schema().message(&[1]).unwrap();
        let mut page = DynamicMessage::new(descriptor.clone());
        let part = |name: &str, fields: &[(&str, Value)]| {
            let kind = descriptor.get_field_by_name(name).unwrap().kind();
            let mut part = DynamicMessage::new(kind.as_message().unwrap().clone());
            for (name, value) in fields {
                part.set_field_by_name(name, value.clone());
            }
            Value::Message(part)
        };
        page.set_field_by_name("id", Value::I64(i64::MAX));
        let seconds = ("seconds", Value::I64(1_709_214_301));
        page.set_field_by_name(
            "at",
            part("at", &[seconds, ("nanos", Value::I32(500_000_000))]),
        );
        let day = [("year", 2024), ("month", 2), ("day", 29)].map(|(n, v)| (n, Value::I32(v)));
        page.set_field_by_name("day", part("day", &day));
        let unscaled = ("value", Value::Bytes(vec![0x04, 0xd2].into()));
        page.set_field_by_name(
            "price",
            part("price", &[unscaled, ("scale", Value::I32(2))]),
        );
        let names =
            [(9, "b"), (1, "a")].map(|(key, it)| (MapKey::I32(key), Value::String(it.into())));
        page.set_field_by_name("names", Value::Map(names.into()));
        page.set_field_by_name("blobs", Value::List(vec![Value::Bytes(vec![255].into())]));
        page.set_field_by_name("kind", Value::EnumNumber(1));
        page.set_field_by_name(
            "note",
            part("note", &[("value", Value::String("n".into()))]),
        );
        page.set_field_by_name("thing", part("thing", &[("ok", Value::Bool(true))]));
        let body = page.encode_to_vec();
        let expected = r#"{"id":9223372036854775807,"title":null,"at":"2024-02-29T13:45:01.5Z","day":"2024-02-29","price":"12.34","names":{"1":"a","9":"b"},"blobs":["/w=="],"kind":"SOME","note":"n","thing":{"ok":true},"ratio":0.0}"#;
        assert_eq!(read(&[&[2, 2], &*body].concat()).unwrap(), expected);
    }

    #[test]
    fn message_indexes_in_both_forms() {
        assert_eq!(read(&[0, 8, 7]).unwrap(), r#"{"id":7}"#);
        assert_eq!(read(&[2, 0, 8, 7]).unwrap(), r#"{"id":7}"#);
        assert_eq!(read(&[4, 2, 0, 10, 1, b'a']).unwrap(), r#"{"x":"a"}"#);
        let mut out = String::new();
        schema().read(Some(&[2, 0]), &[8, 7], &mut out).unwrap();
        assert_eq!(out, r#"{"id":7}"#);
        for wrong in [
            &[][..],
            &[1],
            &[2],
            &[2, 8],
            &[2, 1],
            &[4, 0, 0],
            &[0x80, 0x80, 0x80, 0x80, 0x80, 1],
            &[0xfe, 0x7f],
            &[0, 8],
            &[0, 0xff],
        ] {
            assert_eq!(
                read(wrong).unwrap_err().reason,
                vectide_model::DeadLetterReason::Schema,
                "{wrong:?}"
            );
        }
    }

    #[test]
    fn texts_that_are_no_schema() {
        for wrong in ["nonsense", "syntax = \"proto3\"; import \"nowhere.proto\";"] {
            assert!(ProtobufSchema::compile(wrong, &[]).is_err());
        }
        let empty = ProtobufSchema::compile("syntax = \"proto3\";", &[]).unwrap();
        assert!(empty.read(None, &[0], &mut String::new()).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn no_bytes_panic(bytes: Vec<u8>) {
            let schema = schema();
            let mut out = String::new();
            let _ = schema.read(None, &bytes, &mut out);
            let page = [&[2, 2], &*bytes].concat();
            if schema.read(None, &page, &mut out).is_ok() {
                out.clear();
                schema.read(None, &page, &mut out).unwrap();
                prop_assert!(serde_json::from_str::<serde_json::Value>(&out).is_ok(), "{}", out);
            }
        }
    }
}
