//! The endpoint as clients see it: a real server on a loopback port over a small index in memory.

// Clippy allows it in test functions; the helpers of this crate are nothing else.
#![allow(clippy::unwrap_used)]

mod at_least;
mod bad_input;
mod client;
mod embeddings;
mod memory;
mod openapi;
mod pressure;
mod routes;
mod server;
