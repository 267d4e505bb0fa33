//! From lines to the pieces that chunks are put together from, each with its size in tokens.
//!
//! Counting tokens is what cutting costs, so a text is counted once, line by line, and sums of pieces
//! stand for the sizes of chunks. Only a line too long for its chunk is taken apart: into sentences,
//! those too long into groups of words, those into words, groups of graphemes, graphemes. Groups end
//! where the text says so (a hash of the last word or graphemes), so an edit in a long line moves no
//! group far from it.
//!
//! Invariant: pieces are in order, stand at grapheme boundaries, and leave out only lines of white
//! space. Each weighs at most the limit, except a single grapheme that alone has more tokens.

use super::lines::scan;
use super::marks::Mark;
use super::sentences::sentence_ends;
use std::ops::Range;
use unicode_segmentation::{GraphemeCursor, Graphemes, UnicodeSegmentation};
use vectide_model::TokenCounter;
use xxhash_rust::xxh3::xxh3_64;

/// A piece weighs at least one token in so many bytes, whatever the counter says. Words have 4 to 6
/// bytes a token; but WordPiece makes a single token of any word over 100 characters, and none of
/// control characters, and a chunk must not grow without bounds for that.
const BYTES_A_TOKEN_MAX: usize = 16;

/// A group of words ends at the first word end after so many bytes.
const WORD_GROUP_BYTES_MAX: usize = 64;

/// A group of graphemes ends at the first grapheme end after so many bytes.
const GRAPHEME_GROUP_BYTES_MAX: usize = 32;

/// One group in so many ends because its last text says so.
const GROUP_END_ODDS: u64 = 4;

/// Text that is never cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    /// Bytes of the text, with the white space that follows.
    pub(super) range: Range<usize>,
    /// Size in tokens, at least 1.
    pub(super) weight: u32,
    /// What a cut before it costs, in thousandths of the unit of `cuts`.
    pub(super) cost: i32,
    /// Whether its first byte stands within a word: there sums of tokens are rough.
    pub(super) seam: Seam,
}

/// What a piece's beginning means for adding up tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seam {
    BetweenWords,
    WithinWord,
}

/// How finely a text is taken apart.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Grain {
    Line,
    Sentence,
    WordGroup,
    Word,
    GraphemeGroup,
    Grapheme,
}

impl Grain {
    /// The next finer one, and the mark of its pieces; none can be finer than graphemes.
    fn finer(self) -> Option<(Self, Mark)> {
        match self {
            Self::Line => Some((Self::Sentence, Mark::Sentence)),
            Self::Sentence => Some((Self::WordGroup, Mark::Word)),
            Self::WordGroup => Some((Self::Word, Mark::Word)),
            Self::Word => Some((Self::GraphemeGroup, Mark::Grapheme)),
            Self::GraphemeGroup => Some((Self::Grapheme, Mark::Grapheme)),
            Self::Grapheme => None,
        }
    }

    /// The heaviest piece of this grain that is left whole. Small pieces let chunks come close to
    /// their target; large ones keep sentences together.
    fn whole_max(self, limit: u32) -> u32 {
        match self {
            Self::Line => limit / 5,
            Self::Sentence => limit * 3 / 8,
            _ => limit / 2,
        }
        .max(1)
    }
}

/// Takes a text apart. `limit` is the most tokens a chunk may have.
pub(super) fn pieces(text: &str, tokens: &dyn TokenCounter, limit: u32) -> Vec<Piece> {
    let lines = scan(text);
    let mut out = Pieces {
        text,
        tokens,
        limit,
        pieces: Vec::with_capacity(lines.len()),
    };
    for line in lines {
        out.add(line.range, Grain::Line, line.mark);
    }
    out.pieces
}

struct Pieces<'a> {
    text: &'a str,
    tokens: &'a dyn TokenCounter,
    limit: u32,
    pieces: Vec<Piece>,
}

