//! The PostgreSQL source against a real server. The state is a model with upsert's rule, which a source
//! may ask for its rows and which can be killed at any batch.

// Helpers of tests are tests, too.
#![allow(clippy::unwrap_used)]

mod altered;
mod errors;
mod oracles;
mod reading;
mod recovery;
mod support;
mod torture;
