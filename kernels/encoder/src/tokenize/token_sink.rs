//! Where the tokens of a text go: to a list of them, or into their number.
//!
//! Invariant: a sink's length is that of all ids pushed, less what was truncated.

/// Takes the tokens of a text.
pub(super) trait TokenSink<Id> {
    fn len(&self) -> usize;
    fn push(&mut self, ids: &[Id]);
    fn truncate(&mut self, len: usize);
}

impl<Id> TokenSink<Id> for usize {
    fn len(&self) -> usize {
        *self
    }
    fn push(&mut self, ids: &[Id]) {
        *self += ids.len();
    }
    fn truncate(&mut self, len: usize) {
        *self = len.min(*self);
    }
}

impl<Id: Copy> TokenSink<Id> for Vec<Id> {
    fn len(&self) -> usize {
        self.len()
    }
    fn push(&mut self, ids: &[Id]) {
        self.extend_from_slice(ids);
    }
    fn truncate(&mut self, len: usize) {
        self.truncate(len);
    }
}
