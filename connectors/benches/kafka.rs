//! From a Kafka topic to decoded changes, beside a consumer that throws the bytes away: records a
//! second, and records a second of processor time.
//!
//! `cargo bench -p vectide-connectors --bench kafka`. Records are Debezium's JSON of 1 KiB. The broker
//! runs on the same machine, so the wall clock measures it too; the processor time is this process's
//! alone, with the client's own threads, which both have.

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use std::collections::BTreeMap;
use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};
use vectide_connectors::KafkaConfig;
use vectide_connectors::testing::{HeldMap, KafkaBroker, KafkaRecord};
use vectide_model::{
    OpenContext, ReadMode, SourceBatch, SourceConfig, SourceSink, SourceStart, StopSignal, Stopped,
};

const TOPIC: &str = "shop.public.pages";
const RECORDS: usize = 600_000;
const RECORD_BYTES: usize = 1024;
const ROUNDS: usize = 3;

#[derive(Default)]
struct CountingSink {
    changes: usize,
}

impl SourceSink for CountingSink {
    fn send(&mut self, batch: SourceBatch) -> Result<(), Stopped> {
        self.changes += batch.changes.len();
        Ok(())
    }

    fn caught_up(&mut self) {}
}

fn main() {
    let Some(broker) = KafkaBroker::start_or_skip("kafka benchmark") else {
        return;
    };
    broker.create_topic(TOPIC, 1, &[]);
    produce(&broker);
    println!("{RECORDS} records of {RECORD_BYTES} bytes, one partition; best of {ROUNDS}");
    let (mut bare, mut ours) = (Rate::default(), Rate::default());
    // In turns, so that what else runs on the machine meets both.
    for _ in 0..ROUNDS {
        bare.keep_best(measure(|| bare_consumer(&broker)));
        ours.keep_best(measure(|| source(&broker)));
    }
    bare.print("limit: poll and throw away");
    ours.print("kafka source to changes");
    println!(
        "ratio {:.0} % of records a second, {:.0} % of records a second of processor time",
        100.0 * ours.of_wall / bare.of_wall,
        100.0 * ours.of_processor / bare.of_processor
    );
}

#[derive(Clone, Copy, Default)]
struct Rate {
    of_wall: f64,
    of_processor: f64,
}

impl Rate {
    fn keep_best(&mut self, other: Self) {
        self.of_wall = self.of_wall.max(other.of_wall);
        self.of_processor = self.of_processor.max(other.of_processor);
    }

    fn print(self, name: &str) {
        println!(
            "{name:28} {:10.0} records/s {:10.0} records/s of processor time",
            self.of_wall, self.of_processor
        );
    }
}

fn measure(work: impl Fn() -> usize) -> Rate {
    let (began_at, processor) = (Instant::now(), processor_time());
    let records = work() as f64;
    let used = processor_time().saturating_sub(processor);
    Rate {
        of_wall: records / began_at.elapsed().as_secs_f64(),
        of_processor: records / used.as_secs_f64().max(0.01),
    }
}

/// What this process has used so far, from Linux's own account of it, in ticks of 10 ms.
fn processor_time() -> Duration {
    let line = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The name in parentheses may hold spaces.
    let fields = line.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks = fields.split_whitespace().skip(11).take(2);
    let ticks: u64 = ticks.filter_map(|field| field.parse::<u64>().ok()).sum();
    Duration::from_millis(ticks * 10)
}

fn produce(broker: &KafkaBroker) {
    let envelope = |body: &str| {
        format!(
            r#"{{"before":null,"after":{{"id":123456,"title":"A page","body":"{body}"}},"source":{{"version":"3.2.0.Final","connector":"postgresql","name":"shop","ts_ms":1700000000123,"snapshot":"false","db":"shop","sequence":"[\"24023119\",\"24023128\"]","schema":"public","table":"pages","txId":555,"lsn":24023128,"xmin":null}},"transaction":null,"op":"u","ts_ms":1700000000456}}"#
        )
    };
    let rest = RECORD_BYTES - envelope("").len();
    let words = "word ".repeat(rest / 5 + 1);
    let value = envelope(&words[..rest]);
    assert_eq!(value.len(), RECORD_BYTES);
    let record = KafkaRecord {
        topic: TOPIC,
        partition: 0,
        key: Some(br#"{"id":123456}"#),
        value: Some(value.as_bytes()),
    };
    for _ in 0..RECORDS / 10_000 {
        broker.produce(&vec![record; 10_000]);
    }
}

fn bare_consumer(broker: &KafkaBroker) -> usize {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", broker.address())
        .set("group.id", "bench")
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("enable.partition.eof", "true")
        .set("check.crcs", "true")
        .create()
        .expect("a consumer");
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(TOPIC, 0, Offset::Beginning)
        .expect("an offset");
    consumer.assign(&list).expect("assigned");
    let mut records = 0;
    loop {
        match consumer.poll(Duration::from_millis(100)) {
            Some(Ok(message)) => {
                black_box(&message);
                records += 1;
            }
            Some(Err(KafkaError::PartitionEOF(_))) => return records,
            Some(Err(error)) => panic!("{error}"),
            None => {}
        }
    }
}

fn source(broker: &KafkaBroker) -> usize {
    let config: KafkaConfig = serde_json::from_value(serde_json::json!({
        "brokers": broker.address(),
        "topics": [TOPIC],
        "format": {"type": "debezium"},
    }))
    .expect("a configuration");
    let context = OpenContext::in_folder("/");
    let start = SourceStart {
        name: "bench".into(),
        positions: BTreeMap::new(),
        fingerprints: BTreeMap::new(),
        held: Arc::new(HeldMap::default()),
        mode: ReadMode::UntilCaughtUp,
        is_trial: true,
        stop: StopSignal::new(),
    };
    let mut sink = CountingSink::default();
    let source = config.open(&context).expect("opened");
    source.run(start, &mut sink).expect("read");
    assert_eq!(sink.changes, RECORDS);
    sink.changes
}
