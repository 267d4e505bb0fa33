//! What a tokenizer makes of each character, looked up in a table.
//!
//! Text preparation works mostly character by character. Which class a character has and what stands
//! for it is asked once, a page of 256 characters at a time and only for pages that occur: of the
//! `tokenizers` library itself ([`super::bert_characters`], [`super::unigram_characters`]), so that there
//! is no second copy of its rules here.
//!
//! Invariant: a character's entry is what the function it was made with says of that character alone.

use std::sync::OnceLock;

/// Bytes of the longest replacement of one character that is kept in the table: a Hangul syllable
/// becomes three letters of three bytes; four of those are left to the library.
const REPLACEMENT_BYTES_MAX: usize = 14;

/// A character's class and what stands for it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Character<Class> {
    pub(super) class: Class,
    length: u8,
    bytes: [u8; REPLACEMENT_BYTES_MAX],
}

impl<Class> Character<Class> {
    /// One with a replacement; `None` when it is too long to keep.
    pub(super) fn new(class: Class, replacement: &str) -> Option<Self> {
        let mut bytes = [0; REPLACEMENT_BYTES_MAX];
        let to = bytes.get_mut(..replacement.len())?;
        to.copy_from_slice(replacement.as_bytes());
        Some(Self {
            class,
            length: replacement.len() as u8,
            bytes,
        })
    }

    /// One that nothing stands for.
    pub(super) fn bare(class: Class) -> Self {
        Self {
            class,
            length: 0,
            bytes: [0; REPLACEMENT_BYTES_MAX],
        }
    }

    /// What stands for the character, in UTF-8.
    #[inline(always)]
    pub(super) fn replacement(&self) -> &[u8] {
        &self.bytes[..self.length as usize]
    }
}

const PAGE_CHARACTERS: usize = 256;
/// Pages of all of Unicode. Should a text use them all, the table has 17 MiB.
const PAGES: usize = 0x11_0000 / PAGE_CHARACTERS;

type Page<Class> = Box<[Character<Class>; PAGE_CHARACTERS]>;

/// Says what a character's entry is.
type Classify<Class> = Box<dyn Fn(char) -> Character<Class> + Send + Sync>;

/// The table; filled as it is used, from any thread.
pub(super) struct Characters<Class> {
    classify: Classify<Class>,
    ascii: Page<Class>,
    pages: Box<[OnceLock<Page<Class>>]>,
}

impl<Class: Copy> Characters<Class> {
    pub(super) fn new(classify: impl Fn(char) -> Character<Class> + Send + Sync + 'static) -> Self {
        Self {
            ascii: page(&classify, 0),
            classify: Box::new(classify),
            pages: std::iter::repeat_with(OnceLock::new).take(PAGES).collect(),
        }
    }

    /// An ASCII character; a byte beyond ASCII gives the entry of U+0080 to U+00FF.
    #[inline(always)]
    pub(super) fn ascii(&self, byte: u8) -> &Character<Class> {
        &self.ascii[byte as usize]
    }

    /// Any character.
    #[inline]
    pub(super) fn get(&self, character: char) -> &Character<Class> {
        let number = character as usize / PAGE_CHARACTERS;
        let page = self.pages[number].get_or_init(|| page(&self.classify, number));
        &page[character as usize % PAGE_CHARACTERS]
    }
}

fn page<Class>(classify: &dyn Fn(char) -> Character<Class>, number: usize) -> Page<Class> {
    Box::new(std::array::from_fn(|index| {
        let code = (number * PAGE_CHARACTERS + index) as u32;
        // Surrogates are in no text.
        classify(char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER))
    }))
}
