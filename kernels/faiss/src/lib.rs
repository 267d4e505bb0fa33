//! Vector index shards over FAISS: exact as of an epoch, under constant change.
//!
//! A shard is a flat fp16 **head** of its newest rows and a few sealed **segments**, each a file of ids and
//! vectors and one of product codes in inverted lists. The centroids and codebook, trained by FAISS, are
//! those of a **generation** of segments. Deletes are bits in a bitmap a segment and epoch; segments never
//! change. Building and merging segments happens on background threads; readers hold immutable snapshots.
//!
//! | module | what |
//! | --- | --- |
//! | `factory` | [`FaissFactory`]: opening, verifying, sweeping |
//! | `shard` | the write half and the order of events |
//! | `read` | the read half |
//! | `head`, `bitmap` | copy-on-write rows and live bits |
//! | `segment`, `rows`, `codes`, `header`, `files` | sealed rows on disk |
//! | `postings`, `passing`, `keyword` | what rows are found by besides their vectors |
//! | `generation` | what segments trained together share |
//! | `scan`, `coded` | finding coded rows near a query |
//! | `budget` | the time of a search |
//! | `builder`, `tiers`, `news` | background work, what is merged when, and when it is tried again |
//! | `dot`, `top` | scores and their order |
//! | `instructions` | what the processor has |
//! | `library` | the boundary to FAISS |
//! | `ending` | the end of a process while segments are built |
//!
//! Invariant: scores are inner products of the query with the stored fp16 vectors, computed by one
//! function, so an answer does not depend on whether a row lies in a head or a segment.

mod bitmap;
mod budget;
mod builder;
mod coded;
mod codes;
mod dot;
mod ending;
mod factory;
mod files;
mod generation;
mod head;
mod header;
mod instructions;
mod keyword;
mod library;
mod news;
mod passing;
mod postings;
mod read;
mod rows;
mod scan;
mod segment;
mod shard;
mod term_totals;
mod tiers;
mod top;

pub use ending::end_process;
pub use factory::{FaissFactory, FaissOptions, Quantization};

#[cfg(test)]
mod interleavings;
