//! A sentence encoder that ONNX Runtime computes: texts with their prefix, to token ids, to unit vectors.
//!
//! Callers compute in micro-batches of texts of near lengths, each in a session of its lane. What a model does is
//! not known from its file, so a few texts go through it when it is opened: they tell the width, that texts of the
//! configured length can be computed, and whether a text's vector is the same beside others. It is not in a model
//! that is quantised as it runs, whose scale comes from all of a batch: its texts are computed one by one.
//!
//! Invariant: a text's vector does not depend on its neighbours, and only finite vectors of length 1 are given out;
//! all zeros for a text without any token.

use crate::batches::{MICRO_BATCH_TOKENS, batches};
use crate::sessions::{LONG_TEXT_TOKENS, Sessions};
use crate::signature::{Gives, Input, Signature};
use crate::texts::{Texts, TokenIds};
use half::f16;
use ort::session::{OutputSelector, RunOptions, Session, SessionInputValue};
use ort::value::{DynValue, Tensor};
use std::borrow::Cow;
use std::sync::Arc;
use vectide_encoder::{Pooling, encode_distinct, lower_for_bulk};
use vectide_model::{BatchLimits, EmbedError, Embedder, Lane, ModelIdentity, TokenCounter};

/// How much two vectors of one text may differ; what the contract allows.
const DIFFERENCE_MAX: f32 = 1e-5;
/// Texts of at most so many tokens are tried when a model is opened: beyond all positions of most models, and a
/// second's work for one that has more.
const PROBE_TOKENS_MAX: usize = 1024;
/// Of what ONNX Runtime says, the beginning is kept.
const MESSAGE_BYTES_MAX: usize = 500;

/// The embedder.
pub(crate) struct OnnxEncoder {
    pub(crate) identity: ModelIdentity,
    pub(crate) graph: Graph,
    pub(crate) texts: Texts,
    pub(crate) query_prefix: String,
    pub(crate) passage_prefix: String,
}

/// A graph that is ready to compute.
pub(crate) struct Graph {
    pub(crate) signature: Signature,
    pub(crate) queries: Sessions,
    pub(crate) bulk: Sessions,
    /// Fills rows.
    pub(crate) pad_id: u32,
    /// The position of a text's first token.
    pub(crate) first_position: usize,
    /// Dimensions of the model's vectors.
    pub(crate) width: usize,
    /// Most texts of a batch: 1 where vectors depend on their neighbours.
    pub(crate) texts_max: usize,
}

/// Why a graph is not used.
#[derive(Debug)]
pub(crate) enum ProbeError {
    /// It can't compute a text at all.
    Useless(String),
    /// It can't compute a text of so many tokens.
    TooLong(usize, String),
}

impl Graph {
    /// Computes a few texts to learn what no file says.
    pub(crate) fn probe(&mut self, texts: &Texts, tokens_max: usize) -> Result<(), ProbeError> {
        let useless = ProbeError::Useless;
        let encode = |text: &str| texts.encode(text).map_err(useless);
        let short = encode("a")?;
        let middle =
            encode("the engine keeps an index of vectors true to its sources while they change")?;
        let alone = self.probe_batch(&[&short]).map_err(useless)?;
        self.width = alone[0].len();
        let long = "a ".repeat(PROBE_TOKENS_MAX.min(tokens_max));
        let long = encode(&long)?;
        let length = long.ids.len();
        self.probe_batch(&[&long])
            .map_err(|error| ProbeError::TooLong(length, error))?;
        let together = self
            .probe_batch(&[&short, &middle, &short])
            .map_err(useless)?;
        let middle = self.probe_batch(&[&middle]).map_err(useless)?;
        let differ = |a: &[f32], b: &[f32]| {
            let mut pairs = a.iter().zip(b);
            pairs.any(|(a, b)| (a - b).abs() > DIFFERENCE_MAX / 2.0)
        };
        if differ(&together[0], &alone[0])
            || differ(&together[1], &middle[0])
            || differ(&together[2], &alone[0])
        {
            self.texts_max = 1;
        }
        Ok(())
    }

    fn probe_batch(&self, batch: &[&TokenIds]) -> Result<Vec<Vec<f32>>, String> {
        let width = Some(self.width).filter(|width| *width > 0);
        let mut vectors = self.compute(Lane::Query, batch, width)?;
        for vector in &mut vectors {
            normalize(vector)?;
        }
        Ok(vectors)
    }

    /// The model's vectors of a batch, in order, as long as they come.
    fn compute(
        &self,
        lane: Lane,
        batch: &[&TokenIds],
        width: Option<usize>,
    ) -> Result<Vec<Vec<f32>>, String> {
        let sessions = match lane {
            Lane::Query => &self.queries,
            Lane::Bulk => &self.bulk,
        };
        let tokens = batch.iter().map(|text| text.ids.len()).max();
        let tokens = tokens.unwrap_or_default();
        let run = |session: &mut Session| self.run(session, batch, width);
        let vectors = sessions.with_tokens(tokens, run);
        vectors.map_err(|error| explained(error, tokens))
    }

