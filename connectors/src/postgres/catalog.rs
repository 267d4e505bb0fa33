//! What the source needs of the database, looked at before anything is read: the server's settings,
//! the role's privileges, the tables with their replica identity, the publication, the slot.
//!
//! Invariant: what would make changes get lost or be refused later is a named error here, with the
//! statement that puts it right.

use super::config::PostgresConfig;
use super::connection::{Connection, TextRow, quote_name, quote_text};
use super::errors::{End, PgError};
use super::pgoutput::Lsn;

/// Older servers are no longer maintained, and have no scan of a range of pages.
const VERSION_LEAST: u32 = 140_000;

/// Publications have lists of columns, conditions on rows and whole schemas from here on.
pub(crate) const VERSION_WITH_FILTERS: u32 = 150_000;

/// Generated columns can be published from here on.
pub(crate) const VERSION_WITH_GENERATED: u32 = 180_000;

/// The server.
#[derive(Clone, Debug)]
pub(crate) struct Server {
    pub(crate) version_number: u32,
    pub(crate) version: String,
    pub(crate) wal_level: String,
    pub(crate) is_standby: bool,
    pub(crate) may_replicate: bool,
    pub(crate) block_bytes: u64,
}

/// What of a table identifies its rows in the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ReplicaIdentity {
    Default,
    Nothing,
    Full,
    Index,
}

impl ReplicaIdentity {
    /// By the catalog's letter.
    pub(crate) fn of(letter: &str) -> Self {
        match letter {
            "f" => Self::Full,
            "i" => Self::Index,
            "n" => Self::Nothing,
            _ => Self::Default,
        }
    }

    /// As statements name it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Default => "DEFAULT",
            Self::Full => "FULL",
            Self::Index => "USING INDEX",
            Self::Nothing => "NOTHING",
        }
    }
}

/// The type of a key's column, as far as it decides what the key's text is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct KeyType {
    oid: u32,
    modifier: i32,
}

impl KeyType {
    /// The type as catalog and stream tell it. An integer has the same text in every width, and a text
    /// whatever its longest length is.
    pub(crate) fn new(oid: u32, modifier: i32) -> Self {
        match oid {
            // int8, int2, int4.
            20 | 21 | 23 => Self {
                oid: 20,
                modifier: -1,
            },
            // text, varchar.
            25 | 1043 => Self {
                oid: 25,
                modifier: -1,
            },
            _ => Self { oid, modifier },
        }
    }

    fn of(row: &TextRow) -> Self {
        let oid = text(row, 1).parse().unwrap_or(0);
        Self::new(oid, text(row, 2).parse().unwrap_or(-1))
    }

    /// The type as text of a fingerprint.
    pub(crate) fn shown(self) -> String {
        format!("{}({})", self.oid, self.modifier)
    }
}

/// A table as the catalog has it.
#[derive(Clone, Debug)]
pub(crate) struct TableFacts {
    /// `schema.table`.
    pub(crate) name: String,
    pub(crate) schema: String,
    pub(crate) table: String,
    pub(crate) oid: u32,
    pub(crate) replica_identity: ReplicaIdentity,
    /// The columns of a row's key.
    pub(crate) key: Vec<String>,
    /// Their types.
    pub(crate) key_types: Vec<KeyType>,
    /// Rows in a page, about.
    pub(crate) rows_per_page: f64,
}

/// A publication.
#[derive(Clone, Debug, Default)]
pub(crate) struct PublishedTable {
    /// The columns, if the server tells them.
    pub(crate) columns: Option<Vec<String>>,
    /// The condition on rows.
    pub(crate) condition: Option<String>,
}

/// A replication slot.
#[derive(Clone, Debug)]
pub(crate) struct Slot {
    pub(crate) plugin: String,
    pub(crate) database: String,
    pub(crate) active_pid: Option<String>,
    pub(crate) confirmed: Lsn,
    pub(crate) wal_status: String,
    pub(crate) retained_bytes: Option<f64>,
}

fn text(row: &TextRow, at: usize) -> &str {
    row.get(at).and_then(Option::as_deref).unwrap_or_default()
}

fn flag(row: &TextRow, at: usize) -> bool {
    text(row, at) == "t"
}

/// `16/B374D848` as a number.
pub(crate) fn parse_lsn(text: &str) -> Option<Lsn> {
    let (high, low) = text.split_once('/')?;
    let part = |it: &str| u32::from_str_radix(it, 16).ok().map(u64::from);
    Some(part(high)? << 32 | part(low)?)
}

/// A number as `16/B374D848`.
pub(crate) fn show_lsn(lsn: Lsn) -> String {
    format!("{:X}/{:X}", lsn >> 32, lsn & 0xFFFF_FFFF)
}

