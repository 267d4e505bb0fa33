//! Which kind of JSON a type of the database becomes.
//!
//! The types that PostgreSQL brings have fixed numbers. Others (enums, domains, extensions) are looked
//! up once: a domain is what it is made over, an array has the kind of its elements, and all
//! others are text.
//!
//! Invariant: a type has one kind for as long as the source runs, in the snapshot as in the stream.

use super::connection::Connection;
use super::errors::PgError;
use super::value::Kind;
use std::collections::HashMap;

/// Domains over domains and arrays of domains; deeper than this is no schema.
const LOOKUPS_MAX: usize = 16;

/// The kinds found so far.
#[derive(Clone, Default)]
pub(crate) struct Types {
    known: HashMap<u32, Kind>,
}

impl Types {
    /// The kind of a type, if it need not be looked up.
    pub(crate) fn known(&self, oid: u32) -> Option<Kind> {
        built_in(oid).or_else(|| self.known.get(&oid).cloned())
    }

    /// The kind of a type.
    pub(crate) fn resolve(
        &mut self,
        oid: u32,
        connection: &mut Connection,
    ) -> Result<Kind, PgError> {
        self.resolve_within(oid, connection, LOOKUPS_MAX)
    }

    fn resolve_within(
        &mut self,
        oid: u32,
        connection: &mut Connection,
        depth: usize,
    ) -> Result<Kind, PgError> {
        if let Some(kind) = self.known(oid) {
            return Ok(kind);
        }
        let Some(depth) = depth.checked_sub(1) else {
            return Ok(Kind::Text);
        };
        let rows = connection.query(&format!(
            "SELECT typtype, typbasetype, typelem, typcategory, typlen, \
             COALESCE((SELECT e.typdelim FROM pg_catalog.pg_type e WHERE e.oid = t.typelem), ',') \
             FROM pg_catalog.pg_type t WHERE oid = {oid}"
        ))?;
        // A type that was dropped meanwhile still has its text.
        let kind = match rows.first().map(|row| Looked::from_row(row)) {
            Some(Looked::Domain(base)) => self.resolve_within(base, connection, depth)?,
            Some(Looked::Array(element, delimiter)) => {
                let element = self.resolve_within(element, connection, depth)?;
                Kind::Array(Box::new(element), delimiter)
            }
            Some(Looked::Other) | None => Kind::Text,
        };
        self.known.insert(oid, kind.clone());
        Ok(kind)
    }
}

enum Looked {
    Domain(u32),
    Array(u32, char),
    Other,
}

impl Looked {
    fn from_row(row: &[Option<String>]) -> Self {
        let text = |at: usize| row.get(at).and_then(Option::as_deref).unwrap_or_default();
        let number = |at: usize| text(at).parse().unwrap_or(0);
        match (text(0), text(3), text(4)) {
            ("d", _, _) => Self::Domain(number(1)),
            // Fixed vectors of the catalog (int2vector) have a text of their own.
            (_, "A", "-1") if number(2) != 0 => {
                Self::Array(number(2), text(5).chars().next().unwrap_or(','))
            }
            _ => Self::Other,
        }
    }
}

/// Types with numbers that are the same in every database.
fn built_in(oid: u32) -> Option<Kind> {
    let scalar = scalar(oid);
    if scalar.is_some() {
        return scalar;
    }
    let element = match oid {
        1000 => 16,
        1001 => 17,
        1005 => 21,
        1007 => 23,
        1016 => 20,
        1028 => 26,
        1021 => 700,
        1022 => 701,
        1231 => 1700,
        199 => 114,
        3807 => 3802,
        1115 => 1114,
        1185 => 1184,
        1009 | 1014 | 1015 | 1003 | 2951 | 1182 | 1183 | 1270 | 1187 | 1041 | 651 => 25,
        _ => return None,
    };
    self::scalar(element).map(Kind::array_of)
}

fn scalar(oid: u32) -> Option<Kind> {
    Some(match oid {
        16 => Kind::Bool,
        // int8, int2, int4, oid, float4, float8, numeric.
        20 | 21 | 23 | 26 | 700 | 701 | 1700 => Kind::Number,
        1114 | 1184 => Kind::Timestamp,
        17 => Kind::Bytes,
        114 | 3802 => Kind::Json,
        // "char", name, text, bpchar, varchar, date, time, timetz, interval, money, inet, cidr,
        // macaddr, uuid, xml.
        18 | 19 | 25 | 1042 | 1043 | 1082 | 1083 | 1266 | 1186 | 790 | 869 | 650 | 829 | 2950
        | 142 => Kind::Text,
        _ => return None,
    })
}