impl Pieces<'_> {
    fn add(&mut self, range: Range<usize>, grain: Grain, mark: Mark) {
        let whole_max = grain.whole_max(self.limit);
        let floor = u32::try_from(range.len().div_ceil(BYTES_A_TOKEN_MAX)).unwrap_or(u32::MAX);
        let finer = grain.finer();
        // What is long anyway is not worth counting as a whole.
        if floor <= whole_max || finer.is_none() {
            let counted = self.tokens.count(&self.text[range.clone()]);
            let weight = u32::try_from(counted).unwrap_or(u32::MAX).max(floor).max(1);
            if weight <= whole_max || finer.is_none() {
                self.push(range, weight, mark);
                return;
            }
        }
        let Some((finer, finer_mark)) = finer else {
            return;
        };
        // A line that is taken apart is a paragraph of some weight.
        let mark = if mark == Mark::Block {
            Mark::Paragraph
        } else {
            mark
        };
        let before = self.pieces.len();
        for part in parts(self.text, range, finer) {
            let first = self.pieces.len() == before;
            self.add(part, finer, if first { mark } else { finer_mark });
        }
    }

    fn push(&mut self, range: Range<usize>, weight: u32, mark: Mark) {
        let text = &self.text[range.clone()];
        if text.trim().is_empty() {
            // White space between sentences or words goes with what stands before it.
            return;
        }
        self.pieces.push(Piece {
            weight,
            cost: mark.cost(text),
            seam: self.seam(range.start, mark),
            range,
        });
    }

    fn seam(&self, at: usize, mark: Mark) -> Seam {
        let fine = matches!(mark, Mark::Word | Mark::Grapheme);
        if fine && !self.text[..at].ends_with(char::is_whitespace) {
            Seam::WithinWord
        } else {
            Seam::BetweenWords
        }
    }
}

/// The parts of one grain in a stretch of text that begins at a grapheme boundary, in order, covering all of it.
fn parts(text: &str, range: Range<usize>, grain: Grain) -> Vec<Range<usize>> {
    let stretch = &text[range.clone()];
    let ends: Vec<usize> = match grain {
        Grain::Line => vec![stretch.len()],
        Grain::Sentence => sentence_ends(stretch),
        Grain::WordGroup => group_ends(stretch.split_word_bounds(), WORD_GROUP_BYTES_MAX),
        Grain::Word => ends(stretch.split_word_bounds()),
        Grain::GraphemeGroup => group_ends(stretch.graphemes(true), GRAPHEME_GROUP_BYTES_MAX),
        Grain::Grapheme => ends(stretch.graphemes(true)),
    };
    let mut boundaries = Boundaries::new(stretch);
    let mut start = range.start;
    let mut out = Vec::with_capacity(ends.len());
    for end in ends {
        let is_cut = end == stretch.len() || boundaries.has(end);
        let end = range.start + end;
        if is_cut {
            out.push(start..end);
            start = end;
        }
    }
    out
}

/// The grapheme boundaries of a stretch of text that begins at one, asked for in ascending order.
///
/// Whether two flags touch depends on the whole run of flags before them, so asking for each place anew takes
/// the square of the run's length. One walk forwards takes no text twice, and nothing before a boundary has a
/// say in those behind it.
struct Boundaries<'a> {
    stretch: &'a str,
    /// Those from `reached` on.
    graphemes: Graphemes<'a>,
    /// A boundary.
    reached: usize,
}

impl<'a> Boundaries<'a> {
    fn new(stretch: &'a str) -> Self {
        Self {
            stretch,
            graphemes: stretch.graphemes(true),
            reached: 0,
        }
    }

    /// Whether there is one at the beginning of this character.
    fn has(&mut self, at: usize) -> bool {
        match between_ascii(self.stretch.as_bytes(), at) {
            Some(true) => {
                // Text without accents is not walked through.
                self.graphemes = self.stretch[at..].graphemes(true);
                self.reached = at;
                true
            }
            Some(false) => false,
            None => {
                while self.reached < at
                    && let Some(grapheme) = self.graphemes.next()
                {
                    self.reached += grapheme.len();
                }
                self.reached == at
            }
        }
    }
}

