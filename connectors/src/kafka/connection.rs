//! Asks a cluster what its topics hold, and compares that with the committed positions.
//!
//! Invariant: reading starts only when every recorded position still lies within its partition.

use super::context::LogContext;
use super::errors::{Verdict, judge, refused};
use super::properties::asking_config;
use super::topics::TopicSelection;
use super::{End, KafkaConfig, PartitionStart};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::metadata::MetadataTopic;
use std::collections::BTreeMap;

use std::time::{Duration, Instant};
use vectide_model::{Partition, SourceStart, StopSignal};

/// One question to the cluster. Stopping waits for it, so it is short; the client goes on
/// connecting between two of them.
const ASK_TIMEOUT: Duration = Duration::from_millis(500);

/// Wait between two tries.
const RETRY_INTERVAL: Duration = Duration::from_millis(100);

/// How long a cluster may be unreachable at the start: it may be starting beside us.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(60);

/// How long brokers may refuse this client at the start: one that starts learns its users within
/// seconds.
const REFUSED_TIMEOUT: Duration = Duration::from_secs(5);

/// A client that asks.
pub(crate) struct Connection {
    client: BaseConsumer<LogContext>,
    brokers: String,
    topics: TopicSelection,
}

/// Partitions of topics that are there.
type Topics = BTreeMap<String, Vec<i32>>;

impl Connection {
    /// Makes the client; it connects when it is asked.
    pub(crate) fn open(config: &KafkaConfig, source: &str) -> Result<Self, End> {
        let client = asking_config(config, source)
            .create_with_context(LogContext::new(source))
            .map_err(|error| creation_failed(&error))?;
        Ok(Self {
            client,
            brokers: config.brokers.clone(),
            topics: TopicSelection::of(config),
        })
    }

    pub(crate) fn client(&self) -> &BaseConsumer<LogContext> {
        &self.client
    }

    /// Asks for all partitions that are to be read, and checks the positions in them. Those of the
    /// transaction topic come first: what stands there now was written before what the others are
    /// seen to hold.
    pub(crate) fn partitions(&self, start: &SourceStart) -> Result<Vec<PartitionStart>, End> {
        let mut topics = Topics::new();
        let transactions = self.topics.transactions().map(str::to_owned);
        for name in transactions.iter().chain(self.topics.names()) {
            match self.ask(&start.stop, name, || self.partition_ids(name))? {
                Some(ids) => drop(topics.insert(name.clone(), ids)),
                None => return Err(missing_topic(name, &recorded_in(name, &start.positions))),
            }
        }
        if self.topics.has_patterns() {
            let found = self.ask(&start.stop, "all topics", || self.matched())?;
            if found.is_empty() {
                tracing::warn!(
                    source = &*start.name,
                    "no topic matches the patterns under `topics` yet: they are looked for"
                );
            }
            topics.extend(found);
        }
        self.check_recorded(&topics, &start.positions)?;
        let mut partitions = Vec::new();
        let others = topics
            .keys()
            .filter(|name| Some(*name) != transactions.as_ref());
        for name in transactions.iter().chain(others) {
            for id in &topics[name] {
                let next = start.positions.get(&PartitionStart::name(name, *id));
                let partition = self.partition(&start.stop, name, *id, next.copied())?;
                check_position(&partition)?;
                partitions.push(partition);
            }
        }
        Ok(partitions)
    }

    /// Partitions that are to be read and are not `known`.
    pub(crate) fn new_partitions(
        &self,
        stop: &StopSignal,
        known: &dyn Fn(&Partition) -> bool,
    ) -> Result<Vec<PartitionStart>, End> {
        let mut topics = Topics::new();
        for name in self.topics.names() {
            if let Some(ids) = self.ask(stop, name, || self.partition_ids(name))? {
                topics.insert(name.clone(), ids);
            }
        }
        if self.topics.has_patterns() {
            topics.extend(self.ask(stop, "all topics", || self.matched())?);
        }
        let mut partitions = Vec::new();
        for (name, ids) in topics {
            for id in ids {
                if !known(&PartitionStart::name(&name, id)) {
                    partitions.push(self.partition(stop, &name, id, None)?);
                }
            }
        }
        Ok(partitions)
    }

