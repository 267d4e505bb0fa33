//! The configuration of a Kafka source.

use super::KafkaSource;
use super::properties::ALLOWED;
use crate::envelope::format::{DecodeError, RecordFormat};
use crate::envelope::{Decoded, RawRecord, Rejected};
use crate::redecode::RecordRedecoder;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::time::SystemTime;
use vectide_model::{
    ByteSize, Change, ComponentError, ConnectionCheck, DeadLetter, OpenContext, Redecoder, Source,
    SourceConfig,
};

/// Topics of a Kafka cluster.
#[derive(Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct KafkaConfig {
    /// Some brokers of the cluster, `host:port`, separated by commas.
    pub brokers: String,
    /// The topics; all their partitions are read.
    pub topics: Vec<String>,
    /// What the records mean.
    pub format: RecordFormat,
    /// Settings of the Kafka client, by librdkafka's names: `security.protocol`, `sasl.*`, `ssl.*`
    /// and the limits of connections.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub properties: BTreeMap<String, String>,
    /// A longer record (key and value) becomes a dead letter.
    #[serde(default = "default_max_message")]
    pub max_message: ByteSize,
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
            if !is_topic_name(topic) {
                errors.push(ComponentError::new(
                    field,
                    format!("`{topic}` is not the name of a topic"),
                    "1 to 249 letters, digits, dots, underscores and dashes",
                ));
            } else if !seen.insert(topic) {
                errors.push(ComponentError::new(
                    field,
                    format!("topic `{topic}` is named twice"),
                    "name every topic once",
                ));
            }
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
        errors
    }

    fn open(self, _: &OpenContext) -> Result<Box<dyn Source>, ComponentError> {
        match self.check().into_iter().next() {
            Some(error) => Err(error),
            None => Ok(Box::new(KafkaSource { config: self })),
        }
    }

    fn check_connection(&self, _: &OpenContext) -> Vec<ConnectionCheck> {
        super::connection::check(self)
    }

    fn redecoder(&self, _: &OpenContext) -> Result<Box<dyn Redecoder>, ComponentError> {
        let mut decoder = self.format.open()?;
        Ok(Box::new(RecordRedecoder(
            move |record: &RawRecord<'_>, letter: &DeadLetter| {
                let mut decoded = Vec::new();
                match decoder.decode(record, &mut decoded) {
                    Ok(()) => {}
                    Err(DecodeError::Rejected(rejected)) => return Err(rejected),
                    Err(DecodeError::Unavailable(why)) => {
                        return Err(Rejected::new(letter.reason, why));
                    }
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
            "topics": ["a b", "orders", "orders"],
            "format": {"type": "upsert"},
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
                "max_message",
                "properties.auto.offset.reset"
            ]
        );
        assert!(!format!("{faulty:?}").contains("secret"));
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
