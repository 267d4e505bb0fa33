//! Records whose schemas are in a registry, from the configuration to the change.
//!
//! The registry here is a few fixed answers over real HTTP: what is tested is the client, its cache
//! and what becomes of its errors. A real registry is in the tests of the whole.

#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use vectide_connectors::envelope::format::{DecodeError, RecordDecoder, RecordFormat};
use vectide_connectors::envelope::{Decoded, DecodedChange, Header, RawRecord};
use vectide_model::DeadLetterReason;

const ENVELOPE: &str = r#"{"type":"record","name":"Envelope","fields":[
    {"name":"before","type":["null","shop.Value"]},
    {"name":"after","type":["null","shop.Value"]},
    {"name":"op","type":"string"}]}"#;
const VALUE: &str = r#"{"type":"record","name":"Value","namespace":"shop","fields":[
    {"name":"id","type":"int"},{"name":"day","type":"shop.Day"}]}"#;
const DAY: &str = r#"{"type":"record","name":"Day","namespace":"shop","fields":[
    {"name":"at","type":{"type":"int","connect.name":"io.debezium.time.Date"}}]}"#;
const KEY: &str = r#"{"type":"record","name":"Key","fields":[{"name":"id","type":"int"}]}"#;
const GUID: [u8; 16] = [0xab; 16];

/// Answers of a status and a body, by path.
type Answers = HashMap<String, (u16, String)>;

/// Path and `Authorization` of a request.
type Request = (String, Option<String>);

#[derive(Clone, Default)]
struct Registry {
    answers: Arc<Mutex<Answers>>,
    requests: Arc<Mutex<Vec<Request>>>,
    url: String,
}

impl Registry {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let registry = Self {
            url: format!("http://{}", listener.local_addr().unwrap()),
            ..Self::default()
        };
        let served = registry.clone();
        // Ends with the process of the test.
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                served.serve(stream.unwrap());
            }
        });
        registry.answer("/schemas/ids/1", 200, &schema(KEY, None, &[]));
        let uses = |name: &'static str, subject: &'static str| [(name, subject)];
        registry.answer(
            "/schemas/ids/2",
            200,
            &schema(ENVELOPE, Some("AVRO"), &uses("shop.Value", "pages/value")),
        );
        registry.answer(
            "/subjects/pages%2Fvalue/versions/1",
            200,
            &schema(VALUE, None, &uses("shop.Day", "day")),
        );
        registry.answer("/subjects/day/versions/1", 200, &schema(DAY, None, &[]));
        registry
    }

    fn answer(&self, path: &str, status: u16, body: &str) {
        let mut answers = self.answers.lock().unwrap();
        answers.insert(path.to_owned(), (status, body.to_owned()));
    }

    fn serve(&self, mut stream: TcpStream) {
        let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
        let Some(Ok(first)) = lines.next() else {
            return;
        };
        let path = first.split(' ').nth(1).unwrap().to_owned();
        let mut authorization = None;
        for line in lines
            .map_while(Result::ok)
            .take_while(|line| !line.is_empty())
        {
            if let Some((name, value)) = line.split_once(": ")
                && name.eq_ignore_ascii_case("authorization")
            {
                authorization = Some(value.to_owned());
            }
        }
        let unknown = r#"{"error_code":40403,"message":"Schema not found"}"#;
        let answers = self.answers.lock().unwrap().clone();
        let (status, body) = match answers.get(&path) {
            Some((status, body)) => (*status, &**body),
            None => (404, unknown),
        };
        self.requests.lock().unwrap().push((path, authorization));
        let length = body.len();
        let _ = write!(
            stream,
            "HTTP/1.1 {status} x\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
        );
    }

    fn requests(&self) -> usize {
        self.requests.lock().unwrap().len()
    }

    fn decoder(&self, encoding: &str) -> RecordDecoder {
        open(serde_json::json!({
            "type": "debezium",
            "encoding": encoding,
            "registry": {"url": self.url, "username": "u", "password": "p"},
        }))
    }
}

fn open(format: serde_json::Value) -> RecordDecoder {
    let format: RecordFormat = serde_json::from_value(format).unwrap();
    assert_eq!(format.check(), []);
    format.open().unwrap()
}

fn schema(text: &str, language: Option<&str>, references: &[(&str, &str)]) -> String {
    let references: Vec<_> = references
        .iter()
        .map(|(name, subject)| serde_json::json!({"name": name, "subject": subject, "version": 1}))
        .collect();
    let mut answer = serde_json::json!({"schema": text, "references": references});
    if let Some(language) = language {
        answer["schemaType"] = language.into();
    }
    answer.to_string()
}

fn framed(id: u32, payload: &[u8]) -> Vec<u8> {
    [&[0], &id.to_be_bytes()[..], payload].concat()
}

