//! Cutting documents into the pieces that are embedded.
//!
//! A pipeline embeds chunks, not documents, and embeds again exactly the chunks whose text changed.
//! So where the cuts fall decides both how well a question finds its passage and how much an edit
//! costs. [`StructuredChunker`] answers both; [`WholeChunker`] is for records that are short anyway.
//!
//! Invariant: a chunker is a pure function of the text and of what its version string names. It
//! knows nothing of a document's history, so a rebuild cuts exactly as the running pipeline did.

mod cuts;
mod lines;
mod marks;
mod pieces;
mod sentences;
mod structured;
mod whole;

pub use structured::{StructuredChunker, StructuredConfig};
pub use whole::{WholeChunker, WholeConfig};
