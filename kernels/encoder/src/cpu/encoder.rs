//! The forward pass: token ids of several texts to one unit vector each.
//!
//! A batch is ragged: the texts' rows stand one after the other without padding, every product runs
//! over all of them at once, and only attention knows where a text begins and ends.
//!
//! Invariant: no operation mixes rows of two texts, and none orders its sums by the batch.

use super::Backend;
use super::architecture::{FeedForward, Norms, Positions};
use super::attend::Attend;
use super::dense::Products;
use super::gate::Gate;
use super::rotary::Rotate;
use super::rows::{AddAndNormalise, LayerNorm, PoolRows};
use super::scratch::{Scratch, ScratchPool};
use super::tile::Finish;
use super::weights::{EncoderShape, EncoderWeights, LayerWeights, WeightsError};
use crate::measure::{Stage, computes_with, timed};

/// A model, ready to run. Shared between threads.
pub(crate) struct Encoder {
    shape: EncoderShape,
    backend: Backend,
    products: Products,
    weights: EncoderWeights,
    scratches: ScratchPool,
}

impl Encoder {
    /// Reads the weights from a safetensors file.
    pub(crate) fn read(
        file: &[u8],
        shape: EncoderShape,
        backend: Backend,
        products: Products,
    ) -> Result<Self, WeightsError> {
        Ok(Self {
            shape,
            backend,
            products,
            weights: EncoderWeights::read(file, shape, backend, products)?,
            scratches: ScratchPool::default(),
        })
    }

    /// Dimensions of a token's vector.
    fn width(&self) -> usize {
        self.shape.attention.width()
    }

    /// Encodes texts given as token ids, special ones included.
    ///
    /// Each text must have from 1 to `positions` ids below the vocabulary's size; the tokenizer
    /// makes no others. The vectors have the first `dimensions`, at most the model's width.
    pub(crate) fn encode(&self, texts: &[&[u32]], dimensions: usize) -> Vec<Vec<f32>> {
        let mut scratch = self.scratches.take();
        scratch.grow(texts.iter().map(|ids| ids.len()).sum(), self.shape);
        let vectors = self.forward(texts, dimensions, &mut scratch);
        self.scratches.put(scratch);
        vectors
    }

    fn forward(&self, texts: &[&[u32]], dimensions: usize, scratch: &mut Scratch) -> Vec<Vec<f32>> {
        let lengths: Vec<usize> = texts.iter().map(|ids| ids.len()).collect();
        let rows = lengths.iter().sum();
        computes_with(self.backend, self.products, rows);
        timed(Stage::Lookup, 0, || self.look_up(texts, scratch));
        timed(Stage::Norms, 0, || self.embed(rows, scratch));
        for layer in &self.weights.layers {
            self.attend(layer, &lengths, scratch);
            self.add_and_normalise(&layer.attention_norm, rows, scratch);
            self.feed_forward(layer, rows, scratch);
            self.add_and_normalise(&layer.output_norm, rows, scratch);
        }
        timed(Stage::Pooling, 0, || {
            self.pool(&lengths, dimensions, scratch)
        })
    }

    fn pool(&self, lengths: &[usize], dimensions: usize, scratch: &Scratch) -> Vec<Vec<f32>> {
        let width = self.width();
        let mut first = 0;
        let pooled = lengths.iter().map(|length| {
            let mut out = vec![0.0; dimensions.min(width)];
            self.backend.run(PoolRows {
                pooling: self.shape.pooling,
                width,
                rows: &scratch.hidden[first * width..(first + length) * width],
                out: &mut out,
            });
            first += length;
            out
        });
        pooled.collect()
    }

    /// The rows that the first layer gets.
    fn embed(&self, rows: usize, scratch: &mut Scratch) {
        let width = self.width();
        self.backend.run(AddAndNormalise {
            norm: &self.weights.embedding_norm,
            width,
            rows: &mut scratch.hidden[..rows * width],
            added: &scratch.added[..rows * width],
            sums: None,
        });
        if self.shape.architecture.norms == Norms::BeforeStep {
            let hidden = &scratch.hidden[..rows * width];
            scratch.sums[..rows * width].copy_from_slice(hidden);
        }
    }

