//! What happens to a Kafka source while it runs, against a real broker: topics and partitions that
//! come, topics that become others, truncates, transactions of the source, a decoder that can't
//! answer, and a broker that is killed again and again.

// The lint spares functions marked as tests, but not their helpers.
#![allow(clippy::unwrap_used)]

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};
use vectide_connectors::KafkaConfig;
use vectide_connectors::envelope::format::DecodeError;
use vectide_connectors::envelope::{
    Decoded, DecodedChange, RawRecord, TransactionMarker, TransactionPlace,
};
use vectide_connectors::testing::{
    HeldMap, KafkaBroker, KafkaRecord, RecordedRun, RecordingSink, Resume, is_torture, run_source,
};
use vectide_model::{
    OpenContext, Partition, ReadMode, Source, SourceBatch, SourceConfig, SourceError, SourceSink,
    SourceStart, StopSignal, Stopped,
};

type Case = (&'static str, fn(&KafkaBroker));

#[test]
fn while_it_runs() {
    let Some(broker) = KafkaBroker::start_or_skip("while_it_runs") else {
        return;
    };
    let cases: [Case; 15] = [
        ("topics and partitions that come are read", topics_that_come),
        ("a topic made anew is named", made_anew),
        (
            "a topic made anew while it is followed is named",
            made_anew_while_followed,
        ),
        (
            "retention that overtakes a blocked reader is named",
            retention_overtakes,
        ),
        ("a compacted record proves nothing", compacted_record),
        (
            "durable positions are committed to Kafka",
            durable_is_committed,
        ),
        ("a truncate deletes what is held", truncates),
        ("lag and positions are metrics", metrics_are_told),
        ("a decoder that can't answer is asked again", decoder_away),
        ("transactions are whole", transactions),
        (
            "a transaction is whole after a pipeline that took nothing",
            whole_after_a_full_pipeline,
        ),
        (
            "a transaction is whole after a decoder that can't answer",
            whole_after_a_decoder_away,
        ),
        ("what a connection check says", connection_check),
        ("where the topics end", ends),
        (
            "a broker killed under load loses and repeats nothing",
            killed_under_load,
        ),
    ];
    for (name, case) in cases {
        let began_at = Instant::now();
        case(&broker);
        println!("ok: {name} ({:.1} s)", began_at.elapsed().as_secs_f64());
    }
}

fn config(broker: &KafkaBroker, topics: &[&str], more: Value) -> KafkaConfig {
    let mut config = json!({
        "brokers": broker.address(),
        "topics": topics,
        "format": {"type": "upsert"},
        "discover_interval": "500ms",
    });
    let fields = config.as_object_mut().unwrap();
    fields.extend(more.as_object().unwrap().clone());
    serde_json::from_value(config).unwrap()
}

fn context() -> OpenContext {
    OpenContext::in_folder("/")
}

fn open(broker: &KafkaBroker, topics: &[&str]) -> Box<dyn Source> {
    config(broker, topics, json!({})).open(&context()).unwrap()
}

fn follow(source: Box<dyn Source>, from: impl Into<Resume>) -> RecordedRun {
    let sink = RecordingSink::default();
    run_source(source, from, HeldMap::default(), ReadMode::Follow, sink)
}

/// Reads all there is, and says where to go on.
fn read_all(source: Box<dyn Source>, from: Resume) -> (RecordedRun, Result<(), SourceError>) {
    let sink = RecordingSink::default();
    let mode = ReadMode::UntilCaughtUp;
    let mut run = run_source(source, from, HeldMap::default(), mode, sink);
    let result = run.join();
    (run, result)
}

fn produce(broker: &KafkaBroker, topic: &str, partition: i32, keys: &[&str]) {
    let records: Vec<KafkaRecord<'_>> = keys
        .iter()
        .map(|key| KafkaRecord {
            topic,
            partition,
            key: Some(key.as_bytes()),
            value: Some(b"{}"),
        })
        .collect();
    broker.produce(&records);
}

fn keys(run: &RecordedRun) -> BTreeSet<String> {
    let changes = run.changes().into_iter();
    changes.map(|change| change.key.to_string()).collect()
}

fn lost(result: Result<(), SourceError>) -> String {
    match result {
        Err(error @ SourceError::PositionLost { .. }) => {
            let text = error.to_string();
            assert!(
                text.contains("vectide run CONFIG --resnapshot source"),
                "{text}"
            );
            text
        }
        other => panic!("the position counts as good: {other:?}"),
    }
}

fn topics_that_come(broker: &KafkaBroker) {
    let mut run = follow(open(broker, &["^come\\..*"]), Resume::default());
    run.wait_until("there is nothing", |run| run.times_caught_up() == 1);
    broker.create_topic("come.a", 1, &[]);
    produce(broker, "come.a", 0, &["a1", "a2"]);
    run.wait_until("a new topic is read", |run| keys(run).len() == 2);
    broker.create_topic("come.b", 2, &[]);
    produce(broker, "come.b", 0, &["b1"]);
    produce(broker, "come.b", 1, &["b2"]);
    produce(broker, "come.a", 0, &["a3"]);
    run.wait_until("another one is read", |run| keys(run).len() == 5);
    broker.grow_topic("come.a", 2);
    let fresh = ClientConfig::new()
        .set("bootstrap.servers", broker.address())
        .create::<rdkafka::producer::BaseProducer>()
        .unwrap();
    let record = rdkafka::producer::BaseRecord::to("come.a")
        .partition(1)
        .key("a4")
        .payload("{}");
    fresh.send(record).map_err(|(error, _)| error).unwrap();
    rdkafka::producer::Producer::flush(&fresh, Duration::from_secs(30)).unwrap();
    run.wait_until("a new partition is read", |run| keys(run).len() == 6);
    run.stop().unwrap();
    assert_eq!(run.changes().len(), 6, "each once");
    let positions = run.positions(BTreeMap::new());
    let expected = [
        ("come.a/0", 3),
        ("come.a/1", 1),
        ("come.b/0", 1),
        ("come.b/1", 1),
    ];
    assert_eq!(
        positions,
        expected
            .map(|(name, next)| (Partition::from(name), next))
            .into()
    );
}

fn made_anew(broker: &KafkaBroker) {
    for (count, topic) in [(3, "anew-equal"), (5, "anew-more")] {
        broker.create_topic(topic, 1, &[]);
        produce(broker, topic, 0, &["a", "b", "c"]);
        let (run, result) = read_all(open(broker, &[topic]), Resume::default());
        result.unwrap();
        let after = run.resume(Resume::default());
        let (again, result) = read_all(open(broker, &[topic]), after.clone());
        result.unwrap();
        assert_eq!(again.changes(), [], "the same topic goes on");
        broker.delete_topic(topic);
        recreate(broker, topic);
        produce(broker, topic, 0, &["a", "b", "c", "d", "e"][..count]);
        let (run, result) = read_all(open(broker, &[topic]), after);
        assert!(lost(result).contains("made anew"));
        assert_eq!(run.changes(), []);
    }
}

/// The broker may still be removing the old one.
fn recreate(broker: &KafkaBroker, topic: &str) {
    std::thread::sleep(Duration::from_millis(300));
    broker.create_topic(topic, 1, &[]);
}

fn made_anew_while_followed(broker: &KafkaBroker) {
    broker.create_topic("anew-live", 1, &[]);
    produce(broker, "anew-live", 0, &["a", "b", "c"]);
    let mut run = follow(open(broker, &["anew-live"]), Resume::default());
    run.wait_until("all are read", |run| run.changes().len() == 3);
    // The record is remembered with one look, and compared with the next.
    std::thread::sleep(Duration::from_millis(1_500));
    broker.delete_topic("anew-live");
    recreate(broker, "anew-live");
    produce(broker, "anew-live", 0, &["v", "w", "x", "y", "z"]);
    let text = lost(run.join());
    assert!(text.contains("anew-live"), "{text}");
}

/// Takes batches one by one, when the test says so.
struct SlowSink {
    batches: mpsc::SyncSender<SourceBatch>,
}

impl SourceSink for SlowSink {
    fn send(&mut self, batch: SourceBatch) -> Result<(), Stopped> {
        self.batches.send(batch).map_err(|_| Stopped)
    }

    fn caught_up(&mut self) {}
}

fn retention_overtakes(broker: &KafkaBroker) {
    broker.create_topic("overtaken", 1, &[]);
    let text = format!("{{\"t\":\"{}\"}}", "x".repeat(10_000));
    let write = |count: usize| {
        let record = KafkaRecord {
            topic: "overtaken",
            partition: 0,
            key: Some(b"k"),
            value: Some(text.as_bytes()),
        };
        broker.produce(&vec![record; count]);
    };
    // More than the client fetches ahead (64 MiB).
    write(9_000);
    let (sender, batches) = mpsc::sync_channel(0);
    let source = open(broker, &["overtaken"]);
    let stop = StopSignal::new();
    let start = source_start(HeldMap::default(), &stop, false);
    let thread = std::thread::spawn(move || source.run(start, &mut SlowSink { batches: sender }));
    let first = batches.recv().unwrap();
    assert!(first.changes.len() < 9_000);
    std::thread::sleep(Duration::from_secs(1));
    broker.delete_records_before("overtaken", 0, 8_999);
    let mut next = first.changes.len() as u64;
    while let Ok(batch) = batches.recv() {
        for change in batch.changes {
            assert_eq!(change.position.offset, next, "nothing is jumped over");
            next += 1;
        }
    }
    lost(thread.join().unwrap());
}

fn source_start(held: HeldMap, stop: &StopSignal, is_trial: bool) -> SourceStart {
    SourceStart {
        name: "source".into(),
        positions: BTreeMap::new(),
        fingerprints: BTreeMap::new(),
        held: Arc::new(held),
        mode: ReadMode::Follow,
        is_trial,
        stop: stop.clone(),
    }
}

fn compacted_record(broker: &KafkaBroker) {
    broker.create_topic("proof", 1, &[]);
    produce(broker, "proof", 0, &["a", "b", "c"]);
    let (run, result) = read_all(open(broker, &["proof"]), Resume::default());
    result.unwrap();
    produce(broker, "proof", 0, &["d"]);
    // The record that is remembered goes, the position stays.
    broker.delete_records_before("proof", 0, 3);
    let (rest, result) = read_all(open(broker, &["proof"]), run.resume(Resume::default()));
    result.unwrap();
    assert_eq!(keys(&rest), ["d".to_owned()].into());
}

fn durable_is_committed(broker: &KafkaBroker) {
    broker.create_topic("committed", 2, &[]);
    produce(broker, "committed", 0, &["a", "b", "c"]);
    let committed = |group: &str| -> Option<i64> {
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", broker.address())
            .set("group.id", group)
            .create()
            .unwrap();
        let mut list = TopicPartitionList::new();
        list.add_partition("committed", 0);
        let list = consumer
            .committed_offsets(list, Duration::from_secs(20))
            .unwrap();
        match list.elements()[0].offset() {
            Offset::Offset(offset) => Some(offset),
            _ => None,
        }
    };
    for (is_trial, group) in [(true, "trial"), (false, "real")] {
        let properties = json!({"properties": {"group.id": group}});
        let source = config(broker, &["committed"], properties)
            .open(&context())
            .unwrap();
        let held = HeldMap::default();
        let durable: Arc<Mutex<BTreeMap<Partition, u64>>> = held.durable.clone();
        let stop = StopSignal::new();
        let start = source_start(held, &stop, is_trial);
        let mut sink = RecordingSink::default();
        let thread = std::thread::spawn(move || source.run(start, &mut sink));
        std::thread::sleep(Duration::from_millis(1_500));
        assert_eq!(committed(group), None, "nothing is durable yet");
        durable.lock().unwrap().insert("committed/0".into(), 2);
        if !is_trial {
            let began_at = Instant::now();
            while committed(group) != Some(2) {
                assert!(
                    began_at.elapsed() < Duration::from_secs(20),
                    "not committed"
                );
                std::thread::sleep(Duration::from_millis(200));
            }
            durable.lock().unwrap().insert("committed/0".into(), 3);
        }
        stop.stop();
        thread.join().unwrap().unwrap();
        assert_eq!(committed(group), (!is_trial).then_some(3));
    }
}

fn metrics_are_told(broker: &KafkaBroker) {
    use metrics_util::debugging::{DebugValue, DebuggingRecorder};
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    recorder.install().unwrap();
    // A snapshot sets all gauges back, so what each one told last is kept here.
    let mut told: BTreeMap<String, f64> = BTreeMap::new();
    let mut look = || -> Option<(f64, f64)> {
        for (key, _, _, value) in snapshotter.snapshot().into_vec() {
            let is_of = key
                .key()
                .labels()
                .any(|label| label.value() == "measured/0");
            if let (true, DebugValue::Gauge(value)) = (is_of, value)
                && value.into_inner() > 0.0
            {
                told.insert(key.key().name().to_owned(), value.into_inner());
            }
        }
        let lag = told.get("vectide_source_lag_records")?;
        Some((*lag, *told.get("vectide_source_position")?))
    };
    broker.create_topic("measured", 1, &[]);
    produce(broker, "measured", 0, &["a"; 1_500]);
    // One batch is taken, the next one is stuck in the sink: the rest is lag.
    let (sender, batches) = mpsc::sync_channel(0);
    let source = open(broker, &["measured"]);
    let stop = StopSignal::new();
    let start = source_start(HeldMap::default(), &stop, false);
    let thread = std::thread::spawn(move || source.run(start, &mut SlowSink { batches: sender }));
    let mut next = 0;
    while next == 0 {
        next = batches.recv().unwrap().positions["measured/0"];
    }
    let began_at = Instant::now();
    let (lag, position) = loop {
        match look() {
            Some(found) => break found,
            None => std::thread::sleep(Duration::from_millis(50)),
        }
        assert!(
            began_at.elapsed() < Duration::from_secs(30),
            "no lag is told"
        );
    };
    assert_eq!((lag, position), ((1_500 - next) as f64, next as f64));
    drop(batches);
    stop.stop();
    thread.join().unwrap().unwrap();
}

/// A little format: `{"at": transaction, "order": n}` rows, `{"truncate": true}`, and markers
/// `{"begin": t}`, `{"end": t, "count": n, "of": {collection: n}}`.
fn decode(record: &RawRecord<'_>, out: &mut Vec<Decoded>) -> Result<(), DecodeError> {
    let value: Value = serde_json::from_slice(record.value.unwrap_or(b"null")).unwrap();
    let id = |field: &str| value[field].as_str().map(Arc::from);
    if value["truncate"] == true {
        out.push(Decoded::Truncate { changed_at: None });
    } else if let Some(id) = id("begin") {
        out.push(Decoded::Transaction(TransactionMarker::Begin { id }));
    } else if let Some(id) = id("end") {
        let collections = value["of"].as_object().unwrap().iter();
        out.push(Decoded::Transaction(TransactionMarker::End {
            id,
            event_count: value["count"].as_u64().unwrap(),
            collections: collections
                .map(|(name, count)| (Arc::from(&**name), count.as_u64().unwrap()))
                .collect(),
        }));
    } else {
        out.push(Decoded::Change(DecodedChange {
            key: std::str::from_utf8(record.key.unwrap()).unwrap().into(),
            row: record.value.map(|_| Arc::from(value.to_string())),
            unchanged_fields: Vec::new(),
            transaction: id("at").map(|id| TransactionPlace {
                id,
                total_order: value["order"].as_u64().unwrap(),
            }),
            changed_at: None,
        }));
    }
    Ok(())
}

fn write(broker: &KafkaBroker, topic: &str, partition: i32, key: &str, value: &Value) {
    let value = value.to_string();
    broker.produce(&[KafkaRecord {
        topic,
        partition,
        key: Some(key.as_bytes()),
        value: Some(value.as_bytes()),
    }]);
}

fn truncates(broker: &KafkaBroker) {
    broker.create_topic("truncated", 1, &[]);
    for (key, value) in [
        ("a", json!({})),
        ("b", json!({})),
        ("none", json!({"truncate": true})),
        ("c", json!({})),
    ] {
        write(broker, "truncated", 0, key, &value);
    }
    let source = config(broker, &["truncated"], json!({}))
        .open_with_decoder(decode)
        .unwrap();
    let held = HeldMap::of(["a", "b"].map(|key| (key.into(), "{}".into())).into());
    let durable = held.durable.clone();
    let sink = RecordingSink::default();
    let mut run = run_source(source, Resume::default(), held, ReadMode::Follow, sink);
    run.wait_until("the rows before it are sent", |run| {
        run.changes().len() == 2
    });
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(run.changes().len(), 2, "it waits until they are durable");
    assert_eq!(run.positions(BTreeMap::new())["truncated/0"], 2);
    durable.lock().unwrap().insert("truncated/0".into(), 2);
    run.wait_until("it goes on", |run| run.changes().len() == 5);
    let seen: Vec<(String, bool, u64)> = run
        .changes()
        .into_iter()
        .map(|it| (it.key.to_string(), it.row.is_some(), it.position.offset))
        .collect();
    let expected = [
        ("a", true, 0),
        ("b", true, 1),
        ("a", false, 2),
        ("b", false, 2),
        ("c", true, 3),
    ];
    let expected = expected.map(|(key, is_upsert, offset)| (key.to_owned(), is_upsert, offset));
    assert_eq!(seen, expected);
    run.stop().unwrap();
    // Stopped while it waits.
    let source = config(broker, &["truncated"], json!({}))
        .open_with_decoder(decode)
        .unwrap();
    let mut run = follow(source, Resume::default());
    run.wait_until("the rows before it are sent", |run| {
        run.changes().len() == 2
    });
    run.stop().unwrap();
    assert_eq!(run.positions(BTreeMap::new())["truncated/0"], 2);
}

fn decoder_away(broker: &KafkaBroker) {
    broker.create_topic("away", 1, &[]);
    for key in ["a", "b", "c"] {
        write(broker, "away", 0, key, &json!({}));
    }
    let is_away = Arc::new(AtomicBool::new(true));
    let registry = is_away.clone();
    let source = config(broker, &["away"], json!({}))
        .open_with_decoder(move |record: &RawRecord<'_>, out: &mut Vec<Decoded>| {
            if record.key == Some(b"b") && registry.load(Ordering::Acquire) {
                return Err(DecodeError::Unavailable(
                    "the registry does not answer".into(),
                ));
            }
            decode(record, out)
        })
        .unwrap();
    let mut run = follow(source, Resume::default());
    run.wait_until("what stands before it is sent", |run| {
        run.changes().len() == 1
    });
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(run.positions(BTreeMap::new())["away/0"], 1);
    is_away.store(false, Ordering::Release);
    run.wait_until("it goes on", |run| run.changes().len() == 3);
    assert_eq!(run.dead_letters(), []);
    is_away.store(true, Ordering::Release);
    write(broker, "away", 0, "b", &json!({}));
    std::thread::sleep(Duration::from_millis(300));
    let began_at = Instant::now();
    run.stop().unwrap();
    assert!(
        began_at.elapsed() < Duration::from_secs(5),
        "stopping does not wait for it"
    );
    assert_eq!(run.positions(BTreeMap::new())["away/0"], 3);
}

