//! WordPiece: texts to the token ids of a BERT model, fast enough to count chunks' sizes in tokens.
//!
//! The `tokenizers` library defines the result; it makes about a million tokens a second. Here a
//! text is walked once: each character is looked up in a table made from the library's own answers
//! ([`super::characters`]), and each word's pieces come from a small cache ([`super::word_cache`]). A stretch between
//! white space with a character whose effect depends on its neighbours goes to the library.
//!
//! Invariant: ids and counts equal the library's for every text.

use super::bert_characters::{CharacterClass, bert_characters};
use super::characters::Characters;
use super::file::TokenizerFile;
use super::token_sink::TokenSink;
use super::word_cache::WordCache;
use super::words::{self, Vocabulary};
use super::{TokenizerError, cut};
use serde_json::Value;
use std::cell::RefCell;
use thread_local::ThreadLocal;
use tokenizers::{Model, ModelWrapper};

/// Longest stretch without white space that goes to the library as a whole: it is cut there, since
/// such a stretch of marks is no text that a model understands, and an unbounded one would hold a
/// query up for seconds.
const LIBRARY_STRETCH_BYTES_MAX: usize = 64 * 1024;

/// A word of so many bytes has more than 100 characters, of at most four bytes each.
const UNKNOWN_WORD_BYTES: usize = 4 * words::WORD_CHARACTERS_MAX + 1;

/// 32,768 words a thread: a few times those in use at one time, in 1.3 MB.
const CACHE_BITS: u32 = 14;

/// A literal special token and its id.
type SpecialToken = (Box<[u8]>, u16);

/// A tokenizer that any number of threads use at once.
pub(super) struct WordPiece {
    library: tokenizers::Tokenizer,
    characters: Characters<CharacterClass>,
    vocabulary: Vocabulary,
    /// Literal special tokens that a text may contain: `[SEP]` and the like.
    specials: Vec<SpecialToken>,
    begin: u32,
    end: u32,
    tokens_max: usize,
    workspaces: ThreadLocal<RefCell<Workspace>>,
}

/// What one thread reuses from text to text.
struct Workspace {
    cache: WordCache<u16>,
    word: Vec<u8>,
    ids: Vec<u16>,
}

impl WordPiece {
    /// Reads a `tokenizer.json` with BERT's normaliser and pre-tokenizer and a WordPiece model.
    /// Its padding and truncation are ignored: `tokens_max` (special tokens included) is what a text
    /// is cut to.
    ///
    /// # Errors
    /// When the file is not such a tokenizer.
    pub(super) fn read(json: Value, tokens_max: usize) -> Result<Self, TokenizerError> {
        let fault = |detail: &str| TokenizerError(detail.into());
        let TokenizerFile {
            library,
            begin,
            end,
        } = TokenizerFile::read(json)?;
        let ModelWrapper::WordPiece(model) = library.get_model() else {
            return Err(fault("the model is not WordPiece"));
        };
        if model.max_input_chars_per_word != words::WORD_CHARACTERS_MAX {
            return Err(fault("words are limited to another length than 100"));
        }
        let pieces = model.get_vocab();
        let pieces = pieces.iter().map(|(piece, id)| (piece.as_str(), *id));
        let vocabulary =
            Vocabulary::new(pieces, &model.continuing_subword_prefix, &model.unk_token)
                .ok_or_else(|| fault("the vocabulary lacks the unknown token or exceeds 65,536"))?;
        let specials = special_tokens(&library)?;
        let parts = library.get_normalizer().zip(library.get_pre_tokenizer());
        let (normalizer, pre_tokenizer) =
            parts.ok_or_else(|| fault("no normaliser or no pre-tokenizer"))?;
        let tokenizer = Self {
            characters: bert_characters(normalizer.clone(), pre_tokenizer.clone()),
            vocabulary,
            specials,
            begin,
            end,
            tokens_max,
            workspaces: ThreadLocal::new(),
            library,
        };
        for probe in ["", "A", "b c. 日本"] {
            if tokenizer.encode_by_library(probe)? != tokenizer.encode(probe) {
                return Err(fault("the library makes other ids of it"));
            }
        }
        Ok(tokenizer)
    }

    /// The largest id that a text can have.
    pub(super) fn largest_id(&self) -> u32 {
        let vocabulary = self.library.get_vocab(true);
        vocabulary.into_values().max().unwrap_or_default()
    }

    /// The ids of a text, from `[CLS]` to `[SEP]`, at most `tokens_max`.
    pub(super) fn encode(&self, text: &str) -> Vec<u32> {
        let workspace = self.workspaces.get_or(Workspace::new_cell);
        let workspace = &mut *workspace.borrow_mut();
        let mut pieces = std::mem::take(&mut workspace.ids);
        pieces.clear();
        let limit = self.tokens_max.saturating_sub(2);
        self.walk(text, workspace, limit, &mut pieces);
        pieces.truncate(limit);
        let mut ids = Vec::with_capacity(pieces.len() + 2);
        ids.push(self.begin);
        ids.extend(pieces.iter().map(|id| u32::from(*id)));
        ids.push(self.end);
        workspace.ids = pieces;
        ids
    }

    /// The ids of a text as the library alone finds them: the reference of the tests.
    ///
    /// # Errors
    /// What the library says.
    pub(super) fn encode_by_library(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let encoding = self.library.encode_fast(text, true);
        let encoding = encoding.map_err(|error| TokenizerError(error.to_string()))?;
        Ok(cut(encoding.get_ids().to_vec(), self.tokens_max, self.end))
    }

