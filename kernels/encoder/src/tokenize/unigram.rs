//! Unigram, SentencePiece's: stretches of a text to token ids, many times as fast as by the library.
//!
//! The `tokenizers` library defines the result. Here a stretch is walked once, as [`super::word_piece`]
//! does it: each character is looked up in a table of the library's own answers
//! ([`super::unigram_characters`]), and a word's pieces come from a small cache ([`super::word_cache`]) or are
//! found ([`super::unigram_pieces`]). A word begins with a mark for the space before it.
//!
//! Where a character's effect depends on its neighbours, the text from the last *place* to the next is
//! normalised by graphemes ([`super::unigram_graphemes`]); where an added token stands, or white space is odd,
//! the library gets it. A place is before a space that ends a word, both of which are in the table. Nothing
//! reaches over it: graphemes end there, a run of spaces begins, no added token has a space inside, and one
//! that takes the white space before it ends at the letter.
//!
//! Invariant: ids equal the library's for every stretch, and those before a place are the same whatever
//! follows it.

use super::characters::Characters;
use super::token_sink::TokenSink;
use super::unigram_characters::{UnigramClass, unigram_characters};
use super::unigram_file::{MARK, Spaces, UnigramFile};
use super::unigram_graphemes::Graphemes;
use super::unigram_pieces::{Path, Pieces};
use super::word_cache::WordCache;
use serde_json::Value;
use std::cell::RefCell;
use thread_local::ThreadLocal;
use tokenizers::{ModelWrapper, Tokenizer};

/// The walk of one tokenizer, by any number of threads at once.
pub(super) struct Unigram {
    pieces: Pieces,
    characters: Characters<UnigramClass>,
    /// Where steps are such that graphemes can be looked up.
    graphemes: Option<Graphemes>,
    spaces: Spaces,
    /// Added tokens that may stand in a text as it is, and in a normalised word.
    literal: Vec<String>,
    normalized: Vec<String>,
    /// Tokens of a space that no word follows.
    mark_ids: Vec<u32>,
    workspaces: ThreadLocal<RefCell<Workspace>>,
}

/// 65,536 words a thread, in 3.7 MB: with what stands beside them, commas and brackets, words are many.
const CACHE_BITS: u32 = 15;
/// Bytes of a word and of a normal form that a thread keeps.
const BYTES_KEPT_MAX: usize = 1 << 16;

/// What one thread reuses from stretch to stretch.
struct Workspace {
    cache: WordCache<u32>,
    path: Path,
    /// The mark and the word's letters so far.
    word: Vec<u8>,
    /// The normal form of what is taken by graphemes.
    form: String,
    /// Spaces since the last word.
    spaces: usize,
    /// An added token may be in the word.
    may_be_added: bool,
}

/// How far a walk has come.
struct Progress {
    at: usize,
    /// The last place, and the tokens before it.
    place: usize,
    place_tokens: usize,
}

/// The tokens since the last place can't be known in this way.
struct Unknown;

impl Unigram {
    /// Makes the walk of a checked file and of the library that was read from it; `None` when the file
    /// has a step that it does not cover.
    pub(super) fn new(value: &Value, library: &Tokenizer) -> Option<Self> {
        let ModelWrapper::Unigram(model) = library.get_model() else {
            return None;
        };
        let file = UnigramFile::read(value, library)?;
        let pieces = Pieces::new(model, file.unknown)?;
        let mut mark_ids = Vec::new();
        pieces.ids(mark().as_bytes(), &mut Path::default(), &mut mark_ids);
        let characters = unigram_characters(&file);
        let is_space = |it: char| characters.get(it).class == UnigramClass::Space;
        // A place might be inside of such a token.
        if file.literal.iter().any(|token| token.contains(is_space)) {
            return None;
        }
        Some(Self {
            pieces,
            characters,
            graphemes: Graphemes::new(&file.steps),
            spaces: file.spaces,
            literal: file.literal,
            normalized: file.normalized,
            mark_ids,
            workspaces: ThreadLocal::new(),
        })
    }

