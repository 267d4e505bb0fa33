//! From the collections that an END marker counts to the partitions that hold their records.
//!
//! Debezium writes the records of `public.pages` to the topic `PREFIX.public.pages`, with an underscore
//! for every character that a topic can't have; `PREFIX.transaction` is where the transactions stand.
//! Where topics were renamed on the way, the one topic that ends in `.public.pages` is taken.
//!
//! Invariant: a collection counts only if its topic is read; else its records are never waited for.

use super::partition::PartitionReader;
use std::collections::BTreeSet;

/// The end of the name of a transaction topic.
const SUFFIX: &str = ".transaction";

/// Where the records of a collection are.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// In these partitions.
    Partitions(BTreeSet<usize>),
    /// In a topic of this name, which is not read.
    Elsewhere(String),
}

/// Finds a collection's partitions among those that are read.
pub(crate) fn find(transactions: &str, collection: &str, readers: &[PartitionReader]) -> Place {
    let sanitized = sanitized(collection);
    let prefix = transactions.strip_suffix(SUFFIX).unwrap_or(transactions);
    let topic = format!("{prefix}.{sanitized}");
    let partitions = partitions_of(readers, |name| name == topic);
    if !partitions.is_empty() {
        return Place::Partitions(partitions);
    }
    let end = format!(".{sanitized}");
    let partitions = partitions_of(readers, |name| name == sanitized || name.ends_with(&end));
    let topics: BTreeSet<&str> = partitions
        .iter()
        .map(|index| &*readers[*index].topic)
        .collect();
    match topics.len() {
        1 => Place::Partitions(partitions),
        _ => Place::Elsewhere(topic),
    }
}

fn partitions_of(readers: &[PartitionReader], is_it: impl Fn(&str) -> bool) -> BTreeSet<usize> {
    let readers = readers.iter().enumerate();
    let found = readers.filter(|(_, reader)| !reader.is_markers && is_it(&reader.topic));
    found.map(|(index, _)| index).collect()
}

fn sanitized(collection: &str) -> String {
    let is_allowed =
        |character: char| character.is_ascii_alphanumeric() || "._-".contains(character);
    let characters = collection.chars();
    characters
        .map(|it| if is_allowed(it) { it } else { '_' })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::PartitionStart;
    use super::*;

    fn reader(topic: &str, partition: i32) -> PartitionReader {
        let start = PartitionStart {
            topic: topic.into(),
            partition,
            next: None,
            first: 0,
            end: 0,
        };
        PartitionReader::new(start, topic.ends_with(SUFFIX))
    }

    #[test]
    fn topics_of_collections() {
        let readers = [
            reader("shop.transaction", 0),
            reader("shop.public.pages", 0),
            reader("shop.public.pages", 1),
            reader("shop.public.a_b", 0),
            reader("renamed.public.users", 0),
            reader("x.twice", 0),
            reader("y.twice", 0),
        ];
        let find = |collection| find("shop.transaction", collection, &readers);
        assert_eq!(find("public.pages"), Place::Partitions([1, 2].into()));
        assert_eq!(find("public.a b"), Place::Partitions([3].into()));
        assert_eq!(find("public.users"), Place::Partitions([4].into()));
        for (collection, topic) in [("twice", "shop.twice"), ("other", "shop.other")] {
            assert_eq!(find(collection), Place::Elsewhere(topic.to_owned()));
        }
    }
}
