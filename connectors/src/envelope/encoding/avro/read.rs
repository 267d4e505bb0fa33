//! Reads a record's bytes by its schema and writes JSON on the way.
//!
//! Invariant: every step either uses a byte or writes one, and both are bounded; so is the depth.

use super::super::super::Rejected;
use super::super::logical::{
    Logical, check_length, json_bytes_max, misfit, write_bytes, write_decimal, write_float,
    write_single, write_string,
};
use super::super::shape::write_map_key;
use super::super::time_text::write_duration_nanoseconds;
use super::schema::{AvroSchema, FixedMeaning, Node, NodeIndex};
use std::fmt::Write;

/// Values nested in each other: schemas may refer to themselves.
const VALUE_DEPTH_MAX: usize = 64;

impl AvroSchema {
    /// Writes the value in `bytes` as JSON.
    ///
    /// # Errors
    /// `Schema` where the bytes don't fit, `TooLarge` where the JSON would be.
    pub(crate) fn read(&self, bytes: &[u8], out: &mut String) -> Result<(), Rejected> {
        let mut reader = Reader {
            nodes: &self.nodes,
            rest: bytes,
            bytes_max: json_bytes_max(bytes.len()),
            depth: 0,
        };
        reader.value(self.root, out)?;
        match reader.rest.len() {
            0 => Ok(()),
            left => Err(misfit(format!(
                "{left} bytes are left behind the value: it was written with another schema"
            ))),
        }
    }
}

struct Reader<'a> {
    nodes: &'a [Node],
    rest: &'a [u8],
    /// Of the JSON.
    bytes_max: usize,
    depth: usize,
}

fn ended() -> Rejected {
    misfit("the record ends within a value: it was written with another schema")
}

impl<'a> Reader<'a> {
    fn value(&mut self, index: NodeIndex, out: &mut String) -> Result<(), Rejected> {
        check_length(out, self.bytes_max)?;
        if self.depth >= VALUE_DEPTH_MAX {
            return Err(misfit("the record is nested too deeply"));
        }
        self.depth += 1;
        let nodes = self.nodes;
        let read = self.node(&nodes[index], out);
        self.depth -= 1;
        read
    }

    fn node(&mut self, node: &Node, out: &mut String) -> Result<(), Rejected> {
        match node {
            Node::Pending => return Err(misfit("the schema is not whole")),
            Node::Null => out.push_str("null"),
            Node::Boolean => out.push_str(match self.take(1)? {
                [0] => "false",
                _ => "true",
            }),
            Node::Integer(None) => push(out, format_args!("{}", self.integer()?)),
            Node::Integer(Some(logical)) => logical.write_integer(self.integer()?, out),
            Node::Float => write_single(f32::from_le_bytes(self.array()?), out),
            Node::Double => write_float(f64::from_le_bytes(self.array()?), out),
            Node::Bytes(Some(Logical::Decimal { scale })) => {
                return write_decimal(self.bytes()?, *scale, out);
            }
            Node::Bytes(_) => write_bytes(self.bytes()?, out),
            Node::String => match std::str::from_utf8(self.bytes()?) {
                Ok(text) => write_string(text, out),
                Err(_) => return Err(misfit("a string is not UTF-8")),
            },
            Node::Fixed { length, meaning } => {
                return write_fixed(self.take(*length)?, *meaning, out);
            }
            Node::Enum(symbols) => out.push_str(self.choice(symbols)?),
            Node::Union(branches) => {
                let branch = *self.choice(branches)?;
                return self.value(branch, out);
            }
            Node::Array(items) => return self.items(*items, out),
            Node::Map(values) => return self.map(*values, out),
            Node::Entries { key, value } => return self.entries((*key, *value), out),
            Node::Record(fields) => {
                let mut separator = '{';
                for field in fields {
                    out.push(separator);
                    separator = ',';
                    out.push_str(&field.label);
                    self.value(field.node, out)
                        .map_err(|rejected| in_field(&field.label, rejected))?;
                }
                out.push_str(if fields.is_empty() { "{}" } else { "}" });
            }
            Node::VariableScaleDecimal => {
                let scale = i32::try_from(self.integer()?)
                    .map_err(|_| misfit("a decimal's scale is out of range"))?;
                return write_decimal(self.bytes()?, scale, out);
            }
        }
        Ok(())
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], Rejected> {
        let (taken, rest) = self.rest.split_at_checked(length).ok_or_else(ended)?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Rejected> {
        self.take(N)?.try_into().map_err(|_| ended())
    }

    /// A number of 64 bits, zigzag, seven bits a byte.
    fn integer(&mut self) -> Result<i64, Rejected> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = u64::from(self.take(1)?[0]);
            value |= (byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok((value >> 1).cast_signed() ^ -(value & 1).cast_signed());
            }
        }
        Err(misfit("a number has more than 64 bits"))
    }

    fn bytes(&mut self) -> Result<&'a [u8], Rejected> {
        let length = usize::try_from(self.integer()?).map_err(|_| misfit("a negative length"))?;
        self.take(length)
    }

    fn choice<'n, T>(&mut self, choices: &'n [T]) -> Result<&'n T, Rejected> {
        let index = usize::try_from(self.integer()?).ok();
        index
            .and_then(|index| choices.get(index))
            .ok_or_else(|| misfit("a choice which the schema does not have"))
    }

    /// Calls `item` for each item of an array or map.
    fn blocks(
        &mut self,
        mut item: impl FnMut(&mut Self) -> Result<(), Rejected>,
    ) -> Result<(), Rejected> {
        loop {
            let count = self.integer()?;
            if count == 0 {
                return Ok(());
            }
            if count < 0 {
                // The block's length in bytes, for those who skip it.
                self.integer()?;
            }
            for _ in 0..count.unsigned_abs() {
                item(self)?;
            }
        }
    }

    fn items(&mut self, items: NodeIndex, out: &mut String) -> Result<(), Rejected> {
        out.push('[');
        let begin = out.len();
        self.blocks(|reader| {
            if out.len() > begin {
                out.push(',');
            }
            reader.value(items, out)
        })?;
        out.push(']');
        Ok(())
    }

    fn map(&mut self, values: NodeIndex, out: &mut String) -> Result<(), Rejected> {
        out.push('{');
        let begin = out.len();
        self.blocks(|reader| {
            if out.len() > begin {
                out.push(',');
            }
            reader.node(&Node::String, out)?;
            out.push(':');
            reader.value(values, out)
        })?;
        out.push('}');
        Ok(())
    }

    fn entries(
        &mut self,
        (key, value): (NodeIndex, NodeIndex),
        out: &mut String,
    ) -> Result<(), Rejected> {
        out.push('{');
        let begin = out.len();
        let mut key_text = String::new();
        self.blocks(|reader| {
            if out.len() > begin {
                out.push(',');
            }
            key_text.clear();
            reader.value(key, &mut key_text)?;
            write_map_key(&key_text, out);
            out.push(':');
            reader.value(value, out)
        })?;
        out.push('}');
        Ok(())
    }
}

