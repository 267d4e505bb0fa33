//! A Kafka topic of dead letters: each record as it was, with what is known of it in headers.
//!
//! Key and value are the bytes of the record that could not be used, so that a consumer can try it
//! with other code. The headers, all texts: `vectide-id`, `vectide-time`, `vectide-reason`,
//! `vectide-detail`, `vectide-source`, `vectide-partition`, `vectide-offset`, `vectide-key`
//! where one could be read, and `vectide-cut` where not all bytes were kept.
//!
//! Invariant: `write` returns `Ok` after all in-sync replicas acknowledged every letter, which go to
//! the topic in order and, while the process lives, once.

use super::time_text;
use crate::kafka::is_client_property_allowed;
use rdkafka::client::ClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, DeliveryResult, Producer, ProducerContext};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use vectide_model::{
    ComponentError, ConnectionCheck, DeadLetterSink, DeadLetterSinkConfig, DeadLetterSinkError,
    KeptLetter, OpenContext,
};

/// How long letters may take: a broker that is restarted is back by then, and a longer failure is
/// told, and tried again by the pipeline.
const DELIVERY_TIMEOUT: Duration = Duration::from_secs(30);

/// A question when a person waits for the answer.
const CHECK_TIMEOUT: Duration = Duration::from_secs(5);

/// A Kafka topic that dead letters are written to.
#[derive(Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TopicConfig {
    /// The Kafka topic: every dead letter is a record there, key and value as they were, with
    /// reason, position and detail in headers.
    pub topic: String,
    /// Some brokers of the topic's cluster, `host:port`, separated by commas.
    pub brokers: String,
    /// Settings of the Kafka client, as for Kafka sources.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub properties: BTreeMap<String, String>,
}

impl DeadLetterSinkConfig for TopicConfig {
    const FIELD: &'static str = "topic";

    fn check(&self) -> Vec<ComponentError> {
        let mut errors = Vec::new();
        if self.topic.is_empty() {
            let hint = "name a topic: vectide-dead-letters";
            errors.push(ComponentError::new("topic", "the name is empty", hint));
        }
        if self.brokers.is_empty() {
            let hint = "name one or more brokers: \"kafka-1:9092,kafka-2:9092\"";
            errors.push(ComponentError::new("brokers", "no broker is named", hint));
        }
        let names = self.properties.keys();
        errors.extend(
            names
                .filter(|it| !is_client_property_allowed(it))
                .map(|name| {
                    ComponentError::new(
                        format!("properties.{name}"),
                        format!("the client property `{name}` can't be set"),
                        "allowed are the properties of a Kafka source",
                    )
                }),
        );
        errors
    }

    fn open(self, _: &OpenContext) -> Result<Box<dyn DeadLetterSink>, ComponentError> {
        let mut client = self.client();
        client
            .set("enable.idempotence", "true")
            .set("acks", "all")
            // Letters come in batches and are waited for.
            .set("linger.ms", "5")
            .set("allow.auto.create.topics", "false")
            // A topic that is not there is told by name before its letters have timed out.
            .set("topic.metadata.propagation.max.ms", "10000")
            .set(
                "delivery.timeout.ms",
                DELIVERY_TIMEOUT.as_millis().to_string(),
            );
        let deliveries = Deliveries::default();
        let producer: BaseProducer<Deliveries> = client
            .create_with_context(deliveries.clone())
            .map_err(|error| unusable(&error))?;
        Ok(Box::new(Topic {
            config: self,
            producer,
            deliveries,
        }))
    }

    fn check_connection(&self, _: &OpenContext) -> Vec<ConnectionCheck> {
        let created: Result<BaseConsumer, KafkaError> = self.client().create();
        let result = match created {
            Ok(client) => self.check_topic(&client),
            Err(error) => Err(unusable(&error)),
        };
        let what = format!("topic {}", self.topic);
        vec![ConnectionCheck { what, result }]
    }
}

impl TopicConfig {
    fn client(&self) -> ClientConfig {
        let mut client = ClientConfig::new();
        client.set("client.id", "vectide");
        for (name, value) in &self.properties {
            // A consumer's setting, which a producer would complain of.
            if is_client_property_allowed(name) && name != "group.id" {
                client.set(name, value);
            }
        }
        client.set("bootstrap.servers", &self.brokers);
        client
    }

