//! A ragged batch: several texts' tokens one after the other, without padding.
//!
//! What a forward pass reads of it goes to the device in one copy: ids, positions, where texts start,
//! and the tiles of attention. A batch can be filled up to the fixed sizes of a recorded graph: with
//! rows that belong to no text, texts without rows and tiles behind a text's end.
//!
//! Invariant: every id has a row in the vocabulary's table and every position one in its table, so no
//! kernel reads outside of them.

use crate::launches::QUERIES_PER_TILE;
use crate::shape::BertShape;
use std::ops::Range;

/// Rows, texts and tiles of a batch, or of a graph that takes batches up to them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BatchSize {
    /// Tokens.
    pub rows: usize,
    /// Texts.
    pub texts: usize,
    /// Blocks of attention a head.
    pub tiles: usize,
}

impl BatchSize {
    /// The size that holds every batch of at most so many rows and texts.
    ///
    /// Each text has at most one tile that is not full.
    pub fn of_at_most(rows: usize, texts: usize) -> Self {
        Self {
            rows,
            texts,
            tiles: (rows + texts * (QUERIES_PER_TILE - 1)) / QUERIES_PER_TILE,
        }
    }

    /// Whether a batch of size `other` can be filled up to this one.
    pub fn holds(&self, other: Self) -> bool {
        other.rows <= self.rows && other.texts <= self.texts && other.tiles <= self.tiles
    }
}

/// Why tokens can't be a batch.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// The tokenizer is another model's.
    #[error("text {text} has token {id}, and the vocabulary has {vocabulary}")]
    Token {
        /// Which text.
        text: usize,
        /// Its token.
        id: u32,
        /// Rows of the table.
        vocabulary: usize,
    },
    /// It was not cut.
    #[error("text {text} has {tokens} tokens, and the model has positions for {tokens_max}")]
    Length {
        /// Which text.
        text: usize,
        /// Its length.
        tokens: usize,
        /// The model's limit.
        tokens_max: usize,
    },
}

/// The batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RaggedBatch {
    ids: Vec<i32>,
    positions: Vec<i32>,
    starts: Vec<i32>,
    tiles: Vec<[i32; 2]>,
}

/// Where the parts of a batch stand in its image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageLayout {
    /// `i32` a row.
    pub ids: Range<usize>,
    /// `i32` a row.
    pub positions: Range<usize>,
    /// `i32` a text and one more.
    pub starts: Range<usize>,
    /// Two `i32` a tile.
    pub tiles: Range<usize>,
}

/// Every part begins where 16-byte loads may.
const PART_ALIGNMENT: usize = 16;

impl ImageLayout {
    /// Of a batch of that size.
    pub fn of(size: BatchSize) -> Self {
        let mut end = 0_usize;
        let mut part = |bytes: usize| {
            let start = end.next_multiple_of(PART_ALIGNMENT);
            end = start + bytes;
            start..end
        };
        Self {
            ids: part(4 * size.rows),
            positions: part(4 * size.rows),
            starts: part(4 * (size.texts + 1)),
            tiles: part(8 * size.tiles),
        }
    }

    /// Bytes of the image.
    pub fn bytes(&self) -> usize {
        self.tiles.end
    }
}

fn as_i32(value: usize) -> i32 {
    i32::try_from(value).expect("a number of a batch is below 2^31")
}

/// Whether the tokens can be the model's; an error names the text as number `text`.
///
/// # Errors
/// When a token or the length is not one of the model's.
pub fn check_text(text: usize, tokens: &[u32], shape: &BertShape) -> Result<(), BatchError> {
    if tokens.len() > shape.tokens_max() {
        return Err(BatchError::Length {
            text,
            tokens: tokens.len(),
            tokens_max: shape.tokens_max(),
        });
    }
    let is_known = |id: &u32| i32::try_from(*id).is_ok_and(|id| (id as usize) < shape.vocabulary);
    match tokens.iter().find(|id| !is_known(id)) {
        Some(id) => Err(BatchError::Token {
            text,
            id: *id,
            vocabulary: shape.vocabulary,
        }),
        None => Ok(()),
    }
}

impl RaggedBatch {
    /// Of texts' tokens. Texts without tokens are allowed.
    ///
    /// # Errors
    /// When a token or a length is not one of the model's.
    pub fn new(texts: &[&[u32]], shape: &BertShape) -> Result<Self, BatchError> {
        let mut batch = Self {
            ids: Vec::new(),
            positions: Vec::new(),
            starts: vec![0],
            tiles: Vec::new(),
        };
        for (text, tokens) in texts.iter().enumerate() {
            // Again, where a caller has checked: no kernel may read outside of the tables.
            check_text(text, tokens, shape)?;
            batch.add(text, tokens, shape);
        }
        Ok(batch)
    }

