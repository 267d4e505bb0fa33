//! The files beside a model that hold its weights: protobuf ends at 2 GiB, so larger models keep them outside.
//!
//! A tensor whose values lie outside names their file by `location`. Only as much of ONNX's format is read as
//! leads to tensors: the graph's, those in attributes of nodes, and the graphs in those.
//!
//! Invariant: every file that ONNX Runtime would read for a model is named, and none lies outside the model's
//! folder.

use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};

/// How deep graphs may lie in graphs. Loops and conditions of a real model have two or three.
const DEPTH_MAX: usize = 32;

/// Fields of ONNX's messages that lead to tensors, by their numbers in onnx.proto.
#[derive(Clone, Copy)]
enum Message {
    Model,
    Graph,
    Node,
    Attribute,
    Function,
    SparseTensor,
    Tensor,
}

impl Message {
    /// What the field of this number holds, where that leads on.
    fn field(self, number: u64) -> Option<Self> {
        Some(match (self, number) {
            (Self::Model, 7) => Self::Graph,
            (Self::Model, 25) => Self::Function,
            (Self::Graph, 1) | (Self::Function, 7) => Self::Node,
            (Self::Graph, 5) | (Self::Attribute, 5 | 10) => Self::Tensor,
            (Self::Graph, 15) | (Self::Attribute, 22 | 23) => Self::SparseTensor,
            (Self::SparseTensor, 1 | 2) => Self::Tensor,
            (Self::Node, 5) | (Self::Function, 11) => Self::Attribute,
            (Self::Attribute, 6 | 11) => Self::Graph,
            _ => return None,
        })
    }
}

/// Why a model's files can't be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ExternalDataError {
    /// It is no ONNX model, or is cut short.
    Damaged,
    /// A file lies elsewhere.
    Outside(String),
}

/// The files of weights that a model names, relative to its folder.
pub(crate) fn locations(model: &[u8]) -> Result<BTreeSet<PathBuf>, ExternalDataError> {
    let mut found = BTreeSet::new();
    walk(Message::Model, model, DEPTH_MAX * 3, &mut found)?;
    Ok(found)
}

fn walk(
    message: Message,
    bytes: &[u8],
    depth: usize,
    found: &mut BTreeSet<PathBuf>,
) -> Result<(), ExternalDataError> {
    let depth = depth.checked_sub(1).ok_or(ExternalDataError::Damaged)?;
    let mut fields = Fields { rest: bytes };
    while let Some((number, contents)) = fields.next()? {
        if let Some(inner) = message.field(number) {
            walk(inner, contents, depth, found)?;
        } else if matches!(message, Message::Tensor) && number == 13 {
            let location = location(contents)?;
            if let Some(location) = location {
                found.insert(location);
            }
        }
    }
    Ok(())
}

/// The value of an entry whose key is `location`.
fn location(entry: &[u8]) -> Result<Option<PathBuf>, ExternalDataError> {
    let (mut key, mut value): (&[u8], &[u8]) = (&[], &[]);
    let mut fields = Fields { rest: entry };
    while let Some((number, contents)) = fields.next()? {
        match number {
            1 => key = contents,
            2 => value = contents,
            _ => {}
        }
    }
    if key != b"location" {
        return Ok(None);
    }
    let name = std::str::from_utf8(value).map_err(|_| ExternalDataError::Damaged)?;
    let mut components = Path::new(name).components();
    let is_inside = components.all(|it| matches!(it, Component::Normal(_) | Component::CurDir));
    match is_inside && !name.is_empty() {
        true => Ok(Some(name.into())),
        false => Err(ExternalDataError::Outside(name.into())),
    }
}

/// The fields of a message that have a length; the others are skipped.
struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    fn next(&mut self) -> Result<Option<(u64, &'a [u8])>, ExternalDataError> {
        while !self.rest.is_empty() {
            let tag = self.number()?;
            match tag & 7 {
                0 => drop(self.number()?),
                1 => drop(self.take(8)?),
                5 => drop(self.take(4)?),
                2 => {
                    let length = self.number()?;
                    return Ok(Some((tag >> 3, self.take(length)?)));
                }
                _ => return Err(ExternalDataError::Damaged),
            }
        }
        Ok(None)
    }

    fn take(&mut self, length: u64) -> Result<&'a [u8], ExternalDataError> {
        let length = usize::try_from(length).map_err(|_| ExternalDataError::Damaged)?;
        let (taken, rest) = self
            .rest
            .split_at_checked(length)
            .ok_or(ExternalDataError::Damaged)?;
        self.rest = rest;
        Ok(taken)
    }

    /// A number of seven bits a byte, the lowest first.
    fn number(&mut self) -> Result<u64, ExternalDataError> {
        let mut number = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?[0];
            number |= u64::from(byte & 0x7F) << shift;
            if byte < 0x80 {
                return Ok(number);
            }
        }
        Err(ExternalDataError::Damaged)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(number: u8, contents: &[u8]) -> Vec<u8> {
        let mut bytes = vec![number << 3 | 2];
        let mut length = contents.len();
        while length >= 0x80 {
            bytes.push(length as u8 | 0x80);
            length >>= 7;
        }
        bytes.push(length as u8);
        bytes.extend(contents);
        bytes
    }

    fn tensor(location: &str) -> Vec<u8> {
        let entry = |key: &str, value: &str| {
            let entry = [field(1, key.as_bytes()), field(2, value.as_bytes())].concat();
            field(13, &entry)
        };
        // A name, a data type and an offset stand beside it.
        let tensor = [field(8, b"w"), vec![2 << 3, 1], entry("offset", "4096")].concat();
        [tensor, entry("location", location)].concat()
    }

    #[test]
    fn tensors_are_found_wherever_they_lie() {
        let in_graph = field(5, &tensor("a"));
        let in_node = field(1, &field(5, &field(5, &tensor("b"))));
        let in_branch = field(1, &field(5, &field(6, &field(5, &tensor("sub/c")))));
        let graph = field(7, &[in_graph, in_node, in_branch].concat());
        let expected = ["a", "b", "sub/c"].map(PathBuf::from);
        assert_eq!(locations(&graph).unwrap(), BTreeSet::from(expected));
        for length in 0..graph.len() {
            let _ = locations(&graph[..length]);
        }
    }

    #[test]
    fn files_elsewhere_are_refused() {
        for name in ["../a", "/etc/passwd", "a/../../b", ""] {
            let model = field(7, &field(5, &tensor(name)));
            let expected = ExternalDataError::Outside(name.into());
            assert_eq!(locations(&model), Err(expected));
        }
    }

    #[test]
    fn what_is_no_model_is_told() {
        assert_eq!(locations(b"").unwrap(), BTreeSet::new());
        for bytes in [
            &b"not a model"[..],
            &[0x3A, 0xFF],
            &[0x3A, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x01],
            &[0xFF; 20],
        ] {
            assert_eq!(locations(bytes), Err(ExternalDataError::Damaged));
        }
    }

    #[test]
    fn depth_is_bounded() {
        // Graphs in an attribute in a node, over and over.
        let mut graph = Vec::new();
        for _ in 0..12 {
            graph = field(1, &field(5, &field(6, &graph)));
        }
        assert!(locations(&field(7, &graph)).is_ok());
        let mut deep = Vec::new();
        for _ in 0..10_000 {
            deep = field(1, &field(5, &field(6, &deep)));
        }
        assert_eq!(locations(&field(7, &deep)), Err(ExternalDataError::Damaged));
    }
}
