//! PostgreSQL's replication messages as fuzz input: frames, the plugin's messages, and the rows in them.
//!
//! An input is a sequence of messages, each after its length in two bytes (the last may be cut short),
//! so that rows meet the tables that were described before them, as on a connection.
//!
//! Invariant: what is accepted becomes JSON, and nothing is remembered from one input to the next.

#[path = "../../src/postgres/pgoutput.rs"]
pub mod pgoutput;
#[path = "../../src/postgres/row.rs"]
mod row;
#[path = "../../src/postgres/value.rs"]
mod value;

use crate::Valid;
use pgoutput::{Message, OldTuple, Relation, Replication, Tuple};
use row::{Column, Columns};
use std::collections::HashMap;
use value::Kind;

/// Decodes an input's messages, and the rows of the tables that they describe.
pub fn decode_messages(mut input: &[u8]) {
    let mut tables = HashMap::new();
    while let Some((length, rest)) = input.split_first_chunk::<2>() {
        let length = usize::from(u16::from_be_bytes(*length)).min(rest.len());
        let (message, rest) = rest.split_at(length);
        decode_message(message, &mut tables);
        input = rest;
    }
}

fn decode_message(bytes: &[u8], tables: &mut HashMap<u32, Columns>) {
    let message = match pgoutput::replication(bytes) {
        Ok(Replication::Data { message, .. }) => message,
        Ok(Replication::Keepalive { .. }) => return,
        Err(_) => bytes,
    };
    match pgoutput::decode(message) {
        Ok(Message::Relation(relation)) => {
            let oid = relation.oid;
            tables.extend(columns(relation).map(|columns| (oid, columns)));
        }
        Ok(Message::Insert { relation, new }) => decode_row(tables.get(&relation), &new, None),
        Ok(Message::Update { relation, old, new }) => {
            decode_row(tables.get(&relation), &new, old.as_ref());
        }
        Ok(Message::Delete { relation, old }) => {
            let key = tables.get(&relation).map(|it| it.key(&old.tuple));
            drop(key);
        }
        Ok(_) | Err(_) => {}
    }
}

fn columns(relation: Relation) -> Option<Columns> {
    let is_key = relation.columns.iter().filter(|column| column.is_identity);
    let key: Vec<String> = is_key.map(|column| column.name.clone()).collect();
    let column = |it: &pgoutput::RelationColumn| Column::new(&it.name, kind(it.type_oid));
    let all = relation.columns.iter().map(column).collect();
    Columns::new(all, &key, relation.name.into()).ok()
}

/// Any number is a type here, so that mutated ones are not all the same.
fn kind(type_oid: u32) -> Kind {
    let scalar = match type_oid % 6 {
        0 => Kind::Text,
        1 => Kind::Bool,
        2 => Kind::Number,
        3 => Kind::Timestamp,
        4 => Kind::Bytes,
        _ => Kind::Json,
    };
    if type_oid / 6 % 3 == 1 {
        return Kind::array_of(scalar);
    }
    scalar
}

fn decode_row(columns: Option<&Columns>, new: &Tuple<'_>, old: Option<&OldTuple<'_>>) {
    let Some(Ok(decoded)) = columns.map(|columns| columns.row(new, old)) else {
        return;
    };
    assert!(
        serde_json::from_str::<Valid>(&decoded.row).is_ok(),
        "{}",
        decoded.row
    );
}