    /// The tokens of a text without those around it, however many.
    pub(super) fn count(&self, text: &str) -> usize {
        let workspace = self.workspaces.get_or(Workspace::new_cell);
        let mut count = 0;
        self.walk(text, &mut workspace.borrow_mut(), usize::MAX, &mut count);
        count
    }

    /// Walks a text until its end or until `limit` tokens are reached (it may pass it by a word).
    fn walk(&self, text: &str, work: &mut Workspace, limit: usize, out: &mut impl TokenSink<u16>) {
        let bytes = text.as_bytes();
        let mut at = 0;
        // Where the stretch after white space or a character alone began, and the tokens before it:
        // marks are sorted only among themselves, so nothing reaches back beyond such a character.
        let (mut stretch, mut stretch_tokens) = (0, 0);
        work.word.clear();
        while at < bytes.len() && out.len() < limit {
            let byte = bytes[at];
            let (length, character) = if byte < 0x80 {
                (1, self.characters.ascii(byte))
            } else {
                match text[at..].chars().next() {
                    Some(character) => (character.len_utf8(), self.characters.get(character)),
                    None => break,
                }
            };
            match character.class {
                CharacterClass::Letters => {
                    // What is longer is unknown whatever follows: the buffer stays small.
                    if work.word.len() < UNKNOWN_WORD_BYTES {
                        work.word.extend_from_slice(character.replacement());
                    }
                    at += length;
                }
                CharacterClass::Space => {
                    work.end_word(&self.vocabulary, out);
                    at += length;
                    (stretch, stretch_tokens) = (at, out.len());
                }
                CharacterClass::Removed => at += length,
                CharacterClass::Alone => {
                    work.end_word(&self.vocabulary, out);
                    if let Some((special, id)) = self.special_at(&bytes[at..]) {
                        out.push(&[id]);
                        at += special;
                    } else {
                        let find =
                            |word: &[u8], ids: &mut Vec<u16>| self.vocabulary.pieces(word, ids);
                        out.push(work.cache.pieces(character.replacement(), find));
                        at += length;
                    }
                    (stretch, stretch_tokens) = (at, out.len());
                }
                CharacterClass::AskLibrary => {
                    if at - stretch > LIBRARY_STRETCH_BYTES_MAX {
                        work.end_word(&self.vocabulary, out);
                        (stretch, stretch_tokens) = (at, out.len());
                    }
                    work.word.clear();
                    out.truncate(stretch_tokens);
                    at = self.ask_library(text, stretch, out);
                    (stretch, stretch_tokens) = (at, out.len());
                }
            }
        }
        if out.len() < limit {
            work.end_word(&self.vocabulary, out);
        }
    }

    /// The special token that stands literally at the start of `bytes`: its length and id.
    #[inline]
    fn special_at(&self, bytes: &[u8]) -> Option<(usize, u16)> {
        if bytes[0] != b'[' {
            return None;
        }
        let found = self
            .specials
            .iter()
            .find(|(text, _)| bytes.starts_with(text));
        found.map(|(text, id)| (text.len(), *id))
    }

    /// Takes the stretch from `start` to the next white space to the library; returns its end.
    fn ask_library(&self, text: &str, start: usize, out: &mut impl TokenSink<u16>) -> usize {
        let rest = &text[start..];
        let is_end =
            |character: char| self.characters.get(character).class == CharacterClass::Space;
        let length = rest.find(is_end).unwrap_or(rest.len());
        let mut length = length.min(LIBRARY_STRETCH_BYTES_MAX);
        while !rest.is_char_boundary(length) {
            length -= 1;
        }
        // The library's steps can't fail for such a tokenizer; should they, the stretch is lost to
        // the model but the text is not.
        if let Ok(encoding) = self.library.encode_fast(&rest[..length], false) {
            for id in encoding.get_ids() {
                out.push(&[*id as u16]);
            }
        }
        start + length
    }
}

/// The special tokens with their ids, all of which begin with `[` in such a tokenizer.
fn special_tokens(library: &tokenizers::Tokenizer) -> Result<Vec<SpecialToken>, TokenizerError> {
    let added = library.get_added_tokens_decoder();
    let specials = added.into_iter().map(|(id, token)| {
        let is_plain = !token.single_word && !token.lstrip && !token.rstrip && !token.normalized;
        let id = u16::try_from(id).ok().filter(|_| is_plain);
        let text = token.content.as_bytes();
        id.filter(|_| text.starts_with(b"["))
            .map(|id| (text.into(), id))
    });
    let specials: Option<Vec<_>> = specials.collect();
    specials.ok_or_else(|| TokenizerError("an added token is not a plain one like `[SEP]`".into()))
}

impl Workspace {
    fn new_cell() -> RefCell<Self> {
        RefCell::new(Self {
            cache: WordCache::new(CACHE_BITS),
            word: Vec::new(),
            ids: Vec::new(),
        })
    }

    #[inline(always)]
    fn end_word(&mut self, vocabulary: &Vocabulary, out: &mut impl TokenSink<u16>) {
        if !self.word.is_empty() {
            let find = |word: &[u8], ids: &mut Vec<u16>| vocabulary.pieces(word, ids);
            out.push(self.cache.pieces(&self.word, find));
            self.word.clear();
        }
    }
}
