//! Which topics a source reads: those it names, and those that its patterns match.
//!
//! An entry that begins with `^` is a pattern, as in the Kafka client; no topic's name can begin so.
//! A pattern has to match the whole name.
//!
//! Invariant: a topic that Kafka keeps for itself (`__consumer_offsets`) is read only when it is
//! named, or when a pattern begins with `^__`; the topic of transactions is never read for rows.

use super::KafkaConfig;
use regex::{Regex, RegexBuilder};

/// Bytes that a compiled pattern may take: patterns of names are short.
const PATTERN_BYTES_MAX: usize = 1024 * 1024;

/// What begins the names of topics that Kafka and Debezium keep for themselves.
const INTERNAL_PREFIX: &str = "__";

/// The topics of a source.
#[derive(Debug)]
pub(crate) struct TopicSelection {
    names: Vec<String>,
    patterns: Vec<TopicPattern>,
    transactions: Option<String>,
}

/// One entry that begins with `^`.
#[derive(Debug)]
struct TopicPattern {
    text: String,
    regex: Regex,
}

impl TopicPattern {
    fn matches(&self, topic: &str) -> bool {
        let is_hidden = topic.starts_with(INTERNAL_PREFIX) && !self.text.starts_with("^__");
        !is_hidden && self.regex.is_match(topic)
    }
}

/// Whether an entry of `topics` is a pattern.
pub(crate) fn is_pattern(entry: &str) -> bool {
    entry.starts_with('^')
}

/// Compiles a pattern.
pub(crate) fn compile(pattern: &str) -> Result<Regex, regex::Error> {
    RegexBuilder::new(&format!("^(?:{pattern})$"))
        .size_limit(PATTERN_BYTES_MAX)
        .build()
}

impl TopicSelection {
    /// The topics of a configuration that was checked.
    pub(crate) fn of(config: &KafkaConfig) -> Self {
        let entries = || config.topics.iter();
        let patterns = entries().filter(|entry| is_pattern(entry));
        let names = entries().filter(|entry| !is_pattern(entry));
        Self {
            names: names.cloned().collect(),
            patterns: patterns
                .filter_map(|text| {
                    let regex = compile(text).ok()?;
                    let text = text.clone();
                    Some(TopicPattern { text, regex })
                })
                .collect(),
            transactions: config.transactions.as_ref().map(|it| it.topic.clone()),
        }
    }

    /// The topics that are named: they have to exist.
    pub(crate) fn names(&self) -> &[String] {
        &self.names
    }

    /// The topic of transactions.
    pub(crate) fn transactions(&self) -> Option<&str> {
        self.transactions.as_deref()
    }

    /// Whether all topics of the cluster have to be looked at.
    pub(crate) fn has_patterns(&self) -> bool {
        !self.patterns.is_empty()
    }

    /// The patterns, each with a test for names.
    pub(crate) fn patterns(&self) -> impl Iterator<Item = (&str, impl Fn(&str) -> bool)> {
        self.patterns.iter().map(move |pattern| {
            let matches = move |topic: &str| {
                self.transactions.as_deref() != Some(topic) && pattern.matches(topic)
            };
            (&*pattern.text, matches)
        })
    }

    /// Whether a topic is read for rows.
    pub(crate) fn matches(&self, topic: &str) -> bool {
        if self.transactions.as_deref() == Some(topic) {
            return false;
        }
        self.names.iter().any(|name| name == topic)
            || self.patterns.iter().any(|pattern| pattern.matches(topic))
    }

    /// Whether a topic is read at all.
    pub(crate) fn reads(&self, topic: &str) -> bool {
        self.transactions.as_deref() == Some(topic) || self.matches(topic)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selection(topics: &[&str]) -> TopicSelection {
        let config = serde_json::from_value(serde_json::json!({
            "brokers": "a:1",
            "topics": topics,
            "format": {"type": "debezium"},
            "transactions": {"topic": "shop.transaction"},
        }));
        TopicSelection::of(&config.unwrap())
    }

    #[test]
    fn names_and_patterns() {
        let selection = selection(&["orders", "^shop\\..*", "^a|b"]);
        for topic in ["orders", "shop.pages", "shop.", "a", "b"] {
            assert!(selection.matches(topic), "{topic}");
        }
        for topic in ["orders2", "shop", "my.shop.pages", "ab", "shop.transaction"] {
            assert!(!selection.matches(topic), "{topic}");
        }
        assert!(selection.reads("shop.transaction"));
        assert_eq!(selection.names(), ["orders"]);
    }

    #[test]
    fn topics_that_kafka_keeps_for_itself_are_not_met_by_chance() {
        let all = selection(&["^.*"]);
        assert!(all.matches("pages") && !all.matches("__consumer_offsets"));
        let heartbeats = selection(&["^__debezium-heartbeat\\..*"]);
        assert!(heartbeats.matches("__debezium-heartbeat.shop"));
        assert!(!heartbeats.matches("__consumer_offsets"));
    }
}