    fn partition(
        &self,
        stop: &StopSignal,
        topic: &str,
        id: i32,
        next: Option<u64>,
    ) -> Result<PartitionStart, End> {
        let ask = || self.client.fetch_watermarks(topic, id, ASK_TIMEOUT);
        let (first, end) = self.ask(stop, topic, ask)?;
        Ok(PartitionStart {
            topic: topic.into(),
            partition: id,
            next,
            first: u64::try_from(first).unwrap_or(0),
            end: u64::try_from(end).unwrap_or(0),
        })
    }

    /// The end of a partition now; for information, so it is not asked twice.
    pub(crate) fn end_of(&self, topic: &str, id: i32) -> KafkaResult<u64> {
        let (_, end) = self.client.fetch_watermarks(topic, id, ASK_TIMEOUT)?;
        Ok(u64::try_from(end).unwrap_or(0))
    }

    /// The cluster's id, where it tells one.
    pub(crate) fn cluster_id(&self) -> Option<String> {
        // The answers to the questions before have brought it.
        self.client.client().fetch_cluster_id(ASK_TIMEOUT)
    }

    /// Ids of a topic's partitions, sorted; `None` when the cluster does not know the topic.
    fn partition_ids(&self, topic: &str) -> KafkaResult<Option<Vec<i32>>> {
        let metadata = self.client.fetch_metadata(Some(topic), ASK_TIMEOUT)?;
        let found = metadata.topics().iter().find(|found| found.name() == topic);
        found.map_or(Ok(None), ids_of)
    }

    /// The topics that the patterns match.
    fn matched(&self) -> KafkaResult<Topics> {
        let metadata = self.client.fetch_metadata(None, ASK_TIMEOUT)?;
        let mut topics = Topics::new();
        for found in metadata.topics() {
            if self.topics.matches(found.name())
                && let Some(ids) = ids_of(found)?
            {
                topics.insert(found.name().to_owned(), ids);
            }
        }
        Ok(topics)
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

    /// Partitions that were read before must still be there.
    fn check_recorded(
        &self,
        topics: &Topics,
        positions: &BTreeMap<Partition, u64>,
    ) -> Result<(), End> {
        for name in positions.keys() {
            let Some((topic, id)) = PartitionStart::parse(name) else {
                continue;
            };
            if !self.topics.reads(topic) {
                tracing::warn!(
                    "{name} was read before and is not configured any more: its rows stay"
                );
                continue;
            }
            let Some(ids) = topics.get(topic) else {
                return Err(missing_topic(topic, &recorded_in(topic, positions)));
            };
            if !ids.contains(&id) {
                return Err(End::PositionLost(format!(
                    "partition {id} of topic `{topic}` was read before and is gone; the topic has \
                     {} partitions now",
                    ids.len()
                )));
            }
        }
        Ok(())
    }

    /// Asks until there is an answer, an error that does not pass, or no time left.
    pub(crate) fn ask<T>(
        &self,
        stop: &StopSignal,
        what: &str,
        question: impl Fn() -> KafkaResult<T>,
    ) -> Result<T, End> {
        let place = format!("topic `{what}`");
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
            if let Some(reason) = self.client.context().refused_for(REFUSED_TIMEOUT) {
                return Err(refused(&reason));
            }
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

fn ids_of(topic: &MetadataTopic) -> KafkaResult<Option<Vec<i32>>> {
    if let Some(error) = topic.error() {
        let code = RDKafkaErrorCode::from(error);
        return match code {
            RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic => Ok(None),
            _ => Err(KafkaError::MetadataFetch(code)),
        };
    }
    let mut ids: Vec<i32> = topic.partitions().iter().map(|part| part.id()).collect();
    ids.sort_unstable();
    Ok(Some(ids))
}

pub(crate) fn creation_failed(error: &KafkaError) -> End {
    End::failed(
        format!("the Kafka client can't be made: {error}"),
        "check `properties`",
    )
}

/// The recorded partitions of one topic.
fn recorded_in(topic: &str, positions: &BTreeMap<Partition, u64>) -> Vec<i32> {
    let names = positions
        .keys()
        .filter_map(|name| PartitionStart::parse(name));
    names
        .filter(|(of, _)| *of == topic)
        .map(|(_, id)| id)
        .collect()
}

fn missing_topic(topic: &str, recorded: &[i32]) -> End {
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
        let names = ["a/0", "a/12", "a.b/0", "b/1", "odd"];
        let positions = names.map(|name| (Partition::from(name), 1)).into();
        assert_eq!(recorded_in("a", &positions), [0, 12]);
        assert!(recorded_in("c", &positions).is_empty());
    }
}