fn ends<'a>(parts: impl Iterator<Item = &'a str>) -> Vec<usize> {
    parts
        .scan(0, |end, part| {
            *end += part.len();
            Some(*end)
        })
        .collect()
}

/// Ends of groups of parts: after a part whose hash says so, or when the group is full. White space
/// neither begins a group nor ends one early.
fn group_ends<'a>(parts: impl Iterator<Item = &'a str>, bytes_max: usize) -> Vec<usize> {
    let mut out = Vec::new();
    let (mut group, mut end, mut previous, mut closed) = (0, 0, 0, false);
    for part in parts {
        let blank = part.trim().is_empty();
        if closed && !blank {
            out.push(end);
            (group, closed) = (end, false);
        }
        end += part.len();
        if !blank {
            let hash = xxh3_64(part.as_bytes());
            // Two parts decide: single letters or ideographs would repeat too often.
            let chosen = (hash ^ previous).is_multiple_of(GROUP_END_ODDS);
            previous = hash.rotate_left(7);
            closed = chosen || end - group >= bytes_max;
        }
    }
    if end > group {
        out.push(end);
    }
    out
}

/// Whether a grapheme ends at this byte offset, if what stands around it tells.
fn between_ascii(bytes: &[u8], at: usize) -> Option<bool> {
    let (Some(before), Some(after)) = (at.checked_sub(1).and_then(|i| bytes.get(i)), bytes.get(at))
    else {
        return Some(true);
    };
    (before.is_ascii() && after.is_ascii()).then_some((*before, *after) != (b'\r', b'\n'))
}

