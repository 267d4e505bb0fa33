//! What SentencePiece's map of characters makes of graphemes of several characters.
//!
//! Letters with marks of their own, emoji that are joined and syllables in parts are looked up together
//! before each is alone. The library does so on a copy of the text that remembers where each character came
//! from, which takes most of its time; what it looks up is here the same, by its own map.
//!
//! Invariant: a text is normalised as by the library's one step.

use tokenizers::NormalizerWrapper;
use tokenizers::normalizers::Precompiled;
use unicode_segmentation::UnicodeSegmentation;

/// Longer graphemes are not looked up as a whole, as in the library.
const GRAPHEME_BYTES_MAX: usize = 5;

/// The map, or that there is none.
pub(super) struct Graphemes(Option<Precompiled>);

impl Graphemes {
    /// The one of such steps; `None` when they are others.
    pub(super) fn new(steps: &[NormalizerWrapper]) -> Option<Self> {
        match steps {
            [] => Some(Self(None)),
            [NormalizerWrapper::Precompiled(map)] => Some(Self(Some(map.clone()))),
            _ => None,
        }
    }

    /// Appends a text's normal form.
    pub(super) fn normalize(&self, text: &str, form: &mut String) {
        let Some(map) = &self.0 else {
            form.push_str(text);
            return;
        };
        for grapheme in text.graphemes(true) {
            if grapheme.len() <= GRAPHEME_BYTES_MAX
                && let Some(whole) = map.transform(grapheme)
            {
                form.push_str(whole);
                continue;
            }
            for (at, character) in grapheme.char_indices() {
                let part = &grapheme[at..at + character.len_utf8()];
                form.push_str(map.transform(part).unwrap_or(part));
            }
        }
    }
}