    fn run(
        &self,
        session: &mut Session,
        batch: &[&TokenIds],
        width: Option<usize>,
    ) -> Result<Vec<Vec<f32>>, String> {
        let told = |error: ort::Error| told(error.message());
        let length = batch.iter().map(|text| text.ids.len()).max();
        let length = length.unwrap_or_default();
        let inputs = self.signature.inputs.iter().map(|input| {
            let values = self.values(*input, batch, length);
            let tensor = Tensor::from_array(([batch.len(), length], values))?;
            Ok((input.name(), SessionInputValue::from(tensor)))
        });
        let inputs: Vec<_> = inputs.collect::<Result<_, _>>().map_err(told)?;
        let mut options = RunOptions::new().map_err(told)?;
        if batch.len() * length > MICRO_BATCH_TOKENS {
            // What only a long text needed is given back.
            let shrink = options.set("memory.enable_memory_arena_shrinkage", "cpu:0");
            shrink.map_err(told)?;
        }
        let output = OutputSelector::no_default().with(&self.signature.output);
        let options = options.with_outputs(output);
        let outputs = session.run_with_options(inputs, &options).map_err(told)?;
        let output = outputs.get(&self.signature.output);
        let output = output.ok_or("the model gave no vectors")?;
        let (shape, values) = floats(output)?;
        self.pool(batch, length, width, &shape, &values)
    }

    /// What an input is fed, row by row.
    fn values(&self, input: Input, batch: &[&TokenIds], length: usize) -> Vec<i64> {
        let mut values = Vec::with_capacity(batch.len() * length);
        for text in batch {
            let tokens = text.ids.len();
            let row = values.len();
            match input {
                Input::Ids => values.extend(text.ids.iter().map(|id| i64::from(*id))),
                Input::Mask => values.resize(row + tokens, 1),
                Input::Types => values.extend(text.types.iter().map(|it| i64::from(*it))),
                Input::Positions => {
                    let positions = self.first_position..self.first_position + length;
                    values.extend(positions.map(|position| position as i64));
                }
            }
            let filling = match input {
                Input::Ids => i64::from(self.pad_id),
                _ => 0,
            };
            values.resize(row + length, filling);
        }
        values
    }

    /// A vector a text, of an output's values.
    fn pool(
        &self,
        batch: &[&TokenIds],
        length: usize,
        width: Option<usize>,
        shape: &[i64],
        values: &[f32],
    ) -> Result<Vec<Vec<f32>>, String> {
        let rows = match self.signature.gives {
            Gives::Tokens(_) => vec![batch.len(), length],
            Gives::Sentences => vec![batch.len()],
        };
        let sizes = shape.iter().map(|size| usize::try_from(*size).unwrap_or(0));
        let sizes: Vec<usize> = sizes.collect();
        let found = sizes.last().copied().unwrap_or(0);
        let is_expected = sizes.starts_with(&rows) && sizes.len() == rows.len() + 1;
        if !is_expected || found == 0 || width.is_some_and(|width| width != found) {
            return Err(format!(
                "the model gave an output of shape {shape:?} for {} texts of up to {length} tokens",
                batch.len()
            ));
        }
        let texts = batch
            .iter()
            .enumerate()
            .map(|(row, text)| match self.signature.gives {
                Gives::Sentences => values[row * found..][..found].to_vec(),
                Gives::Tokens(Pooling::First) => values[row * length * found..][..found].to_vec(),
                Gives::Tokens(Pooling::Mean) => {
                    let rows = &values[row * length * found..][..text.ids.len() * found];
                    mean(rows, found)
                }
            });
        Ok(texts.collect())
    }
}

/// An error with its hint, where the length of a text may be its reason: what ONNX Runtime says of memory that it
/// did not get names a node and a number of bytes.
fn explained(error: String, tokens: usize) -> String {
    let lower = error.to_lowercase();
    let of_memory = ["alloc", "out of memory"];
    match tokens > LONG_TEXT_TOKENS && of_memory.iter().any(|word| lower.contains(word)) {
        true => format!(
            "a text of {tokens} tokens needs more memory than there is, a lower `max_tokens` needs less: {error}"
        ),
        false => error,
    }
}

/// The mean of rows of this width.
fn mean(rows: &[f32], width: usize) -> Vec<f32> {
    let mut sum = vec![0.0_f32; width];
    for row in rows.chunks_exact(width) {
        for (sum, value) in sum.iter_mut().zip(row) {
            *sum += value;
        }
    }
    let count = (rows.len() / width).max(1) as f32;
    sum.iter_mut().for_each(|sum| *sum /= count);
    sum
}

