//! Cells of a row to its key and its JSON, the same for the snapshot and for the stream.
//!
//! A key of one column is its text; of several, an object with sorted names: the keys that
//! Debezium's events have. With several tables in a source, `schema.table/` stands before it.
//!
//! Invariant: the same row gives the same key and the same text, wherever it was read.

use super::pgoutput::{Cell, OldTuple};
use super::value::{Kind, write_string};
use crate::envelope::Rejected;
use crate::envelope::json::{scalar_key, write_canonical};
use std::sync::Arc;
use vectide_model::{DeadLetterReason, Key, Row};

/// As deep as a JSON column in a key may be nested.
const KEY_DEPTH_MAX: usize = 32;

/// A column of a table.
#[derive(Clone, Debug)]
pub(crate) struct Column {
    pub(crate) name: Arc<str>,
    /// `"name":`, as it stands in the row.
    label: String,
    kind: Kind,
}

impl Column {
    pub(crate) fn new(name: &str, kind: Kind) -> Self {
        let mut label = String::with_capacity(name.len() + 3);
        write_string(name, &mut label);
        label.push(':');
        Self {
            name: name.into(),
            label,
            kind,
        }
    }
}

/// The columns of a table, and which of them identify a row.
#[derive(Clone, Debug)]
pub(crate) struct Columns {
    pub(crate) all: Vec<Column>,
    /// Places of the key's columns.
    key: Vec<usize>,
    prefix: Arc<str>,
}

/// A row that was told in full or in part.
#[derive(Debug, PartialEq)]
pub(crate) struct DecodedRow {
    pub(crate) key: Key,
    pub(crate) row: Row,
    pub(crate) unchanged_fields: Vec<Arc<str>>,
}

impl Columns {
    /// The columns; `Err` names a column of the key that is not among them.
    pub(crate) fn new(
        all: Vec<Column>,
        key_names: &[String],
        prefix: Arc<str>,
    ) -> Result<Self, String> {
        let place = |name: &String| {
            let found = all.iter().position(|column| *column.name == **name);
            found.ok_or_else(|| name.clone())
        };
        let key = key_names.iter().map(place).collect::<Result<_, _>>()?;
        Ok(Self { all, key, prefix })
    }