fn in_field(label: &str, mut rejected: Rejected) -> Rejected {
    let name = label.trim_end_matches(':').trim_matches('"');
    rejected.detail = format!("field `{name}`: {}", rejected.detail);
    rejected
}

/// Writing to a string never fails.
fn push(out: &mut String, arguments: std::fmt::Arguments<'_>) {
    let _ = out.write_fmt(arguments);
}

fn write_fixed(bytes: &[u8], meaning: FixedMeaning, out: &mut String) -> Result<(), Rejected> {
    match meaning {
        FixedMeaning::Decimal { scale } => return write_decimal(bytes, scale, out),
        FixedMeaning::Uuid => {
            out.push('"');
            for (index, byte) in bytes.iter().enumerate() {
                if matches!(index, 4 | 6 | 8 | 10) {
                    out.push('-');
                }
                push(out, format_args!("{byte:02x}"));
            }
            out.push('"');
        }
        FixedMeaning::Duration => write_months_days_milliseconds(bytes, out),
        FixedMeaning::Bytes => write_bytes(bytes, out),
    }
    Ok(())
}

/// Avro's duration is three numbers, since a month has no fixed length.
fn write_months_days_milliseconds(bytes: &[u8], out: &mut String) {
    let number = |at: usize| {
        let bytes = bytes
            .get(at..at + 4)
            .and_then(|bytes| bytes.try_into().ok());
        u32::from_le_bytes(bytes.unwrap_or_default())
    };
    let mut time = String::new();
    write_duration_nanoseconds(i128::from(number(8)) * 1_000_000, &mut time);
    let (months, days, time) = (number(0), number(4), time.trim_start_matches('P'));
    push(out, format_args!("\"P{months}M{days}D{time}\""));
}

#[cfg(test)]
mod tests {
    use super::*;
    use apache_avro::types::Value;
    use apache_avro::writer::datum::GenericDatumWriter;
    use apache_avro::{Decimal, Schema};
    use proptest::prelude::*;
    use vectide_model::DeadLetterReason;

    fn read(schema: &str, bytes: &[u8]) -> Result<String, Rejected> {
        let mut out = String::new();
        AvroSchema::compile(schema, &[])
            .unwrap()
            .read(bytes, &mut out)?;
        Ok(out)
    }

