//! The sizes of a BERT-type encoder, and whether there are kernels for them.
//!
//! Invariant: launches are made only for a shape that [`BertShape::check`] has passed.

use crate::launches::{Pooling, RowWidth};

/// Sizes and choices of a model, as its configuration files have them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BertShape {
    /// Word pieces in the vocabulary.
    pub vocabulary: usize,
    /// Rows of the position table.
    pub positions: usize,
    /// The position of a text's first token: 0, or 2 in models of the RoBERTa family, whose first
    /// rows stand for padding.
    pub first_position: usize,
    /// Rows of the type table.
    pub types: usize,
    /// Layers.
    pub layers: usize,
    /// Attention heads.
    pub heads: usize,
    /// Numbers of a head.
    pub head_size: usize,
    /// Numbers between the two halves of the feed-forward network.
    pub intermediate: usize,
    /// Added to variances.
    pub epsilon: f32,
    /// What a text's vector is made of.
    pub pooling: Pooling,
    /// Numbers of a text's vector; fewer than the width for a Matryoshka model that is cut.
    pub dimensions: usize,
}

/// Sizes from a model's files are held against these before anything is computed from them: several
/// times what the largest encoder has, and few enough that no product of them overflows.
const VOCABULARY_MAX: usize = 1 << 22;
const POSITIONS_MAX: usize = 1 << 17;
const TYPES_MAX: usize = 1 << 8;
const LAYERS_MAX: usize = 1 << 8;
const INTERMEDIATE_MAX: usize = 1 << 16;

/// Why a model can't run on the GPU.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no kernel for {what} {found}: supported are {supported}")]
pub struct ShapeError {
    /// Which size.
    pub what: &'static str,
    /// What the model has.
    pub found: usize,
    /// What there are kernels for.
    pub supported: &'static str,
}

impl BertShape {
    /// `all-MiniLM-L6-v2`.
    pub const MINILM_L6: Self = Self {
        vocabulary: 30_522,
        positions: 512,
        first_position: 0,
        types: 2,
        layers: 6,
        heads: 12,
        head_size: 32,
        intermediate: 1536,
        epsilon: 1e-12,
        pooling: Pooling::Mean,
        dimensions: 384,
    };
    /// `bge-base-en-v1.5`.
    pub const BGE_BASE: Self = Self {
        layers: 12,
        head_size: 64,
        intermediate: 3072,
        pooling: Pooling::First,
        dimensions: 768,
        ..Self::MINILM_L6
    };

    /// Numbers of a token's vector.
    pub fn width(&self) -> usize {
        self.heads.saturating_mul(self.head_size)
    }

    /// The most tokens of a text.
    pub fn tokens_max(&self) -> usize {
        self.positions.saturating_sub(self.first_position)
    }

    /// Whether there are kernels for it.
    ///
    /// # Errors
    /// Names the size that there is none for.
    pub fn check(&self) -> Result<RowWidth, ShapeError> {
        let require = |holds: bool, what, found, supported| {
            let error = ShapeError {
                what,
                found,
                supported,
            };
            if holds { Ok(()) } else { Err(error) }
        };
        require(
            [32, 64].contains(&self.head_size),
            "heads of size",
            self.head_size,
            "32 and 64",
        )?;
        let width = RowWidth::of(self.width()).ok_or(ShapeError {
            what: "a model of width",
            found: self.width(),
            supported: "384, 768 and 1024",
        })?;
        require(
            (1..=INTERMEDIATE_MAX).contains(&self.intermediate)
                && self.intermediate.is_multiple_of(64),
            "a feed-forward network of width",
            self.intermediate,
            "multiples of 64 up to 65,536",
        )?;
        require(
            (1..=self.width()).contains(&self.dimensions),
            "vectors of length",
            self.dimensions,
            "those up to the model's width",
        )?;
        require(
            (1..=TYPES_MAX).contains(&self.types),
            "token types",
            self.types,
            "1 to 256",
        )?;
        require(
            (1..=VOCABULARY_MAX).contains(&self.vocabulary),
            "a vocabulary of",
            self.vocabulary,
            "1 to 4,194,304",
        )?;
        require(
            self.layers <= LAYERS_MAX,
            "layers",
            self.layers,
            "up to 256",
        )?;
        require(
            self.tokens_max() > 0 && self.positions <= POSITIONS_MAX,
            "positions",
            self.positions,
            "more than stand for padding, up to 131,072",
        )?;
        Ok(width)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_models_have_kernels_and_others_are_named() {
        assert_eq!(BertShape::MINILM_L6.check(), Ok(RowWidth::W384));
        assert_eq!(BertShape::BGE_BASE.check(), Ok(RowWidth::W768));
        let refused = |change: fn(&mut BertShape)| {
            let mut shape = BertShape::MINILM_L6;
            change(&mut shape);
            shape.check().unwrap_err().to_string()
        };
        let message = refused(|shape| shape.heads = 10);
        assert_eq!(
            message,
            "no kernel for a model of width 320: supported are 384, 768 and 1024"
        );
        assert!(refused(|shape| shape.head_size = 48).contains("48"));
        assert!(refused(|shape| shape.intermediate = 1000).contains("1000"));
        assert!(refused(|shape| shape.dimensions = 385).contains("385"));
        assert!(refused(|shape| shape.types = 0).contains("types"));
        assert!(refused(|shape| shape.vocabulary = usize::MAX).contains("vocabulary"));
        assert!(refused(|shape| shape.layers = usize::MAX).contains("layers"));
        assert!(refused(|shape| shape.positions = usize::MAX).contains("positions"));
        assert!(refused(|shape| shape.intermediate = usize::MAX - 63).contains("feed-forward"));
        assert!(refused(|shape| shape.heads = usize::MAX).contains("width"));
        assert!(refused(|shape| shape.first_position = 600).contains("positions"));
    }
}
