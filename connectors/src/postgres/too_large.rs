//! A change above the limit, of which only the beginning is kept: which row it removes.
//!
//! With REPLICA IDENTITY FULL a delete tells the whole row, and one whose row grew above the limit is
//! above it, too. Its row has no text that could be too long, only a key, and the row held under that
//! has to go: nothing else will ever remove it. An update whose key changed removes the row under the
//! old key, whatever becomes of the new row.
//!
//! Invariant: a row is removed only where the change says so; where it can't be known, that is told.

use super::pgoutput::{Beginning, Cell};
use super::row::Columns;
use vectide_model::Key;

/// The row that a change removes.
#[derive(Debug, PartialEq)]
pub(crate) enum Removed {
    /// None: it is an insert, or an update under the same key.
    None,
    /// The row under this key.
    Row(Key),
    /// What decides it is not in the beginning; in words for the dead letter.
    Unknown(&'static str),
}

/// What a change removes, by what its beginning tells.
pub(crate) fn removed(columns: &Columns, change: &Beginning<'_>) -> Removed {
    let Some(old) = &change.old else {
        return Removed::None;
    };
    let old_key = columns.key(&old.tuple).ok();
    if change.is_delete {
        return match old_key {
            Some(key) => Removed::Row(key),
            None => Removed::Unknown(
                "; it is a delete whose key is not in its beginning: the row held stays",
            ),
        };
    }
    let mut new = change.new.clone();
    for (cell, before) in new.iter_mut().zip(&old.tuple) {
        if *cell == Cell::Unchanged {
            *cell = *before;
        }
    }
    match (old_key, columns.key(&new).ok()) {
        (Some(old_key), Some(new_key)) if old_key == new_key => Removed::None,
        (Some(old_key), Some(_)) => Removed::Row(old_key),
        // A key of its own is told only where it changed.
        (Some(old_key), None) if !old.is_whole => Removed::Row(old_key),
        _ => Removed::Unknown(
            "; whether its key changed is not in its beginning: if it did, the delete of the row \
             under the old key is lost",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::pgoutput::OldTuple;
    use crate::postgres::row::Column;
    use crate::postgres::value::Kind;

    const ONE: Cell<'static> = Cell::Text(b"1");
    const TWO: Cell<'static> = Cell::Text(b"2");
    const TEXT: Cell<'static> = Cell::Text(b"text");

    #[test]
    fn what_a_change_removes() {
        let column = |name, kind| Column::new(name, kind);
        let all = vec![
            column("a", Kind::Text),
            column("id", Kind::Number),
            column("b", Kind::Text),
        ];
        let columns = Columns::new(all, &["id".to_owned()], "".into()).unwrap();
        let removes = |is_delete: bool, old: Option<(bool, &[Cell<'static>])>, new: &[_]| {
            let old = old.map(|(is_whole, cells)| OldTuple {
                is_whole,
                tuple: cells.to_vec(),
            });
            let change = Beginning {
                relation: 1,
                is_delete,
                old,
                new: new.to_vec(),
            };
            match removed(&columns, &change) {
                Removed::None => "none".to_owned(),
                Removed::Row(key) => key.to_string(),
                Removed::Unknown(_) => "unknown".to_owned(),
            }
        };
        let key_only = [Cell::Null, ONE, Cell::Null];
        for (is_delete, old, new, expected) in [
            // Inserts and updates that tell no row before.
            (false, None, &[TEXT, TWO][..], "none"),
            (false, None, &[], "none"),
            // Deletes.
            (true, Some((true, &[TEXT, ONE][..])), &[], "1"),
            (true, Some((true, &[TEXT])), &[], "unknown"),
            // Updates that tell the row before.
            (false, Some((true, &[TEXT, ONE, TEXT])), &[TEXT, TWO], "1"),
            (
                false,
                Some((true, &[TEXT, ONE, TEXT])),
                &[TEXT, ONE],
                "none",
            ),
            (
                false,
                Some((true, &[TEXT, ONE, TEXT])),
                &[TEXT, Cell::Unchanged],
                "none",
            ),
            (false, Some((true, &[TEXT, ONE, TEXT])), &[TEXT], "unknown"),
            (false, Some((true, &[TEXT])), &[], "unknown"),
            // Updates that tell the key before.
            (false, Some((false, &key_only)), &[TEXT, TWO], "1"),
            (false, Some((false, &key_only)), &[TEXT], "1"),
            (
                false,
                Some((false, &key_only)),
                &[TEXT, Cell::Unchanged],
                "none",
            ),
        ] {
            assert_eq!(removes(is_delete, old, new), expected, "{old:?} {new:?}");
        }
    }
}