    /// Appends a stretch's tokens until its end, or until at least `limit` are there.
    pub(super) fn walk(
        &self,
        library: &Tokenizer,
        text: &str,
        limit: usize,
        out: &mut impl TokenSink<u32>,
    ) {
        let workspace = self.workspaces.get_or(Workspace::new_cell);
        let work = &mut *workspace.borrow_mut();
        work.begin();
        let mut progress = Progress {
            at: 0,
            place: 0,
            place_tokens: out.len(),
        };
        while self
            .walk_words(text, work, limit, &mut progress, out)
            .is_err()
        {
            let end = self.next_place(text, progress.at);
            let stretch = &text[progress.place..end];
            work.clear();
            out.truncate(progress.place_tokens);
            if self.walk_graphemes(stretch, work, out).is_err() {
                work.clear();
                out.truncate(progress.place_tokens);
                // The library's steps can't fail for such a tokenizer; should they, the stretch is lost
                // to the model but the text is not.
                if let Ok(encoding) = library.encode_fast(stretch, false) {
                    out.push(encoding.get_ids());
                }
            }
            progress = Progress {
                at: end,
                place: end,
                place_tokens: out.len(),
            };
            if end == text.len() || out.len() >= limit {
                return;
            }
        }
    }

    /// Walks as far as the table of characters goes.
    fn walk_words(
        &self,
        text: &str,
        work: &mut Workspace,
        limit: usize,
        progress: &mut Progress,
        out: &mut impl TokenSink<u32>,
    ) -> Result<(), Unknown> {
        let bytes = text.as_bytes();
        while let Some(byte) = bytes.get(progress.at) {
            let (length, character) = if *byte < 0x80 {
                (1, self.characters.ascii(*byte))
            } else {
                match text[progress.at..].chars().next() {
                    Some(character) => (character.len_utf8(), self.characters.get(character)),
                    None => break,
                }
            };
            match character.class {
                UnigramClass::Letters => work.word.extend_from_slice(character.replacement()),
                UnigramClass::Space => {
                    if work.has_word() {
                        self.end_word(work, out)?;
                        (progress.place, progress.place_tokens) = (progress.at, out.len());
                        if out.len() >= limit {
                            return Ok(());
                        }
                    }
                    work.spaces += 1;
                    // A line's end of two characters is one grapheme and one space.
                    let is_pair = *byte == b'\r' && bytes.get(progress.at + 1) == Some(&b'\n');
                    progress.at += usize::from(is_pair);
                }
                UnigramClass::Removed => (),
                UnigramClass::MayBeAdded => {
                    if self.has_literal(&text[progress.at..]) {
                        return Err(Unknown);
                    }
                    work.may_be_added = true;
                    work.word.extend_from_slice(character.replacement());
                }
                UnigramClass::AskLibrary => return Err(Unknown),
            }
            progress.at += length;
        }
        self.end_text(work, out)
    }

    /// Walks a stretch between two places, whatever its characters are.
    fn walk_graphemes(
        &self,
        stretch: &str,
        work: &mut Workspace,
        out: &mut impl TokenSink<u32>,
    ) -> Result<(), Unknown> {
        let graphemes = self.graphemes.as_ref().ok_or(Unknown)?;
        let is_added = |token: &String| stretch.contains(token.as_str());
        if self.literal.iter().any(is_added) {
            return Err(Unknown);
        }
        let mut form = std::mem::take(&mut work.form);
        form.clear();
        graphemes.normalize(stretch, &mut form);
        let is_walked = self.walk_form(&form, work, out);
        work.form = form;
        is_walked
    }

    /// Walks a normalised stretch.
    fn walk_form(
        &self,
        form: &str,
        work: &mut Workspace,
        out: &mut impl TokenSink<u32>,
    ) -> Result<(), Unknown> {
        for character in form.chars() {
            let is_space = match self.spaces {
                Spaces::Separate => character.is_whitespace(),
                Spaces::Mark { .. } => character == ' ',
            };
            if is_space {
                if work.has_word() {
                    self.end_word(work, out)?;
                }
                work.spaces += 1;
            } else if character.is_whitespace() || character == MARK {
                return Err(Unknown);
            } else {
                work.may_be_added = true;
                let mut bytes = [0; 4];
                let letter = character.encode_utf8(&mut bytes);
                work.word.extend_from_slice(letter.as_bytes());
            }
        }
        self.end_text(work, out)
    }