    /// Written by the other implementation, read by ours.
    fn round_trip(schema: &str, value: Value) -> String {
        let parsed = Schema::parse_str(schema).unwrap();
        let bytes = GenericDatumWriter::builder(&parsed)
            .build()
            .unwrap()
            .write_value_to_vec(value)
            .unwrap();
        read(schema, &bytes).unwrap()
    }

    #[test]
    fn every_type() {
        let bytes = |bytes: &[u8]| Value::Bytes(bytes.to_vec());
        for (schema, value, expected) in [
            (r#""null""#, Value::Null, "null"),
            (r#""boolean""#, Value::Boolean(true), "true"),
            (r#""int""#, Value::Int(i32::MIN), "-2147483648"),
            (r#""long""#, Value::Long(i64::MIN), "-9223372036854775808"),
            (r#""float""#, Value::Float(0.1), "0.1"),
            (r#""double""#, Value::Double(1e300), "1e+300"),
            (r#""double""#, Value::Double(f64::NAN), "\"NaN\""),
            (
                r#""float""#,
                Value::Float(f32::NEG_INFINITY),
                "\"-Infinity\"",
            ),
            (r#""string""#, Value::String("a\"é".into()), "\"a\\\"é\""),
            (r#""bytes""#, bytes(b"\xff\x00"), "\"/wA=\""),
            (
                r#"{"type":"bytes","logicalType":"decimal","precision":10,"scale":2}"#,
                Value::Decimal(Decimal::from(vec![0x04, 0xd2])),
                "\"12.34\"",
            ),
            (
                r#"{"type":"int","logicalType":"date"}"#,
                Value::Date(19_782),
                "\"2024-02-29\"",
            ),
            (
                r#"{"type":"long","logicalType":"timestamp-micros"}"#,
                Value::TimestampMicros(1),
                "\"1970-01-01T00:00:00.000001Z\"",
            ),
            (
                r#"{"type":"long","logicalType":"local-timestamp-millis"}"#,
                Value::LocalTimestampMillis(0),
                "\"1970-01-01T00:00:00\"",
            ),
            (
                r#"{"type":"int","logicalType":"time-millis"}"#,
                Value::TimeMillis(1),
                "\"00:00:00.001\"",
            ),
            (
                r#"{"type":"long","connect.version":1,"connect.name":"io.debezium.time.MicroTimestamp"}"#,
                Value::Long(0),
                "\"1970-01-01T00:00:00\"",
            ),
            (
                r#"{"type":"fixed","name":"u","size":16,"logicalType":"uuid"}"#,
                Value::Fixed(16, (0..16).collect()),
                "\"00010203-0405-0607-0809-0a0b0c0d0e0f\"",
            ),
            (
                r#"{"type":"fixed","name":"f","size":2}"#,
                Value::Fixed(2, vec![255, 0]),
                "\"/wA=\"",
            ),
            (
                r#"{"type":"enum","name":"e","symbols":["A","B"]}"#,
                Value::Enum(1, "B".into()),
                "\"B\"",
            ),
            (
                r#"["null","int"]"#,
                Value::Union(1, Box::new(Value::Int(5))),
                "5",
            ),
            (
                r#"{"type":"array","items":"int"}"#,
                Value::Array(vec![Value::Int(1), Value::Int(-1)]),
                "[1,-1]",
            ),
            (
                r#"{"type":"map","values":"int"}"#,
                Value::Map([("a".to_owned(), Value::Int(1))].into()),
                "{\"a\":1}",
            ),
        ] {
            assert_eq!(round_trip(schema, value), expected, "{schema}");
        }
    }

    #[test]
    fn types_of_connect() {
        let decimal = r#"{"type":"record","name":"VariableScaleDecimal","namespace":"io.debezium.data","fields":[{"name":"scale","type":"int"},{"name":"value","type":"bytes"}],"connect.name":"io.debezium.data.VariableScaleDecimal"}"#;
        let value = Value::Record(vec![
            ("scale".into(), Value::Int(1)),
            ("value".into(), Value::Bytes(vec![0x04, 0xd2])),
        ]);
        assert_eq!(round_trip(decimal, value), "\"123.4\"");
        let map = r#"{"type":"array","items":{"type":"record","name":"MapEntry","namespace":"io.confluent.connect.avro","fields":[{"name":"key","type":"int"},{"name":"value","type":"double"}],"connect.internal.type":"MapEntry"}}"#;
        let entry = Value::Record(vec![
            ("key".into(), Value::Int(3)),
            ("value".into(), Value::Double(0.5)),
        ]);
        assert_eq!(round_trip(map, Value::Array(vec![entry])), "{\"3\":0.5}");
        let nested = r#"{"type":"record","name":"r","fields":[{"name":"inner","type":{"type":"record","name":"i","fields":[]}},{"name":"next","type":["null","r"]}]}"#;
        assert_eq!(
            read(nested, &[2, 0]).unwrap(),
            r#"{"inner":{},"next":{"inner":{},"next":null}}"#
        );
    }

    #[test]
    fn hostile_records_end() {
        let nulls = r#"{"type":"array","items":"null"}"#;
        let mut many = vec![0xfe; 8];
        many.push(0x7f);
        let rejected = read(nulls, &many).unwrap_err();
        assert_eq!(rejected.reason, DeadLetterReason::TooLarge);
        let endless = r#"{"type":"record","name":"r","fields":[{"name":"r","type":"r"}]}"#;
        assert_eq!(
            read(endless, &[]).unwrap_err().reason,
            DeadLetterReason::Schema
        );
        for (schema, bytes) in [
            (r#""int""#, &[0x80; 11][..]),
            (r#""int""#, &[]),
            (r#""int""#, &[0, 0]),
            (r#""string""#, &[1]),
            (r#""string""#, &[4, 0xff]),
            (r#""string""#, &[2, 0xff]),
            (
                r#""bytes""#,
                &[0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01],
            ),
            (r#"["null"]"#, &[2]),
            (r#"["null"]"#, &[1]),
        ] {
            let rejected = read(schema, bytes).unwrap_err();
            assert_eq!(rejected.reason, DeadLetterReason::Schema, "{schema}");
        }
    }

    fn leaf() -> impl Strategy<Value = (String, Value, serde_json::Value)> {
        prop_oneof![
            any::<i32>().prop_map(|n| (r#""int""#.to_owned(), Value::Int(n), n.into())),
            any::<i64>().prop_map(|n| (r#""long""#.to_owned(), Value::Long(n), n.into())),
            any::<bool>().prop_map(|b| (r#""boolean""#.to_owned(), Value::Boolean(b), b.into())),
            any::<String>()
                .prop_map(|s| { (r#""string""#.to_owned(), Value::String(s.clone()), s.into()) }),
            // Eighths, which the parser of the comparison reads exactly.
            any::<i32>().prop_map(|n| {
                let n = f64::from(n) / 8.0;
                (r#""double""#.to_owned(), Value::Double(n), n.into())
            }),
            Just((
                r#"["string","null"]"#.to_owned(),
                Value::Union(1, Box::new(Value::Null)),
                serde_json::Value::Null
            )),
        ]
    }

    fn tree() -> impl Strategy<Value = (String, Value, serde_json::Value)> {
        leaf().prop_recursive(3, 32, 5, |inner| {
            prop_oneof![
                (inner.clone(), 0_usize..4).prop_map(|((schema, value, json), count)| (
                    format!(r#"{{"type":"array","items":{schema}}}"#),
                    Value::Array(vec![value; count]),
                    vec![json; count].into()
                )),
                (inner.clone(), any::<String>()).prop_map(|((schema, value, json), key)| {
                    let object = serde_json::Map::from_iter([(key.clone(), json)]);
                    (
                        format!(r#"{{"type":"map","values":{schema}}}"#),
                        Value::Map([(key, value)].into()),
                        object.into(),
                    )
                }),
                inner.prop_map(|(schema, value, json)| (
                    // The names of nested records must differ.
                    format!(
                        r#"{{"type":"record","name":"r{}","fields":[{{"name":"f","type":{schema}}}]}}"#,
                        schema.len()
                    ),
                    Value::Record(vec![("f".into(), value)]),
                    serde_json::json!({"f": json})
                )),
            ]
        })
    }

    proptest! {
        #[test]
        fn what_the_other_implementation_writes((schema, value, expected) in tree()) {
            let text = round_trip(&schema, value);
            let json: serde_json::Value = serde_json::from_str(&text).unwrap();
            prop_assert_eq!(json, expected);
        }

        #[test]
        fn floats_keep_their_digits(double in proptest::num::f64::NORMAL, single in proptest::num::f32::NORMAL) {
            let text = round_trip(r#""double""#, Value::Double(double));
            prop_assert_eq!(text.parse::<f64>().unwrap(), double);
            let text = round_trip(r#""float""#, Value::Float(single));
            prop_assert_eq!(text.parse::<f32>().unwrap(), single);
        }

        #[test]
        fn no_bytes_panic((schema, _, _) in tree(), bytes: Vec<u8>) {
            let _ = read(&schema, &bytes);
        }
    }
}