    /// The key in a row's cells.
    pub(crate) fn key(&self, cells: &[Cell<'_>]) -> Result<Key, Rejected> {
        let mut value = String::new();
        if let [only] = &self.key[..] {
            self.write_key_cell(*only, cells, &mut value)?;
            if value.starts_with(['{', '[']) {
                let mut canonical = String::new();
                write_canonical(&value, KEY_DEPTH_MAX, &mut canonical)?;
                return Ok(self.prefixed(&canonical));
            }
            return Ok(self.prefixed(&scalar_key(&value)?));
        }
        value.push('{');
        for (index, place) in self.key.iter().enumerate() {
            if index > 0 {
                value.push(',');
            }
            value.push_str(&self.all[*place].label);
            self.write_key_cell(*place, cells, &mut value)?;
        }
        value.push('}');
        let mut canonical = String::with_capacity(value.len());
        write_canonical(&value, KEY_DEPTH_MAX, &mut canonical)?;
        Ok(self.prefixed(&canonical))
    }

    fn prefixed(&self, key: &str) -> Key {
        if self.prefix.is_empty() {
            return Key::from(key);
        }
        Key::from(format!("{}{key}", self.prefix))
    }

    fn write_key_cell(
        &self,
        place: usize,
        cells: &[Cell<'_>],
        out: &mut String,
    ) -> Result<(), Rejected> {
        let column = &self.all[place];
        match cells.get(place) {
            Some(Cell::Text(bytes)) => write_cell(column, bytes, out),
            Some(Cell::Unchanged) => Err(Rejected::missing_key(format!(
                "column `{}` of the key is so large that the server does not tell it",
                column.name
            ))),
            Some(Cell::Null) | None => Err(Rejected::missing_key(format!(
                "column `{}` of the key is NULL",
                column.name
            ))),
        }
    }

    /// The row in its cells. Cells that are not told are taken from `before`, the row before the
    /// change: all if that is whole, else only those of the key.
    pub(crate) fn row(
        &self,
        cells: &[Cell<'_>],
        before: Option<&OldTuple<'_>>,
    ) -> Result<DecodedRow, Rejected> {
        if cells.len() != self.all.len() {
            return Err(Rejected::undecodable(format!(
                "{} values for {} columns",
                cells.len(),
                self.all.len()
            )));
        }
        let known = |place: usize| match (cells[place], before) {
            (Cell::Unchanged, Some(old)) if old.is_whole || self.key.contains(&place) => {
                old.tuple.get(place).copied().unwrap_or(Cell::Unchanged)
            }
            (cell, _) => cell,
        };
        let completed: Vec<Cell<'_>> = (0..cells.len()).map(known).collect();
        let key = self.key(&completed)?;
        let bytes: usize = completed.iter().map(Cell::text_bytes).sum();
        let labels: usize = self.all.iter().map(|column| column.label.len() + 4).sum();
        let mut row = String::with_capacity(bytes + bytes / 16 + labels + 2);
        let mut unchanged_fields = Vec::new();
        row.push('{');
        for (column, cell) in self.all.iter().zip(&completed) {
            let before = row.len();
            if before > 1 {
                row.push(',');
            }
            row.push_str(&column.label);
            match cell {
                Cell::Null => row.push_str("null"),
                Cell::Text(bytes) => write_cell(column, bytes, &mut row)
                    .map_err(|rejected| rejected.with_key(&key))?,
                Cell::Unchanged => {
                    row.truncate(before);
                    unchanged_fields.push(column.name.clone());
                }
            }
        }
        row.push('}');
        Ok(DecodedRow {
            key,
            row: row.into(),
            unchanged_fields,
        })
    }
}

impl Cell<'_> {
    fn text_bytes(&self) -> usize {
        match self {
            Cell::Text(bytes) => bytes.len(),
            _ => 4,
        }
    }
}

fn write_cell(column: &Column, bytes: &[u8], out: &mut String) -> Result<(), Rejected> {
    let name = &column.name;
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let at = error.valid_up_to();
        Rejected::undecodable(format!("column `{name}` is not UTF-8 at byte {at}"))
    })?;
    let written = column.kind.write(text, out);
    written.map_err(|what| {
        Rejected::new(
            DeadLetterReason::Undecodable,
            format!("column `{name}`: {what}"),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn columns(key: &[&str], prefix: &str) -> Columns {
        let all = vec![
            Column::new("id", Kind::Number),
            Column::new("a \"b\"", Kind::Text),
            Column::new("ok", Kind::Bool),
        ];
        let key: Vec<String> = key.iter().map(|name| (*name).to_owned()).collect();
        Columns::new(all, &key, prefix.into()).unwrap()
    }

    const CELLS: [Cell<'static>; 3] = [Cell::Text(b"7"), Cell::Text(b"x\n"), Cell::Text(b"t")];

    #[test]
    fn keys_are_those_of_debezium() {
        for (key, prefix, expected) in [
            (&["id"][..], "", "7"),
            (&["a \"b\""], "", "x\n"),
            (&["ok"], "", "true"),
            (&["ok", "id"], "", r#"{"id":7,"ok":true}"#),
            (&["id"], "public.t/", "public.t/7"),
        ] {
            assert_eq!(&*columns(key, prefix).key(&CELLS).unwrap(), expected);
        }
        let missing = columns(&["id"], "").key(&[Cell::Null; 3]).unwrap_err();
        assert_eq!(missing.reason, DeadLetterReason::MissingKey);
        assert!(Columns::new(Vec::new(), &["id".to_owned()], "".into()).is_err());
    }

    #[test]
    fn rows_and_what_they_leave_out() {
        let columns = columns(&["id"], "");
        let whole = columns.row(&CELLS, None).unwrap();
        assert_eq!(&*whole.row, r#"{"id":7,"a \"b\"":"x\n","ok":true}"#);
        let partly = [CELLS[0], Cell::Unchanged, Cell::Null];
        let decoded = columns.row(&partly, None).unwrap();
        assert_eq!(&*decoded.row, r#"{"id":7,"ok":null}"#);
        assert_eq!(decoded.unchanged_fields, ["a \"b\"".into()]);
        let old = OldTuple {
            is_whole: true,
            tuple: CELLS.to_vec(),
        };
        let completed = columns.row(&partly, Some(&old)).unwrap();
        assert_eq!(&*completed.row, r#"{"id":7,"a \"b\"":"x\n","ok":null}"#);
        let nothing = [CELLS[0], Cell::Unchanged, Cell::Unchanged];
        assert_eq!(&*columns.row(&nothing, None).unwrap().row, r#"{"id":7}"#);
        assert!(columns.row(&CELLS[..2], None).is_err());
    }
}