/// Whether no grapheme of the text reaches over this byte offset. In a run of flags it takes a look at all before
/// it: to be asked for single places.
pub(super) fn is_grapheme_boundary(text: &str, at: usize) -> bool {
    if let Some(is_boundary) = between_ascii(text.as_bytes(), at) {
        return is_boundary;
    }
    if !text.is_char_boundary(at) {
        return false;
    }
    // The whole text is given, so the cursor never asks for more context.
    GraphemeCursor::new(at, text.len(), true)
        .is_boundary(text, 0)
        .unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::{Duration, Instant};

    struct Letters;

    impl TokenCounter for Letters {
        fn count(&self, text: &str) -> usize {
            text.chars().filter(|c| !c.is_whitespace()).count()
        }
    }

    fn texts(text: &str, limit: u32) -> Vec<&str> {
        let pieces = pieces(text, &Letters, limit);
        assert!(
            pieces
                .windows(2)
                .all(|pair| pair[0].range.end <= pair[1].range.start)
        );
        pieces
            .iter()
            .map(|piece| &text[piece.range.clone()])
            .collect()
    }

    #[test]
    fn a_line_is_taken_apart_only_as_far_as_needed() {
        assert_eq!(texts("One two.\nThree.\n", 100), ["One two.\n", "Three.\n"]);
        assert_eq!(
            texts("First one. Second one. Third one.", 60),
            ["First one. ", "Second one. ", "Third one."]
        );
        assert_eq!(
            texts("今日は雨です。明日は晴れ。", 40),
            ["今日は雨です。", "明日は晴れ。"]
        );
        let words = texts("a hundred words without any stop that go on and on", 24);
        assert!(
            words.len() > 3 && words.iter().all(|word| word.len() <= 20),
            "{words:?}"
        );
    }

    #[test]
    fn a_grapheme_is_never_taken_apart() {
        let family = "\u{1f468}\u{200d}\u{1f469}\u{200d}\u{1f467}";
        let flags = "\u{1f1eb}\u{1f1ee}\u{1f1eb}\u{1f1ee}\u{1f1eb}\u{1f1ee}";
        let accents = format!("e{}", "\u{301}".repeat(40));
        for unit in [family, flags, &accents] {
            let text = unit.repeat(5);
            let found = texts(&text, 8);
            let graphemes: Vec<&str> = text.graphemes(true).collect();
            assert_eq!(found, graphemes);
        }
    }

    /// As [`parts`], each end looked at by itself.
    fn parts_one_by_one(text: &str, range: Range<usize>, grain: Grain) -> Vec<Range<usize>> {
        let stretch = &text[range.clone()];
        let ends: Vec<usize> = match grain {
            Grain::Sentence => sentence_ends(stretch),
            Grain::WordGroup => group_ends(stretch.split_word_bounds(), WORD_GROUP_BYTES_MAX),
            _ => ends(stretch.split_word_bounds()),
        };
        let mut start = range.start;
        let mut out = Vec::new();
        for end in ends.into_iter().map(|end| range.start + end) {
            if end == range.end || is_grapheme_boundary(text, end) {
                out.push(start..end);
                start = end;
            }
        }
        out
    }

    /// Texts of what graphemes are made of, and of what they are cut between.
    fn odd_text() -> impl Strategy<Value = String> {
        let letters = [
            "a",
            "b",
            " ",
            ".",
            "\r",
            "\n",
            "\r\n",
            "1",
            "\u{301}",
            "\u{200d}",
            "\u{1f1eb}",
            "\u{1f1ee}",
            "\u{1f468}",
            "\u{1f467}",
            "\u{1f3fd}",
            "\u{fe0f}",
            "\u{2764}",
            "\u{915}",
            "\u{94d}",
            "\u{937}",
            "\u{600}",
            "\u{1100}",
            "\u{1161}",
            "\u{11a8}",
            "\u{ac00}",
            "\u{3042}",
            "\u{3002}",
            "\u{e0020}",
            "\u{1f1eb}\u{1f1ee}\u{1f1eb}",
            "\u{903}",
            "\u{200b}",
            "\u{85}",
        ];
        let letters = prop::sample::select(letters.to_vec());
        prop::collection::vec(letters, 0..60).prop_map(|letters| letters.concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn parts_end_where_each_end_by_itself_says(text in odd_text(), from in 0..60_usize) {
            let boundaries = text.grapheme_indices(true).map(|(start, _)| start);
            let start = boundaries.take(from + 1).last().unwrap_or(0);
            for grain in [Grain::Sentence, Grain::WordGroup, Grain::Word] {
                let range = start..text.len();
                let found = parts(&text, range.clone(), grain);
                prop_assert_eq!(found, parts_one_by_one(&text, range, grain));
            }
            let stretch = &text[start..];
            let mut walked = Boundaries::new(stretch);
            for at in (0..stretch.len()).filter(|at| stretch.is_char_boundary(*at)) {
                prop_assert_eq!(walked.has(at), is_grapheme_boundary(&text, start + at), "{}", at);
            }
        }
    }

    /// Each end between two flags was looked at by counting the flags before it: 2 MiB of them took 40 s.
    #[test]
    fn a_run_of_flags_is_cut_in_one_walk() {
        let text = "\u{1f1eb}\u{1f1ee}".repeat(256 * 1024);
        let began_at = Instant::now();
        let pieces = pieces(&text, &Letters, 254);
        assert!(
            began_at.elapsed() < Duration::from_secs(10),
            "{:?}",
            began_at.elapsed()
        );
        let covered: usize = pieces.iter().map(|piece| piece.range.len()).sum();
        assert_eq!(covered, text.len());
        assert!(pieces.iter().all(|piece| piece.range.start % 8 == 0));
    }

    #[test]
    fn groups_end_by_their_own_text() {
        let letters: Vec<String> = (0..200_u32)
            .map(|i| format!("w{} ", i * 7919 % 1000))
            .collect();
        let ends_of = |letters: &[String]| -> Vec<usize> {
            let text: String = letters.concat();
            let ends = group_ends(text.split_word_bounds(), WORD_GROUP_BYTES_MAX);
            ends.iter().map(|end| text.len() - end).collect()
        };
        let (before, after) = (ends_of(&letters), ends_of(&letters[3..]));
        let shared = before
            .iter()
            .rev()
            .zip(after.iter().rev())
            .take_while(|(a, b)| a == b);
        assert!(
            shared.count() + 3 >= after.len(),
            "only the first groups may differ"
        );
    }
}