    /// Words into `hidden`, positions into `added`.
    fn look_up(&self, texts: &[&[u32]], scratch: &mut Scratch) {
        let width = self.width();
        let hidden = scratch.hidden.chunks_exact_mut(width);
        let mut rows = hidden.zip(scratch.added.chunks_exact_mut(width));
        for ids in texts {
            let mut counted = 0;
            // The rows come last in the zip, so that no row is taken and lost when the ids end.
            for (id, (word, added)) in ids.iter().zip(&mut rows) {
                let id = *id as usize;
                let position = match self.shape.architecture.positions {
                    Positions::LearnedBesidePadding { padding } if id == padding => padding,
                    Positions::LearnedBesidePadding { padding } => padding + 1 + counted,
                    Positions::Learned => counted,
                    Positions::Rotary { .. } => 0,
                };
                counted += usize::from(!self.is_padding(id));
                word.copy_from_slice(&self.weights.words[id * width..][..width]);
                added.copy_from_slice(&self.weights.positions[position * width..][..width]);
            }
        }
    }

    /// Whether a text's next token has the place of this one: RoBERTa does not count padding, which a
    /// text can name.
    fn is_padding(&self, id: usize) -> bool {
        self.shape.architecture.positions == Positions::LearnedBesidePadding { padding: id }
    }

    fn add_and_normalise(&self, norm: &LayerNorm, rows: usize, scratch: &mut Scratch) {
        let width = self.width();
        let kernel = AddAndNormalise {
            norm,
            width,
            rows: &mut scratch.hidden[..rows * width],
            added: &scratch.added[..rows * width],
            sums: match self.shape.architecture.norms {
                Norms::AfterSum => None,
                Norms::BeforeStep => Some(&mut scratch.sums[..rows * width]),
            },
        };
        timed(Stage::Norms, 0, || self.backend.run(kernel));
    }

    /// Attention over each text; the result is left in `added`.
    fn attend(&self, layer: &LayerWeights, lengths: &[usize], scratch: &mut Scratch) {
        let width = self.width();
        let rows = lengths.iter().sum();
        timed(
            Stage::QueriesKeysValues,
            2 * rows * width * 3 * width,
            || {
                layer.queries_keys_values.run(
                    self.backend,
                    (rows, &scratch.hidden),
                    &mut scratch.queries_keys_values,
                    Finish::Store,
                    &mut scratch.dense,
                );
            },
        );
        let attend = Attend {
            shape: self.shape.attention,
            backend: self.backend,
            products: self.products,
            reach: layer.reach,
        };
        // Scores and mixture of each pair of tokens.
        let seen = |tokens: usize| {
            layer
                .reach
                .map_or(tokens, |reach| tokens.min(2 * reach + 1))
        };
        let pairs: usize = lengths.iter().map(|tokens| tokens * seen(*tokens)).sum();
        timed(Stage::Attention, 4 * pairs * width, || {
            let mut first = 0;
            for tokens in lengths {
                if let Some(rotation) = self.weights.rotation(layer) {
                    self.backend.run(Rotate {
                        shape: self.shape.attention,
                        rotation,
                        tokens: *tokens,
                        queries_keys_values: &mut scratch.queries_keys_values[first * 3 * width..],
                    });
                }
                attend.run(
                    *tokens,
                    &scratch.queries_keys_values[first * 3 * width..],
                    &mut scratch.context[first * width..],
                    &mut scratch.attention,
                );
                first += tokens;
            }
        });
        timed(Stage::AttentionOutput, 2 * rows * width * width, || {
            layer.attention_output.run(
                self.backend,
                (rows, &scratch.context),
                &mut scratch.added,
                Finish::Store,
                &mut scratch.dense,
            );
        });
    }

    /// The feed-forward network; the result is left in `added`.
    fn feed_forward(&self, layer: &LayerWeights, rows: usize, scratch: &mut Scratch) {
        let feed_forward = self.shape.architecture.feed_forward;
        let flops = |outputs: usize| 2 * rows * self.width() * outputs;
        timed(Stage::Expand, flops(self.shape.expanded()), || {
            layer.expand.run(
                self.backend,
                (rows, &scratch.hidden),
                &mut scratch.intermediate,
                match feed_forward {
                    FeedForward::Gelu => Finish::Gelu,
                    FeedForward::GatedGelu | FeedForward::GatedSilu => Finish::Store,
                },
                &mut scratch.dense,
            );
            self.backend.run(Gate {
                feed_forward,
                rows,
                width: self.shape.intermediate,
                values: &mut scratch.intermediate,
            });
        });
        timed(Stage::Contract, flops(self.shape.intermediate), || {
            layer.contract.run(
                self.backend,
                (rows, &scratch.intermediate),
                &mut scratch.added,
                Finish::Store,
                &mut scratch.dense,
            );
        });
    }
}
