//! The messages of PostgreSQL's logical replication: what a walsender sends and what its plugin
//! `pgoutput` (protocol version 1) says in it. Pure functions of bytes.
//!
//! Invariant: no input panics or makes the decoder reserve more memory than the input has; bytes
//! that are left over or missing are an error, never a guess.

/// A place in the write-ahead log.
pub type Lsn = u64;

/// A replication message as the walsender frames it.
#[derive(Debug, PartialEq)]
pub enum Replication<'a> {
    /// A message of the plugin.
    Data {
        /// Where in the log it stands.
        start: Lsn,
        /// The plugin's message.
        message: &'a [u8],
    },
    /// A sign of life.
    Keepalive {
        /// How far the walsender has read.
        end: Lsn,
        /// Whether it wants an answer at once.
        wants_reply: bool,
    },
}

/// A message of `pgoutput`.
#[derive(Debug, PartialEq)]
pub enum Message<'a> {
    /// A transaction begins.
    Begin {
        /// Where its commit record stands.
        commit_lsn: Lsn,
        /// When it was committed, in microseconds since 2000-01-01.
        committed_at_us: i64,
        /// Its number.
        xid: u32,
    },
    /// A transaction is over.
    Commit {
        /// Where its commit record stands.
        commit_lsn: Lsn,
        /// Where the commit record ends: reading goes on here.
        end_lsn: Lsn,
    },
    /// The columns of a table, before its first change and after each alteration.
    Relation(Relation),
    /// A row came.
    Insert {
        /// The table's number.
        relation: u32,
        /// The row.
        new: Tuple<'a>,
    },
    /// A row changed.
    Update {
        /// The table's number.
        relation: u32,
        /// The row before, where the replica identity tells it.
        old: Option<OldTuple<'a>>,
        /// The row after.
        new: Tuple<'a>,
    },
    /// A row went.
    Delete {
        /// The table's number.
        relation: u32,
        /// The row before.
        old: OldTuple<'a>,
    },
    /// All rows of some tables went.
    Truncate {
        /// The tables' numbers.
        relations: Vec<u32>,
    },
    /// A message that is no change of a row, by name.
    Other(&'static str),
}

/// A table's columns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Relation {
    /// The table's number.
    pub oid: u32,
    /// Its schema.
    pub schema: String,
    /// Its name.
    pub name: String,
    /// `d`, `n`, `f` or `i`.
    pub replica_identity: u8,
    /// Its columns in their order.
    pub columns: Vec<RelationColumn>,
}

/// A column of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RelationColumn {
    /// Its name.
    pub name: String,
    /// The number of its type.
    pub type_oid: u32,
    /// The type's modifier (a length, a precision); -1 without one.
    pub type_modifier: i32,
    /// Whether it is part of the replica identity.
    pub is_identity: bool,
}

/// What is told of a row before a change.
#[derive(Debug, PartialEq)]
pub struct OldTuple<'a> {
    /// Whether it is the whole row (REPLICA IDENTITY FULL) or only the identity's columns.
    pub is_whole: bool,
    /// Its cells.
    pub tuple: Tuple<'a>,
}

/// The cells of a row.
pub type Tuple<'a> = Vec<Cell<'a>>;

/// A value of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cell<'a> {
    /// NULL, or a column that is not told.
    Null,
    /// A large value that an update did not touch.
    Unchanged,
    /// The value's text.
    Text(&'a [u8]),
}

/// What the beginning of a change tells of its rows.
#[derive(Debug, PartialEq)]
pub struct Beginning<'a> {
    /// The table's number.
    pub relation: u32,
    /// Whether a row went.
    pub is_delete: bool,
    /// The row before, where one is told: its first cells.
    pub old: Option<OldTuple<'a>>,
    /// The first cells of the row after.
    pub new: Tuple<'a>,
}

/// Why bytes are no message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a replication message: {0}")]
pub struct Malformed(String);

/// Reads the walsender's frame.
///
/// # Errors
/// For bytes that are none.
pub fn replication(bytes: &[u8]) -> Result<Replication<'_>, Malformed> {
    let mut input = Input(bytes);
    match input.u8()? {
        b'w' => {
            let start = input.u64()?;
            // The log's end and the server's clock.
            input.take(16)?;
            let message = input.0;
            Ok(Replication::Data { start, message })
        }
        b'k' => {
            let end = input.u64()?;
            input.take(8)?;
            let wants_reply = input.u8()? != 0;
            input.end(Replication::Keepalive { end, wants_reply })
        }
        kind => Err(unknown("frame", kind)),
    }
}

