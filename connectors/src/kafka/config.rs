//! The configuration of a Kafka source.
//!
//! Invariant: what can be seen to be wrong without a broker is told at once, all of it, and no value
//! of a client property is ever shown.

use super::KafkaSource;
use super::properties::{ALLOWED, oauth_faults};
use super::topics::{compile, is_pattern};
use crate::envelope::format::{DecodeError, RecordFormat};
use crate::envelope::{Decoded, RawRecord, Rejected};
use crate::redecode::{RecordRedecoder, Refused};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroUsize;
use std::time::{Duration, SystemTime};
use vectide_model::{
    ByteSize, Change, ComponentError, ConnectionCheck, DeadLetter, HumanDuration, OpenContext,
    PositionProbe, Redecoder, Source, SourceConfig,
};

/// Topics of a Kafka cluster.
#[derive(Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct KafkaConfig {
    /// Some brokers of the cluster, `host:port`, separated by commas.
    pub brokers: String,
    /// The topics, by name or by a pattern, which begins with `^` and has to match the whole name:
    /// `[orders, "^shop\\.public\\..*"]`. All partitions are read. Topics of a pattern and
    /// partitions that come later are read from their beginning. Names that begin with `__` are met
    /// only by patterns that begin with `^__`.
    pub topics: Vec<String>,
    /// What the records mean.
    pub format: RecordFormat,
    /// Makes all changes of a transaction of the source visible at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transactions: Option<TransactionsConfig>,
    /// A transaction of more changes is split, and counted as such.
    #[serde(default = "default_max_transaction_changes")]
    pub max_transaction_changes: NonZeroUsize,
    /// How often new topics of a pattern and new partitions are looked for, and whether a topic that
    /// is being read is still the same.
    #[serde(default = "default_discover_interval")]
    pub discover_interval: HumanDuration,
    /// Settings of the Kafka client, by librdkafka's names: `security.protocol`, `sasl.*`, `ssl.*`
    /// and the limits of connections. `group.id` (without it `vectide-SOURCE`) names the group under
    /// which committed positions are shown to tools that watch lag.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub properties: BTreeMap<String, String>,
    /// A longer record (key and value) becomes a dead letter.
    #[serde(default = "default_max_message")]
    pub max_message: ByteSize,
}

/// Where the source tells its transactions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TransactionsConfig {
    /// Debezium's topic of transactions (`provide.transaction.metadata=true`): the connector's
    /// `topic.prefix` with `.transaction`.
    pub topic: String,
    /// How long a transaction may miss changes, or its end, before what there is of it becomes
    /// visible with a warning. Time in which the source is not read does not count: the pipeline takes
    /// nothing, or a registry does not answer.
    #[serde(default = "default_transaction_timeout")]
    pub timeout: HumanDuration,
}

/// Longer than a producer needs to get over a broker that went away (its own limit for one request
/// is 30 s, most take a few), short enough that a marker which never comes is noticed.
fn default_transaction_timeout() -> HumanDuration {
    HumanDuration::from_seconds(30)
}

/// What a new partition holds can wait: it is read from its beginning. Asking costs the cluster a
/// request, for patterns one that lists all its topics.
fn default_discover_interval() -> HumanDuration {
    HumanDuration::from_seconds(30)
}

/// Asking more often is a load on the cluster, less often a topic that never comes.
const DISCOVER_INTERVALS: std::ops::RangeInclusive<Duration> =
    Duration::from_millis(100)..=Duration::from_secs(3600);

/// A transaction becomes visible at once, so it is held in memory: 10,000 rows of an ordinary size
/// are tens of megabytes.
fn default_max_transaction_changes() -> NonZeroUsize {
    NonZeroUsize::new(10_000).unwrap_or(NonZeroUsize::MIN)
}

/// The limit of lines in logs, too; Kafka's own default is 1 MiB.
fn default_max_message() -> ByteSize {
    ByteSize::mebibytes(8)
}

/// Kafka's protocol counts in signed 32 bits.
const MAX_MESSAGE_LIMIT: ByteSize = ByteSize::mebibytes(512);

/// Secrets stand among the properties, so their values are never shown.
impl std::fmt::Debug for KafkaConfig {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<&String> = self.properties.keys().collect();
        formatter
            .debug_struct("KafkaConfig")
            .field("brokers", &self.brokers)
            .field("topics", &self.topics)
            .field("format", &self.format)
            .field("transactions", &self.transactions)
            .field("max_transaction_changes", &self.max_transaction_changes)
            .field("discover_interval", &self.discover_interval)
            .field("properties", &names)
            .field("max_message", &self.max_message)
            .finish()
    }
}

impl SourceConfig for KafkaConfig {
    const TYPE: &'static str = "kafka";

