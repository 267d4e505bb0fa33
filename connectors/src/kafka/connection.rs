//! Asks a cluster what its topics hold, and compares that with the committed positions.
//!
//! Invariant: reading starts only when every recorded position still lies within its partition.

use super::context::LogContext;
use super::errors::{Verdict, judge};
use super::properties::client_config;
use super::{End, KafkaConfig, PartitionStart};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use vectide_model::{ComponentError, ConnectionCheck, Partition, SourceStart, StopSignal};

/// One question to the cluster. Stopping waits for it, so it is short; the client goes on
/// connecting between two of them.
const ASK_TIMEOUT: Duration = Duration::from_millis(500);

/// One question when a person waits for the answer.
const CHECK_TIMEOUT: Duration = Duration::from_secs(5);

/// Wait between two tries.
const RETRY_INTERVAL: Duration = Duration::from_millis(100);

/// How long a cluster may be unreachable at the start: it may be starting beside us.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(60);

/// A cluster that was asked what its topics hold.
pub(crate) struct Connection {
    pub(crate) partitions: Vec<PartitionStart>,
    client: BaseConsumer<LogContext>,
    brokers: String,
}

impl Connection {
    /// Asks the cluster for all partitions of the configured topics.
    pub(crate) fn open(config: &KafkaConfig, start: &SourceStart) -> Result<Self, End> {
        let mut properties = client_config(config, &start.name, 1);
        // Without a group the client only answers questions.
        properties.remove("group.id");
        let client = properties
            .create_with_context(LogContext::new(&start.name))
            .map_err(|error| creation_failed(&error))?;
        let mut connection = Self {
            partitions: Vec::new(),
            client,
            brokers: config.brokers.clone(),
        };
        for topic in &config.topics {
            let of_topic = connection.partitions_of(topic, start)?;
            connection.partitions.extend(of_topic);
        }
        warn_of_topics_not_read(config, &start.positions);
        Ok(connection)
    }

    fn partitions_of(&self, topic: &str, start: &SourceStart) -> Result<Vec<PartitionStart>, End> {
        let ids = self.ask(&start.stop, topic, || self.partition_ids(topic))?;
        let recorded = recorded_partitions(topic, &start.positions);
        let Some(ids) = ids else {
            return Err(missing_topic(topic, &recorded));
        };
        if let Some(gone) = recorded.keys().find(|id| !ids.contains(id)) {
            return Err(End::PositionLost(format!(
                "partition {gone} of topic `{topic}` was read before and is gone; the topic has {} \
                 partitions now",
                ids.len()
            )));
        }
        let topic: Arc<str> = topic.into();
        let mut partitions = Vec::with_capacity(ids.len());
        for id in ids {
            let ask = || self.client.fetch_watermarks(&topic, id, ASK_TIMEOUT);
            let (first, end) = self.ask(&start.stop, &topic, ask)?;
            let partition = PartitionStart {
                topic: topic.clone(),
                partition: id,
                next: recorded.get(&id).copied(),
                first: u64::try_from(first).unwrap_or(0),
                end: u64::try_from(end).unwrap_or(0),
            };
            check_position(&partition)?;
            partitions.push(partition);
        }
        Ok(partitions)
    }

    /// Ids of a topic's partitions, sorted; `None` when the cluster does not know the topic.
    fn partition_ids(&self, topic: &str) -> KafkaResult<Option<Vec<i32>>> {
        let metadata = self.client.fetch_metadata(Some(topic), ASK_TIMEOUT)?;
        let Some(found) = metadata.topics().iter().find(|found| found.name() == topic) else {
            return Ok(None);
        };
        if let Some(error) = found.error() {
            let code = RDKafkaErrorCode::from(error);
            return match code {
                RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic => {
                    Ok(None)
                }
                _ => Err(KafkaError::MetadataFetch(code)),
            };
        }
        let mut ids: Vec<i32> = found.partitions().iter().map(|part| part.id()).collect();
        ids.sort_unstable();
        Ok(Some(ids))
    }

    /// Whether the cluster has a partition; used when the client doubts it.
    pub(crate) fn has_partition(
        &self,
        stop: &StopSignal,
        topic: &str,
        partition: i32,
    ) -> Result<bool, End> {
        let ids = self.ask(stop, topic, || self.partition_ids(topic))?;
        Ok(ids.is_some_and(|ids| ids.contains(&partition)))
    }

