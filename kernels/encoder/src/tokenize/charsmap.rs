//! Checks SentencePiece's compiled map of characters before the library looks anything up in it.
//!
//! The map is a double array (a tree in one array, each step of which is an exclusive or with the next
//! byte) and the texts that its leaves point at. The library follows it without looking at its bounds, so a
//! damaged one would be a panic, or make a text a million times as long.
//!
//! Invariant: from a map that passed, whatever bytes a text has, every step stays inside the array and
//! every leaf points at a short text.

use super::TokenizerError;

/// XLM-RoBERTa's has 240 KB.
const MAP_BYTES_MAX: usize = 1 << 20;
/// The longest text of Unicode's own compatibility forms has 33 bytes.
const REPLACEMENT_BYTES_MAX: usize = 64;
/// No byte of UTF-8 is larger.
const BYTE_MAX: usize = 0xF4;

/// One unit of the double array, as its library has laid it out.
#[derive(Clone, Copy)]
struct Unit(usize);

impl Unit {
    fn has_leaf(self) -> bool {
        self.0 >> 8 & 1 == 1
    }
    fn value(self) -> usize {
        self.0 & 0x7FFF_FFFF
    }
    fn label(self) -> usize {
        self.0 & 0x8000_00FF
    }
    fn offset(self) -> usize {
        (self.0 >> 10) << ((self.0 & 1 << 9) >> 6)
    }
}

/// Checks a map in base 64.
pub(super) fn check(base64: &str) -> Result<(), TokenizerError> {
    let fault = |detail: &str| TokenizerError(format!("its map of characters {detail}"));
    if base64.len() > MAP_BYTES_MAX * 4 / 3 + 4 {
        return Err(fault("is too large"));
    }
    let bytes = decode(base64).ok_or_else(|| fault("is not base 64"))?;
    let (length, rest) = bytes
        .split_first_chunk::<4>()
        .ok_or_else(|| fault("is empty"))?;
    let length = u32::from_le_bytes(*length) as usize / 4 * 4;
    let parts = rest.split_at_checked(length).filter(|_| length > 0);
    let (array, texts) = parts.ok_or_else(|| fault("is cut off"))?;
    let (units, _) = array.as_chunks::<4>();
    let units: Vec<Unit> = units
        .iter()
        .map(|unit| Unit(u32::from_le_bytes(*unit) as usize))
        .collect();
    let texts = std::str::from_utf8(texts).map_err(|_| fault("has texts that are none"))?;
    check_array(&units, texts).ok_or_else(|| fault("leads out of itself"))
}

/// Follows every path through the array.
fn check_array(units: &[Unit], texts: &str) -> Option<()> {
    let mut is_seen = vec![false; units.len()];
    let mut bases = vec![units.first()?.offset()];
    while let Some(base) = bases.pop() {
        if std::mem::replace(is_seen.get_mut(base)?, true) {
            continue;
        }
        for byte in 1..=BYTE_MAX {
            let unit = *units.get(base ^ byte)?;
            if unit.label() != byte {
                continue;
            }
            let next = base ^ byte ^ unit.offset();
            if unit.has_leaf() {
                let text = texts.get(units.get(next)?.value()..)?;
                let end = text.find('\0').unwrap_or(text.len());
                (end <= REPLACEMENT_BYTES_MAX).then_some(())?;
            }
            bases.push(next);
        }
    }
    Some(())
}

/// Bytes of base 64; like the library, which panics over others, only of the one text that such bytes
/// have: with padding, and no bits left over.
fn decode(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: &u8| {
        let value = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        Some(u32::from(value))
    };
    let padding = text.bytes().rev().take_while(|byte| *byte == b'=').count();
    if !text.len().is_multiple_of(4) || padding > 2 {
        return None;
    }
    let digits = &text.as_bytes()[..text.len() - padding];
    let mut bytes = Vec::with_capacity(digits.len() / 4 * 3 + 2);
    for four in digits.chunks(4) {
        let mut bits = 0;
        for place in 0..4 {
            bits = bits << 6 | four.get(place).map_or(Some(0), digit)?;
        }
        let [_, three @ ..] = u32::to_be_bytes(bits);
        let (kept, left_over) = three.split_at(four.len() * 3 / 4);
        if left_over.iter().any(|byte| *byte != 0) {
            return None;
        }
        bytes.extend_from_slice(kept);
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base_64_is_decoded() {
        for (text, bytes) in [
            ("", &b""[..]),
            ("TQ==", b"M"),
            ("TWE=", b"Ma"),
            ("TWFu", b"Man"),
            ("TWFuTQ==", b"ManM"),
            ("+/+/", &[0xFB, 0xFF, 0xBF]),
        ] {
            assert_eq!(decode(text).unwrap(), bytes, "{text}");
        }
        for text in [
            "T*==", "TQ", "TQ=", "TR==", "TWF=", "T===", "====", "TQ==TQ==",
        ] {
            assert!(decode(text).is_none(), "{text}");
        }
    }

    #[test]
    fn paths_and_texts_stay_inside() {
        // The root's children lie from 256 on, where `a` has a leaf at 512 that points at a text.
        let array = |value: usize| {
            let mut units = vec![Unit(0x8000_0000); 768];
            units[0] = Unit(256 << 10);
            let child = 256 ^ usize::from(b'a');
            units[child] = Unit((child ^ 512) << 10 | 1 << 8 | usize::from(b'a'));
            units[512] = Unit(0x8000_0000 | value);
            units
        };
        let texts = format!("xyz\0{}", "w".repeat(100));
        assert!(check_array(&array(0), &texts).is_some());
        assert!(check_array(&array(3), &texts).is_some());
        assert!(check_array(&array(4), &texts).is_none(), "a long text");
        assert!(check_array(&array(200), &texts).is_none(), "no text");
        assert!(check_array(&array(0)[..513], &texts).is_none(), "an end");
        assert!(check_array(&[Unit(5 << 10)], &texts).is_none());
        assert!(check_array(&[], &texts).is_none());
        let units = vec![Unit(0); 256];
        assert!(check_array(&units, "").is_some());
    }

    #[test]
    fn what_is_no_map_is_an_error() {
        for map in ["", "AAAA", "////", "AAAAAAAA", "/////w==", "=", "ä"] {
            assert!(check(map).is_err(), "{map}");
        }
    }
}
