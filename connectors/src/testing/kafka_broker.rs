//! One Kafka broker for the tests of one process: started by `scripts/kafka.sh` in a temporary
//! folder on loopback, stopped when the value is dropped.
//!
//! Invariant: only the broker that was started here is stopped, by the process id that the script
//! wrote when it started it.

use super::ports::free_ports;
use super::services::started_or_skip;
use rdkafka::ClientConfig;
use rdkafka::admin::{
    AdminClient, AdminOptions, NewPartitions, NewTopic, TopicReplication, TopicResult,
};
use rdkafka::client::{ClientContext, DefaultClientContext};
use rdkafka::error::KafkaResult;
use rdkafka::producer::{BaseProducer, BaseRecord, DeliveryResult, Producer, ProducerContext};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Time for one request of a test to the broker.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// A running broker.
pub struct KafkaBroker {
    directory: TempDir,
    port: u16,
    producer: OnceLock<BaseProducer<DeliveryCheck>>,
}

/// A record to write.
#[derive(Clone, Copy, Debug, Default)]
pub struct KafkaRecord<'a> {
    /// Where to.
    pub topic: &'a str,
    /// Which of the topic's partitions.
    pub partition: i32,
    /// The record's key.
    pub key: Option<&'a [u8]>,
    /// The record's value; `None` is a tombstone.
    pub value: Option<&'a [u8]>,
}

impl KafkaBroker {
    /// Starts a broker on a free port and waits until it answers.
    ///
    /// # Errors
    /// Why there is none: Java, Maven or Kafka's artifacts are missing, or it did not start.
    pub fn start() -> Result<Self, String> {
        Self::start_with(|_, _| Ok(()))
    }