    fn check(&self) -> Vec<ComponentError> {
        let mut errors = Vec::new();
        let addresses_are_whole = self.brokers.split(',').all(|address| {
            let port = address.trim().rsplit_once(':').map(|(_, port)| port);
            port.is_some_and(|port| port.parse::<u16>().is_ok())
        });
        if !addresses_are_whole {
            errors.push(ComponentError::new(
                "brokers",
                format!("`{}` is not a list of host:port", self.brokers),
                "name one or more brokers: \"kafka-1:9092,kafka-2:9092\"",
            ));
        }
        errors.extend(self.check_topics());
        if !DISCOVER_INTERVALS.contains(&self.discover_interval.as_duration()) {
            errors.push(ComponentError::new(
                "discover_interval",
                format!("{} is not between 100ms and 1h", self.discover_interval),
                "30s is the default",
            ));
        }
        if self.max_message.as_bytes() == 0 || self.max_message > MAX_MESSAGE_LIMIT {
            errors.push(ComponentError::new(
                "max_message",
                format!(
                    "{} is not between 1 byte and {MAX_MESSAGE_LIMIT}",
                    self.max_message
                ),
                "rows are documents; 8MiB is the default",
            ));
        }
        errors.extend(
            self.properties
                .keys()
                .filter_map(|name| check_property(name)),
        );
        errors.extend(oauth_faults(&self.properties));
        let format = self.format.check();
        errors.extend(format.into_iter().map(|error| {
            ComponentError {
                field: format!("format.{}", error.field)
                    .trim_end_matches('.')
                    .to_owned(),
                ..error
            }
        }));
        errors
    }

    fn open(self, _: &OpenContext) -> Result<Box<dyn Source>, ComponentError> {
        match self.check().into_iter().next() {
            Some(error) => Err(error),
            None => {
                let mut decoder = self.format.open()?;
                Ok(Box::new(KafkaSource {
                    config: self,
                    decode: Box::new(move |record, out| decoder.decode(record, out)),
                }))
            }
        }
    }

    fn check_connection(&self, _: &str, _: &OpenContext) -> Vec<ConnectionCheck> {
        super::check::check(self)
    }

    fn position_probe(&self, _: &OpenContext) -> Box<dyn PositionProbe> {
        let config = self.clone();
        Box::new(move || super::ends::ends(&config))
    }

    fn redecoder(&self, _: &OpenContext) -> Result<Box<dyn Redecoder>, ComponentError> {
        let mut decoder = self.format.open()?;
        Ok(Box::new(RecordRedecoder(
            move |record: &RawRecord<'_>, letter: &DeadLetter| {
                let mut decoded = Vec::new();
                match decoder.decode(record, &mut decoded) {
                    Ok(()) => {}
                    Err(DecodeError::Rejected(rejected)) => return Err(rejected.into()),
                    Err(DecodeError::Unavailable(why)) => {
                        return Err(Rejected::new(letter.reason, why).into());
                    }
                }
                if decoded
                    .iter()
                    .any(|it| matches!(it, Decoded::Truncate { .. }))
                {
                    return Err(truncate_refused(letter));
                }
                let changes = decoded.into_iter().filter_map(|it| match it {
                    Decoded::Change(change) => Some(change),
                    _ => None,
                });
                let changes = changes.map(|change| Change {
                    key: change.key,
                    row: change.row,
                    unchanged_fields: change.unchanged_fields,
                    position: letter.position.clone(),
                    changed_at: change.changed_at.unwrap_or_else(SystemTime::now),
                });
                Ok(changes.collect())
            },
        )))
    }
}

/// Which rows a truncate met is known only where it stands: rows that came after it would go too.
fn truncate_refused(letter: &DeadLetter) -> Refused {
    let source = &letter.position.source;
    Refused::new(
        Rejected::new(letter.reason, "a truncate can't be replayed"),
        format!(
            "read the source anew, so that rows which it no longer has go: vectide run CONFIG \
             --resnapshot {source}"
        ),
    )
}

impl KafkaConfig {
    fn check_topics(&self) -> Vec<ComponentError> {
        let mut errors = Vec::new();
        if self.topics.is_empty() {
            errors.push(ComponentError::new(
                "topics",
                "no topic is named",
                "name at least one topic: [orders]",
            ));
        }
        let mut seen = BTreeSet::new();
        for (index, topic) in self.topics.iter().enumerate() {
            let field = format!("topics[{index}]");
            if is_pattern(topic) {
                if let Err(error) = compile(topic) {
                    let last = error.to_string();
                    let last = last.trim().lines().last().unwrap_or_default();
                    errors.push(ComponentError::new(
                        &*field,
                        format!("`{topic}` is not a pattern: {last}"),
                        "a regular expression that begins with `^`: \"^shop\\\\..*\"",
                    ));
                }
            } else if !is_topic_name(topic) {
                errors.push(not_a_topic(&field, topic));
            }
            if !seen.insert(topic) {
                errors.push(ComponentError::new(
                    field,
                    format!("topic `{topic}` is named twice"),
                    "name every topic once",
                ));
            }
        }
        if let Some(transactions) = &self.transactions {
            let topic = &transactions.topic;
            if !is_topic_name(topic) {
                errors.push(not_a_topic("transactions.topic", topic));
            } else if self.topics.contains(topic) {
                errors.push(ComponentError::new(
                    "transactions.topic",
                    format!("`{topic}` is among `topics` too"),
                    "name it here alone: it holds no rows",
                ));
            }
        }
        errors
    }

