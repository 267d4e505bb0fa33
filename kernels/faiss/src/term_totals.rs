//! How many live rows of a head or a segment have terms, and how long they are together.
//!
//! Invariant: they are counted as rows come and go, so that no query has to add them up.

/// Live rows with terms.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct TermTotals {
    /// How many.
    pub(crate) rows: u64,
    /// Their lengths, added up.
    pub(crate) length: u64,
}

impl TermTotals {
    /// Counts a row of this length; one without terms has none.
    pub(crate) fn add(&mut self, length: u32) {
        self.rows += u64::from(length > 0);
        self.length += u64::from(length);
    }

    /// Takes a row out again.
    pub(crate) fn remove(&mut self, length: u32) {
        self.rows -= u64::from(length > 0);
        self.length -= u64::from(length);
    }
}
