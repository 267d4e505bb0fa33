//! PostgreSQL's replication messages and their rows.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vectide_connectors_fuzz::postgres::decode_messages;

fuzz_target!(|input: &[u8]| decode_messages(input));