/// Asks the server about itself and the role.
pub(crate) fn server(connection: &mut Connection) -> Result<Server, PgError> {
    // Managed services give the right to replicate by roles of their own.
    let rows = connection.query(
        "SELECT current_setting('server_version_num'), current_setting('server_version'), \
         current_setting('wal_level'), pg_is_in_recovery(), \
         r.rolreplication OR r.rolsuper OR EXISTS (SELECT FROM pg_catalog.pg_roles g \
           WHERE g.rolname IN ('rds_replication', 'rds_superuser', 'cloudsqlsuperuser') \
           AND pg_has_role(r.oid, g.oid, 'MEMBER')), \
         current_setting('block_size') \
         FROM pg_catalog.pg_roles r WHERE r.rolname = current_user",
    )?;
    let row = rows.into_iter().next().unwrap_or_default();
    Ok(Server {
        version_number: text(&row, 0).parse().unwrap_or(0),
        version: text(&row, 1).to_owned(),
        wal_level: text(&row, 2).to_owned(),
        is_standby: flag(&row, 3),
        may_replicate: flag(&row, 4),
        block_bytes: text(&row, 5).parse().unwrap_or(8192),
    })
}

impl Server {
    pub(crate) fn check_version(&self) -> Result<(), End> {
        if self.version_number >= VERSION_LEAST {
            return Ok(());
        }
        Err(End::failed(
            format!("the server is PostgreSQL {}", self.version),
            "PostgreSQL 14 or newer is needed",
        ))
    }

    pub(crate) fn check_wal_level(&self) -> Result<(), End> {
        if self.is_standby {
            return Err(End::failed(
                "the server is a standby, where slots and snapshots can't be made",
                "connect to the primary",
            ));
        }
        if self.wal_level == "logical" {
            return Ok(());
        }
        Err(End::failed(
            format!(
                "the server's wal_level is `{}`; changes are only told with `logical`",
                self.wal_level
            ),
            "ALTER SYSTEM SET wal_level = logical; and restart the server \
             (on a managed service: the parameter for logical replication)",
        ))
    }

    pub(crate) fn check_role(&self, user: &str) -> Result<(), End> {
        if self.may_replicate {
            return Ok(());
        }
        Err(End::failed(
            format!("role `{user}` may not replicate"),
            format!("ALTER ROLE {} REPLICATION;", quote_name(user)),
        ))
    }
}

/// Looks at a table.
pub(crate) fn table(
    connection: &mut Connection,
    config: &PostgresConfig,
    (schema, name): (&str, &str),
) -> Result<TableFacts, End> {
    let full_name = format!("{schema}.{name}");
    let quoted = format!("{}.{}", quote_name(schema), quote_name(name));
    let rows = connection.query(&format!(
        "SELECT c.oid, c.relkind, c.relreplident, c.relpersistence, \
         has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT'), \
         c.reltuples, c.relpages \
         FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
         WHERE n.nspname = {} AND c.relname = {}",
        quote_text(schema),
        quote_text(name),
    ))?;
    let Some(row) = rows.into_iter().next() else {
        return Err(End::failed(
            format!(
                "there is no table `{full_name}` in the database `{}`",
                config.database
            ),
            "name it as in the catalog: schema.table, with its capitals and without quotes",
        ));
    };
    check_kind(&full_name, text(&row, 1), text(&row, 3))?;
    if !flag(&row, 4) {
        let user = quote_name(&config.user);
        return Err(End::failed(
            format!("role `{}` may not read table `{full_name}`", config.user),
            format!(
                "GRANT USAGE ON SCHEMA {} TO {user}; GRANT SELECT ON {quoted} TO {user};",
                quote_name(schema)
            ),
        ));
    }
    let replica_identity = ReplicaIdentity::of(text(&row, 2));
    let oid = text(&row, 0).parse().unwrap_or(0);
    let configured = config.keys.get(&full_name);
    let (key, key_types) = key_columns(connection, oid, replica_identity, configured)?;
    let (tuples, pages): (f64, f64) = (
        text(&row, 5).parse().unwrap_or(0.0),
        text(&row, 6).parse().unwrap_or(0.0),
    );
    let facts = TableFacts {
        name: full_name,
        schema: schema.to_owned(),
        table: name.to_owned(),
        oid,
        replica_identity,
        key,
        key_types,
        // A table that was never analysed: rows of ordinary size.
        rows_per_page: if tuples > 0.0 && pages > 0.0 {
            tuples / pages
        } else {
            20.0
        },
    };
    check_identity(&facts, &quoted, configured.is_some())?;
    Ok(facts)
}

