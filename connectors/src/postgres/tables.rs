//! The tables of a source with what is recorded of them: how far each one's snapshot is, and from
//! which place of the log on its changes count.
//!
//! | position | means |
//! | --- | --- |
//! | `wal` | where reading the log goes on |
//! | `public.pages` | the cut: the snapshot has what was committed before it |
//! | `public.pages/snapshot` | pages of the table that were read; 4294967295 when all were |
//! | `public.pages/xmin` | transactions from this number on were not all in its first snapshot |
//! | `public.pages/left` | where reading stood when the table was first not among the configured ones |
//! | `sweep` | 1 while rows of an earlier reading may have to be removed |
//! | `barrier` | counts the times that the source waited for its changes to be durable |
//! | `transaction` | where the commit stands of the last transaction of which only a part was handed on |
//! | `transaction/changes` | how many of its changes that part has |
//!
//! Rows carry the table's partition. When a source that holds rows is read anew, its partitions are
//! new ones (`public.pages@1A2B3C`), as the places of the rows held may belong to another log.
//!
//! The stream goes on without a table that is taken out of the configuration, and what it tells of that
//! table then is never told again: one that is put back has a gap, and must be read anew.
//!
//! Invariant: a table has one partition, one number and one key for as long as its rows are held.

use super::catalog::{PublishedTable, TableFacts, show_lsn};
use super::errors::End;
use super::pgoutput::Lsn;
use super::row::Columns;
use std::collections::BTreeMap;
use std::sync::Arc;
use vectide_model::{Partition, Position, SourceStart};

/// Where reading the log goes on.
pub(crate) const WAL: &str = "wal";
/// Whether rows of an earlier reading may have to be removed.
pub(crate) const SWEEP: &str = "sweep";
/// Counts waits for durability.
pub(crate) const BARRIER: &str = "barrier";
/// The last transaction that was handed on in part, by the place of its commit.
pub(crate) const TRANSACTION: &str = "transaction";
/// How many of its changes were handed on.
pub(crate) const TRANSACTION_CHANGES: &str = "transaction/changes";
/// Fingerprint of the cluster.
pub(crate) const SYSTEM: &str = "system";
/// Fingerprint of its timeline.
pub(crate) const TIMELINE: &str = "timeline";

/// All pages: no table has a page of this number.
pub(crate) const ALL_BLOCKS: u64 = 0xFFFF_FFFF;

/// Positions or fingerprints.
pub(crate) type Places = BTreeMap<Partition, u64>;

/// A table of the source.
pub(crate) struct Table {
    pub(crate) facts: TableFacts,
    pub(crate) published: PublishedTable,
    pub(crate) partition: Partition,
    /// Whether keys begin with the table's name.
    has_prefix: bool,
    /// Columns and kinds as the snapshot reads them.
    pub(crate) columns: Option<Columns>,
    /// Changes committed before this place are in the snapshot.
    pub(crate) cut: Lsn,
    pub(crate) blocks_read: u64,
    pub(crate) xmin: u64,
    /// The file that `blocks_read` counts in.
    pub(crate) filenode: u64,
}

impl Table {
    /// A table as it is recorded, or new under the generation's name.
    pub(crate) fn of(
        facts: TableFacts,
        published: PublishedTable,
        start: &SourceStart,
        generation: &str,
        has_prefix: bool,
    ) -> Result<Self, End> {
        let mut recorded = start.positions.keys();
        let partition = recorded
            .find(|partition| is_partition_of(&facts.name, partition))
            .cloned()
            .unwrap_or_else(|| Partition::from(format!("{}{generation}", facts.name)));
        let mut table = Self {
            facts,
            published,
            partition,
            has_prefix,
            columns: None,
            cut: 0,
            blocks_read: 0,
            xmin: 0,
            filenode: 0,
        };
        let left = start.positions.get(&left_name(&table.partition));
        if let Some(left) = left {
            return Err(End::PositionLost(format!(
                "table `{}` was not among `tables` for a time: what happened in it since {} was not read",
                table.facts.name,
                show_lsn(*left)
            )));
        }
        table.check_fingerprints(&start.fingerprints)?;
        let position = |name: &str| start.positions.get(name).copied().unwrap_or(0);
        table.cut = position(&table.partition);
        table.blocks_read = position(&table.blocks_name());
        table.xmin = position(&table.xmin_name());
        let filenode = start.fingerprints.get(&table.blocks_name());
        table.filenode = filenode.copied().unwrap_or(0);
        Ok(table)
    }