fn transactions(broker: &KafkaBroker) {
    const TRANSACTIONS: usize = 300;
    broker.create_topic("shop.public.pages", 3, &[]);
    broker.create_topic("shop.public.users", 1, &[]);
    broker.create_topic("shop.transaction", 1, &[]);
    let open = || {
        let more = json!({"transactions": {"topic": "shop.transaction", "timeout": "2s"}});
        let topics = ["^shop\\.public\\..*"];
        config(broker, &topics, more)
            .open_with_decoder(decode)
            .unwrap()
    };
    // Half before the source starts, half while it runs.
    let write_transaction = |number: usize| {
        let id = format!("t{number}");
        write(broker, "shop.transaction", 0, "k", &json!({"begin": id}));
        let pages = number % 7 + 1;
        for order in 1..=pages {
            let partition = i32::try_from((number + order) % 3).unwrap();
            let row = json!({"at": id, "order": order});
            write(
                broker,
                "shop.public.pages",
                partition,
                &format!("p{order}"),
                &row,
            );
        }
        let row = json!({"at": id, "order": pages + 1});
        write(broker, "shop.public.users", 0, "u", &row);
        // Two rows of a table that is not read.
        let of = json!({"public.pages": pages, "public.users": 1, "other.table": 2});
        let end = json!({"end": id, "count": pages + 3, "of": of});
        write(broker, "shop.transaction", 0, "k", &end);
    };
    (0..TRANSACTIONS / 2).for_each(write_transaction);
    let mut run = follow(open(), Resume::default());
    run.wait_until("the first half is read", |run| {
        let records: usize = (0..TRANSACTIONS / 2).map(|number| number % 7 + 2).sum();
        run.changes().len() == records
    });
    (TRANSACTIONS / 2..TRANSACTIONS).for_each(write_transaction);
    let records: usize = (0..TRANSACTIONS).map(|number| number % 7 + 2).sum();
    run.wait_until("all are read", |run| run.changes().len() == records);
    run.stop().unwrap();
    check_whole(&run.batches());
    let positions = run.positions(BTreeMap::new());
    assert_eq!(positions["shop.transaction/0"], 2 * TRANSACTIONS as u64);

    // From any batch on, the rest comes and is whole.
    let batches = run.batches();
    let mut before = Resume::default();
    for batch in &batches[..batches.len() / 2] {
        before.positions.extend(batch.positions.clone());
        before.fingerprints.extend(batch.fingerprints.clone());
    }
    let (rest, result) = read_all(open(), before);
    result.unwrap();
    check_whole(&rest.batches());
    let of_half = batches[..batches.len() / 2]
        .iter()
        .map(|batch| batch.changes.len());
    assert_eq!(rest.changes().len() + of_half.sum::<usize>(), records);

    // An END that never comes, and a topic that comes with a transaction.
    let row = |id: &str| json!({"at": id, "order": 1});
    write(broker, "shop.public.pages", 0, "lost", &row("lost"));
    broker.create_topic("shop.public.late", 1, &[]);
    write(broker, "shop.public.late", 0, "late", &row("late"));
    let of = json!({"public.late": 1});
    let end = json!({"end": "late", "count": 1, "of": of});
    write(broker, "shop.transaction", 0, "k", &end);
    let (rest, result) = read_all(open(), run.resume(Resume::default()));
    result.unwrap();
    assert_eq!(keys(&rest), ["late".to_owned(), "lost".to_owned()].into());
}