fn check_kind(name: &str, kind: &str, persistence: &str) -> Result<(), End> {
    let what = match (kind, persistence) {
        ("r", "p") => return Ok(()),
        ("r", _) => "an unlogged or temporary table, whose changes are not in the log",
        ("p", _) => "a partitioned table",
        ("v", _) => "a view",
        ("m", _) => "a materialized view",
        ("f", _) => "a foreign table",
        _ => "no table",
    };
    let hint = match kind {
        "p" => "name its partitions under `tables`",
        "r" => "ALTER TABLE ... SET LOGGED;",
        _ => "name the tables that it is made of",
    };
    Err(End::failed(format!("`{name}` is {what}"), hint))
}

fn key_columns(
    connection: &mut Connection,
    oid: u32,
    identity: ReplicaIdentity,
    configured: Option<&Vec<String>>,
) -> Result<(Vec<String>, Vec<KeyType>), End> {
    if let Some(names) = configured {
        let rows = connection.query(&format!(
            "SELECT attname, atttypid, atttypmod FROM pg_catalog.pg_attribute \
             WHERE attrelid = {oid} AND attnum > 0 AND NOT attisdropped"
        ))?;
        let of_name = |name: &String| rows.iter().find(|row| text(row, 0) == name);
        // That a column is missing is told where the columns are looked at.
        let kinds = names.iter().filter_map(of_name).map(KeyType::of);
        return Ok((names.clone(), kinds.collect()));
    }
    let index = match identity {
        ReplicaIdentity::Index => "i.indisreplident",
        _ => "i.indisprimary",
    };
    let rows = connection.query(&format!(
        "SELECT a.attname, a.atttypid, a.atttypmod FROM pg_catalog.pg_index i \
         CROSS JOIN LATERAL unnest(i.indkey) WITH ORDINALITY AS k (attnum, place) \
         JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum \
         WHERE i.indrelid = {oid} AND {index} AND k.place <= i.indnkeyatts ORDER BY k.place"
    ))?;
    let columns = rows
        .iter()
        .map(|row| (text(row, 0).to_owned(), KeyType::of(row)));
    Ok(columns.unzip())
}

fn check_identity(facts: &TableFacts, quoted: &str, is_configured: bool) -> Result<(), End> {
    let name = &facts.name;
    let way_out = format!(
        "give it a primary key, or: ALTER TABLE {quoted} REPLICA IDENTITY FULL; and name the \
         columns under `keys`"
    );
    match facts.replica_identity {
        ReplicaIdentity::Nothing => Err(End::failed(
            format!(
                "table `{name}` has REPLICA IDENTITY NOTHING: once it is published, the server \
                 refuses every UPDATE and DELETE in it"
            ),
            format!("ALTER TABLE {quoted} REPLICA IDENTITY DEFAULT; {way_out}"),
        )),
        ReplicaIdentity::Default if facts.key.is_empty() => Err(End::failed(
            format!(
                "table `{name}` has no primary key: once it is published, the server refuses \
                 every UPDATE and DELETE in it"
            ),
            way_out,
        )),
        ReplicaIdentity::Full if facts.key.is_empty() => Err(End::failed(
            format!("table `{name}` has no primary key, so its rows have no identity"),
            format!("keys: {{{name}: [columns that identify a row]}}"),
        )),
        ReplicaIdentity::Default | ReplicaIdentity::Index if is_configured => Err(End::failed(
            format!(
                "`keys.{name}` is set, but a delete in the table tells only the columns of its \
                 replica identity"
            ),
            format!("remove it, or: ALTER TABLE {quoted} REPLICA IDENTITY FULL;"),
        )),
        _ => Ok(()),
    }
}

/// The tables of a publication, of those that are asked for; `None` if there is no such publication.
pub(crate) fn publication(
    connection: &mut Connection,
    server: &Server,
    publication: &str,
    tables: &[TableFacts],
) -> Result<Option<Vec<Option<PublishedTable>>>, End> {
    let name = quote_text(publication);
    let rows = connection.query(&format!(
        "SELECT pubinsert AND pubupdate AND pubdelete AND pubtruncate \
         FROM pg_catalog.pg_publication WHERE pubname = {name}"
    ))?;
    let Some(row) = rows.first() else {
        return Ok(None);
    };
    if !flag(row, 0) {
        return Err(End::failed(
            format!("publication `{publication}` leaves out some kinds of changes"),
            format!(
                "ALTER PUBLICATION {} SET (publish = 'insert, update, delete, truncate');",
                quote_name(publication)
            ),
        ));
    }
    let filters = if server.version_number >= VERSION_WITH_FILTERS {
        "array_to_json(attnames), rowfilter"
    } else {
        "NULL, NULL"
    };
    let rows = connection.query(&format!(
        "SELECT schemaname, tablename, {filters} FROM pg_catalog.pg_publication_tables \
         WHERE pubname = {name}"
    ))?;
    let published = tables.iter().map(|table| {
        let is_it = |row: &&TextRow| text(row, 0) == table.schema && text(row, 1) == table.table;
        rows.iter().find(is_it).map(|row| PublishedTable {
            columns: row[2]
                .as_deref()
                .and_then(|it| serde_json::from_str(it).ok()),
            condition: row[3].clone(),
        })
    });
    Ok(Some(published.collect()))
}

