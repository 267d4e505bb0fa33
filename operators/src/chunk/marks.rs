//! How welcome a cut is at a place of a text.
//!
//! A cut before a heading parts what the author parted; a cut within a sentence tears. Each kind of
//! place has a price, and a spread by which the text that follows raises it: among places of one
//! kind the same ones stay the cheapest whatever happens elsewhere in the document, which is what
//! keeps cuts where they are when the document is edited.
//!
//! Invariant: a price depends on the kind of place and on the text of the piece that begins there,
//! never on offsets, sizes or earlier cuts; and only on integers, so that every machine agrees.

use xxhash_rust::xxh3::xxh3_64;

/// What begins at a place. Ordered as the scanner tells them apart, not by price.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mark {
    /// A heading of rank 1 (the highest) to 6.
    Heading(u8),
    /// The first text under a heading.
    UnderHeading,
    /// The line that underlines a title.
    Underline,
    /// A further line of the front matter.
    FrontMatterLine,
    /// The first block after the front matter.
    Body,
    /// A block after an empty line.
    Block,
    /// A block after an empty line whose first line alone is a good part of a chunk.
    Paragraph,
    /// A fenced code block, or the block after one.
    Fence,
    /// A code line after an empty one.
    CodeParagraph,
    /// Any other code line.
    CodeLine,
    /// A list item after an empty line.
    LooseItem,
    /// A list item under the one before it.
    Item,
    /// An item of an inner list.
    InnerItem,
    /// An indented block after an empty line: it belongs to the item above.
    ItemBlock,
    /// The first row of a table, or what follows its last row without an empty line.
    TableEdge,
    /// A further row.
    TableRow,
    /// A line of HTML or of a template.
    Markup,
    /// A line of a paragraph whose sentence goes on.
    Line,
    /// A sentence.
    Sentence,
    /// A word.
    Word,
    /// A grapheme within a word.
    Grapheme,
}

/// A price, in thousandths of the unit of `cuts`. Below zero a cut is welcome whatever the sizes say.
#[derive(Clone, Copy)]
struct Price {
    base: i32,
    spread: u32,
}

impl Mark {
    // Fitted on a public history of document changes (the one the benchmark `chunking` replays), first
    // on half of its documents, then by hand on all. That history is rich in headings, which hold the
    // cuts between them still; the spreads were widened until edits stay local in text without
    // headings too (see the test of locality). Long paragraphs were fitted on questions about prose
    // (the benchmark `chunk-quality`): one that is about one thing answers better whole. Rounded: the
    // order matters, not the last digit.
    fn price(self) -> Price {
        let (base, spread) = match self {
            Self::Heading(1) => (-800, 1500),
            Self::Heading(2) => (-1800, 2000),
            Self::Heading(3) => (-1300, 2000),
            Self::Heading(_) => (-300, 1500),
            Self::UnderHeading => (2500, 600),
            Self::Underline => (9000, 0),
            Self::FrontMatterLine => (2000, 700),
            Self::Body => (-1500, 1000),
            Self::Block => (-1500, 4000),
            Self::Paragraph => (-3500, 3500),
            Self::Fence => (-300, 3000),
            Self::CodeParagraph => (-500, 3000),
            Self::CodeLine => (1500, 1500),
            Self::LooseItem => (-1000, 3500),
            Self::Item => (800, 2000),
            Self::InnerItem => (1300, 2000),
            Self::ItemBlock => (0, 3000),
            Self::TableEdge => (-500, 2000),
            Self::TableRow => (400, 2000),
            Self::Markup => (800, 2000),
            Self::Line => (1700, 1500),
            Self::Sentence => (1500, 4000),
            Self::Word => (2500, 3000),
            Self::Grapheme => (3500, 3000),
        };
        Price { base, spread }
    }

    /// What a cut before `text` costs, in thousandths.
    pub(super) fn cost(self, text: &str) -> i32 {
        let Price { base, spread } = self.price();
        let hash = xxh3_64(text.trim().as_bytes()) >> 32;
        base + ((u64::from(spread) * hash) >> 32) as i32
    }
}