/// Reads a message of the plugin.
///
/// # Errors
/// For bytes that are none.
pub fn decode(bytes: &[u8]) -> Result<Message<'_>, Malformed> {
    let mut input = Input(bytes);
    let message = match input.u8()? {
        b'B' => Message::Begin {
            commit_lsn: input.u64()?,
            committed_at_us: input.i64()?,
            xid: input.u32()?,
        },
        b'C' => {
            input.u8()?;
            let (commit_lsn, end_lsn) = (input.u64()?, input.u64()?);
            input.i64()?;
            Message::Commit {
                commit_lsn,
                end_lsn,
            }
        }
        b'R' => Message::Relation(input.relation()?),
        b'I' => {
            let relation = input.u32()?;
            input.expect(b'N')?;
            Message::Insert {
                relation,
                new: input.tuple()?,
            }
        }
        b'U' => input.update()?,
        b'D' => {
            let relation = input.u32()?;
            let kind = input.u8()?;
            Message::Delete {
                relation,
                old: input.old(kind)?,
            }
        }
        b'T' => input.truncate()?,
        b'O' => return Ok(Message::Other("origin")),
        b'Y' => return Ok(Message::Other("type")),
        b'M' => return Ok(Message::Other("logical_message")),
        kind => return Err(unknown("message", kind)),
    };
    input.end(message)
}

/// Reads the beginning of a change of a row: the cells that are there in full.
///
/// # Errors
/// For bytes that are none, or too few to tell the table.
pub fn beginning(bytes: &[u8]) -> Result<Beginning<'_>, Malformed> {
    let mut input = Input(bytes);
    let kind = input.u8()?;
    if !matches!(kind, b'I' | b'U' | b'D') {
        return Err(unknown("change", kind));
    }
    let relation = input.u32()?;
    let mut tuple_kind = input.u8()?;
    if !matches!(
        (kind, tuple_kind),
        (b'I', b'N') | (b'U', b'N' | b'K' | b'O') | (b'D', b'K' | b'O')
    ) {
        return Err(unknown("tuple", tuple_kind));
    }
    let mut old = None;
    let mut is_whole = true;
    if tuple_kind != b'N' {
        let tuple;
        (tuple, is_whole) = input.beginning_of_tuple()?;
        old = Some(OldTuple {
            is_whole: tuple_kind == b'O',
            tuple,
        });
        // Of the row after nothing may be there, not even its kind.
        tuple_kind = input.u8().unwrap_or(0);
    }
    let mut new = Tuple::new();
    if is_whole && tuple_kind == b'N' {
        new = input.beginning_of_tuple().unwrap_or_default().0;
    }
    Ok(Beginning {
        relation,
        is_delete: kind == b'D',
        old,
        new,
    })
}

fn unknown(what: &str, kind: u8) -> Malformed {
    Malformed(format!("unknown kind of {what} `{}`", kind.escape_ascii()))
}

struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn take(&mut self, bytes: usize) -> Result<&'a [u8], Malformed> {
        let Some((taken, rest)) = self.0.split_at_checked(bytes) else {
            let missing = bytes - self.0.len();
            return Err(Malformed(format!("{missing} bytes are missing")));
        };
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    fn u8(&mut self) -> Result<u8, Malformed> {
        Ok(self.array::<1>()?[0])
    }

    fn u16(&mut self) -> Result<u16, Malformed> {
        self.array().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Result<u32, Malformed> {
        self.array().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Result<u64, Malformed> {
        self.array().map(u64::from_be_bytes)
    }

    fn i64(&mut self) -> Result<i64, Malformed> {
        self.array().map(i64::from_be_bytes)
    }

    fn text(&mut self) -> Result<String, Malformed> {
        let Some(end) = memchr::memchr(0, self.0) else {
            return Err(Malformed("a name has no end".to_owned()));
        };
        let bytes = self.take(end)?;
        self.take(1)?;
        match std::str::from_utf8(bytes) {
            Ok(text) => Ok(text.to_owned()),
            Err(_) => Err(Malformed("a name is not UTF-8".to_owned())),
        }
    }

    fn expect(&mut self, kind: u8) -> Result<(), Malformed> {
        let found = self.u8()?;
        if found == kind {
            return Ok(());
        }
        Err(unknown("tuple", found))
    }

    fn end<T>(self, done: T) -> Result<T, Malformed> {
        match self.0.len() {
            0 => Ok(done),
            left => Err(Malformed(format!("{left} bytes are left over"))),
        }
    }

    fn relation(&mut self) -> Result<Relation, Malformed> {
        let oid = self.u32()?;
        let (schema, name) = (self.text()?, self.text()?);
        let replica_identity = self.u8()?;
        let count = usize::from(self.u16()?);
        let mut columns = Vec::with_capacity(count.min(self.0.len()));
        for _ in 0..count {
            let is_identity = self.u8()? & 1 != 0;
            let name = self.text()?;
            let type_oid = self.u32()?;
            let type_modifier = self.array().map(i32::from_be_bytes)?;
            columns.push(RelationColumn {
                name,
                type_oid,
                type_modifier,
                is_identity,
            });
        }
        Ok(Relation {
            oid,
            // The catalog's own schema is told as an empty name.
            schema: if schema.is_empty() {
                "pg_catalog".to_owned()
            } else {
                schema
            },
            name,
            replica_identity,
            columns,
        })
    }

    fn update(&mut self) -> Result<Message<'a>, Malformed> {
        let relation = self.u32()?;
        let mut kind = self.u8()?;
        let mut old = None;
        if kind != b'N' {
            old = Some(self.old(kind)?);
            kind = self.u8()?;
        }
        if kind != b'N' {
            return Err(unknown("tuple", kind));
        }
        let new = self.tuple()?;
        Ok(Message::Update { relation, old, new })
    }

    fn old(&mut self, kind: u8) -> Result<OldTuple<'a>, Malformed> {
        let is_whole = match kind {
            b'K' => false,
            b'O' => true,
            kind => return Err(unknown("tuple", kind)),
        };
        let tuple = self.tuple()?;
        Ok(OldTuple { is_whole, tuple })
    }

    fn tuple(&mut self) -> Result<Tuple<'a>, Malformed> {
        let count = usize::from(self.u16()?);
        // Every cell has at least its kind.
        let mut cells = Vec::with_capacity(count.min(self.0.len()));
        for _ in 0..count {
            cells.push(self.cell()?);
        }
        Ok(cells)
    }

    fn cell(&mut self) -> Result<Cell<'a>, Malformed> {
        match self.u8()? {
            b'n' => Ok(Cell::Null),
            b'u' => Ok(Cell::Unchanged),
            b't' => {
                let bytes = self.u32()? as usize;
                Ok(Cell::Text(self.take(bytes)?))
            }
            // Binary values come only to those who ask for them, and nobody here does.
            kind => Err(unknown("cell", kind)),
        }
    }

    /// The cells that are there in full, and whether these are all.
    fn beginning_of_tuple(&mut self) -> Result<(Tuple<'a>, bool), Malformed> {
        let count = usize::from(self.u16()?);
        let mut cells = Vec::with_capacity(count.min(self.0.len()));
        while cells.len() < count {
            match self.cell() {
                Ok(cell) => cells.push(cell),
                Err(_) => return Ok((cells, false)),
            }
        }
        Ok((cells, true))
    }

    fn truncate(&mut self) -> Result<Message<'a>, Malformed> {
        let count = self.u32()? as usize;
        // CASCADE and RESTART IDENTITY.
        self.u8()?;
        let mut relations = Vec::with_capacity(count.min(self.0.len() / 4));
        for _ in 0..count {
            relations.push(self.u32()?);
        }
        Ok(Message::Truncate { relations })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn relation() -> Vec<u8> {
        let mut bytes = b"R\0\0\x40\x01public\0pages\0d\0\x02".to_vec();
        bytes.extend(b"\x01id\0\0\0\0\x17\xff\xff\xff\xff");
        bytes.extend(b"\x00body\0\0\0\x04\x13\0\0\0\x06");
        bytes
    }

    fn examples() -> Vec<Vec<u8>> {
        let mut begin = vec![b'B'];
        begin.extend(7_u64.to_be_bytes());
        begin.extend(1_i64.to_be_bytes());
        begin.extend(9_u32.to_be_bytes());
        let mut commit = vec![b'C', 0];
        commit.extend(7_u64.to_be_bytes());
        commit.extend(8_u64.to_be_bytes());
        commit.extend(1_i64.to_be_bytes());
        vec![
            begin,
            commit,
            relation(),
            b"I\0\0\x40\x01N\0\x02t\0\0\0\x011n".to_vec(),
            b"U\0\0\x40\x01N\0\x02t\0\0\0\x011u".to_vec(),
            b"U\0\0\x40\x01K\0\x02t\0\0\0\x011nN\0\x02t\0\0\0\x012t\0\0\0\x02ab".to_vec(),
            b"U\0\0\x40\x01O\0\x02t\0\0\0\x011t\0\0\0\0N\0\x02t\0\0\0\x012u".to_vec(),
            b"D\0\0\x40\x01K\0\x02t\0\0\0\x011n".to_vec(),
            b"D\0\0\x40\x01O\0\x02t\0\0\0\x011t\0\0\0\x02ab".to_vec(),
            b"T\0\0\0\x02\x01\0\0\x40\x01\0\0\x40\x02".to_vec(),
            b"O\0\0\0\0\0\0\0\0a\0".to_vec(),
        ]
    }

    #[test]
    fn every_kind_of_message() {
        let all = examples();
        let decoded: Vec<Message<'_>> = all.iter().map(|bytes| decode(bytes).unwrap()).collect();
        assert_eq!(
            decoded[0],
            Message::Begin {
                commit_lsn: 7,
                committed_at_us: 1,
                xid: 9
            }
        );
        assert_eq!(
            decoded[1],
            Message::Commit {
                commit_lsn: 7,
                end_lsn: 8
            }
        );
        let Message::Relation(relation) = &decoded[2] else {
            panic!("{:?}", decoded[2]);
        };
        assert_eq!((&*relation.schema, &*relation.name), ("public", "pages"));
        let columns: Vec<_> = relation
            .columns
            .iter()
            .map(|it| (&*it.name, it.type_oid, it.type_modifier, it.is_identity))
            .collect();
        assert_eq!(columns, [("id", 23, -1, true), ("body", 1043, 6, false)]);
        assert_eq!(
            decoded[4],
            Message::Update {
                relation: 0x4001,
                old: None,
                new: vec![Cell::Text(b"1"), Cell::Unchanged]
            }
        );
        let Message::Update { old: Some(old), .. } = &decoded[6] else {
            panic!("{:?}", decoded[6]);
        };
        assert!(old.is_whole);
        assert_eq!(old.tuple, [Cell::Text(b"1"), Cell::Text(b"")]);
        assert_eq!(
            decoded[9],
            Message::Truncate {
                relations: vec![0x4001, 0x4002]
            }
        );
    }

    #[test]
    fn a_cut_or_longer_message_is_an_error() {
        for bytes in examples().iter().filter(|bytes| bytes[0] != b'O') {
            for end in 0..bytes.len() {
                assert!(decode(&bytes[..end]).is_err(), "{bytes:?} up to {end}");
            }
            let longer = [&bytes[..], b"x"].concat();
            assert!(decode(&longer).is_err(), "{bytes:?}");
        }
    }

    #[test]
    fn the_beginning_of_a_change_is_that_of_the_change() {
        fn cells<'a>(old: &Option<OldTuple<'a>>) -> Tuple<'a> {
            old.as_ref().map_or_else(Vec::new, |old| old.tuple.clone())
        }
        let is_beginning = |begun: &[Cell<'_>], whole: &[Cell<'_>]| whole.starts_with(begun);
        for bytes in examples() {
            let (old, new) = match decode(&bytes).unwrap() {
                Message::Insert { new, .. } => (None, new),
                Message::Update { old, new, .. } => (old, new),
                Message::Delete { old, .. } => (Some(old), Vec::new()),
                _ => {
                    assert!(beginning(&bytes).is_err(), "{bytes:?}");
                    continue;
                }
            };
            let whole = beginning(&bytes).unwrap();
            assert_eq!((&whole.old, &whole.new), (&old, &new));
            assert_eq!(
                (whole.relation, whole.is_delete),
                (0x4001, bytes[0] == b'D')
            );
            for end in 8..bytes.len() {
                let begun = beginning(&bytes[..end]).unwrap();
                assert!(is_beginning(&cells(&begun.old), &cells(&old)), "{begun:?}");
                assert!(is_beginning(&begun.new, &new), "{begun:?}");
                assert!(begun.new.is_empty() || cells(&begun.old) == cells(&old));
            }
        }
    }

    #[test]
    fn frames() {
        let mut keepalive = vec![b'k'];
        keepalive.extend(5_u64.to_be_bytes());
        keepalive.extend([0; 8]);
        keepalive.push(1);
        assert_eq!(
            replication(&keepalive),
            Ok(Replication::Keepalive {
                end: 5,
                wants_reply: true
            })
        );
        assert!(replication(b"x").is_err());
        assert!(replication(b"").is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 50_000, ..ProptestConfig::default() })]

        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..120)) {
            let _ = decode(&bytes);
            let _ = beginning(&bytes);
            let _ = replication(&bytes);
        }

        #[test]
        fn no_mutation_panics(
            example in 0_usize..11,
            edits in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..8),
            cut in any::<proptest::sample::Index>(),
        ) {
            let mut bytes = examples().swap_remove(example);
            for (at, byte) in edits {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            let _ = decode(&bytes);
            let _ = decode(&bytes[..cut.index(bytes.len())]);
            let _ = beginning(&bytes[..cut.index(bytes.len())]);
        }
    }
}
