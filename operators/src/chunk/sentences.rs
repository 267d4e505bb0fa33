//! Where sentences end, by the rules of Unicode (UAX #29).
//!
//! The crate `unicode-segmentation` knows the rules for every script, at some 25 MB/s. Most text that
//! is cut into sentences is ASCII, for which the rules are few; here they run on bytes, several times
//! as fast.
//!
//! Invariant: the ends are those of `unicode-segmentation`, for every text.

use unicode_segmentation::UnicodeSegmentation;

/// The end of every sentence, in order; the last is the text's length. None for an empty text.
pub(super) fn sentence_ends(text: &str) -> Vec<usize> {
    if text.is_ascii() {
        return ascii_sentence_ends(text.as_bytes());
    }
    let indices = text.split_sentence_bound_indices();
    indices
        .map(|(start, sentence)| start + sentence.len())
        .collect()
}

fn ascii_sentence_ends(bytes: &[u8]) -> Vec<usize> {
    let mut ends = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        match bytes[at] {
            b'\r' | b'\n' => {
                at = paragraph_end(bytes, at);
                ends.push(at);
            }
            b'.' | b'!' | b'?' => {
                let (next, ends_here) = after_terminator(bytes, at);
                at = next;
                if ends_here {
                    ends.push(at);
                }
            }
            _ => at += 1,
        }
    }
    if bytes.last().is_some() && ends.last() != Some(&bytes.len()) {
        ends.push(bytes.len());
    }
    ends
}

/// Past the line end at `at`.
fn paragraph_end(bytes: &[u8], at: usize) -> usize {
    let pair = bytes[at] == b'\r' && bytes.get(at + 1) == Some(&b'\n');
    at + 1 + usize::from(pair)
}

/// Where to go on after the full stop, exclamation or question mark at `at`, and whether a sentence
/// ends there. The names in comments are the rules' in UAX #29.
fn after_terminator(bytes: &[u8], at: usize) -> (usize, bool) {
    let stop = bytes[at] == b'.';
    let skip = |from: usize, set: &[u8]| {
        let rest = bytes[from..].iter();
        from + rest.take_while(|byte| set.contains(byte)).count()
    };
    let closed = skip(at + 1, b"\"'()[]{}");
    let next = skip(closed, b" \t\x0b\x0c");
    let Some(&byte) = bytes.get(next) else {
        return (next, false);
    };
    if matches!(byte, b'\r' | b'\n') {
        return (paragraph_end(bytes, next), true); // SB9, SB10, SB11
    }
    let letter_before = at > 0 && bytes[at - 1].is_ascii_alphabetic();
    let goes_on = matches!(byte, b'.' | b'!' | b'?' | b',' | b'-' | b':' | b';') // SB8a
        || (stop && next == at + 1 && byte.is_ascii_digit()) // SB6
        || (stop && next == at + 1 && letter_before && byte.is_ascii_uppercase()) // SB7
        || (stop && lowercase_follows(&bytes[next..])); // SB8
    (next, !goes_on)
}

/// Whether the first letter is lower case, with neither line end nor terminator before it.
fn lowercase_follows(bytes: &[u8]) -> bool {
    let decides = |byte: &&u8| {
        byte.is_ascii_alphabetic() || matches!(byte, b'\r' | b'\n' | b'.' | b'!' | b'?')
    };
    bytes
        .iter()
        .find(decides)
        .is_some_and(u8::is_ascii_lowercase)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn reference(text: &str) -> Vec<usize> {
        let indices = text.split_sentence_bound_indices();
        indices.map(|(start, part)| start + part.len()).collect()
    }

    #[test]
    fn the_end_of_a_sentence() {
        let ends = sentence_ends("One, e.g. two. \"Three!\" 3.5 Four\nFive");
        assert_eq!(ends, [15, 24, 33, 37]);
        assert!(sentence_ends("").is_empty());
        assert_eq!(sentence_ends("雨です。晴れ"), [12, 18]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn ascii_ends_are_those_of_unicode(text in "([a-cA-C0-1.!? \t\r\n()\"',;:-]|[\\x00-\\x7f]){0,40}") {
            prop_assert_eq!(sentence_ends(&text), reference(&text));
        }
    }
}