/// Each transaction lies in one batch, which is not to be cut.
fn check_whole(batches: &[SourceBatch]) {
    let mut seen: BTreeSet<String> = BTreeSet::new();
    for batch in batches.iter().filter(|batch| !batch.changes.is_empty()) {
        assert!(!batch.divisible);
        assert_eq!(batch.split_transactions, 0);
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        for change in &batch.changes {
            let row: Value = serde_json::from_str(change.row.as_ref().unwrap()).unwrap();
            *counts
                .entry(row["at"].as_str().unwrap().to_owned())
                .or_default() += 1;
        }
        for (id, count) in counts {
            let number: usize = id[1..].parse().unwrap();
            assert_eq!(count, number % 7 + 2, "{id} is whole");
            assert!(seen.insert(id), "in one batch");
        }
    }
}

/// Longer than the timeout of [`open_blocked`].
const BLOCKED: Duration = Duration::from_secs(6);

/// The client tells an end when it has asked for more in vain, for half a second.
const ENDS_ARE_TOLD: Duration = Duration::from_millis(1_200);

/// Two partitions of rows, and markers.
fn open_blocked(
    broker: &KafkaBroker,
    prefix: &str,
    decode: impl FnMut(&RawRecord<'_>, &mut Vec<Decoded>) -> Result<(), DecodeError> + Send + 'static,
) -> Box<dyn Source> {
    broker.create_topic(&format!("{prefix}.public.pages"), 2, &[]);
    broker.create_topic(&format!("{prefix}.transaction"), 1, &[]);
    let of = json!({"topic": format!("{prefix}.transaction"), "timeout": "4s"});
    let topics = [&*format!("{prefix}.public.pages")];
    let config = config(broker, &topics, json!({"transactions": of}));
    config.open_with_decoder(decode).unwrap()
}

/// The ENDs of some transactions, which come together.
fn write_ends(broker: &KafkaBroker, prefix: &str, transactions: &[(&str, usize)]) {
    let topic = format!("{prefix}.transaction");
    let end_of = |(id, count): &(&str, usize)| {
        json!({"end": id, "count": count, "of": {"public.pages": count}}).to_string()
    };
    let ends: Vec<String> = transactions.iter().map(end_of).collect();
    let record_of = |end| KafkaRecord {
        topic: &topic,
        partition: 0,
        key: Some(b"k"),
        value: Some(end),
    };
    let records: Vec<KafkaRecord<'_>> = ends.iter().map(|end| record_of(end.as_bytes())).collect();
    broker.produce(&records);
}

fn write_row(broker: &KafkaBroker, prefix: &str, partition: i32, id: &str, order: usize) {
    let row = json!({"at": id, "order": order});
    let topic = format!("{prefix}.public.pages");
    write(broker, &topic, partition, &format!("{id}-{order}"), &row);
}

/// Changes of a transaction by batch.
fn of_transaction(run: &RecordedRun, id: &str) -> Vec<usize> {
    let is_of = |change: &&vectide_model::Change| change.key.starts_with(id);
    let counts = run
        .batches()
        .into_iter()
        .map(|batch| batch.changes.iter().filter(is_of).count());
    counts.filter(|count| *count > 0).collect()
}

/// Takes nothing with changes while the gate is shut.
struct GatedSink {
    sink: RecordingSink,
    is_shut: Arc<AtomicBool>,
    is_asked: Arc<AtomicBool>,
}

impl SourceSink for GatedSink {
    fn send(&mut self, batch: SourceBatch) -> Result<(), Stopped> {
        while !batch.changes.is_empty() && self.is_shut.load(Ordering::Acquire) {
            self.is_asked.store(true, Ordering::Release);
            std::thread::sleep(Duration::from_millis(5));
        }
        self.sink.send(batch)
    }

    fn caught_up(&mut self) {
        self.sink.caught_up();
    }
}

/// A record of the second transaction lay in the client's queue while the first one waited for room
/// in the pipeline. When it had it, the second was overdue by the clock, its partition was "at its end"
/// as of before, and it became visible without that record.
fn whole_after_a_full_pipeline(broker: &KafkaBroker) {
    // More than a batch, so that it is sent before the next transaction is asked for.
    const FIRST: usize = 550;
    let source = open_blocked(broker, "full", decode);
    for order in 1..=FIRST {
        write_row(broker, "full", 0, "first", order);
    }
    write_row(broker, "full", 0, "second", 1);
    let (is_shut, is_asked) = (Arc::new(AtomicBool::new(true)), Arc::default());
    let sink = RecordingSink::default();
    let mut gated = GatedSink {
        sink: sink.clone(),
        is_shut: is_shut.clone(),
        is_asked: Arc::clone(&is_asked),
    };
    let stop = StopSignal::new();
    let start = source_start(HeldMap::default(), &stop, false);
    let thread = std::thread::spawn(move || source.run(start, &mut gated));
    std::thread::sleep(ENDS_ARE_TOLD);
    write_ends(broker, "full", &[("first", FIRST), ("second", 2)]);
    let began_at = Instant::now();
    while !is_asked.load(Ordering::Acquire) {
        assert!(began_at.elapsed() < Duration::from_secs(30), "nothing came");
        std::thread::sleep(Duration::from_millis(5));
    }
    write_row(broker, "full", 1, "second", 2);
    std::thread::sleep(BLOCKED);
    is_shut.store(false, Ordering::Release);
    let run = RecordedRun::of(sink, stop, thread);
    run.wait_until("all came", |run| run.changes().len() == FIRST + 2);
    assert_eq!(of_transaction(&run, "second"), [2]);
}

/// A record that could not be decoded was polled and not yet taken: its partition still counted as
/// read to its end, and the rest of its transaction was given up while the registry was away.
fn whole_after_a_decoder_away(broker: &KafkaBroker) {
    let is_away = Arc::new(AtomicBool::new(true));
    let registry = is_away.clone();
    let source = open_blocked(broker, "schema", move |record, out| {
        if record.key == Some(b"only-2") && registry.load(Ordering::Acquire) {
            return Err(DecodeError::Unavailable("the registry is away".into()));
        }
        decode(record, out)
    });
    let mut run = follow(source, Resume::default());
    run.wait_until("there is nothing", |run| run.times_caught_up() == 1);
    write_row(broker, "schema", 0, "only", 1);
    write_ends(broker, "schema", &[("only", 2)]);
    std::thread::sleep(ENDS_ARE_TOLD);
    write_row(broker, "schema", 1, "only", 2);
    std::thread::sleep(BLOCKED);
    assert_eq!(run.changes(), [], "what was polled is waited for");
    is_away.store(false, Ordering::Release);
    run.wait_until("it came", |run| run.changes().len() == 2);
    assert_eq!(of_transaction(&run, "only"), [2]);
    // What never comes is still given up.
    write_row(broker, "schema", 0, "torn", 1);
    write_ends(broker, "schema", &[("torn", 2)]);
    run.wait_until("it is given up", |run| run.changes().len() == 3);
    run.stop().unwrap();
}

fn connection_check(broker: &KafkaBroker) {
    broker.create_topic("checked.a", 3, &[]);
    let config = config(
        broker,
        &[
            "checked.a",
            "checked.missing",
            "^checked\\..*",
            "^nothing.*",
        ],
        json!({"transactions": {"topic": "checked.transaction"}}),
    );
    let lines = config.check_connection("pages", &context());
    let shown: Vec<(String, Result<String, String>)> = lines
        .into_iter()
        .map(|line| (line.what, line.result.map_err(|error| error.fact)))
        .collect();
    let (what, answer) = &shown[0];
    assert!(what.starts_with("brokers "), "{what}");
    assert!(
        answer.as_ref().unwrap().starts_with("1 broker(s)"),
        "{answer:?}"
    );
    let missing = |topic: &str| {
        Err(format!(
            "there is no topic `{topic}`, or this user may not see it"
        ))
    };
    let expected = [
        ("topic checked.a", Ok("3 partition(s)".to_owned())),
        ("topic checked.missing", missing("checked.missing")),
        (
            "pattern ^checked\\..*",
            Ok("matches 1 topic(s): checked.a".to_owned()),
        ),
        ("pattern ^nothing.*", Ok("matches no topic yet".to_owned())),
        (
            "transaction topic checked.transaction",
            missing("checked.transaction"),
        ),
    ];
    assert_eq!(
        shown[1..],
        expected.map(|(what, result)| (what.to_owned(), result))
    );
}

fn ends(broker: &KafkaBroker) {
    broker.create_topic("ends.a", 2, &[]);
    broker.create_topic("ends.b", 1, &[]);
    let source = config(broker, &["^ends\\..*"], json!({}));
    let probe = source.position_probe(&context());
    let all = |a: u64| {
        let ends = [("ends.a/0", a), ("ends.a/1", 0), ("ends.b/0", 0)];
        ends.map(|(name, end)| (Partition::from(name), end)).into()
    };
    assert_eq!(probe.end().unwrap(), all(0));
    produce(broker, "ends.a", 0, &["a", "b", "c", "d", "e", "f", "g"]);
    assert_eq!(probe.end().unwrap(), all(7));
    let missing = config(broker, &["nothing-here"], json!({}));
    let error = missing.position_probe(&context()).end().unwrap_err();
    assert!(error.fact.contains("no topics"), "{error}");
}

fn killed_under_load(broker: &KafkaBroker) {
    const KEYS: usize = 50;
    let kills = if is_torture() { 20 } else { 3 };
    broker.create_topic("killed", 2, &[]);
    let is_done = Arc::new(AtomicBool::new(false));
    // Exactly once on the producer's side, so that what is read twice was read twice by us.
    let producer: rdkafka::producer::BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", broker.address())
        .set("enable.idempotence", "true")
        .set("message.timeout.ms", "300000")
        .set("reconnect.backoff.max.ms", "500")
        .set("linger.ms", "5")
        .create()
        .unwrap();
    let mut run = follow(open(broker, &["killed"]), Resume::default());
    let written = std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut written = 0_usize;
            while !is_done.load(Ordering::Acquire) {
                let (key, row) = (
                    format!("k{}", written % KEYS),
                    format!("{{\"n\":{written}}}"),
                );
                let partition = i32::from(written % KEYS % 2 == 1);
                let record = rdkafka::producer::BaseRecord::to("killed").partition(partition);
                if producer.send(record.key(&key).payload(&row)).is_ok() {
                    written += 1;
                }
                producer.poll(Duration::from_micros(200));
            }
            rdkafka::producer::Producer::flush(&producer, Duration::from_secs(120)).unwrap();
            written
        });
        for _ in 0..kills {
            std::thread::sleep(Duration::from_millis(700));
            broker.kill().unwrap();
            broker.start_again().unwrap();
        }
        std::thread::sleep(Duration::from_secs(1));
        is_done.store(true, Ordering::Release);
        writer.join().unwrap()
    });
    run.wait_until("all are read", |run| run.changes().len() >= written);
    run.stop().unwrap();
    let mut next: BTreeMap<Partition, u64> = BTreeMap::new();
    let mut numbers = BTreeSet::new();
    for change in run.changes() {
        let expected = next.entry(change.position.partition).or_default();
        assert_eq!(change.position.offset, *expected, "in order, without a gap");
        *expected += 1;
        let row: Value = serde_json::from_str(&change.row.unwrap()).unwrap();
        assert!(numbers.insert(row["n"].as_u64().unwrap()), "each once");
    }
    assert_eq!(numbers.len(), written);
    println!("   {written} records over {kills} kills");
}
