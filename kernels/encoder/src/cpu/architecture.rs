//! What tells one encoder architecture from another, as data that the one forward pass follows.
//!
//! BERT, XLM-RoBERTa, nomic-bert and ModernBERT are the same two steps in turn, attention and a
//! feed-forward network. They differ in where positions enter, where rows are normalised, how the network
//! bends its middle, and how far a token looks.
//!
//! Invariant: whatever the arithmetic of two models of equal sizes can differ in, other than weights,
//! is here or in [`super::EncoderShape`].

/// An architecture.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Architecture {
    /// Names of the tensors, and which biases there are.
    pub(crate) family: Family,
    pub(crate) positions: Positions,
    pub(crate) norms: Norms,
    pub(crate) feed_forward: FeedForward,
    /// Layers that look at near tokens only; `None` where all look at all.
    pub(crate) window: Option<Window>,
}

/// Whose names the tensors of a checkpoint have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    /// `BertModel`'s, which RoBERTa's also are.
    Bert,
    /// `NomicBertModel`'s: products have no bias.
    NomicBert,
    /// `ModernBertModel`'s: neither products nor normalisations have a bias.
    ModernBert,
}

/// How a token's place in its text enters.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Positions {
    /// A learned vector is added to the token's.
    Learned,
    /// The same, but rows are counted from behind `padding` on, past tokens with that id, which have
    /// the row of that number: RoBERTa.
    LearnedBesidePadding {
        /// The id.
        padding: usize,
    },
    /// Queries and keys are turned by angles that follow the place.
    Rotary {
        /// The base of the angles' wave lengths, in layers that look at all tokens.
        base: f32,
        /// The same in layers with a window.
        base_local: f32,
    },
}

/// Where rows are normalised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Norms {
    /// The sum of a step's input and output is normalised, and goes on.
    AfterSum,
    /// A step gets normalised rows, its output is added to the rows as they were before; the last
    /// sum is normalised too.
    BeforeStep,
}

/// What stands between the two products of the feed-forward network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FeedForward {
    /// GELU.
    Gelu,
    /// GELU of one half times the other.
    GatedGelu,
    /// x times its logistic function, of one half, times the other: SwiGLU.
    GatedSilu,
}

/// Layers with a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Window {
    /// Every so many layers, from the first on, one looks at all tokens.
    pub(crate) global_every: usize,
    /// The others look so many tokens back and as many ahead.
    pub(crate) reach: usize,
}

impl Architecture {
    /// BERT as it was published.
    pub(crate) const BERT: Self = Self {
        family: Family::Bert,
        positions: Positions::Learned,
        norms: Norms::AfterSum,
        feed_forward: FeedForward::Gelu,
        window: None,
    };

    /// How far a layer's tokens look, where not at all others.
    pub(crate) fn reach(self, layer: usize) -> Option<usize> {
        let window = self.window?;
        (!layer.is_multiple_of(window.global_every)).then_some(window.reach)
    }
}

impl FeedForward {
    /// Widths of the middle that the first product makes.
    pub(crate) fn parts(self) -> usize {
        match self {
            Self::Gelu => 1,
            Self::GatedGelu | Self::GatedSilu => 2,
        }
    }
}

impl Positions {
    /// Rows of the position embedding beside those of a text's tokens.
    pub(crate) fn rows_before(self) -> usize {
        match self {
            Self::LearnedBesidePadding { padding } => padding + 1,
            Self::Learned | Self::Rotary { .. } => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_third_layer_looks_at_all() {
        let architecture = Architecture {
            window: Some(Window {
                global_every: 3,
                reach: 64,
            }),
            ..Architecture::BERT
        };
        let reaches: Vec<_> = (0..5).map(|layer| architecture.reach(layer)).collect();
        assert_eq!(reaches, [None, Some(64), Some(64), None, Some(64)]);
        assert_eq!(Architecture::BERT.reach(1), None);
    }
}
