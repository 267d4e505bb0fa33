//! Vector index shards over FAISS: exact as of an epoch, under constant change.
//!
//! A shard is a flat fp16 **head** of its newest rows and a few sealed **segments**, each a FAISS
//! index (inverted lists over fp16 vectors, inner product) and a file of ids and vectors. Deletes
//! are bits in a bitmap a segment and epoch; segments never change. Building and merging segments
//! happens on background threads; readers hold immutable snapshots.
//!
//! | module | what |
//! | --- | --- |
//! | `factory` | [`FaissFactory`]: opening, verifying, sweeping |
//! | `shard` | the write half and the order of events |
//! | `read` | the read half |
//! | `head`, `bitmap` | copy-on-write rows and live bits |
//! | `segment`, `rows`, `files` | sealed rows on disk |
//! | `builder`, `tiers` | background work, and what is merged when |
//! | `dot`, `top` | scores and their order |
//! | `library` | the boundary to FAISS |
//! | `ending` | the end of a process while segments are built |
//!
//! Invariant: scores are inner products of the query with the stored fp16 vectors, computed by one
//! function, so an answer does not depend on whether a row lies in a head or a segment.

mod bitmap;
mod builder;
mod dot;
mod ending;
mod factory;
mod files;
mod head;
mod library;
mod read;
mod rows;
mod segment;
mod shard;
mod tiers;
mod top;

pub use ending::end_process;
pub use factory::{FaissFactory, FaissOptions};

#[cfg(test)]
mod interleavings;
