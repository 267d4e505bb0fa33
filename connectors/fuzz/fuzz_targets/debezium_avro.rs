//! Debezium's events in Avro.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::cell::RefCell;
use vectide_connectors_fuzz::envelope::format::RecordDecoder;
use vectide_connectors_fuzz::{AVRO_ID, decode_framed, decoder};

thread_local! {
    static DECODER: RefCell<RecordDecoder> = RefCell::new(decoder(r#"{"type":"debezium","encoding":"avro","registry":{"url":"http://127.0.0.1:1"}}"#));
}

fuzz_target!(|input: &[u8]| {
    DECODER.with_borrow_mut(|decoder| decode_framed(decoder, AVRO_ID, input));
});
