//! Tests of the whole crate through its public API, on a configuration like those it serves.
// `allow-unwrap-in-tests` covers test functions only, not the functions beside them.
#![allow(clippy::unwrap_used)]

mod bounds;
mod compose;
mod oracle;
mod pipeline;
mod reports;
mod secrets;
mod typed;