    /// Appends the tokens of what is left when a stretch ends.
    fn end_text(&self, work: &mut Workspace, out: &mut impl TokenSink<u32>) -> Result<(), Unknown> {
        if work.has_word() {
            return self.end_word(work, out);
        }
        self.end_spaces(work.spaces, out);
        Ok(())
    }

    /// Appends the tokens of the spaces before a word and of the word.
    #[inline(always)]
    fn end_word(&self, work: &mut Workspace, out: &mut impl TokenSink<u32>) -> Result<(), Unknown> {
        if work.may_be_added && self.has_added(&work.word) {
            return Err(Unknown);
        }
        work.may_be_added = false;
        // The last one is the word's own mark.
        if work.spaces > 1
            && let Spaces::Mark {
                are_joined: false, ..
            } = self.spaces
        {
            (1..work.spaces).for_each(|_| out.push(&self.mark_ids));
        }
        work.spaces = 0;
        let Workspace {
            cache, path, word, ..
        } = work;
        let letters = &word[MARK.len_utf8()..];
        let find = |_: &[u8], ids: &mut Vec<u32>| self.pieces.ids(word, path, ids);
        out.push(cache.pieces(letters, find));
        word.truncate(MARK.len_utf8());
        Ok(())
    }

    /// Appends the tokens of the spaces that end a text.
    fn end_spaces(&self, count: usize, out: &mut impl TokenSink<u32>) {
        let count = match self.spaces {
            Spaces::Separate => 0,
            Spaces::Mark {
                are_stripped: true, ..
            } => 0,
            Spaces::Mark {
                are_joined: true, ..
            } => count.min(1),
            Spaces::Mark { .. } => count,
        };
        (0..count).for_each(|_| out.push(&self.mark_ids));
    }

    /// Whether a text begins with an added token that is sought in it as it is.
    fn has_literal(&self, text: &str) -> bool {
        self.literal.iter().any(|token| text.starts_with(token))
    }

    /// Whether an added token that is sought in normalised texts is in a word.
    fn has_added(&self, word: &[u8]) -> bool {
        let is_in = |token: &String| word.windows(token.len()).any(|it| it == token.as_bytes());
        self.normalized.iter().any(is_in)
    }

    /// The first place after `from`, or the end.
    fn next_place(&self, text: &str, from: usize) -> usize {
        let mut is_behind_letter = false;
        for (offset, character) in text[from..].char_indices() {
            match self.characters.get(character).class {
                UnigramClass::Space if is_behind_letter => return from + offset,
                UnigramClass::Letters | UnigramClass::MayBeAdded => is_behind_letter = true,
                UnigramClass::Space | UnigramClass::AskLibrary => is_behind_letter = false,
                UnigramClass::Removed => (),
            }
        }
        text.len()
    }
}

fn mark() -> String {
    MARK.to_string()
}

impl Workspace {
    fn new_cell() -> RefCell<Self> {
        RefCell::new(Self {
            cache: WordCache::new(CACHE_BITS),
            path: Path::default(),
            word: mark().into(),
            form: String::new(),
            spaces: 0,
            may_be_added: false,
        })
    }

    /// Makes it ready for a stretch, and gives back what only a long one needed.
    fn begin(&mut self) {
        self.clear();
        self.word.shrink_to(BYTES_KEPT_MAX);
        self.form.clear();
        self.form.shrink_to(BYTES_KEPT_MAX);
    }

    fn clear(&mut self) {
        self.word.truncate(MARK.len_utf8());
        self.spaces = 0;
        self.may_be_added = false;
    }

    #[inline(always)]
    fn has_word(&self) -> bool {
        self.word.len() > MARK.len_utf8()
    }
}