/// Scales a vector to length 1.
fn normalize(vector: &mut [f32]) -> Result<(), String> {
    if vector.iter().any(|value| !value.is_finite()) {
        return Err("a vector that is not finite".into());
    }
    let squares = vector.iter().map(|value| f64::from(*value).powi(2));
    let norm = squares.sum::<f64>().sqrt();
    if norm < f64::from(f32::MIN_POSITIVE) {
        return Err("a vector of zeros".into());
    }
    for value in vector {
        *value = (f64::from(*value) / norm) as f32;
    }
    Ok(())
}

/// An output's shape and values.
fn floats(output: &DynValue) -> Result<(Vec<i64>, Cow<'_, [f32]>), String> {
    if let Ok((shape, values)) = output.try_extract_tensor::<f32>() {
        return Ok((shape.to_vec(), values.into()));
    }
    let halves = output.try_extract_tensor::<f16>();
    let (shape, values) = halves.map_err(|error| told(error.message()))?;
    let values: Vec<f32> = values.iter().map(|value| value.to_f32()).collect();
    Ok((shape.to_vec(), values.into()))
}

/// The beginning of what ONNX Runtime says.
pub(crate) fn told(message: &str) -> String {
    let mut end = message.len().min(MESSAGE_BYTES_MAX);
    while !message.is_char_boundary(end) {
        end -= 1;
    }
    let message = message[..end].trim();
    message.replace(['\n', '\r'], " ")
}

impl OnnxEncoder {
    /// Vectors of texts that differ from each other.
    fn encode(&self, lane: Lane, texts: &[&str]) -> Result<Vec<Vec<f32>>, EmbedError> {
        let prefix = match lane {
            Lane::Bulk => &self.passage_prefix,
            Lane::Query => &self.query_prefix,
        };
        let fault = |detail: String| EmbedError::Texts(format!("{}: {detail}", self.identity.name));
        let tokens = texts.iter().map(|text| match prefix.as_str() {
            "" => self.texts.encode(text),
            prefix => self.texts.encode(&[prefix, text].concat()),
        });
        let tokens: Vec<TokenIds> = tokens.collect::<Result<_, _>>().map_err(fault)?;
        let lengths: Vec<usize> = tokens.iter().map(|text| text.ids.len()).collect();
        // Zeros are the vector of a text without any token.
        let mut vectors = vec![vec![0.0; self.identity.dimension]; texts.len()];
        for mut batch in batches(&lengths, self.graph.texts_max) {
            batch.retain(|place| lengths[*place] > 0);
            if batch.is_empty() {
                continue;
            }
            let ids: Vec<&TokenIds> = batch.iter().map(|place| &tokens[*place]).collect();
            let width = Some(self.graph.width);
            let computed = self.graph.compute(lane, &ids, width).map_err(fault)?;
            for (place, mut vector) in batch.into_iter().zip(computed) {
                vector.truncate(self.identity.dimension);
                normalize(&mut vector).map_err(|what| {
                    let text: String = texts[place].chars().take(60).collect();
                    fault(format!("{what} for the text {text:?}"))
                })?;
                vectors[place] = vector;
            }
        }
        Ok(vectors)
    }
}

impl Embedder for OnnxEncoder {
    fn identity(&self) -> &ModelIdentity {
        &self.identity
    }

    fn embed(&self, lane: Lane, texts: &[&str]) -> Result<Vec<Vec<f32>>, EmbedError> {
        if lane == Lane::Bulk {
            lower_for_bulk();
        }
        encode_distinct(texts, |distinct| self.encode(lane, distinct))
    }

    fn token_counter(&self) -> Arc<dyn TokenCounter> {
        self.texts.counter()
    }

    fn bulk_threads(&self) -> usize {
        self.graph.bulk.count()
    }

    /// A micro-batch; one of several texts where their vectors do not depend on each other.
    fn batch_limits(&self, lane: Lane) -> BatchLimits {
        let limits = BatchLimits::of_a_core(lane);
        BatchLimits {
            tokens: limits.tokens.min(MICRO_BATCH_TOKENS),
            texts: limits.texts.min(self.graph.texts_max),
            is_padded: true,
        }
    }

    fn worth_remembering(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_a_long_text_does_not_get_is_told_as_such() {
        let failed = "Failed to allocate memory for requested buffer of size 3221225472";
        let long = explained(failed.into(), 8192);
        assert!(
            long.starts_with("a text of 8192 tokens needs more memory"),
            "{long}"
        );
        assert!(long.ends_with(failed), "{long}");
        assert_eq!(explained(failed.into(), LONG_TEXT_TOKENS), failed);
        assert_eq!(explained("Invalid rank".into(), 8192), "Invalid rank");
    }
}