    /// Of tokens that were checked.
    fn add(&mut self, text: usize, tokens: &[u32], shape: &BertShape) {
        // Below 2^31.
        self.ids.extend(tokens.iter().map(|id| id.cast_signed()));
        let places = (0..tokens.len()).map(|place| as_i32(shape.first_position + place));
        self.positions.extend(places);
        let firsts = (0..tokens.len()).step_by(QUERIES_PER_TILE);
        self.tiles
            .extend(firsts.map(|first| [as_i32(text), as_i32(first)]));
        self.starts.push(as_i32(self.ids.len()));
    }

    /// How large it is.
    pub fn size(&self) -> BatchSize {
        BatchSize {
            rows: self.ids.len(),
            texts: self.starts.len() - 1,
            tiles: self.tiles.len(),
        }
    }

    /// The batch's image, filled up to `size`, as the device reads it.
    ///
    /// # Panics
    /// When `size` does not hold the batch, or `image` is not of its layout's length.
    pub fn write_image(&self, size: BatchSize, image: &mut [u8]) {
        assert!(size.holds(self.size()));
        let layout = ImageLayout::of(size);
        assert_eq!(image.len(), layout.bytes());
        let mut put = |part: Range<usize>, values: &[i32], filler: i32| {
            let filled = values.iter().copied().chain(std::iter::repeat(filler));
            for (to, value) in image[part].chunks_exact_mut(4).zip(filled) {
                to.copy_from_slice(&value.to_le_bytes());
            }
        };
        let rows = self.starts.last().copied().unwrap_or_default();
        // Token and position 0 are in every table; what is computed of them nobody reads.
        put(layout.ids, &self.ids, 0);
        put(layout.positions, &self.positions, 0);
        put(layout.starts, &self.starts, rows);
        // Of the first text, behind any end; the text's number is 0, or a large one for the first
        // query: both fillers are one pair, written after the real tiles.
        put(layout.tiles.clone(), self.tiles.as_flattened(), 0);
        let used = 8 * self.tiles.len();
        for tile in image[layout.tiles][used..].chunks_exact_mut(8) {
            tile[4..].copy_from_slice(&i32::MAX.to_le_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn numbers(bytes: &[u8]) -> Vec<i32> {
        let (words, _) = bytes.as_chunks::<4>();
        words.iter().map(|word| i32::from_le_bytes(*word)).collect()
    }

    #[test]
    fn an_image_is_filled_up_with_what_does_nothing() {
        let long: Vec<u32> = (0..70).collect();
        let batch = RaggedBatch::new(&[&[5, 6], &[], &long], &BertShape::MINILM_L6).unwrap();
        assert_eq!(
            batch.size(),
            BatchSize {
                rows: 72,
                texts: 3,
                tiles: 3
            }
        );
        let size = BatchSize::of_at_most(80, 4);
        let layout = ImageLayout::of(size);
        let mut image = vec![0xFF; layout.bytes()];
        batch.write_image(size, &mut image);
        assert_eq!(numbers(&image[layout.ids.clone()])[..4], [5, 6, 0, 1]);
        assert_eq!(numbers(&image[layout.positions.clone()])[..4], [0, 1, 0, 1]);
        assert_eq!(numbers(&image[layout.ids.clone()])[72..], [0; 8]);
        assert_eq!(numbers(&image[layout.starts.clone()]), [0, 2, 2, 72, 72]);
        let tiles = numbers(&image[layout.tiles.clone()]);
        assert_eq!(tiles[..8], [0, 0, 2, 0, 2, 64, 0, i32::MAX]);
    }

    #[test]
    fn what_the_model_does_not_have_is_refused() {
        let shape = BertShape {
            positions: 66,
            first_position: 2,
            ..BertShape::MINILM_L6
        };
        let refused = |tokens: &[u32]| RaggedBatch::new(&[tokens], &shape).unwrap_err().to_string();
        assert!(refused(&[30_522]).contains("token 30522"));
        assert!(refused(&[u32::MAX]).contains("vocabulary has 30522"));
        assert!(refused(&[1; 65]).contains("65 tokens"));
        let batch = RaggedBatch::new(&[&[1; 64]], &shape).unwrap();
        assert_eq!(batch.positions[63], 65);
    }

    proptest! {
        #[test]
        fn a_size_holds_every_batch_up_to_it(lengths in prop::collection::vec(0..200_usize, 1..9)) {
            let texts: Vec<Vec<u32>> = lengths.iter().map(|length| vec![1; *length]).collect();
            let texts: Vec<&[u32]> = texts.iter().map(Vec::as_slice).collect();
            let batch = RaggedBatch::new(&texts, &BertShape::MINILM_L6).unwrap();
            let size = batch.size();
            prop_assert!(BatchSize::of_at_most(size.rows, size.texts).holds(size));
        }
    }
}