/// `op` u of a row with `id` 5 and 2024-02-29.
fn update() -> Vec<u8> {
    vec![0, 2, 10, 0x8c, 0xb5, 0x02, 2, b'u']
}

fn decode(
    decoder: &mut RecordDecoder,
    key: &[u8],
    value: &[u8],
    headers: &[Header<'_>],
) -> Result<DecodedChange, DecodeError> {
    let mut decoded = Vec::new();
    decoder.decode(
        &RawRecord {
            topic: "t",
            key: Some(key),
            value: Some(value),
            headers,
        },
        &mut decoded,
    )?;
    match decoded.remove(0) {
        Decoded::Change(change) => Ok(change),
        other => panic!("decoded as {other:?}"),
    }
}

fn reason(result: Result<DecodedChange, DecodeError>) -> (DeadLetterReason, String) {
    match result {
        Err(DecodeError::Rejected(rejected)) => (rejected.reason, rejected.detail),
        other => panic!("decoded as {other:?}"),
    }
}

fn unavailable(result: Result<DecodedChange, DecodeError>) -> String {
    match result {
        Err(DecodeError::Unavailable(why)) => why,
        other => panic!("decoded as {other:?}"),
    }
}

#[test]
fn schemas_are_asked_for_once_with_all_that_they_use() {
    let registry = Registry::start();
    let mut decoder = registry.decoder("avro");
    for _ in 0..3 {
        let (key, value) = (framed(1, &[10]), framed(2, &update()));
        let change = decode(&mut decoder, &key, &value, &[]).unwrap();
        assert_eq!(&*change.key, "5");
        let row = r#"{"id":5,"day":{"at":"2024-02-29"}}"#;
        assert_eq!(change.row.as_deref(), Some(row));
    }
    assert_eq!(registry.requests(), 4);
    let (_, authorization) = registry.requests.lock().unwrap()[0].clone();
    assert_eq!(authorization.as_deref(), Some("Basic dTpw"));
    // A key may have a converter of its own.
    let change = decode(&mut decoder, br#"{"id":7}"#, &framed(2, &update()), &[]).unwrap();
    assert_eq!(&*change.key, "7");
}

#[test]
fn schemas_named_by_headers() {
    let registry = Registry::start();
    let envelope = schema(ENVELOPE, None, &[("shop.Value", "pages/value")]);
    registry.answer(
        "/schemas/guids/abababab-abab-abab-abab-abababababab",
        200,
        &envelope,
    );
    let mut decoder = registry.decoder("avro");
    let guid = [&[1], &GUID[..]].concat();
    let key_id = framed(1, &[]);
    let headers: [Header<'_>; 2] = [
        ("__key_schema_id", Some(&key_id)),
        ("__value_schema_id", Some(&guid)),
    ];
    let change = decode(&mut decoder, &[10], &update(), &headers).unwrap();
    assert_eq!(&*change.key, "5");
    let broken: [Header<'_>; 1] = [("__value_schema_id", Some(b"\x02"))];
    let (reason, _) = reason(decode(&mut decoder, b"5", &update(), &broken));
    assert_eq!(reason, DeadLetterReason::Schema);
}

#[test]
fn a_schema_that_is_not_there_is_a_dead_letter() {
    let registry = Registry::start();
    let mut decoder = registry.decoder("avro");
    for _ in 0..3 {
        let (reason, detail) = reason(decode(&mut decoder, b"5", &framed(99, &update()), &[]));
        assert_eq!(reason, DeadLetterReason::Schema);
        assert!(detail.contains("schema 99"), "{detail}");
    }
    assert_eq!(
        registry.requests(),
        1,
        "what is missing is not asked for again at once"
    );
    registry.answer("/schemas/ids/3", 200, &schema("nonsense!", None, &[]));
    registry.answer("/schemas/ids/4", 200, &schema("x", Some("XML"), &[]));
    registry.answer("/schemas/ids/5", 200, &schema("{}", Some("JSON"), &[]));
    registry.answer(
        "/schemas/ids/6",
        200,
        &schema(ENVELOPE, None, &[("shop.Value", "gone")]),
    );
    for id in 3..=6 {
        let (reason, _) = reason(decode(&mut decoder, b"5", &framed(id, &update()), &[]));
        assert_eq!(reason, DeadLetterReason::Schema, "{id}");
    }
    for value in [&b""[..], b"\x00\x00", b"{\"op\":\"d\"}"] {
        let (reason, _) = reason(decode(&mut decoder, b"5", value, &[]));
        assert_eq!(reason, DeadLetterReason::Schema);
    }
    let cut = &framed(2, &update())[..9];
    let (reason, detail) = reason(decode(&mut decoder, b"5", cut, &[]));
    assert_eq!(reason, DeadLetterReason::Schema);
    assert!(detail.starts_with("schema 2: "), "{detail}");
}

#[test]
fn a_registry_that_is_away_is_asked_again() {
    let registry = Registry::start();
    let mut decoder = registry.decoder("avro");
    let value = framed(2, &update());
    for (status, body, expected) in [
        (500, "", "status 500"),
        (503, r#"{"error_code":50003,"message":"x"}"#, "status 503"),
        (401, r#"{"error_code":401,"message":"x"}"#, "refuses us"),
        (404, "<html>", "check `url`"),
        (200, "<html>", "no schema"),
    ] {
        registry.answer("/schemas/ids/2", status, body);
        let why = unavailable(decode(&mut decoder, b"5", &value, &[]));
        assert!(why.contains(expected), "{why}");
        assert!(!why.contains("Basic"), "{why}");
    }
    let envelope = schema(ENVELOPE, None, &[("shop.Value", "pages/value")]);
    registry.answer("/schemas/ids/2", 200, &envelope);
    assert!(decode(&mut decoder, b"5", &value, &[]).is_ok());
    // A port that nobody listens on any more.
    let closed = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let mut decoder = open(serde_json::json!({
        "type": "upsert", "encoding": "json-schema", "registry": {"url": format!("http://{closed}")},
    }));
    unavailable(decode(&mut decoder, b"5", &value, &[]));
}

#[test]
fn the_other_languages() {
    let registry = Registry::start();
    let proto = r#"syntax = "proto3"; import "day.proto"; message Other {}
        message Envelope { Value after = 1; string op = 2; }
        message Value { int32 id = 1; shop.Day day = 2; }"#;
    let day = r#"syntax = "proto3"; package shop; import "google/type/date.proto";
        message Day { google.type.Date at = 1; }"#;
    registry.answer(
        "/subjects/day.proto/versions/1",
        200,
        &schema(day, Some("PROTOBUF"), &[]),
    );
    let uses = [("day.proto", "day.proto")];
    registry.answer(
        "/schemas/ids/7",
        200,
        &schema(proto, Some("PROTOBUF"), &uses),
    );
    let row = [8, 5, 18, 9, 10, 7, 8, 0xe8, 0x0f, 16, 2, 24, 29];
    let body = [&[2, 2, 10, 13][..], &row, &[18, 1, b'u']].concat();
    let mut decoder = registry.decoder("protobuf");
    let change = decode(&mut decoder, b"5", &framed(7, &body), &[]).unwrap();
    let expected = r#"{"id":5,"day":{"at":"2024-02-29"}}"#;
    assert_eq!(change.row.as_deref(), Some(expected));

    let json = r#"{"type":"object","properties":{"after":{"type":"object","properties":{
        "day":{"type":"object","properties":{"at":{"type":"integer","title":"io.debezium.time.Date"}}}}}}}"#;
    registry.answer("/schemas/ids/8", 200, &schema(json, Some("JSON"), &[]));
    let body = br#"{"op":"u","after":{"id":5,"day":{"at":19782}}}"#;
    let mut decoder = registry.decoder("json-schema");
    let change = decode(&mut decoder, b"5", &framed(8, body), &[]).unwrap();
    assert_eq!(change.row.as_deref(), Some(expected));
}

#[test]
fn faults_of_the_configuration() {
    for (format, expected) in [
        (
            serde_json::json!({"type": "debezium", "encoding": "avro"}),
            "registry",
        ),
        (
            serde_json::json!({"type": "upsert", "registry": {"url": "http://a"}}),
            "registry",
        ),
        (
            serde_json::json!({"type": "upsert", "encoding": "avro", "registry": {"url": "a"}}),
            "registry.url",
        ),
        (
            serde_json::json!({"type": "debezium", "unavailable_value": "hex:1"}),
            "unavailable_value",
        ),
    ] {
        let format: RecordFormat = serde_json::from_value(format).unwrap();
        let fields: Vec<_> = format.check().into_iter().map(|it| it.field).collect();
        assert_eq!(fields, [expected]);
    }
    let missing = serde_json::json!({
        "type": "upsert", "encoding": "avro",
        "registry": {"url": "https://a", "ca": "/nowhere/ca.pem"},
    });
    let format: RecordFormat = serde_json::from_value(missing).unwrap();
    let error = format.open().err().unwrap();
    assert_eq!(error.field, "format.registry.ca");
    for wrong in [
        serde_json::json!({"type": "maxwell", "encoding": "avro"}),
        serde_json::json!({"type": "debezium", "x": 1}),
        serde_json::json!({"type": "upsert", "encoding": "json", "registry": {"url": "a", "x": 1}}),
    ] {
        assert!(serde_json::from_value::<RecordFormat>(wrong).is_err());
    }
}
