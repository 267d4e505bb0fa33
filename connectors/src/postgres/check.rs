//! What `vectide validate --connect` says of a source: server, role, tables, publication, slot, a line
//! each. Nothing is changed.

use super::catalog::{self, Server, TableFacts, show_lsn};
use super::config::PostgresConfig;
use super::connection::{Connection, Connector, Purpose};
use super::errors::End;
use super::tables::WAL;
use std::collections::BTreeMap;
use std::path::Path;
use vectide_model::{ComponentError, ConnectionCheck, Partition, StopSignal};

/// Looks at everything.
pub(crate) fn check(config: &PostgresConfig, source: &str, folder: &Path) -> Vec<ConnectionCheck> {
    let connector = connector(config, folder);
    let mut checks = Checks(Vec::new());
    let what = format!("server {}:{}", config.host, config.port);
    let connected = connector.connect(Purpose::Queries).map_err(End::from);
    let connected = connected.and_then(|mut queries| {
        let server = catalog::server(&mut queries)?;
        server.check_version()?;
        Ok((queries, server))
    });
    let (mut queries, server) = match connected {
        Ok(connected) => connected,
        Err(end) => {
            checks.add(what, "host", Err(end));
            return checks.0;
        }
    };
    let encrypted = if queries.is_encrypted {
        "TLS"
    } else {
        "not encrypted"
    };
    checks.add(
        what,
        "host",
        Ok(format!("PostgreSQL {}, {encrypted}", server.version)),
    );
    let level = server.check_wal_level().map(|()| "logical".to_owned());
    checks.add("wal_level".to_owned(), "", level);
    let role = server.check_role(&config.user).and_then(|()| {
        connector.connect(Purpose::Replication)?.close();
        Ok("may replicate".to_owned())
    });
    checks.add(format!("role {}", config.user), "user", role);
    let mut tables = Vec::new();
    for (index, name) in config.table_names().enumerate() {
        let found = catalog::table(&mut queries, config, name);
        let said = found.map(|table| {
            let said = describe(&table);
            tables.push(table);
            said
        });
        checks.add(
            format!("table {}.{}", name.0, name.1),
            &format!("tables[{index}]"),
            said,
        );
    }
    let names = (config.publication_name(source), config.slot_name(source));
    check_publication(&mut queries, &server, &names.0, &tables, &mut checks);
    check_slot(&mut queries, config, &names.1, &mut checks);
    queries.close();
    checks.0
}

/// What connects to only ask: nothing stops it.
fn connector(config: &PostgresConfig, folder: &Path) -> Connector {
    Connector {
        config: config.clone(),
        folder: folder.to_owned(),
        stop: StopSignal::new(),
    }
}

/// Where the server's log ends now.
pub(crate) fn end_of_log(
    config: &PostgresConfig,
    folder: &Path,
) -> Result<BTreeMap<Partition, u64>, ComponentError> {
    let connector = connector(config, folder);
    let connected = connector.connect(Purpose::Queries);
    let asked = connected.and_then(|mut queries| {
        let lsn = catalog::current_lsn(&mut queries)?;
        queries.close();
        Ok(lsn)
    });
    match asked {
        Ok(lsn) => Ok(BTreeMap::from([(WAL.into(), lsn)])),
        Err(error) => {
            let (fact, hint) = End::from(error).fact_and_hint();
            Err(ComponentError::new("host", fact, hint))
        }
    }
}

fn describe(table: &TableFacts) -> String {
    format!(
        "key ({}), REPLICA IDENTITY {}",
        table.key.join(", "),
        table.replica_identity.as_str()
    )
}

fn check_publication(
    queries: &mut Connection,
    server: &Server,
    name: &str,
    tables: &[TableFacts],
    checks: &mut Checks,
) {
    let said = match catalog::publication(queries, server, name, tables) {
        Ok(None) => Ok("missing; made at the first start".to_owned()),
        Ok(Some(_)) => catalog::ensure_publication(queries, server, name, tables, false)
            .map(|published| format!("{} of the tables", published.len())),
        Err(end) => Err(end),
    };
    checks.add(format!("publication {name}"), "publication", said);
}

fn check_slot(queries: &mut Connection, config: &PostgresConfig, name: &str, checks: &mut Checks) {
    let said = match catalog::slot(queries, name) {
        Ok(None) => Ok("missing; made at the first start".to_owned()),
        Ok(Some(slot)) if slot.wal_status == "lost" => Err(End::failed(
            "the server has invalidated it",
            "vectide run CONFIG --resnapshot SOURCE",
        )),
        Ok(Some(slot)) if slot.plugin != "pgoutput" || slot.database != config.database => {
            Err(End::failed(
                format!("it is another program's (plugin `{}`)", slot.plugin),
                "name another one under `slot`",
            ))
        }
        Ok(Some(slot)) => Ok(format!(
            "confirmed up to {}, {:.1} MiB of log kept, {}",
            show_lsn(slot.confirmed),
            slot.retained_bytes.unwrap_or(0.0) / (1024.0 * 1024.0),
            slot.wal_status
        )),
        Err(error) => Err(error.into()),
    };
    checks.add(format!("slot {name}"), "slot", said);
}

struct Checks(Vec<ConnectionCheck>);

impl Checks {
    fn add(&mut self, what: String, field: &str, said: Result<String, End>) {
        let result = said.map_err(|end| {
            let (fact, hint) = end.fact_and_hint();
            ComponentError::new(field, fact, hint)
        });
        self.0.push(ConnectionCheck { what, result });
    }
}
