//! Envelopes that hold a row and, of an update, the columns that it changed with their old values.
//!
//! Invariant: an update of a key column is a delete of the old key and an upsert of the new one, in
//! this order, so that nothing stays behind under the old key.

use super::identity::identity_of;
use super::json::{Field, all_fields};
use super::object::object_of;
use super::upsert::change_of;
use super::{Decoded, DecodedChange, Rejected};
use std::time::SystemTime;
use vectide_model::{Key, Row};

/// What an envelope says happened to a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    Upsert,
    Delete,
}

/// The identity in named columns of a row, of which some may have had an old value.
pub(super) fn identity_in(
    columns: &[String],
    row: &[Field<'_>],
    old: &[Field<'_>],
) -> Result<Key, Rejected> {
    let mut values = Vec::with_capacity(columns.len());
    for column in columns {
        let named = |(name, _): &&Field<'_>| name == column;
        let Some((_, value)) = old.iter().find(named).or_else(|| row.iter().find(named)) else {
            return Err(Rejected::missing_key(format!(
                "the row has no column `{column}`, which is part of its key"
            )));
        };
        values.push((&**column, value.get()));
    }
    let object = object_of(values.into_iter());
    identity_of(&object, all_fields(&object).as_deref())
}

/// The changes of one row: an upsert or a delete, after a delete of the key that it had before.
pub(super) fn changes_of(
    operation: Operation,
    (key, old_key): (Key, Key),
    row: &str,
    changed_at: Option<SystemTime>,
) -> impl Iterator<Item = Decoded> {
    let change = |key: Key, row: Option<Row>| {
        Decoded::Change(DecodedChange {
            changed_at,
            ..change_of(key, row)
        })
    };
    let row = (operation == Operation::Upsert).then(|| Row::from(row));
    let old = (row.is_some() && old_key != key).then(|| change(old_key, None));
    old.into_iter().chain([change(key, row)])
}