    /// Makes a source that decodes by a function of a test.
    ///
    /// # Errors
    /// When the configuration has faults.
    #[cfg(feature = "testing")]
    pub fn open_with_decoder(
        self,
        decode: impl FnMut(&RawRecord<'_>, &mut Vec<Decoded>) -> Result<(), DecodeError>
        + Send
        + 'static,
    ) -> Result<Box<dyn Source>, ComponentError> {
        match self.check().into_iter().next() {
            Some(error) => Err(error),
            None => Ok(Box::new(KafkaSource {
                config: self,
                decode: Box::new(decode),
            })),
        }
    }
}

fn not_a_topic(field: &str, topic: &str) -> ComponentError {
    ComponentError::new(
        field,
        format!("`{topic}` is not the name of a topic"),
        "1 to 249 letters, digits, dots, underscores and dashes",
    )
}

fn is_topic_name(name: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    (1..=249).contains(&name.len()) && name != "." && name != ".." && name.bytes().all(is_allowed)
}

fn check_property(name: &str) -> Option<ComponentError> {
    if ALLOWED.contains(&name) {
        return None;
    }
    Some(ComponentError::new(
        format!("properties.{name}"),
        format!("the client property `{name}` can't be set"),
        format!("allowed are {}", ALLOWED.join(", ")),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(json: serde_json::Value) -> Result<KafkaConfig, serde_json::Error> {
        serde_json::from_value(json)
    }

    #[test]
    fn all_faults_are_told_at_once() {
        let faulty = config(serde_json::json!({
            "brokers": "localhost",
            "topics": ["a b", "orders", "orders", "^a("],
            "format": {"type": "upsert"},
            "transactions": {"topic": "orders"},
            "discover_interval": "1ms",
            "properties": {"auto.offset.reset": "latest", "sasl.password": "secret"},
            "max_message": "0B",
        }))
        .unwrap();
        let fields: Vec<String> = faulty
            .check()
            .into_iter()
            .map(|error| error.field)
            .collect();
        assert_eq!(
            fields,
            [
                "brokers",
                "topics[0]",
                "topics[2]",
                "topics[3]",
                "transactions.topic",
                "discover_interval",
                "max_message",
                "properties.auto.offset.reset"
            ]
        );
        assert!(!format!("{faulty:?}").contains("secret"));
    }

    /// A truncate has no changes of its own; taken for a record that means nothing, its letter left
    /// the state as replayed, and the rows stayed.
    #[test]
    fn a_truncate_is_not_replayed() {
        let config = config(serde_json::json!({
            "brokers": "127.0.0.1:9092",
            "topics": ["pages"],
            "format": {"type": "debezium"},
        }))
        .unwrap();
        let mut redecoder = config.redecoder(&OpenContext::in_folder("/")).unwrap();
        let letter = |raw: &[u8]| {
            let position = vectide_model::Position {
                source: "shop".into(),
                partition: "pages/0".into(),
                offset: 7,
            };
            let reason = vectide_model::DeadLetterReason::TooLarge;
            DeadLetter::of_record(reason, position, None, "too large", (None, Some(raw)))
        };
        let truncate = letter(br#"{"op":"t","before":null,"after":null,"source":{"ts_ms":1}}"#);
        let refused = redecoder.decode_again(&truncate).unwrap_err();
        assert_eq!(refused.letter.detail, "a truncate can't be replayed");
        assert_eq!(refused.letter.position, truncate.position);
        assert!(refused.hint.contains("--resnapshot shop"), "{refused:?}");
        let message = letter(br#"{"op":"m","ts_ms":1,"message":{"prefix":"p"}}"#);
        assert_eq!(redecoder.decode_again(&message), Ok(Vec::new()));
    }

    #[test]
    fn good_and_unknown_fields() {
        let good = config(serde_json::json!({
            "brokers": "127.0.0.1:9092, [::1]:9093",
            "topics": ["shop.public.pages"],
            "format": {"type": "debezium"},
        }))
        .unwrap();
        assert_eq!(good.check(), []);
        assert_eq!(good.max_message, ByteSize::mebibytes(8));
        for wrong in [
            serde_json::json!({"brokers": "a:1", "topics": ["a"], "format": {"type": "avr"}}),
            serde_json::json!({"brokers": "a:1", "topics": ["a"], "format": {"type": "upsert", "x": 1}}),
            serde_json::json!({"brokers": "a:1", "topics": ["a"], "format": {"type": "upsert"}, "x": 1}),
        ] {
            assert!(config(wrong).is_err());
        }
    }
}
