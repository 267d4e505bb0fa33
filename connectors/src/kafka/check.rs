//! What `validate --connect` says of a Kafka source: the brokers, each topic, each pattern.
//!
//! Invariant: it only asks, each question for a few seconds at most, and each answer is one line.

use super::KafkaConfig;
use super::context::LogContext;
use super::properties::asking_config;
use super::topics::TopicSelection;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::metadata::Metadata;
use std::time::{Duration, Instant};
use vectide_model::{ComponentError, ConnectionCheck};

/// How long a person waits for one answer.
const CHECK_TIMEOUT: Duration = Duration::from_secs(5);

/// One try within it: between two the client's complaints are looked at.
const TRY_TIMEOUT: Duration = Duration::from_millis(500);

/// Looks at everything, for a person.
pub(crate) fn check(config: &KafkaConfig) -> Vec<ConnectionCheck> {
    let brokers = format!("brokers {}", config.brokers);
    let asked = asking_client(config).and_then(|client| {
        let all = all_topics(&client)?;
        Ok((client, all))
    });
    let (client, all) = match asked {
        Ok(asked) => asked,
        Err(error) => return vec![line(brokers, Err(error))],
    };
    let found = format!(
        "{} broker(s), {} topic(s)",
        all.brokers().len(),
        all.topics().len()
    );
    let mut lines = vec![line(brokers, Ok(found))];
    let topics = TopicSelection::of(config);
    for topic in topics.names() {
        let what = format!("topic {topic}");
        lines.push(line(what, partitions_of(&client, topic, "topics")));
    }
    for (pattern, matches) in topics.patterns() {
        let found = all.topics().iter().filter(|topic| matches(topic.name()));
        lines.push(line(
            format!("pattern {pattern}"),
            Ok(matched(found.map(|it| it.name()))),
        ));
    }
    if let Some(topic) = topics.transactions() {
        let found = partitions_of(&client, topic, "transactions.topic");
        lines.push(line(format!("transaction topic {topic}"), found));
    }
    lines
}

/// A client that only answers questions.
pub(crate) fn asking_client(
    config: &KafkaConfig,
) -> Result<BaseConsumer<LogContext>, ComponentError> {
    let mut properties = asking_config(config, "check");
    // Without a group it takes part in nothing.
    properties.remove("group.id");
    let created = properties.create_with_context(LogContext::new("check"));
    created.map_err(|error| {
        let fact = format!("the Kafka client can't be made: {error}");
        ComponentError::new("properties", fact, "check `properties`")
    })
}

/// All topics: a cluster that has many answers with many, once.
pub(crate) fn all_topics(client: &BaseConsumer<LogContext>) -> Result<Metadata, ComponentError> {
    ask(client, None).map_err(|reason| {
        let fact = format!("no answer: {reason}");
        let hint = "check `brokers`, the network, `security.protocol`, `sasl.*` and `ssl.*`";
        ComponentError::new("brokers", fact, hint)
    })
}

fn line(what: String, result: Result<String, ComponentError>) -> ConnectionCheck {
    ConnectionCheck { what, result }
}

fn matched<'a>(names: impl Iterator<Item = &'a str>) -> String {
    /// Enough to see whether the pattern is the one that was meant.
    const NAMES_SHOWN: usize = 5;
    let mut names: Vec<&str> = names.collect();
    names.sort_unstable();
    if names.is_empty() {
        return "matches no topic yet".to_owned();
    }
    let shown = names[..names.len().min(NAMES_SHOWN)].join(", ");
    let more = if names.len() > NAMES_SHOWN {
        ", ..."
    } else {
        ""
    };
    format!("matches {} topic(s): {shown}{more}", names.len())
}

fn partitions_of(
    client: &BaseConsumer<LogContext>,
    topic: &str,
    field: &str,
) -> Result<String, ComponentError> {
    let metadata = ask(client, Some(topic)).map_err(|reason| {
        ComponentError::new(
            "brokers",
            format!("no answer: {reason}"),
            "check the brokers",
        )
    })?;
    match metadata.topics().iter().find(|it| it.name() == topic) {
        Some(found) if found.error().is_none() => {
            Ok(format!("{} partition(s)", found.partitions().len()))
        }
        _ => Err(ComponentError::new(
            field,
            format!("there is no topic `{topic}`, or this user may not see it"),
            "create it, or correct its name",
        )),
    }
}

fn ask(client: &BaseConsumer<LogContext>, topic: Option<&str>) -> Result<Metadata, String> {
    let began_at = Instant::now();
    loop {
        let error = match client.fetch_metadata(topic, TRY_TIMEOUT) {
            Ok(metadata) => return Ok(metadata),
            Err(error) => error,
        };
        drop(client.poll(Duration::ZERO));
        if let Some(reason) = client.context().refused_for(Duration::from_secs(1)) {
            return Err(reason);
        }
        if began_at.elapsed() >= CHECK_TIMEOUT {
            return Err(client
                .context()
                .last_error()
                .unwrap_or_else(|| error.to_string()));
        }
    }
}
