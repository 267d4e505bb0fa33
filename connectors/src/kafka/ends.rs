//! Where the topics of a source end now, for a client that wants to read its own writes.
//!
//! Invariant: every partition that is read for rows is told, with an offset behind every record that
//! was acknowledged before the question.

use super::check::{all_topics, asking_client};
use super::topics::TopicSelection;
use super::{KafkaConfig, PartitionStart};
use rdkafka::consumer::Consumer;
use std::collections::BTreeMap;
use std::time::Duration;
use vectide_model::{ComponentError, Partition};

/// How long one partition's leader may take.
const ASK_TIMEOUT: Duration = Duration::from_secs(5);

/// Asks for the ends of all partitions.
pub(crate) fn ends(config: &KafkaConfig) -> Result<BTreeMap<Partition, u64>, ComponentError> {
    let client = asking_client(config)?;
    let all = all_topics(&client)?;
    let topics = TopicSelection::of(config);
    let mut ends = BTreeMap::new();
    for topic in all.topics().iter().filter(|it| topics.matches(it.name())) {
        for partition in topic.partitions() {
            let (name, id) = (topic.name(), partition.id());
            let asked = client.fetch_watermarks(name, id, ASK_TIMEOUT);
            let (_, end) = asked.map_err(|error| {
                let fact =
                    format!("the end of partition {id} of topic `{name}` is not told: {error}");
                ComponentError::new("brokers", fact, "check the brokers")
            })?;
            let end = u64::try_from(end).unwrap_or(0);
            ends.insert(PartitionStart::name(name, id), end);
        }
    }
    if ends.is_empty() {
        let fact = "there are no topics to read";
        let hint = "create them, or correct their names";
        return Err(ComponentError::new("topics", fact, hint));
    }
    Ok(ends)
}
