//! Documents as bytes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::cell::RefCell;
use vectide_connectors_fuzz::envelope::format::RecordDecoder;
use vectide_connectors_fuzz::{decode, decoder};

thread_local! {
    static DECODER: RefCell<RecordDecoder> = RefCell::new(decoder(r#"{"type":"bytes"}"#));
}

fuzz_target!(|input: &[u8]| {
    DECODER.with_borrow_mut(|decoder| decode(decoder, input));
});