    fn check_fingerprints(&self, recorded: &Places) -> Result<(), End> {
        let name = &self.facts.name;
        for (partition, now) in self.fingerprints() {
            if recorded.get(&partition).is_none_or(|before| *before == now) {
                continue;
            }
            let what = if partition == self.partition {
                format!("table `{name}` was dropped and made anew")
            } else if partition == self.key_types_name() {
                let key = self.facts.key.join(", ");
                format!("a column of the key ({key}) of table `{name}` is of another type now")
            } else {
                let key = self.facts.key.join(", ");
                let prefix = match self.has_prefix {
                    true => "with the table's name before it (the source has several tables)",
                    false => "without the table's name before it (the source has one table)",
                };
                format!("keys of table `{name}` are made otherwise now: ({key}), {prefix}")
            };
            return Err(End::PositionLost(what));
        }
        Ok(())
    }

    /// What tells the table from another one of its name. States from before the types were recorded
    /// have no word of them, and get one.
    pub(crate) fn fingerprints(&self) -> [(Partition, u64); 3] {
        let key = format!("{}\0{}", self.facts.key.join("\0"), self.has_prefix);
        let types: Vec<String> = self.facts.key_types.iter().map(|it| it.shown()).collect();
        let types = types.join("\0");
        [
            (self.partition.clone(), u64::from(self.facts.oid)),
            (
                Partition::from(format!("{}/key", self.partition)),
                xxhash_rust::xxh3::xxh3_64(key.as_bytes()),
            ),
            (
                self.key_types_name(),
                xxhash_rust::xxh3::xxh3_64(types.as_bytes()),
            ),
        ]
    }

    fn key_types_name(&self) -> Partition {
        Partition::from(format!("{}/key_types", self.partition))
    }

    pub(crate) fn blocks_name(&self) -> Partition {
        Partition::from(format!("{}/snapshot", self.partition))
    }

    pub(crate) fn xmin_name(&self) -> Partition {
        Partition::from(format!("{}/xmin", self.partition))
    }

    pub(crate) fn is_read(&self) -> bool {
        self.blocks_read == ALL_BLOCKS
    }

    /// The position of a row.
    pub(crate) fn position(&self, source: &Arc<str>, offset: Lsn) -> Position {
        Position {
            source: source.clone(),
            partition: self.partition.clone(),
            offset,
        }
    }

    /// The positions that say how far its snapshot is.
    pub(crate) fn positions(&self) -> [(Partition, u64); 3] {
        [
            (self.partition.clone(), self.cut),
            (self.blocks_name(), self.blocks_read),
            (self.xmin_name(), self.xmin),
        ]
    }
}

/// Where it is noted that a table was not among the configured ones.
pub(crate) fn left_name(partition: &str) -> Partition {
    Partition::from(format!("{partition}/left"))
}

/// The recorded partitions of tables that are not among `configured`.
pub(crate) fn left_out<'a>(recorded: &'a Places, configured: &[&str]) -> Vec<&'a Partition> {
    let is_table = |partition: &&Partition| {
        ["snapshot", "xmin"]
            .iter()
            .all(|it| recorded.contains_key(&*format!("{partition}/{it}")))
    };
    let is_configured =
        |partition: &&Partition| configured.iter().any(|it| is_partition_of(it, partition));
    let tables = recorded.keys().filter(is_table);
    tables.filter(|it| !is_configured(it)).collect()
}

/// Whether rows of the partition are rows of the table, in any generation.
pub(crate) fn is_partition_of(table: &str, partition: &str) -> bool {
    let Some(rest) = partition.strip_prefix(table) else {
        return false;
    };
    let is_hex = |text: &str| !text.is_empty() && text.bytes().all(|it| it.is_ascii_hexdigit());
    rest.is_empty() || rest.strip_prefix('@').is_some_and(is_hex)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_that_are_left_out() {
        let names = [
            "wal",
            "transaction",
            "transaction/changes",
            "public.a",
            "public.a/snapshot",
            "public.a/xmin",
            "public.b@1A",
            "public.b@1A/left",
            "public.b@1A/snapshot",
            "public.b@1A/xmin",
        ];
        let recorded: Places = names
            .iter()
            .map(|name| (Partition::from(*name), 1))
            .collect();
        let left = |configured: &[&str]| left_out(&recorded, configured);
        assert_eq!(left(&["public.a", "public.b"]), [] as [&Partition; 0]);
        assert_eq!(
            left(&["public.a", "public.c"]),
            [&Partition::from("public.b@1A")]
        );
    }

    #[test]
    fn partitions_of_a_table() {
        for (partition, expected) in [
            ("public.pages", true),
            ("public.pages@1A2B", true),
            ("public.pages@", false),
            ("public.pages/snapshot", false),
            ("public.pages2", false),
            ("public.pages@x", false),
        ] {
            assert_eq!(
                is_partition_of("public.pages", partition),
                expected,
                "{partition}"
            );
        }
    }
}