    /// Asks until there is an answer, an error that does not pass, or no time left.
    fn ask<T>(
        &self,
        stop: &StopSignal,
        topic: &str,
        question: impl Fn() -> KafkaResult<T>,
    ) -> Result<T, End> {
        let place = format!("topic `{topic}`");
        let began_at = Instant::now();
        loop {
            if stop.is_stopped() {
                return Err(End::Stopped);
            }
            let error = match question() {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            if let Verdict::Final(end) = judge(&error, &place) {
                return Err(end);
            }
            // Serves the client's complaints.
            drop(self.client.poll(Duration::ZERO));
            if began_at.elapsed() >= CONNECT_TIMEOUT {
                return Err(self.unreachable(&error));
            }
            stop.wait(RETRY_INTERVAL);
        }
    }

    fn unreachable(&self, error: &KafkaError) -> End {
        let complaint = self.client.context().last_error();
        let reason = complaint.unwrap_or_else(|| error.to_string());
        End::failed(
            format!(
                "no answer from {} within {} s: {reason}",
                self.brokers,
                CONNECT_TIMEOUT.as_secs()
            ),
            "check `brokers`, the network and `security.protocol`; brokers must also be reachable \
             by the addresses that they advertise",
        )
    }
}

/// Looks at every topic, for a person.
pub(crate) fn check(config: &KafkaConfig) -> Vec<ConnectionCheck> {
    let name: Arc<str> = "check".into();
    let mut properties = client_config(config, &name, 1);
    properties.remove("group.id");
    let created: KafkaResult<BaseConsumer<LogContext>> =
        properties.create_with_context(LogContext::new(&name));
    let client = match created {
        Ok(client) => client,
        Err(error) => {
            let fact = format!("the Kafka client can't be made: {error}");
            let result = Err(ComponentError::new(
                "properties",
                fact,
                "check `properties`",
            ));
            let what = format!("brokers {}", config.brokers);
            return vec![ConnectionCheck { what, result }];
        }
    };
    let topics = config.topics.iter();
    topics
        .map(|topic| check_topic(&client, config, topic))
        .collect()
}

fn check_topic(
    client: &BaseConsumer<LogContext>,
    config: &KafkaConfig,
    topic: &str,
) -> ConnectionCheck {
    let result = match client.fetch_metadata(Some(topic), CHECK_TIMEOUT) {
        Err(error) => {
            let complaint = client.context().last_error();
            let reason = complaint.unwrap_or_else(|| error.to_string());
            let fact = format!("no answer from {}: {reason}", config.brokers);
            let hint = "check `brokers`, the network and `security.protocol`";
            Err(ComponentError::new("brokers", fact, hint))
        }
        Ok(metadata) => match metadata.topics().iter().find(|it| it.name() == topic) {
            Some(found) if found.error().is_none() => {
                Ok(format!("{} partition(s)", found.partitions().len()))
            }
            _ => Err(ComponentError::new(
                "topics",
                format!("there is no topic `{topic}`, or this user may not see it"),
                "create it, or correct its name",
            )),
        },
    };
    let what = format!("topic {topic}");
    ConnectionCheck { what, result }
}

pub(crate) fn creation_failed(error: &KafkaError) -> End {
    End::failed(
        format!("the Kafka client can't be made: {error}"),
        "check `properties`",
    )
}

/// The recorded positions of one topic by partition.
fn recorded_partitions(topic: &str, positions: &BTreeMap<Partition, u64>) -> BTreeMap<i32, u64> {
    let of_topic = |name: &str| -> Option<i32> {
        let (of, id) = name.rsplit_once('/')?;
        (of == topic).then(|| id.parse().ok()).flatten()
    };
    positions
        .iter()
        .filter_map(|(name, next)| Some((of_topic(name)?, *next)))
        .collect()
}

fn missing_topic(topic: &str, recorded: &BTreeMap<i32, u64>) -> End {
    if recorded.is_empty() {
        return End::failed(
            format!("there is no topic `{topic}`"),
            "create it, or correct its name under `topics`; topics are never created by reading",
        );
    }
    End::PositionLost(format!("topic `{topic}` was read before and is gone"))
}

fn check_position(start: &PartitionStart) -> Result<(), End> {
    let Some(next) = start.next else {
        return Ok(());
    };
    let PartitionStart {
        topic,
        partition,
        first,
        end,
        ..
    } = start;
    if next < *first {
        return Err(End::PositionLost(format!(
            "offset {next} of {topic}/{partition} is the next to read, but retention removed the \
             records below {first}"
        )));
    }
    if next > *end {
        return Err(End::PositionLost(format!(
            "offset {next} of {topic}/{partition} is the next to read, but the partition ends at \
             {end}: the topic was made anew, or the broker lost records"
        )));
    }
    Ok(())
}

fn warn_of_topics_not_read(config: &KafkaConfig, positions: &BTreeMap<Partition, u64>) {
    for name in positions.keys() {
        let topic = name.rsplit_once('/').map_or(&**name, |(topic, _)| topic);
        if !config.topics.iter().any(|configured| configured == topic) {
            tracing::warn!("{name} was read before and is not configured any more: its rows stay");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn partition(next: Option<u64>) -> PartitionStart {
        PartitionStart {
            topic: "t".into(),
            partition: 3,
            next,
            first: 10,
            end: 20,
        }
    }

    #[test]
    fn positions_must_lie_within_their_partition() {
        for next in [None, Some(10), Some(20)] {
            assert!(check_position(&partition(next)).is_ok(), "{next:?}");
        }
        for next in [Some(9), Some(21), Some(u64::MAX)] {
            let lost = check_position(&partition(next));
            assert!(matches!(lost, Err(End::PositionLost(detail)) if detail.contains("t/3")));
        }
    }

    #[test]
    fn recorded_partitions_are_those_of_the_topic() {
        let positions = [
            ("a/0", 1),
            ("a/12", 2),
            ("a.b/0", 3),
            ("b/1", 4),
            ("odd", 5),
        ]
        .map(|(name, next)| (Partition::from(name), next))
        .into();
        assert_eq!(
            recorded_partitions("a", &positions),
            [(0, 1), (12, 2)].into()
        );
        assert!(recorded_partitions("c", &positions).is_empty());
    }
}