/// The statement that makes the publication.
pub(crate) fn create_publication_sql(publication: &str, tables: &[TableFacts]) -> String {
    let names = tables.iter().map(|table| table.quoted());
    let names: Vec<String> = names.collect();
    format!(
        "CREATE PUBLICATION {} FOR TABLE {};",
        quote_name(publication),
        names.join(", ")
    )
}

impl TableFacts {
    pub(crate) fn quoted(&self) -> String {
        format!("{}.{}", quote_name(&self.schema), quote_name(&self.table))
    }
}

/// Makes sure that every table is published; makes the publication where there is none and
/// `may_create` says so.
pub(crate) fn ensure_publication(
    connection: &mut Connection,
    server: &Server,
    name: &str,
    tables: &[TableFacts],
    may_create: bool,
) -> Result<Vec<PublishedTable>, End> {
    let mut found = publication(connection, server, name, tables)?;
    if found.is_none() {
        let sql = create_publication_sql(name, tables);
        if !may_create {
            return Err(End::failed(
                format!("there is no publication `{name}`"),
                sql,
            ));
        }
        connection.query(&sql).map_err(|error| {
            End::failed(
                format!("publication `{name}` is missing and can't be made: {error}"),
                format!("as the owner of the tables: {sql}"),
            )
        })?;
        tracing::info!(publication = name, "made the publication");
        found = publication(connection, server, name, tables)?;
    }
    let published = found.unwrap_or_default();
    let mut missing = tables.iter().zip(&published).filter(|(_, it)| it.is_none());
    if let Some((table, _)) = missing.next() {
        return Err(End::failed(
            format!("publication `{name}` has no table `{}`", table.name),
            format!(
                "ALTER PUBLICATION {} ADD TABLE {};",
                quote_name(name),
                table.quoted()
            ),
        ));
    }
    Ok(published.into_iter().flatten().collect())
}

/// Looks at a slot.
pub(crate) fn slot(connection: &mut Connection, name: &str) -> Result<Option<Slot>, PgError> {
    let rows = connection.query(&format!(
        "SELECT COALESCE(plugin, ''), COALESCE(database, ''), active_pid, \
         COALESCE(confirmed_flush_lsn, '0/0'), COALESCE(wal_status, 'lost'), \
         CASE WHEN pg_is_in_recovery() THEN NULL \
              ELSE pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn) END \
         FROM pg_catalog.pg_replication_slots WHERE slot_name = {}",
        quote_text(name)
    ))?;
    Ok(rows.first().map(|row| Slot {
        plugin: text(row, 0).to_owned(),
        database: text(row, 1).to_owned(),
        active_pid: row[2].clone(),
        confirmed: parse_lsn(text(row, 3)).unwrap_or(0),
        wal_status: text(row, 4).to_owned(),
        retained_bytes: text(row, 5).parse().ok(),
    }))
}

/// Where the log ends now.
pub(crate) fn current_lsn(connection: &mut Connection) -> Result<Lsn, PgError> {
    let rows = connection.query("SELECT pg_current_wal_lsn()")?;
    let lsn = rows.first().and_then(|row| parse_lsn(text(row, 0)));
    lsn.ok_or_else(|| PgError::protocol("the server does not tell where its log ends"))
}

/// Who the server is: the number of its cluster, and its timeline.
pub(crate) fn identify(replication: &mut Connection) -> Result<(u64, u64), PgError> {
    let rows = replication.query("IDENTIFY_SYSTEM")?;
    let number = |at: usize| rows.first().and_then(|row| text(row, at).parse().ok());
    match (number(0), number(1)) {
        (Some(system), Some(timeline)) => Ok((system, timeline)),
        _ => Err(PgError::protocol("the server does not identify itself")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_in_the_log() {
        assert_eq!(parse_lsn("16/B374D848"), Some(0x16_B374_D848));
        assert_eq!(show_lsn(0x16_0374_D848), "16/374D848");
        for wrong in ["", "16", "16/", "x/1", "1/123456789"] {
            assert_eq!(parse_lsn(wrong), None, "{wrong}");
        }
    }
}
