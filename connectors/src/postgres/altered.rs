//! Whether the tables are still what they were when the source began: the stream does not tell.
//!
//! A table that is dropped, renamed so that another one has its name, or taken out of the publication
//! just falls silent, and a source that waits for its changes seems to have caught up. So the catalog is
//! asked: now and then, and with every new connection. Nothing here locks a table or waits for one.
//!
//! Columns may change while the source runs, and REPLICA IDENTITY FULL tells more than any other, under
//! the same key; neither is a difference.
//!
//! Invariant: every difference after which a change could go unread ends the source by name.

use super::catalog::{ReplicaIdentity, TableFacts, VERSION_WITH_FILTERS};
use super::connection::{Connection, TextRow, quote_name, quote_text};
use super::errors::{End, PgError};

/// The tables and their publication as they were at the start.
#[derive(Clone)]
pub(crate) struct Watched {
    pub(crate) publication: String,
    pub(crate) tables: Vec<TableFacts>,
    pub(crate) server_version_number: u32,
}

/// The catalog's word on a table.
struct Now<'a>(&'a TextRow);

impl Now<'_> {
    fn text(&self, at: usize) -> &str {
        self.0
            .get(at)
            .and_then(Option::as_deref)
            .unwrap_or_default()
    }

    fn is_set(&self, at: usize) -> bool {
        self.text(at) == "t"
    }
}

impl Watched {
    /// The first difference, as the end of the source.
    pub(crate) fn difference(&self, queries: &mut Connection) -> Result<Option<End>, PgError> {
        let rows = queries.query(&self.sql())?;
        let pairs = self.tables.iter().zip(&rows);
        Ok(pairs
            .filter_map(|(table, row)| self.difference_of(table, &Now(row)))
            .next())
    }

    fn sql(&self) -> String {
        let tables = self.tables.iter().enumerate().map(|(place, table)| {
            let (schema, name) = (quote_text(&table.schema), quote_text(&table.table));
            format!("({place}, {}::oid, {schema}, {name})", table.oid)
        });
        let tables: Vec<String> = tables.collect();
        // A partition is published with any of the tables that it is a part of; where the publication
        // tells its changes as theirs, it is not told itself.
        let itself = self.is_published("ARRAY[c.oid] || a.oids");
        let as_another = self.is_published("array_remove(a.oids, c.oid)");
        format!(
            "SELECT c.oid, c.relkind, c.relpersistence, c.relreplident, \
             m.nspname || '.' || o.relname, \
             COALESCE(p.pubinsert AND p.pubupdate AND p.pubdelete AND p.pubtruncate, true), \
             COALESCE({itself} AND NOT (p.pubviaroot AND c.relispartition AND {as_another}), false) \
             FROM (VALUES {}) t (place, oid, schema, name) \
             LEFT JOIN pg_catalog.pg_namespace n ON n.nspname = t.schema \
             LEFT JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = t.name \
             LEFT JOIN pg_catalog.pg_class o ON o.oid = t.oid \
             LEFT JOIN pg_catalog.pg_namespace m ON m.oid = o.relnamespace \
             LEFT JOIN pg_catalog.pg_publication p ON p.pubname = {} \
             CROSS JOIN LATERAL (SELECT ARRAY(SELECT relid::oid \
               FROM pg_catalog.pg_partition_ancestors(c.oid)) AS oids) a \
             ORDER BY t.place",
            tables.join(", "),
            quote_text(&self.publication)
        )
    }

    /// Whether one of these tables is in the publication, by itself or with all of its schema.
    fn is_published(&self, oids: &str) -> String {
        let mut sql = format!(
            "(p.puballtables OR EXISTS (SELECT FROM pg_catalog.pg_publication_rel r \
             WHERE r.prpubid = p.oid AND r.prrelid = ANY ({oids}))"
        );
        if self.server_version_number >= VERSION_WITH_FILTERS {
            sql.push_str(&format!(
                " OR EXISTS (SELECT FROM pg_catalog.pg_publication_namespace s \
                 JOIN pg_catalog.pg_class k ON k.relnamespace = s.pnnspid \
                 WHERE s.pnpubid = p.oid AND k.oid = ANY ({oids}))"
            ));
        }
        sql.push(')');
        sql
    }

    fn difference_of(&self, table: &TableFacts, now: &Now<'_>) -> Option<End> {
        let (name, publication) = (&table.name, &self.publication);
        let renamed = now.text(4);
        if now.text(0).is_empty() && !renamed.is_empty() {
            return Some(End::renamed(name, renamed));
        }
        if now.text(0).is_empty() {
            return Some(End::failed(
                format!("table `{name}` is gone"),
                "take it out of `tables`; or make it again, and read the source anew: vectide run \
                 CONFIG --resnapshot SOURCE",
            ));
        }
        if now.text(0) != table.oid.to_string() {
            return Some(End::PositionLost(format!(
                "table `{name}` was dropped and made anew, or another one has its name now"
            )));
        }
        if (now.text(1), now.text(2)) != ("r", "p") {
            return Some(End::PositionLost(format!(
                "table `{name}` is not an ordinary, logged table any more: its changes are not in the log"
            )));
        }
        if !now.is_set(5) {
            return Some(End::PositionLost(format!(
                "publication `{publication}` leaves out some kinds of changes now, also of table `{name}`"
            )));
        }
        if !now.is_set(6) {
            return Some(End::PositionLost(format!(
                "table `{name}` is no longer in publication `{publication}`, so its changes are not told \
                 (ALTER PUBLICATION {} ADD TABLE {};)",
                quote_name(publication),
                table.quoted()
            )));
        }
        let identity = ReplicaIdentity::of(now.text(3));
        if identity != table.replica_identity && identity != ReplicaIdentity::Full {
            return Some(End::failed(
                format!(
                    "the REPLICA IDENTITY of table `{name}` was {} and is {} now",
                    table.replica_identity.as_str(),
                    identity.as_str()
                ),
                "start the source again: it looks at the identity first",
            ));
        }
        None
    }
}
