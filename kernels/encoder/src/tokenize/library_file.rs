//! Checks a `tokenizer.json` that goes to the `tokenizers` library as a whole, whatever kind it is.
//!
//! The library panics over a damaged map of characters only once a text leads it there, and takes two
//! hundred bytes for each byte of Unigram's pieces. Kinds that this crate computes itself are bounded more
//! narrowly ([`super::stretches_file`]); this is what all others must keep to.
//!
//! Invariant: in a file that passed, no map of characters leads out of itself, wherever it stands, and
//! what the library builds of pieces and added tokens is bounded.

use super::TokenizerError;
use super::charsmap;
use super::stretches_file::{PIECE_BYTES_MAX, check_pieces};
use serde_json::Value;

/// Tokens beside the pieces: Gemma has 6,414.
const ADDED_MAX: usize = 1 << 14;

/// Checks what the library believes of a file that is JSON.
///
/// # Errors
/// When it would panic over it, or take memory without a bound.
pub fn check_library_file(file: &Value) -> Result<(), TokenizerError> {
    check_maps(&file["normalizer"])?;
    // Other kinds have their pieces in a map, which takes a few times their bytes and no more.
    if let Some(pieces) = file["model"]["vocab"].as_array() {
        check_pieces(pieces.len(), pieces.iter().map(|piece| piece[0].as_str()))?;
    }
    check_added(&file["added_tokens"])
}

/// Checks all maps of a normaliser and of those inside of it. The library knows them by this name alone where
/// a step does not say its type.
fn check_maps(normalizer: &Value) -> Result<(), TokenizerError> {
    match normalizer {
        Value::Object(members) => members.iter().try_for_each(|(name, value)| {
            if name == "precompiled_charsmap" {
                return charsmap::check(value.as_str().unwrap_or_default());
            }
            check_maps(value)
        }),
        Value::Array(steps) => steps.iter().try_for_each(check_maps),
        _ => Ok(()),
    }
}

/// Each added token is looked for in each text.
fn check_added(added: &Value) -> Result<(), TokenizerError> {
    let added = added.as_array().map(Vec::as_slice).unwrap_or_default();
    if added.len() > ADDED_MAX {
        let fact = format!(
            "it has {} added tokens, at most {ADDED_MAX} are supported",
            added.len()
        );
        return Err(TokenizerError(fact));
    }
    for token in added {
        let content = token["content"].as_str().unwrap_or_default();
        if content.len() > PIECE_BYTES_MAX {
            let fact = format!(
                "the added token `{content:.40}` has {} bytes, at most {PIECE_BYTES_MAX} are supported",
                content.len()
            );
            return Err(TokenizerError(fact));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn fault(file: &Value) -> String {
        let checked = check_library_file(file);
        checked.err().map_or(String::new(), |error| error.0)
    }

    #[test]
    fn damaged_maps_are_found_wherever_they_are() {
        // An array of one unit, whose root leads out of it.
        let map = json!({"type": "Precompiled", "precompiled_charsmap": "BAAAAAAUAAA="});
        let inside = |steps: Value| json!({"type": "Sequence", "normalizers": steps});
        let nameless = json!({"precompiled_charsmap": "BAAAAAAUAAA="});
        for normalizer in [
            map.clone(),
            inside(json!([{"type": "NFC"}, map])),
            inside(json!([inside(json!([map]))])),
            nameless,
        ] {
            let found = fault(&json!({"normalizer": normalizer}));
            assert!(found.contains("leads out of itself"), "{found}");
        }
        let none = json!({"type": "Precompiled", "precompiled_charsmap": null});
        assert!(fault(&json!({"normalizer": none})).contains("map of characters"));
        assert_eq!(fault(&json!({"normalizer": {"type": "NFC"}})), "");
    }

    #[test]
    fn pieces_and_added_tokens_are_bounded() {
        let long = "a".repeat(300);
        let pieces = json!({"model": {"type": "Unigram", "vocab": [[long, 0.0]]}});
        assert!(fault(&pieces).contains("300 bytes"));
        let added = |content: &str, count: usize| json!({"added_tokens": vec![json!({"content": content}); count]});
        assert!(fault(&added(&long, 1)).contains("300 bytes"));
        assert!(fault(&added("x", ADDED_MAX + 1)).contains("added tokens"));
        assert_eq!(fault(&added("New York", ADDED_MAX)), "");
    }
}