    /// Starts a broker in a folder that `prepare` may put files into: `extra.properties` and
    /// `scram-users`, which the script describes. It is told the port.
    ///
    /// # Errors
    /// Why there is none.
    pub fn start_with(prepare: impl Fn(&Path, u16) -> Result<(), String>) -> Result<Self, String> {
        // The broker listens on this port and keeps the next one for its controller; both are free
        // now, and a broker that loses the race says so and another try takes others.
        let mut last = String::new();
        for _ in 0..3 {
            let directory = tempfile::Builder::new()
                .prefix("vectide-kafka-")
                .tempdir()
                .map_err(|error| format!("no temporary folder: {error}"))?;
            let port = free_ports(2)?;
            prepare(directory.path(), port)?;
            match script(&[
                "start",
                &directory.path().to_string_lossy(),
                &port.to_string(),
            ]) {
                Ok(()) => {
                    return Ok(Self {
                        directory,
                        port,
                        producer: OnceLock::new(),
                    });
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// Starts a broker, or tells why the test is skipped; with `VECTIDE_REQUIRE_SERVICES=1` a
    /// missing broker fails the test instead.
    ///
    /// # Panics
    /// When services are required and there is none.
    pub fn start_or_skip(test: &str) -> Option<Self> {
        Self::expect_or_skip(test, Self::start())
    }

    /// The broker, or tells why the test is skipped, as [`Self::start_or_skip`] does.
    ///
    /// # Panics
    /// When services are required and there is none.
    pub fn expect_or_skip(test: &str, started: Result<Self, String>) -> Option<Self> {
        started_or_skip(test, "a Kafka broker", started)
    }

    /// `host:port`, for `brokers:` of a configuration.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Stops the broker; its data stay.
    ///
    /// # Errors
    /// What the script says.
    pub fn stop(&self) -> Result<(), String> {
        script(&["stop", &self.directory.path().to_string_lossy()])
    }

    /// Kills the broker without giving it time to tidy up; its data stay.
    ///
    /// # Errors
    /// What the script says.
    pub fn kill(&self) -> Result<(), String> {
        script(&["kill", &self.directory.path().to_string_lossy()])
    }

    /// Starts the broker again, with its data, on the same port.
    ///
    /// # Errors
    /// What the script says.
    pub fn start_again(&self) -> Result<(), String> {
        let directory = self.directory.path().to_string_lossy();
        script(&["start", &directory, &self.port.to_string()])
    }

    /// Makes a topic. `settings` are Kafka's own (`retention.ms`, `cleanup.policy`).
    ///
    /// # Panics
    /// When the broker refuses.
    pub fn create_topic(&self, topic: &str, partitions: i32, settings: &[(&str, &str)]) {
        let mut new = NewTopic::new(topic, partitions, TopicReplication::Fixed(1));
        new.config = settings.to_vec();
        let made = pollster::block_on(self.admin().create_topics(&[new], &admin_options()));
        expect_done(made);
    }

    /// Removes a topic with its records.
    ///
    /// # Panics
    /// When the broker refuses.
    pub fn delete_topic(&self, topic: &str) {
        let removed = pollster::block_on(self.admin().delete_topics(&[topic], &admin_options()));
        expect_done(removed);
    }

    /// Makes a topic have `partitions` partitions.
    ///
    /// # Panics
    /// When the broker refuses.
    pub fn grow_topic(&self, topic: &str, partitions: usize) {
        let grown = NewPartitions::new(topic, partitions);
        let grown = pollster::block_on(self.admin().create_partitions([&grown], &admin_options()));
        expect_done(grown);
    }

    /// Removes the records of a partition below an offset, as retention would.
    ///
    /// # Panics
    /// When the broker refuses.
    pub fn delete_records_before(&self, topic: &str, partition: i32, offset: i64) {
        let mut list = rdkafka::TopicPartitionList::new();
        let offset = rdkafka::Offset::Offset(offset);
        list.add_partition_offset(topic, partition, offset)
            .expect("a valid offset");
        pollster::block_on(self.admin().delete_records(&list, &admin_options()))
            .expect("the broker removes records");
    }

    /// Writes records in order and waits until the broker has them.
    ///
    /// # Panics
    /// When the broker refuses.
    pub fn produce(&self, records: &[KafkaRecord<'_>]) {
        let address = self.address();
        let producer = self.producer.get_or_init(|| {
            client(&address)
                .set("linger.ms", "1")
                .set("message.max.bytes", "20000000")
                .create_with_context(DeliveryCheck::default())
                .expect("a producer")
        });
        for record in records {
            let mut new: BaseRecord<'_, [u8], [u8]> =
                BaseRecord::to(record.topic).partition(record.partition);
            if let Some(key) = record.key {
                new = new.key(key);
            }
            if let Some(value) = record.value {
                new = new.payload(value);
            }
            let mut refused = producer.send(new).err();
            while let Some((error, again)) = refused {
                let is_full =
                    error.rdkafka_error_code() == Some(rdkafka::types::RDKafkaErrorCode::QueueFull);
                assert!(is_full, "the producer refuses: {error}");
                producer.poll(Duration::from_millis(10));
                refused = producer.send(again).err();
            }
        }
        // The client's own flush sleeps 100 ms at a time, which would hide what tests measure.
        let began_at = Instant::now();
        while producer.in_flight_count() > 0 {
            let waited = began_at.elapsed();
            assert!(waited < REQUEST_TIMEOUT, "the broker takes no records");
            producer.poll(Duration::from_millis(1));
        }
        let failure = producer.context().take_failure();
        assert_eq!(failure, None, "a record was refused");
    }

    fn admin(&self) -> AdminClient<DefaultClientContext> {
        client(&self.address()).create().expect("an admin client")
    }
}

/// Keeps the first failed delivery.
#[derive(Default)]
struct DeliveryCheck {
    failure: Mutex<Option<String>>,
}

impl DeliveryCheck {
    fn take_failure(&self) -> Option<String> {
        let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        failure.take()
    }
}

impl ClientContext for DeliveryCheck {}

impl ProducerContext for DeliveryCheck {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        if let Err((error, _)) = result {
            let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
            failure.get_or_insert_with(|| error.to_string());
        }
    }
}

impl Drop for KafkaBroker {
    fn drop(&mut self) {
        drop(self.producer.take());
        if let Err(error) = self.stop() {
            eprintln!("the Kafka broker was not stopped: {error}");
        }
    }
}

fn client(address: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", address);
    config
}

fn admin_options() -> AdminOptions {
    AdminOptions::new()
        .request_timeout(Some(REQUEST_TIMEOUT))
        .operation_timeout(Some(REQUEST_TIMEOUT))
}

fn expect_done(results: KafkaResult<Vec<TopicResult>>) {
    for result in results.expect("the broker answers") {
        result.expect("the broker agrees");
    }
}

fn script(arguments: &[&str]) -> Result<(), String> {
    let path = script_path();
    let output = Command::new("bash")
        .arg(&path)
        .args(arguments)
        .output()
        .map_err(|error| format!("{} can't be run: {error}", path.display()))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let last = said.trim().lines().last().unwrap_or("no message");
    Err(format!("{} {}: {last}", path.display(), arguments[0]))
}

fn script_path() -> PathBuf {
    let crate_root = Path::new(env!("CARGO_MANIFEST_DIR"));
    crate_root.join("../scripts/kafka.sh")
}
