//! The Kafka source against a real broker.
//!
//! One broker serves all cases, each with topics of its own; it is stopped when the test ends,
//! however it ends.

// The lint spares functions marked as tests, but not their helpers.
#![allow(clippy::unwrap_used)]

use rdkafka::ClientConfig;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use std::collections::BTreeMap;
use std::time::Duration;
use vectide_connectors::KafkaConfig;
use vectide_connectors::testing::{
    HeldMap, KafkaBroker, KafkaRecord, RecordedRun, RecordingSink, run_source,
};
use vectide_model::{
    DeadLetterReason, OpenContext, Partition, ReadMode, SourceConfig, SourceError,
};

type Positions = BTreeMap<Partition, u64>;

type Case = (&'static str, fn(&KafkaBroker));

#[test]
fn against_a_real_broker() {
    let Some(broker) = KafkaBroker::start_or_skip("against_a_real_broker") else {
        return;
    };
    let cases: [Case; 12] = [
        (
            "changes of all partitions are read once",
            all_partitions_once,
        ),
        (
            "every stop between batches resumes exactly",
            stops_resume_exactly,
        ),
        ("bad records are dead letters", bad_records),
        ("Debezium's records fold to the table", debezium_records),
        ("aborted transactions are not seen", aborted_transactions),
        (
            "of interleaved transactions the kept one is seen",
            interleaved_transactions,
        ),
        (
            "topics with equal partition numbers all end",
            several_topics,
        ),
        ("positions that are gone are named", lost_positions),
        ("topics that are missing are named", missing_topics),
        ("a large backlog is read in order", large_backlog),
        ("a broker that comes back is read on", broker_comes_back),
        (
            "a topic deleted while it is followed is named",
            deleted_topic,
        ),
    ];
    for (name, case) in cases {
        let began_at = std::time::Instant::now();
        case(&broker);
        println!("ok: {name} ({:.1} s)", began_at.elapsed().as_secs_f64());
    }
}

fn start(
    broker: &KafkaBroker,
    topics: &[&str],
    format: &str,
    positions: &Positions,
    mode: ReadMode,
    sink: RecordingSink,
) -> RecordedRun {
    let config: KafkaConfig = serde_json::from_value(serde_json::json!({
        "brokers": broker.address(),
        "topics": topics,
        "format": {"type": format},
        "max_message": "100KiB",
    }))
    .unwrap();
    let context = OpenContext::in_folder("/");
    let source = config.open(&context).unwrap();
    run_source(source, positions.clone(), HeldMap::default(), mode, sink)
}

fn read_all(broker: &KafkaBroker, topics: &[&str], format: &str, from: &Positions) -> RecordedRun {
    let mode = ReadMode::UntilCaughtUp;
    let mut run = start(broker, topics, format, from, mode, RecordingSink::default());
    run.join().unwrap();
    assert_eq!(run.times_caught_up(), 1);
    run
}

fn produce(broker: &KafkaBroker, topic: &str, records: &[(i32, &str, Option<&str>)]) {
    let records: Vec<KafkaRecord<'_>> = records
        .iter()
        .map(|(partition, key, value)| KafkaRecord {
            topic,
            partition: *partition,
            key: Some(key.as_bytes()),
            value: value.map(str::as_bytes),
        })
        .collect();
    broker.produce(&records);
}

fn rows(run: &RecordedRun, before: &HeldMap) -> Vec<(String, String)> {
    let rows = run.fold(before.clone()).rows.into_iter();
    rows.map(|(key, row)| (key.to_string(), row.to_string()))
        .collect()
}

fn owned(rows: &[(&str, &str)]) -> Vec<(String, String)> {
    rows.iter()
        .map(|(key, row)| ((*key).to_owned(), (*row).to_owned()))
        .collect()
}

fn positions(of: &[(&str, u64)]) -> Positions {
    of.iter()
        .map(|(name, next)| (Partition::from(*name), *next))
        .collect()
}

fn all_partitions_once(broker: &KafkaBroker) {
    broker.create_topic("pages", 3, &[]);
    let nothing = read_all(broker, &["pages"], "upsert", &Positions::new());
    assert_eq!(nothing.changes(), []);
    produce(
        broker,
        "pages",
        &[
            (0, "a", Some(r#"{"n":1}"#)),
            (1, "b", Some(r#"{"n":2}"#)),
            (2, "\"c\"", Some(r#" {"n": 3} "#)),
            (0, "a", Some(r#"{"n":4}"#)),
            (1, "gone", Some(r#"{"n":5}"#)),
        ],
    );
    let first = read_all(broker, &["pages"], "upsert", &Positions::new());
    let expected = owned(&[
        ("a", r#"{"n":4}"#),
        ("b", r#"{"n":2}"#),
        ("c", r#"{"n": 3}"#),
        ("gone", r#"{"n":5}"#),
    ]);
    assert_eq!(rows(&first, &HeldMap::default()), expected);
    let after = first.positions(Positions::new());
    assert_eq!(
        after,
        positions(&[("pages/0", 2), ("pages/1", 2), ("pages/2", 1)])
    );
    let age = first.changes()[0].changed_at.elapsed().unwrap();
    assert!(age < Duration::from_secs(60), "the record's time: {age:?}");

    let again = read_all(broker, &["pages"], "upsert", &after);
    assert_eq!(again.changes(), []);

    // Updated, deleted, and new, in between.
    produce(
        broker,
        "pages",
        &[
            (0, "a", Some(r#"{"n":6}"#)),
            (1, "gone", None),
            (2, "d", Some(r#"{"n":7}"#)),
        ],
    );
    let rest = read_all(broker, &["pages"], "upsert", &after);
    assert_eq!(rest.changes().len(), 3, "exactly the rest");
    let expected = owned(&[
        ("a", r#"{"n":6}"#),
        ("b", r#"{"n":2}"#),
        ("c", r#"{"n": 3}"#),
        ("d", r#"{"n":7}"#),
    ]);
    assert_eq!(rows(&rest, &first.fold(HeldMap::default())), expected);

    // A partition that was added is read from its start.
    broker.grow_topic("pages", 4);
    let after = rest.positions(after);
    // A new producer knows the partition at once.
    let producer = new_producer(broker);
    let record = BaseRecord::to("pages").partition(3).key("e").payload("{}");
    producer.send(record).map_err(|(error, _)| error).unwrap();
    producer.flush(Duration::from_secs(30)).unwrap();
    let grown = poll_until(|| {
        let run = read_all(broker, &["pages"], "upsert", &after);
        (run.changes().len() == 1).then_some(run)
    });
    assert_eq!(grown.positions(Positions::new())["pages/3"], 1);
}

fn new_producer(broker: &KafkaBroker) -> BaseProducer {
    ClientConfig::new()
        .set("bootstrap.servers", broker.address())
        .create()
        .unwrap()
}

fn poll_until<T>(question: impl Fn() -> Option<T>) -> T {
    for _ in 0..100 {
        if let Some(answer) = question() {
            return answer;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    panic!("timed out");
}

/// Writes `count` records to the partitions in turns; the row holds the record's number.
fn produce_numbered(
    broker: &KafkaBroker,
    topic: &str,
    partitions: i32,
    numbers: std::ops::Range<usize>,
) {
    let rows: Vec<(i32, String, String)> = numbers
        .map(|number| {
            let partition = i32::try_from(number).unwrap() % partitions;
            (
                partition,
                format!("k{number}"),
                format!(r#"{{"number":{number}}}"#),
            )
        })
        .collect();
    let records: Vec<(i32, &str, Option<&str>)> = rows
        .iter()
        .map(|(partition, key, row)| (*partition, key.as_str(), Some(row.as_str())))
        .collect();
    produce(broker, topic, &records);
}

fn partition_and_offset(run: &RecordedRun) -> Vec<(Partition, u64)> {
    let changes = run.changes().into_iter();
    changes
        .map(|change| (change.position.partition, change.position.offset))
        .collect()
}

fn stops_resume_exactly(broker: &KafkaBroker) {
    broker.create_topic("stops", 2, &[]);
    produce_numbered(broker, "stops", 2, 0..3_000);
    let mut after = Positions::new();
    let mut seen = Vec::new();
    for batches in [0, 1, 2, 1, 3] {
        let sink = RecordingSink::stopping_after(batches);
        let mut run = start(
            broker,
            &["stops"],
            "upsert",
            &after,
            ReadMode::UntilCaughtUp,
            sink,
        );
        run.join().unwrap();
        after = run.positions(after);
        seen.extend(partition_and_offset(&run));
        assert!(run.batches().iter().all(|batch| batch.changes.len() <= 500));
    }
    let rest = read_all(broker, &["stops"], "upsert", &after);
    seen.extend(partition_and_offset(&rest));
    for partition in ["stops/0", "stops/1"] {
        let of_partition = seen.iter().filter(|(name, _)| &**name == partition);
        let offsets: Vec<u64> = of_partition.map(|(_, offset)| *offset).collect();
        assert_eq!(offsets, (0..1_500).collect::<Vec<u64>>(), "{partition}");
    }
}

fn bad_records(broker: &KafkaBroker) {
    broker.create_topic("bad", 1, &[]);
    let long = format!(r#"{{"text":"{}"}}"#, "x".repeat(200_000));
    let record = |key: Option<&'static [u8]>, value: Option<&'static [u8]>| KafkaRecord {
        topic: "bad",
        partition: 0,
        key,
        value,
    };
    broker.produce(&[
        record(Some(b"a"), Some(b"not json")),
        record(None, Some(b"{}")),
        record(Some(b"\xff"), Some(b"{}")),
        record(Some(b"b"), Some(b"[1]")),
        record(Some(b"c"), Some(b"{\"t\":\"\xff\"}")),
        record(Some(b"good"), Some(b"{\"n\":1}")),
        record(Some(b"d"), Some(b"")),
        KafkaRecord {
            value: Some(long.as_bytes()),
            ..record(Some(b"long"), None)
        },
        record(Some(b"good too"), Some(b"{\"n\":2}")),
    ]);
    let run = read_all(broker, &["bad"], "upsert", &Positions::new());
    use DeadLetterReason::*;
    let letters: Vec<(DeadLetterReason, u64, Option<String>)> = run
        .dead_letters()
        .into_iter()
        .map(|letter| {
            assert!(!letter.raw.is_empty() || letter.position.offset == 6);
            let key = letter.key.map(|key| key.to_string());
            (letter.reason, letter.position.offset, key)
        })
        .collect();
    let key = |text: &str| Some(text.to_owned());
    assert_eq!(
        letters,
        [
            (Undecodable, 0, key("a")),
            (MissingKey, 1, None),
            (Undecodable, 2, None),
            (WrongType, 3, key("b")),
            (Undecodable, 4, key("c")),
            (Undecodable, 6, key("d")),
            (TooLarge, 7, None),
        ]
    );
    let expected = owned(&[("good", r#"{"n":1}"#), ("good too", r#"{"n":2}"#)]);
    assert_eq!(rows(&run, &HeldMap::default()), expected);
    assert_eq!(run.positions(Positions::new())["bad/0"], 9);
}

fn debezium_records(broker: &KafkaBroker) {
    broker.create_topic("shop.public.pages", 1, &[]);
    let schema_key =
        |id: u32| format!(r#"{{"schema":{{"type":"struct"}},"payload":{{"id":{id}}}}}"#);
    let bare_key = |id: u32| format!(r#"{{"id":{id}}}"#);
    let event = |op: &str, after: &str| {
        format!(
            r#"{{"before":null,"after":{after},"source":{{"ts_ms":1700000000000}},"op":"{op}","ts_ms":1}}"#
        )
    };
    let wrapped = |event: String| format!(r#"{{"schema":{{}},"payload":{event}}}"#);
    let records = [
        (
            schema_key(1),
            Some(wrapped(event("r", r#"{"id":1,"t":"snapshot"}"#))),
        ),
        (bare_key(2), Some(event("c", r#"{"id":2,"t":"two"}"#))),
        (bare_key(1), Some(event("u", r#"{"id":1,"t":"updated"}"#))),
        (bare_key(3), Some(event("c", r#"{"id":3,"t":"three"}"#))),
        (bare_key(3), Some(event("d", "null"))),
        (bare_key(3), None),
        // The primary key 2 becomes 20.
        (schema_key(2), Some(wrapped(event("d", "null")))),
        (schema_key(2), None),
        (
            schema_key(20),
            Some(wrapped(event("c", r#"{"id":20,"t":"two"}"#))),
        ),
        (
            r#"{"serverName":"shop"}"#.to_owned(),
            Some(r#"{"ts_ms":1}"#.to_owned()),
        ),
        (
            bare_key(1),
            Some(event("u", r#"{"id":1,"t":"__debezium_unavailable_value"}"#)),
        ),
    ];
    let records: Vec<(i32, &str, Option<&str>)> = records
        .iter()
        .map(|(key, value)| (0, key.as_str(), value.as_deref()))
        .collect();
    produce(broker, "shop.public.pages", &records);
    let run = read_all(
        broker,
        &["shop.public.pages"],
        "debezium",
        &Positions::new(),
    );
    let expected = owned(&[
        ("1", r#"{"id":1,"t":"updated"}"#),
        ("20", r#"{"id":20,"t":"two"}"#),
    ]);
    assert_eq!(rows(&run, &HeldMap::default()), expected);
    assert_eq!(run.dead_letters(), []);
    let last = run.changes().pop().unwrap();
    assert_eq!(last.unchanged_fields, ["t".into()]);
    assert_eq!(run.positions(Positions::new())["shop.public.pages/0"], 11);
    let at = run.changes()[0]
        .changed_at
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap();
    assert_eq!(at.as_millis(), 1_700_000_000_000);
}

fn aborted_transactions(broker: &KafkaBroker) {
    broker.create_topic("transactions", 1, &[]);
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", broker.address())
        .set("transactional.id", "test")
        .create()
        .unwrap();
    let timeout = Duration::from_secs(30);
    producer.init_transactions(timeout).unwrap();
    let send = |key: &str| {
        producer.begin_transaction().unwrap();
        let record = BaseRecord::to("transactions").key(key).payload("{}");
        producer.send(record).map_err(|(error, _)| error).unwrap();
        producer.flush(timeout).unwrap();
    };
    send("committed");
    producer.commit_transaction(timeout).unwrap();
    send("aborted");
    producer.abort_transaction(timeout).unwrap();
    send("last");
    producer.commit_transaction(timeout).unwrap();
    // Offsets: a record and a marker for each transaction; the topic ends in a marker.
    let run = read_all(broker, &["transactions"], "upsert", &Positions::new());
    let seen: Vec<(String, u64)> = run
        .changes()
        .into_iter()
        .map(|change| (change.key.to_string(), change.position.offset))
        .collect();
    assert_eq!(seen, [("committed".to_owned(), 0), ("last".to_owned(), 4)]);
    let after = run.positions(Positions::new());
    assert_eq!(after["transactions/0"], 5);
    assert_eq!(
        read_all(broker, &["transactions"], "upsert", &after).changes(),
        []
    );

    // One that is still open hides what comes after it.
    send("open");
    produce(broker, "transactions", &[(0, "behind", Some("{}"))]);
    assert_eq!(
        read_all(broker, &["transactions"], "upsert", &after).changes(),
        []
    );
    producer.abort_transaction(timeout).unwrap();
    let rest = poll_until(|| {
        let run = read_all(broker, &["transactions"], "upsert", &after);
        (!run.changes().is_empty()).then_some(run)
    });
    assert_eq!(rows(&rest, &HeldMap::default()), owned(&[("behind", "{}")]));
}

/// Records of two transactions lie between each other; one of them is aborted.
fn interleaved_transactions(broker: &KafkaBroker) {
    broker.create_topic("interleaved", 1, &[]);
    let timeout = Duration::from_secs(30);
    let [first, second] = ["first", "second"].map(|id| {
        let producer: BaseProducer = ClientConfig::new()
            .set("bootstrap.servers", broker.address())
            .set("transactional.id", id)
            .create()
            .unwrap();
        producer.init_transactions(timeout).unwrap();
        producer.begin_transaction().unwrap();
        producer
    });
    let send = |producer: &BaseProducer, key: &str| {
        let record = BaseRecord::to("interleaved").key(key).payload("{}");
        producer.send(record).map_err(|(error, _)| error).unwrap();
        producer.flush(timeout).unwrap();
    };
    for number in 0..3 {
        send(&first, &format!("kept {number}"));
        send(&second, &format!("aborted {number}"));
        produce(
            broker,
            "interleaved",
            &[(0, &format!("alone {number}"), Some("{}"))],
        );
    }
    second.abort_transaction(timeout).unwrap();
    first.commit_transaction(timeout).unwrap();
    let run = read_all(broker, &["interleaved"], "upsert", &Positions::new());
    let seen: Vec<(String, u64)> = run
        .changes()
        .into_iter()
        .map(|change| (change.key.to_string(), change.position.offset))
        .collect();
    let expected: Vec<(String, u64)> = (0..3)
        .flat_map(|number| {
            [
                (format!("kept {number}"), number * 3),
                (format!("alone {number}"), number * 3 + 2),
            ]
        })
        .collect();
    assert_eq!(seen, expected);
}

fn several_topics(broker: &KafkaBroker) {
    for topic in ["one", "two", "empty"] {
        broker.create_topic(topic, 2, &[]);
    }
    produce_numbered(broker, "one", 2, 0..10);
    produce_numbered(broker, "two", 2, 10..700);
    for _ in 0..5 {
        let run = read_all(
            broker,
            &["one", "two", "empty"],
            "upsert",
            &Positions::new(),
        );
        assert_eq!(run.changes().len(), 700);
        let names = [
            ("empty/0", 0),
            ("empty/1", 0),
            ("one/0", 5),
            ("one/1", 5),
            ("two/0", 345),
            ("two/1", 345),
        ];
        assert_eq!(run.positions(Positions::new()), positions(&names));
    }
}

fn lost(broker: &KafkaBroker, topic: &str, from: &[(&str, u64)]) -> String {
    let mode = ReadMode::Follow;
    let mut run = start(
        broker,
        &[topic],
        "upsert",
        &positions(from),
        mode,
        RecordingSink::default(),
    );
    match run.join() {
        Err(error @ SourceError::PositionLost { .. }) => {
            assert_eq!(run.changes(), [], "nothing may be read");
            error.to_string()
        }
        other => panic!("expected a lost position, got {other:?}"),
    }
}

fn lost_positions(broker: &KafkaBroker) {
    broker.create_topic("lost", 1, &[]);
    produce_numbered(broker, "lost", 1, 0..10);
    assert!(lost(broker, "lost", &[("lost/0", 11)]).contains("ends at 10"));
    assert!(lost(broker, "lost", &[("lost/0", 1), ("lost/1", 1)]).contains("partition 1"));
    broker.delete_records_before("lost", 0, 4);
    assert!(lost(broker, "lost", &[("lost/0", 3)]).contains("below 4"));
    let from = positions(&[("lost/0", 4)]);
    assert_eq!(
        read_all(broker, &["lost"], "upsert", &from).changes().len(),
        6
    );
    // Without a position reading begins where the topic does.
    assert_eq!(
        read_all(broker, &["lost"], "upsert", &Positions::new())
            .changes()
            .len(),
        6
    );
}

fn missing_topics(broker: &KafkaBroker) {
    let mode = ReadMode::UntilCaughtUp;
    let mut run = start(
        broker,
        &["never-made"],
        "upsert",
        &Positions::new(),
        mode,
        RecordingSink::default(),
    );
    let error = run.join().unwrap_err();
    assert!(
        matches!(&error, SourceError::Failed { detail, .. } if detail.contains("never-made")),
        "{error}"
    );
    assert!(lost(broker, "never-made", &[("never-made/0", 1)]).contains("is gone"));
}

fn large_backlog(broker: &KafkaBroker) {
    const RECORDS: usize = 60_000;
    broker.create_topic("backlog", 3, &[("compression.type", "zstd")]);
    produce_numbered(broker, "backlog", 3, 0..RECORDS);
    let began_at = std::time::Instant::now();
    let run = read_all(broker, &["backlog"], "upsert", &Positions::new());
    println!(
        "   {RECORDS} records in {:.2} s, {} batches",
        began_at.elapsed().as_secs_f64(),
        run.batches().len()
    );
    let mut next: BTreeMap<Partition, u64> = BTreeMap::new();
    for (partition, offset) in partition_and_offset(&run) {
        let expected = next.entry(partition).or_default();
        assert_eq!(offset, *expected);
        *expected += 1;
    }
    assert_eq!(next.values().sum::<u64>(), RECORDS as u64);
    for batch in run.batches() {
        assert!(batch.divisible);
        for change in batch.changes {
            let next = batch.positions[&change.position.partition];
            assert!(
                next > change.position.offset,
                "a batch's positions cover its changes"
            );
        }
    }
}

fn broker_comes_back(broker: &KafkaBroker) {
    broker.create_topic("comes-back", 1, &[]);
    produce_numbered(broker, "comes-back", 1, 0..100);
    let mode = ReadMode::Follow;
    let mut run = start(
        broker,
        &["comes-back"],
        "upsert",
        &Positions::new(),
        mode,
        RecordingSink::default(),
    );
    run.wait_until("the first are read", |run| run.changes().len() == 100);
    assert_eq!(run.times_caught_up(), 1);
    let mut milliseconds: Vec<f64> = (100..120)
        .map(|number| {
            let began_at = std::time::Instant::now();
            produce_numbered(broker, "comes-back", 1, number..number + 1);
            run.wait_until("one more is read", |run| run.changes().len() > number);
            began_at.elapsed().as_secs_f64() * 1e3
        })
        .collect();
    milliseconds.sort_by(f64::total_cmp);
    println!(
        "   written until seen: median {:.1} ms, slowest of 20 {:.1} ms",
        milliseconds[10], milliseconds[19]
    );
    broker.stop().unwrap();
    std::thread::sleep(Duration::from_secs(2));
    broker.start_again().unwrap();
    produce_numbered(broker, "comes-back", 1, 120..200);
    run.wait_until("the rest is read", |run| run.changes().len() >= 200);
    let offsets: Vec<u64> = partition_and_offset(&run)
        .into_iter()
        .map(|(_, offset)| offset)
        .collect();
    assert_eq!(offsets, (0..200).collect::<Vec<u64>>());
    run.stop().unwrap();
}

fn deleted_topic(broker: &KafkaBroker) {
    broker.create_topic("deleted", 1, &[]);
    produce_numbered(broker, "deleted", 1, 0..10);
    let mode = ReadMode::Follow;
    let mut run = start(
        broker,
        &["deleted"],
        "upsert",
        &Positions::new(),
        mode,
        RecordingSink::default(),
    );
    run.wait_until("all are read", |run| run.changes().len() == 10);
    broker.delete_topic("deleted");
    let error = run.join().unwrap_err();
    assert!(matches!(error, SourceError::PositionLost { .. }), "{error}");
    // Made anew with fewer records than were read.
    broker.create_topic("deleted", 1, &[]);
    produce_numbered(broker, "deleted", 1, 0..5);
    assert!(lost(broker, "deleted", &[("deleted/0", 10)]).contains("made anew"));
}
