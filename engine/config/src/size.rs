//! How much a value holds, so that a copy of it can be charged before it is made.
//!
//! Invariant: what an alias adds to a tree is counted in full, whatever is inside.

use crate::node::{Kind, Node};

/// What a value and everything inside it amounts to.
#[derive(Clone, Copy, Default)]
pub(crate) struct Size {
    pub(crate) values: usize,
    pub(crate) text_bytes: usize,
    /// Levels of maps and lists; 0 for a scalar.
    pub(crate) depth: usize,
}

/// Walks the whole value.
pub(crate) fn measure(node: &Node) -> Size {
    let mut size = Size {
        values: 1,
        ..Size::default()
    };
    let mut add = |child: Size| {
        size.values += child.values;
        size.text_bytes += child.text_bytes;
        size.depth = size.depth.max(child.depth + 1);
    };
    match &node.kind {
        Kind::Sequence(items) => items.iter().map(measure).for_each(&mut add),
        Kind::Mapping(entries) => {
            for entry in entries {
                let mut child = measure(&entry.node);
                child.values += 1;
                child.text_bytes += entry.key.len();
                add(child);
            }
        }
        Kind::Scalar(scalar) => {
            size.text_bytes += scalar.value.as_str().map_or(0, str::len);
            size.text_bytes += scalar.secret.as_ref().map_or(0, |secret| {
                secret.text.len() + secret.variables.iter().map(String::len).sum::<usize>()
            });
        }
        Kind::Broken => {}
    }
    if matches!(node.kind, Kind::Sequence(_) | Kind::Mapping(_)) {
        size.depth = size.depth.max(1);
    }
    size
}
