//! Dead letters in a topic of a real broker: bytes as they were, everything else in headers.

// The lint spares functions marked as tests, but not their helpers.
#![allow(clippy::unwrap_used)]

use rdkafka::ClientConfig;
use rdkafka::Message as _;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::message::{BorrowedMessage, Headers as _};
use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime};
use vectide_connectors::TopicConfig;
use vectide_connectors::testing::KafkaBroker;
use vectide_model::{
    DeadLetter, DeadLetterReason, DeadLetterSink, DeadLetterSinkConfig as _, KeptLetter,
    OpenContext, Position,
};

fn config(broker: &KafkaBroker, topic: &str) -> TopicConfig {
    let config = serde_json::json!({"topic": topic, "brokers": broker.address()});
    serde_json::from_value(config).unwrap()
}

fn sink(broker: &KafkaBroker, topic: &str) -> Box<dyn DeadLetterSink> {
    let context = OpenContext::in_folder("/");
    config(broker, topic).open(&context).unwrap()
}

fn letter(id: u64, raw_key: Option<&[u8]>, raw: Option<&[u8]>) -> KeptLetter {
    let position = Position {
        source: "pages".into(),
        partition: "pages/2".into(),
        offset: 40 + id,
    };
    let reason = DeadLetterReason::Schema;
    let key = Some("k".into());
    KeptLetter {
        id,
        written_at: SystemTime::UNIX_EPOCH,
        letter: DeadLetter::of_record(reason, position, key, "no such schema", (raw_key, raw)),
    }
}

fn headers(message: &BorrowedMessage<'_>) -> BTreeMap<String, String> {
    let headers = message.headers().unwrap().iter();
    let text = |bytes: Option<&[u8]>| String::from_utf8(bytes.unwrap().to_vec()).unwrap();
    headers
        .map(|it| (it.key.to_owned(), text(it.value)))
        .collect()
}

/// Key, value and headers of a record.
type Record = (Option<Vec<u8>>, Option<Vec<u8>>, BTreeMap<String, String>);

fn read(broker: &KafkaBroker, topic: &str, count: usize) -> Vec<Record> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", broker.address())
        .set("group.id", "test")
        .set("auto.offset.reset", "earliest")
        .create()
        .unwrap();
    consumer.subscribe(&[topic]).unwrap();
    let began_at = Instant::now();
    let mut records = Vec::new();
    while records.len() < count && began_at.elapsed() < Duration::from_secs(60) {
        if let Some(Ok(message)) = consumer.poll(Duration::from_millis(100)) {
            let key = message.key().map(<[u8]>::to_vec);
            let value = message.payload().map(<[u8]>::to_vec);
            records.push((key, value, headers(&message)));
        }
    }
    records
}

#[test]
fn letters_go_to_a_topic() {
    let Some(broker) = KafkaBroker::start_or_skip("letters_go_to_a_topic") else {
        return;
    };
    broker.create_topic("dead", 1, &[]);
    let context = OpenContext::in_folder("/");
    let checks = config(&broker, "dead").check_connection(&context);
    assert_eq!(checks[0].result.as_deref(), Ok("1 partition(s)"));
    let letters = [
        letter(0, Some(b"\xff\x00key"), Some(b"\x01\x02 not avro")),
        letter(1, None, Some(b"")),
        letter(2, Some(b"k"), None),
    ];
    let mut topic = sink(&broker, "dead");
    topic.write(&letters[..1]).unwrap();
    topic.write(&letters[1..]).unwrap();

    let records = read(&broker, "dead", 3);
    assert_eq!(records[0].0.as_deref(), Some(&b"\xff\x00key"[..]));
    assert_eq!(records[0].1.as_deref(), Some(&b"\x01\x02 not avro"[..]));
    assert_eq!(records[1].0, None);
    assert_eq!(records[2].1, None, "a tombstone stays one");
    for (id, (_, _, headers)) in records.iter().enumerate() {
        let offset = (40 + id).to_string();
        for (name, value) in [
            ("vectide-id", &*id.to_string()),
            ("vectide-reason", "schema"),
            ("vectide-detail", "no such schema"),
            ("vectide-source", "pages"),
            ("vectide-partition", "pages/2"),
            ("vectide-offset", &*offset),
            ("vectide-key", "k"),
            ("vectide-time", "1970-01-01T00:00:00.000Z"),
        ] {
            assert_eq!(headers.get(name).map(String::as_str), Some(value), "{name}");
        }
        assert!(!headers.contains_key("vectide-cut"));
    }

    let absent = config(&broker, "absent").check_connection(&context);
    assert!(absent[0].result.is_err());
    let error = sink(&broker, "absent").write(&letters).unwrap_err();
    assert!(error.hint.contains("create the topic"), "{error}");
}
