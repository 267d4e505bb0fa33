//! The lines of change logs.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vectide_connectors_fuzz::envelope::change::ChangeDecoder;

fuzz_target!(|input: &[u8]| {
    let _ = ChangeDecoder::new("meta.key", Some("op"), Some("transaction")).decode(input);
});
