//! Unigram: a word to the ids of the pieces that its most likely cut has.
//!
//! Each piece has the logarithm of a probability, and the best sum at a place follows from those at the
//! places before it (Viterbi). The `tokenizers` library defines the result, to the bit of each sum: sums are
//! of 64 bits, from the front; of equal ones the one that begins first stays; a character that is no piece
//! costs ten more than the least likely piece.
//!
//! Invariant: ids are the library's for every word that is UTF-8.

use super::piece_tree::{Piece, PieceTree};
use tokenizers::models::unigram::Unigram;

/// What a character that is no piece costs beside the least likely piece.
const UNKNOWN_PENALTY: f64 = 10.0;
/// Places whose memory is kept for the next word: 1 MB.
const STEPS_KEPT_MAX: usize = 1 << 16;

/// The pieces with their scores.
pub(super) struct Pieces {
    tree: PieceTree,
    scores: Scores,
    unknown: u32,
    unknown_score: f64,
}

/// What the tree's values mean.
enum Scores {
    /// They are the scores: SentencePiece's, which have 32 bits.
    Short,
    /// They are ids, of these scores.
    Long(Box<[f64]>),
}

/// The place of a piece that is none.
const NO_PIECE: u32 = u32::MAX;

/// The best way to a place of a word.
#[derive(Clone, Copy)]
struct Step {
    score: f64,
    /// The place in the tree of its last piece.
    piece: u32,
    /// Bytes of its last piece; none before there is a way.
    bytes: u32,
}

const NO_STEP: Step = Step {
    score: 0.0,
    piece: 0,
    bytes: 0,
};

/// What a thread reuses from word to word.
#[derive(Default)]
pub(super) struct Path(Vec<Step>);

impl Pieces {
    /// Takes a model's pieces; `None` when they need too much memory.
    pub(super) fn new(model: &Unigram, unknown: u32) -> Option<Self> {
        let is_short = model.iter().all(|(_, score)| is_short(*score));
        let pieces = model.iter().zip(0..).map(|((piece, score), id)| Piece {
            bytes: piece.as_bytes(),
            id,
            value: match is_short {
                true => (*score as f32).to_bits(),
                false => id,
            },
        });
        let scores = model.iter().map(|(_, score)| *score);
        Some(Self {
            // Of equal pieces the library, too, knows the last one's id.
            tree: PieceTree::new(pieces.collect())?,
            scores: match is_short {
                true => Scores::Short,
                false => Scores::Long(scores.collect()),
            },
            unknown,
            unknown_score: model.min_score - UNKNOWN_PENALTY,
        })
    }

    /// Appends the ids of a word's pieces.
    pub(super) fn ids(&self, word: &[u8], path: &mut Path, ids: &mut Vec<u32>) {
        let steps = &mut path.0;
        steps.clear();
        steps.resize(word.len() + 1, NO_STEP);
        self.walk(word, steps);
        self.read_back(word, steps, ids);
        if steps.capacity() > STEPS_KEPT_MAX {
            *steps = Vec::new();
        }
    }

    /// Finds the best way to each place.
    fn walk(&self, word: &[u8], steps: &mut [Step]) {
        let mut at = 0;
        while at < word.len() {
            let rest = &word[at..];
            let here = steps[at].score;
            let character = character_bytes(rest[0]).min(rest.len());
            let mut is_piece = false;
            let mut node = self.tree.root();
            for (bytes, byte) in (1..).zip(rest) {
                let Some(next) = self.tree.step(node, *byte) else {
                    break;
                };
                node = next;
                if let Some(value) = node.value() {
                    let score = self.score(value) + here;
                    steps[at + bytes].improve(score, node.place(), bytes);
                    is_piece |= bytes == character;
                }
            }
            if !is_piece {
                let score = self.unknown_score + here;
                steps[at + character].improve(score, NO_PIECE, character);
            }
            at += character;
        }
    }

