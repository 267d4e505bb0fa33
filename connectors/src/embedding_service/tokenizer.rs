//! How many tokens a text has, and where one that has too many is cut: by the service's own tokenizer where the
//! configuration names its file, else by an estimate.
//!
//! Invariant: what is sent has at most `max_tokens`, prefix and special tokens included, as they are counted here;
//! of a text that is far too long only a beginning is looked at.

use super::config::OpenAiConfig;
use super::tokens::{EstimatedTokens, cut};
use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use vectide_model::{ComponentError, CountingTokenizer, OpenContext, TokenCounter, stable_hash};

/// Bytes of a tokenizer's file: Gemma's, which has the most pieces of those in use, has half of it.
const FILE_BYTES_MAX: u64 = 64 << 20;
/// Bytes of text that are looked at first for each token that is wanted: twice what a token of English has.
const BYTES_A_TOKEN: usize = 8;
/// Special tokens that [`vectide_model::ModelIdentity::tokens_max`] is taken to include.
const USUAL_SPECIAL_TOKENS: usize = 2;

/// What counts tokens.
pub(super) enum Tokens {
    /// Nothing is known of the service's tokens.
    Estimated,
    /// They are counted as the service does.
    Counted {
        /// The service's tokenizer.
        tokenizer: CountingTokenizer,
        /// Of its file.
        hash: u64,
    },
}

impl Tokens {
    /// Reads the tokenizer's file, if the configuration names one.
    ///
    /// # Errors
    /// When it can't be read, or leaves texts no tokens of their own.
    pub(super) fn open(
        config: &OpenAiConfig,
        context: &OpenContext,
    ) -> Result<Self, ComponentError> {
        let Some(path) = &config.tokenizer else {
            return Ok(Self::Estimated);
        };
        let path = context.config_dir.join(path);
        let refused = |why: String| {
            let fact = format!("{}: {why}", path.display());
            let hint = "name the tokenizer.json of the service's model, or leave `tokenizer` out";
            ComponentError::new("tokenizer", fact, hint)
        };
        let json = contents(&path).map_err(refused)?;
        let tokenizer = context.tokenizers.read(&json);
        let tokenizer = tokenizer.map_err(|error| refused(error.to_string()))?;
        let hash = stable_hash(&json);
        let tokens = Self::Counted { tokenizer, hash };
        let count = |text: &str| tokens.count(text) + tokens.special_tokens();
        match config.prefix_faults(count).into_iter().next() {
            Some((field, fact, hint)) => Err(ComponentError::new(field, fact, hint)),
            None => Ok(tokens),
        }
    }

    /// Counts the tokens of a text, without special ones.
    pub(super) fn count(&self, text: &str) -> usize {
        match self {
            Self::Estimated => EstimatedTokens.count(text),
            Self::Counted { tokenizer, .. } => tokenizer.counter.count(text),
        }
    }

    /// The same, for whoever cuts documents.
    pub(super) fn counter(&self) -> Arc<dyn TokenCounter> {
        match self {
            Self::Estimated => Arc::new(EstimatedTokens),
            Self::Counted { tokenizer, .. } => tokenizer.counter.clone(),
        }
    }

    /// Special tokens that are counted beside a text's own; an estimate has room for them.
    fn special_tokens(&self) -> usize {
        match self {
            Self::Estimated => 0,
            Self::Counted { tokenizer, .. } => tokenizer.special_tokens,
        }
    }

    /// Tokens of a chunk, the usual special ones included, beside a prefix.
    pub(super) fn tokens_max(&self, config: &OpenAiConfig) -> usize {
        let more = self.special_tokens().saturating_sub(USUAL_SPECIAL_TOKENS);
        (config.max_tokens).saturating_sub(self.count(config.passage()) + more)
    }

    /// What tells vectors apart that were made of texts cut here: a part of the fingerprint.
    pub(super) fn fingerprint(&self) -> String {
        match self {
            Self::Estimated => String::new(),
            Self::Counted { hash, .. } => format!("-counted-{hash:016x}"),
        }
    }

    /// A text as it is sent; `None` where nothing is left of it.
    pub(super) fn prepared(&self, prefix: &str, text: &str, max_tokens: usize) -> Option<String> {
        let text = match self {
            Self::Estimated => cut(text, max_tokens.saturating_sub(self.count(prefix))),
            Self::Counted { tokenizer, .. } => {
                let tokens_max = max_tokens.saturating_sub(tokenizer.special_tokens);
                let fits = |text: &str| {
                    let whole = [prefix, text].concat();
                    tokenizer.counter.count(&whole) <= tokens_max
                };
                beginning(text, tokens_max * BYTES_A_TOKEN, fits)
            }
        };
        (!text.trim().is_empty()).then(|| format!("{prefix}{text}"))
    }
}

