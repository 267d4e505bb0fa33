//! The keys of several origins of rows, in one order.
//!
//! Invariant: a key comes once, with the rows of all origins, ascending; rows that the new segment does not
//! get are left out, and keys that no other row has with them.

use super::{Posting, Postings};

/// Stands for a row that is not taken over.
pub(crate) const NO_ROW: u32 = u32::MAX;

/// Rows with their keys.
pub(crate) enum Keyed<'a> {
    /// Of a segment's file, with the new number of each of its rows.
    File(&'a Postings, &'a [u32]),
    /// Of rows in memory: by key, then by new number.
    Memory(Vec<(&'a [u8], Posting)>),
}

/// An origin while it is read.
struct Cursor<'a> {
    keyed: &'a Keyed<'a>,
    at: usize,
}

impl<'a> Cursor<'a> {
    fn key(&self) -> Option<&'a [u8]> {
        match self.keyed {
            Keyed::File(postings, _) => (self.at < postings.keys()).then(|| postings.key(self.at)),
            Keyed::Memory(rows) => rows.get(self.at).map(|(key, _)| *key),
        }
    }

    /// Adds the rows of the key it stands at and goes on to the next one.
    fn take(&mut self, into: &mut Vec<Posting>) {
        match self.keyed {
            Keyed::File(postings, new) => {
                postings.each_of(self.at, &mut |rows, counts| {
                    let counts = counts.iter().copied().chain(std::iter::repeat(1));
                    let taken = rows.iter().zip(counts).filter_map(|(row, count)| {
                        let row = new[*row as usize];
                        (row != NO_ROW).then_some(Posting { row, count })
                    });
                    into.extend(taken);
                });
                self.at += 1;
            }
            Keyed::Memory(rows) => {
                let key = rows[self.at].0;
                let of_key = rows[self.at..]
                    .iter()
                    .take_while(|(other, _)| *other == key);
                let before = into.len();
                into.extend(of_key.map(|(_, posting)| *posting));
                self.at += into.len() - before;
            }
        }
    }
}

/// What takes the keys, ascending.
pub(crate) type KeyedRows<'a, E> = dyn FnMut(&[u8], &[Posting]) -> Result<(), E> + 'a;

/// Gives each key of the origins with its rows.
pub(crate) fn merge<E>(origins: &[Keyed<'_>], give: &mut KeyedRows<'_, E>) -> Result<(), E> {
    let mut cursors: Vec<Cursor<'_>> = origins
        .iter()
        .map(|keyed| Cursor { keyed, at: 0 })
        .collect();
    let mut postings = Vec::new();
    while let Some(key) = cursors.iter().filter_map(Cursor::key).min() {
        postings.clear();
        for cursor in &mut cursors {
            if cursor.key() == Some(key) {
                cursor.take(&mut postings);
            }
        }
        postings.sort_unstable();
        if !postings.is_empty() {
            give(key, &postings)?;
        }
    }
    Ok(())
}