    fn check_topic(&self, client: &BaseConsumer) -> Result<String, ComponentError> {
        let metadata = client.fetch_metadata(Some(&self.topic), CHECK_TIMEOUT);
        let metadata = metadata.map_err(|error| {
            let fact = format!("no answer from {}: {error}", self.brokers);
            let hint = "check `brokers`, the network and `security.protocol`";
            ComponentError::new("brokers", fact, hint)
        })?;
        let mut topics = metadata.topics().iter();
        match topics.find(|it| it.name() == self.topic) {
            Some(found) if found.error().is_none() => {
                Ok(format!("{} partition(s)", found.partitions().len()))
            }
            _ => Err(ComponentError::new(
                "topic",
                format!(
                    "there is no topic `{}`, or this user may not see it",
                    self.topic
                ),
                "create it, or correct its name; topics are not created by writing",
            )),
        }
    }
}

fn unusable(error: &KafkaError) -> ComponentError {
    let fact = format!("the Kafka client can't be made: {error}");
    ComponentError::new("properties", fact, "check `properties`")
}

/// The first failure among the letters that are on their way.
#[derive(Clone, Default)]
struct Deliveries(Arc<Mutex<Option<KafkaError>>>);

impl Deliveries {
    fn take_failure(&self) -> Option<KafkaError> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl ClientContext for Deliveries {
    fn error(&self, error: KafkaError, reason: &str) {
        tracing::warn!("dead letters: {error}: {reason}");
    }
}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        if let Err((error, _)) = result {
            let mut failure = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            failure.get_or_insert_with(|| error.clone());
        }
    }
}

/// The topic while letters are written.
struct Topic {
    config: TopicConfig,
    producer: BaseProducer<Deliveries>,
    deliveries: Deliveries,
}

impl DeadLetterSink for Topic {
    fn write(&mut self, letters: &[KeptLetter]) -> Result<(), DeadLetterSinkError> {
        self.deliveries.take_failure();
        let sent = letters.iter().try_for_each(|kept| self.send(kept));
        // Also after a failure: what was sent must not be on its way when it is sent again.
        let flushed = self
            .producer
            .flush(DELIVERY_TIMEOUT + Duration::from_secs(5));
        let failure = self.deliveries.take_failure();
        let result = sent.and(flushed);
        result.and(failure.map_or(Ok(()), Err)).map_err(|error| {
            let hint = match error.rdkafka_error_code() {
                Some(
                    RDKafkaErrorCode::UnknownTopic | RDKafkaErrorCode::UnknownTopicOrPartition,
                ) => "create the topic; topics are not created by writing",
                Some(RDKafkaErrorCode::TopicAuthorizationFailed) => {
                    "let this user write to the topic"
                }
                _ => "check the brokers, and `properties`",
            };
            DeadLetterSinkError {
                place: format!("topic {} of {}", self.config.topic, self.config.brokers),
                detail: error.to_string(),
                hint: hint.into(),
            }
        })
    }
}

impl Topic {
    fn send(&self, kept: &KeptLetter) -> Result<(), KafkaError> {
        let letter = &kept.letter;
        let mut record = BaseRecord::<[u8], [u8]>::to(&self.config.topic).headers(headers(kept));
        if let Some(key) = &letter.raw_key {
            record = record.key(key);
        }
        if !letter.is_tombstone {
            record = record.payload(&letter.raw);
        }
        loop {
            match self.producer.send(record) {
                Ok(()) => return Ok(()),
                // The client's own queue empties while it is waited for.
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), unsent)) => {
                    self.producer.poll(Duration::from_millis(50));
                    record = unsent;
                }
                Err((error, _)) => return Err(error),
            }
        }
    }
}

fn headers(kept: &KeptLetter) -> OwnedHeaders {
    let letter = &kept.letter;
    let (id, offset) = (kept.id.to_string(), letter.position.offset.to_string());
    let time = time_text(kept.written_at);
    let mut headers = OwnedHeaders::new();
    let all = [
        ("vectide-id", Some(&*id)),
        ("vectide-time", Some(&*time)),
        ("vectide-reason", Some(letter.reason.as_str())),
        ("vectide-detail", Some(&*letter.detail)),
        ("vectide-source", Some(&*letter.position.source)),
        ("vectide-partition", Some(&*letter.position.partition)),
        ("vectide-offset", Some(&*offset)),
        ("vectide-key", letter.key.as_deref()),
        ("vectide-cut", letter.is_cut.then_some("true")),
    ];
    for (key, value) in all {
        if value.is_some() {
            headers = headers.insert(Header { key, value });
        }
    }
    headers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_told_and_secrets_stay() {
        let config: TopicConfig = serde_json::from_value(serde_json::json!({
            "topic": "", "brokers": "",
            "properties": {"acks": "0", "sasl.password": "secret"},
        }))
        .unwrap();
        let faults = config.check();
        let fields: Vec<&str> = faults.iter().map(|it| &*it.field).collect();
        assert_eq!(fields, ["topic", "brokers", "properties.acks"]);
        assert!(!format!("{faults:?}").contains("secret"));
    }
}