/// What stands in a file that is not too long.
fn contents(path: &Path) -> Result<Vec<u8>, String> {
    let file = std::fs::File::open(path).map_err(|error| error.to_string())?;
    let mut bytes = Vec::new();
    let read = file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes);
    let read = read.map_err(|error| error.to_string())?;
    if read as u64 > FILE_BYTES_MAX {
        return Err(format!("it has more than {FILE_BYTES_MAX} bytes"));
    }
    Ok(bytes)
}

/// A long beginning of a text that fits: all of it, or one that with a letter more does not. `bytes` is about as
/// long as texts that fit are.
fn beginning(text: &str, bytes: usize, fits: impl Fn(&str) -> bool) -> &str {
    let mut fitting = 0;
    let mut end = floor_letter(text, bytes);
    // Texts that are a thousand times too long are not looked at to their end.
    while fits(&text[..end]) {
        fitting = end;
        if end == text.len() {
            return text;
        }
        end = floor_letter(text, end.saturating_mul(2).max(BYTES_A_TOKEN));
    }
    loop {
        let middle = floor_letter(text, fitting + (end - fitting) / 2);
        let middle = match middle > fitting {
            true => middle,
            false => next_letter(text, fitting),
        };
        if middle >= end {
            return &text[..fitting];
        }
        match fits(&text[..middle]) {
            true => fitting = middle,
            false => end = middle,
        }
    }
}

/// The last place before or at `at` where a letter begins or the text ends.
fn floor_letter(text: &str, at: usize) -> usize {
    let mut at = at.min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}

/// The place behind the letter at `at`.
fn next_letter(text: &str, at: usize) -> usize {
    let letter = text.get(at..).and_then(|rest| rest.chars().next());
    at + letter.map_or(0, char::len_utf8)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    /// A token a word, and one for what every text gets.
    struct Words;

    impl TokenCounter for Words {
        fn count(&self, text: &str) -> usize {
            text.split_whitespace().count()
        }
    }

    fn counted() -> Tokens {
        Tokens::Counted {
            tokenizer: CountingTokenizer {
                counter: Arc::new(Words),
                special_tokens: 1,
            },
            hash: 7,
        }
    }

    #[test]
    fn a_text_is_cut_where_its_tokens_end() {
        let tokens = counted();
        let sent = |prefix: &str, text: &str| tokens.prepared(prefix, text, 4);
        assert_eq!(sent("", "one two three").as_deref(), Some("one two three"));
        assert_eq!(
            sent("", "one two three four").as_deref(),
            Some("one two three ")
        );
        assert_eq!(sent("p: ", "one two three").as_deref(), Some("p: one two "));
        // Joined with the prefix it is one token, as the service sees it.
        assert_eq!(
            sent("p:", "one two three").as_deref(),
            Some("p:one two three")
        );
        assert_eq!(sent("p: ", "  "), None);
        assert_eq!(
            sent("", &"日本 ".repeat(9)).as_deref(),
            Some("日本 日本 日本 ")
        );
        assert_eq!(tokens.count("one two"), 2);
    }

    #[test]
    fn without_a_tokenizer_it_is_estimated() {
        let sent = |text: &str| Tokens::Estimated.prepared("p: ", text, 5);
        assert_eq!(sent("one two three").as_deref(), Some("p: one two thr"));
        assert_eq!(sent(""), None);
    }

    #[test]
    fn the_longest_beginning_is_found_without_looking_at_all() {
        let text = "日本x🙂".repeat(100_000);
        for letters in [0, 1, 2, 3, 4, 5, 63, 64, 65, 1000] {
            let seen = Cell::new(0);
            let fits = |part: &str| {
                seen.set(seen.get() + part.len());
                part.chars().count() <= letters
            };
            let part = beginning(&text, 100, fits);
            assert_eq!(part.chars().count(), letters);
            assert!(seen.get() < 100_000, "{} bytes", seen.get());
        }
        assert_eq!(beginning("", 100, |_| true), "");
        assert_eq!(beginning("a", 0, |_| false), "");
        assert_eq!(beginning("short", 2, |_| true), "short");
    }
}