    /// Follows the best way to the end from there. Neighbours that are unknown are one token: unknown, or
    /// the piece that they are together.
    fn read_back(&self, word: &[u8], steps: &[Step], ids: &mut Vec<u32>) {
        let kept = ids.len();
        let mut end = word.len();
        while end > 0 {
            let piece = self.id_of(steps[end]);
            let mut start = before(end, steps[end]);
            if piece == self.unknown {
                while start > 0 && self.id_of(steps[start]) == piece {
                    start = before(start, steps[start]);
                }
            }
            ids.push(match piece == self.unknown {
                true => self.tree.find(&word[start..end]).unwrap_or(piece),
                false => piece,
            });
            end = start;
        }
        ids[kept..].reverse();
    }
}

impl Pieces {
    #[inline(always)]
    fn score(&self, value: u32) -> f64 {
        match &self.scores {
            Scores::Short => f64::from(f32::from_bits(value)),
            Scores::Long(scores) => scores[value as usize],
        }
    }

    fn id_of(&self, step: Step) -> u32 {
        self.tree.id_at(step.piece).unwrap_or(self.unknown)
    }
}

/// Whether 32 bits have a score as it is.
fn is_short(score: f64) -> bool {
    f64::from(score as f32).to_bits() == score.to_bits()
}

/// Where the last piece of the way to `end` begins.
fn before(end: usize, step: Step) -> usize {
    end.saturating_sub(step.bytes.max(1) as usize)
}

impl Step {
    #[inline(always)]
    fn improve(&mut self, score: f64, piece: u32, bytes: usize) {
        if self.bytes == 0 || score > self.score {
            *self = Step {
                score,
                piece,
                bytes: bytes as u32,
            };
        }
    }
}

/// Bytes of the character that begins with this one.
#[inline(always)]
fn character_bytes(first: u8) -> usize {
    match first {
        0..0x80 => 1,
        0x80..0xE0 => 2,
        0xE0..0xF0 => 3,
        _ => 4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tokenizers::Model;

    fn check(model: &Unigram, unknown: u32, word: &str) {
        let pieces = Pieces::new(model, unknown).unwrap();
        let expected = model.tokenize(word).unwrap();
        let expected: Vec<u32> = expected.iter().map(|token| token.id).collect();
        let mut found = vec![9];
        pieces.ids(word.as_bytes(), &mut Path::default(), &mut found);
        assert_eq!(found[0], 9);
        assert_eq!(found[1..], expected, "{word:?}");
    }

    fn model(pieces: &[(&str, f64)], unknown: usize) -> Unigram {
        let pieces = pieces
            .iter()
            .map(|(piece, score)| ((*piece).into(), *score));
        Unigram::from(pieces.collect(), Some(unknown), false).unwrap()
    }

    #[test]
    fn unknown_neighbours_are_one_token_or_a_piece() {
        // `xy` is less likely than two unknown characters, yet has an id.
        let model = model(
            &[("a", -1.0), ("<unk>", 0.0), ("xy", -500.0), ("é", -2.0)],
            1,
        );
        for word in [
            "a", "x", "xy", "xyx", "axya", "<unk>", "<unk>x", "éa", "日本", "", "aéxé",
        ] {
            check(&model, 1, word);
        }
        let mut ids = Vec::new();
        let pieces = Pieces::new(&model, 1).unwrap();
        pieces.ids(b"axya", &mut Path::default(), &mut ids);
        assert_eq!(ids, [0, 2, 0]);
    }

    #[test]
    fn extreme_scores_are_added_as_the_library_adds_them() {
        let extreme = [
            ("<unk>", f64::MAX),
            ("a", f64::MAX),
            ("b", -f64::MAX),
            ("ab", f64::MAX),
            ("bb", -f64::MAX),
            ("", -1.0),
            ("a", 1e-300),
        ];
        for word in ["a", "ab", "bbbb", "aaabbb", "xbx", "axaxb"] {
            check(&model(&extreme, 0), 0, word);
        }
    }

    proptest! {
        /// Small scores in steps of a quarter tie often.
        #[test]
        fn ids_are_the_librarys(
            pieces in proptest::collection::vec(("[abé日]{1,4}", -8..3_i32), 0..30),
            words in proptest::collection::vec("[abé日x]{0,20}", 1..20),
        ) {
            let mut all = vec![("<unk>", 0.0)];
            all.extend(pieces.iter().map(|(piece, score)| (piece.as_str(), f64::from(*score) / 4.0)));
            let model = model(&all, 0);
            words.iter().for_each(|word| check(&model, 0, word));
        }
    }
}
