//! The contract of an embedder: texts to unit vectors, in batches, on two lanes.
//!
//! Invariant: a text's vector does not depend on what else is in its batch.

use crate::TokenCounter;
use half::f16;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// A stored vector: fp16, rounded once when the embedder returns it, so that the head, the cache, a
/// segment and a restart all hold the same bits.
#[derive(Clone, Debug, PartialEq)]
pub struct Embedding(pub Arc<[f16]>);

/// Rounds a vector to its stored form.
pub fn quantize(vector: &[f32]) -> Embedding {
    Embedding(vector.iter().map(|x| f16::from_f32(*x)).collect())
}

impl Embedding {
    /// Little-endian bytes, two a dimension.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(2 * self.0.len());
        for component in self.0.iter() {
            bytes.extend_from_slice(&component.to_le_bytes());
        }
        bytes
    }

    /// Reads what [`Embedding::to_bytes`] wrote; `None` for an odd number of bytes.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let pairs = bytes.chunks_exact(2);
        pairs.remainder().is_empty().then(|| {
            Self(
                pairs
                    .map(|pair| f16::from_le_bytes([pair[0], pair[1]]))
                    .collect(),
            )
        })
    }

    /// As f32.
    pub fn to_f32(&self) -> Vec<f32> {
        self.0.iter().map(|x| x.to_f32()).collect()
    }
}

/// Which model made a vector.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelIdentity {
    /// The name in the configuration, or that of the folder with the model's files.
    pub name: String,
    /// Changes whenever the same text could get a vector in [`Lane::Bulk`] that differs by more than a
    /// cosine of 0.9999: part of the cache's key. What changes less (rounding, and a precision that was
    /// measured to keep so much) is not in it. On an accelerator that is measured at each start, of the
    /// model itself. Vectors of queries are not kept.
    pub fingerprint: String,
    /// Dimensions of a vector.
    pub dimension: usize,
    /// Tokens of a document's chunk that the model looks at, special ones included.
    pub tokens_max: usize,
    /// Where it runs, for a person: `cpu (avx2)`. Where an accelerator was opened that, also after it
    /// was lost and the CPU has gone on.
    pub device: String,
}

/// Who is waiting, which also says what the texts are: some models put another prefix before a query
/// than before a passage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// A person's query: goes before all bulk work.
    Query,
    /// Chunks of documents.
    Bulk,
}

/// Why a batch could not be embedded, which says what to do with its texts.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EmbedError {
    /// No vector can be made of some of these texts, however often it is tried: fewer at a time find out
    /// of which.
    #[error("{0}")]
    Texts(String),
    /// What embeds can't be had now, which says nothing about the texts: the same call may succeed later.
    #[error("{0}")]
    Unavailable(String),
}

/// What one call of an embedder should hold: enough to be worth it, and no more than it computes in one
/// piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchLimits {
    /// Tokens, padding included where there is some. A text of more stands alone.
    pub tokens: usize,
    /// Texts.
    pub texts: usize,
    /// Whether the texts of a call are made as long as its longest, so that those of near lengths should go
    /// together.
    pub is_padded: bool,
}

impl BatchLimits {
    /// Those of an encoder on a processor's core, which computes texts of any lengths together: a micro-batch
    /// of chunks; of queries a dozen short ones, which take some milliseconds.
    pub fn of_a_core(lane: Lane) -> Self {
        Self {
            tokens: match lane {
                Lane::Bulk => 512,
                Lane::Query => 256,
            },
            texts: 64,
            is_padded: false,
        }
    }
}

/// Turns texts into vectors.
///
/// Obligations, checked by [`embedder_contract`]:
/// - one vector of `identity().dimension` for each text, in order, of length 1 (all zeros only for a
///   text without any token);
/// - the same text gives the same vector in any batch of a lane, to 1e-5 a component, on one device; what
///   an accelerator that failed leaves to the processor keeps the fingerprint's cosine of 0.9999;
/// - texts beyond `tokens_max` are cut, never an error; empty texts are allowed.
///
/// And one that nobody can check but its author: only what is about the texts is [`EmbedError::Texts`], for
/// whoever asks makes dead letters of those.
///
/// Calls block and may come from many threads at once. A bulk call works in pieces small enough that
/// a query beside it is not held up by more than one of them.
pub trait Embedder: Send + Sync {
    /// Which model it is.
    fn identity(&self) -> &ModelIdentity;

    /// Embeds a batch.
    ///
    /// # Errors
    /// When no vector of the batch can be used.
    fn embed(&self, lane: Lane, texts: &[&str]) -> Result<Vec<Vec<f32>>, EmbedError>;

    /// Counts tokens as this model does, for chunk sizes.
    fn token_counter(&self) -> Arc<dyn TokenCounter>;

    /// How many threads should call at once in each lane.
    fn bulk_threads(&self) -> usize;

    /// What a call in a lane should hold. In [`Lane::Query`] it is what others may wait for.
    fn batch_limits(&self, lane: Lane) -> BatchLimits {
        BatchLimits::of_a_core(lane)
    }

    /// Whether remembering a vector is cheaper than computing it again.
    fn worth_remembering(&self) -> bool;
}

/// Checks the obligations of an [`Embedder`].
///
/// # Panics
/// When one of them does not hold.
pub fn embedder_contract(embedder: &dyn Embedder) {
    let long = "word ".repeat(5_000);
    let texts = [
        "one text",
        "",
        "another, longer text about engines",
        "日本語の文章",
        &long,
    ];
    for lane in [Lane::Bulk, Lane::Query] {
        let together = embedder.embed(lane, &texts).expect("a batch");
        assert_eq!(together.len(), texts.len());
        for (text, vector) in texts.iter().zip(&together) {
            assert_eq!(vector.len(), embedder.identity().dimension);
            let norm = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
            assert!(
                (norm - 1.0).abs() < 1e-3 || (norm == 0.0 && text.is_empty()),
                "norm {norm}"
            );
            let alone = embedder.embed(lane, &[text]).expect("one text");
            for (x, y) in vector.iter().zip(&alone[0]) {
                assert!((x - y).abs() <= 1e-5, "{x} and {y} for {:.20}", text);
            }
        }
        assert!(embedder.embed(lane, &[]).expect("no texts").is_empty());
    }
    assert!(embedder.bulk_threads() >= 1);
}
