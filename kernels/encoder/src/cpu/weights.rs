//! Reads an encoder's weights and packs them for one instruction set.
//!
//! Invariant: an [`EncoderWeights`] has exactly the shapes of its [`EncoderShape`]; a file that does
//! not is an error, never a panic.

use super::Backend;
use super::architecture::{Architecture, Family, Positions};
use super::attention::AttentionShape;
use super::buffer::AlignedBuffer;
use super::dense::{DenseLayer, Products};
use super::rotary::Rotation;
use super::rows::{LayerNorm, Pooling};
use half::{bf16, f16};
use safetensors::{Dtype, SafeTensors};

/// Sizes of an encoder, and what its files say about its arithmetic.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct EncoderShape {
    /// Word pieces in the vocabulary.
    pub(crate) vocabulary: usize,
    /// Tokens of the longest text that has positions.
    pub(crate) positions: usize,
    /// Rows of the token type embedding, of which the first is used; none where there is no such
    /// embedding.
    pub(crate) token_types: usize,
    /// Layers.
    pub(crate) layers: usize,
    /// Attention heads and their size; together the width of a token's vector.
    pub(crate) attention: AttentionShape,
    /// Width between the two halves of the feed-forward network.
    pub(crate) intermediate: usize,
    /// Added to the variance in layer normalisations.
    pub(crate) variance_floor: f32,
    /// How a text's tokens become one vector.
    pub(crate) pooling: Pooling,
    /// What else tells its arithmetic from others'.
    pub(crate) architecture: Architecture,
}

impl EncoderShape {
    /// Widths are whole numbers of the widest panel of weights.
    pub(crate) const WIDTH_UNIT: usize = 32;

    /// Parameters of such a model, with the parts of a checkpoint that an encoder does not need: a
    /// pooler, and a head that predicts words.
    pub(crate) fn parameters_max(self) -> usize {
        let width = self.attention.width();
        let positions = self.positions + self.architecture.positions.rows_before();
        let embeddings = 2 * self.vocabulary + positions + self.token_types;
        let layer = 4 * width + self.intermediate + self.expanded() + 16;
        let feed_forward_bias = self.layers * self.intermediate;
        (embeddings + self.layers * layer + 3 * width) * width
            + feed_forward_bias
            + 2 * self.vocabulary
    }

    /// Outputs of the first product of the feed-forward network.
    pub(crate) fn expanded(self) -> usize {
        self.architecture.feed_forward.parts() * self.intermediate
    }

    /// Whether it is BERT as it was published, in these sizes: what a device that knows nothing else
    /// may compute.
    pub(crate) fn is_plain_bert(self) -> bool {
        self.architecture == Architecture::BERT
    }
}

/// Why a file of weights can't be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WeightsError {
    /// Not the format.
    #[error("the weights are not a valid safetensors file: {0}")]
    Format(#[from] safetensors::SafeTensorError),
    /// A tensor has another shape or type.
    #[error("tensor `{name}` is {found}, expected {expected:?} of F32, F16 or BF16")]
    Shape {
        /// Name of the tensor.
        name: String,
        /// What the file has.
        found: String,
        /// What the model needs.
        expected: Vec<usize>,
    },
    /// A tensor is missing.
    #[error("there is no tensor `{0}`")]
    Missing(String),
    /// A tensor has a value that no sum can be made of.
    #[error("tensor `{0}` has a value that is not finite")]
    NotFinite(String),
    /// A tensor that would change the arithmetic.
    #[error("there is a tensor `{0}`, and such models are computed without one")]
    Bias(String),
}

/// One layer.
pub(crate) struct LayerWeights {
    pub(crate) queries_keys_values: DenseLayer,
    pub(crate) attention_output: DenseLayer,
    /// What makes the feed-forward network's rows.
    pub(crate) attention_norm: LayerNorm,
    pub(crate) expand: DenseLayer,
    pub(crate) contract: DenseLayer,
    /// What makes the next layer's rows, or the last.
    pub(crate) output_norm: LayerNorm,
    /// How far a token looks; `None` where at all.
    pub(crate) reach: Option<usize>,
}

/// A whole encoder.
pub(crate) struct EncoderWeights {
    /// `[vocabulary][width]`
    pub(crate) words: Vec<f32>,
    /// `[positions][width]`, the embedding of token type 0 already added; one row where positions are
    /// not added.
    pub(crate) positions: Vec<f32>,
    pub(crate) embedding_norm: LayerNorm,
    pub(crate) layers: Vec<LayerWeights>,
    /// Of layers that look at all tokens, and of the others.
    rotations: Option<[Rotation; 2]>,
}

impl EncoderWeights {
    /// Reads a safetensors file in the names of the architecture's family, alone or as a part of a
    /// larger model.
    pub(crate) fn read(
        file: &[u8],
        shape: EncoderShape,
        backend: Backend,
        products: Products,
    ) -> Result<Self, WeightsError> {
        let tensors = SafeTensors::deserialize(file)?;
        let words = match shape.architecture.family {
            Family::Bert | Family::NomicBert => "embeddings.word_embeddings.weight",
            Family::ModernBert => "embeddings.tok_embeddings.weight",
        };
        let is_part = |part: &&&str| tensors.tensor(&format!("{part}{words}")).is_ok();
        let part = PARTS.iter().find(is_part).copied().unwrap_or_default();
        let reader = Reader {
            tensors,
            part,
            shape,
            backend,
            products,
        };
        let width = shape.attention.width();
        Ok(Self {
            words: reader.tensor(words, &[shape.vocabulary, width])?,
            positions: reader.positions()?,
            embedding_norm: reader.norm(match shape.architecture.family {
                Family::Bert => "embeddings.LayerNorm",
                Family::NomicBert => "emb_ln",
                Family::ModernBert => "embeddings.norm",
            })?,
            layers: (0..shape.layers)
                .map(|layer| reader.layer(layer))
                .collect::<Result<_, _>>()?,
            rotations: rotations(shape),
        })
    }

    /// What turns a layer's queries and keys.
    pub(crate) fn rotation(&self, layer: &LayerWeights) -> Option<&Rotation> {
        let [global, local] = self.rotations.as_ref()?;
        Some(if layer.reach.is_some() { local } else { global })
    }
}

fn rotations(shape: EncoderShape) -> Option<[Rotation; 2]> {
    let Positions::Rotary { base, base_local } = shape.architecture.positions else {
        return None;
    };
    let head_size = shape.attention.head_size;
    let local_places = match shape.architecture.window {
        Some(_) => shape.positions,
        None => 0,
    };
    Some([
        Rotation::new(shape.positions, head_size, base),
        Rotation::new(local_places, head_size, base_local),
    ])
}

/// What names begin with in a checkpoint of a larger model.
const PARTS: [&str; 3] = ["bert.", "roberta.", "model."];

struct Reader<'a> {
    tensors: SafeTensors<'a>,
    part: &'static str,
    shape: EncoderShape,
    backend: Backend,
    products: Products,
}

impl Reader<'_> {
    /// A tensor of that shape as f32. Nothing is allocated before its shape and type are seen.
    fn tensor(&self, name: &str, expected: &[usize]) -> Result<Vec<f32>, WeightsError> {
        let name = format!("{}{name}", self.part);
        let tensor = match self.tensors.tensor(&name) {
            Ok(tensor) => tensor,
            Err(safetensors::SafeTensorError::TensorNotFound(_)) => {
                return Err(WeightsError::Missing(name));
            }
            Err(error) => return Err(error.into()),
        };
        let wrong = || WeightsError::Shape {
            name: name.clone(),
            found: format!("{:?} of {}", tensor.shape(), tensor.dtype()),
            expected: expected.into(),
        };
        if tensor.shape() != expected {
            return Err(wrong());
        }
        let (pairs, _) = tensor.data().as_chunks::<2>();
        let values: Vec<f32> = match tensor.dtype() {
            Dtype::F32 => {
                let (bytes, _) = tensor.data().as_chunks::<4>();
                bytes.iter().map(|b| f32::from_le_bytes(*b)).collect()
            }
            Dtype::F16 => pairs
                .iter()
                .map(|b| f16::from_le_bytes(*b).to_f32())
                .collect(),
            Dtype::BF16 => pairs
                .iter()
                .map(|b| bf16::from_le_bytes(*b).to_f32())
                .collect(),
            _ => return Err(wrong()),
        };
        match values.iter().all(|value| value.is_finite()) {
            true => Ok(values),
            false => Err(WeightsError::NotFinite(name)),
        }
    }

    /// Rows of the position embedding with the first token type's added, or that alone.
    fn positions(&self) -> Result<Vec<f32>, WeightsError> {
        let width = self.shape.attention.width();
        let mut of_type = match self.shape.token_types {
            0 => vec![0.0; width],
            types => self.tensor("embeddings.token_type_embeddings.weight", &[types, width])?,
        };
        of_type.truncate(width);
        let positions = self.shape.architecture.positions;
        if matches!(positions, Positions::Rotary { .. }) {
            return Ok(of_type);
        }
        let rows = self.shape.positions + positions.rows_before();
        let mut table = self.tensor("embeddings.position_embeddings.weight", &[rows, width])?;
        for row in table.chunks_exact_mut(width) {
            for (value, of_type) in row.iter_mut().zip(&of_type) {
                *value += of_type;
            }
        }
        Ok(table)
    }

    fn norm(&self, name: &str) -> Result<LayerNorm, WeightsError> {
        let width = self.shape.attention.width();
        // Checkpoints from before PyTorch have the older names.
        let read = |part: &str, older: &str| {
            let values = match self.tensor(&format!("{name}.{part}"), &[width]) {
                Err(WeightsError::Missing(missing)) => self
                    .tensor(&format!("{name}.{older}"), &[width])
                    .map_err(|_| WeightsError::Missing(missing)),
                found => found,
            }?;
            Ok::<_, WeightsError>(AlignedBuffer::copy_of(&values))
        };
        Ok(LayerNorm {
            scale: read("weight", "gamma")?,
            shift: match self.shape.architecture.family {
                Family::Bert | Family::NomicBert => read("bias", "beta")?,
                Family::ModernBert => {
                    self.no_tensor(&format!("{name}.beta"))?;
                    AlignedBuffer::copy_of(&self.no_bias(name, width)?)
                }
            },
            variance_floor: self.shape.variance_floor,
        })
    }

    /// The bias of a product that has none.
    fn no_bias(&self, name: &str, outputs: usize) -> Result<Vec<f32>, WeightsError> {
        self.no_tensor(&format!("{name}.bias"))?;
        Ok(vec![0.0; outputs])
    }

    fn no_tensor(&self, name: &str) -> Result<(), WeightsError> {
        let name = format!("{}{name}", self.part);
        match self.tensors.tensor(&name) {
            Err(safetensors::SafeTensorError::TensorNotFound(_)) => Ok(()),
            _ => Err(WeightsError::Bias(name)),
        }
    }

    fn linear(
        &self,
        name: &str,
        outputs: usize,
        inputs: usize,
    ) -> Result<DenseLayer, WeightsError> {
        let weights = self.tensor(&format!("{name}.weight"), &[outputs, inputs])?;
        let bias = match self.shape.architecture.family {
            Family::Bert => self.tensor(&format!("{name}.bias"), &[outputs])?,
            Family::NomicBert | Family::ModernBert => self.no_bias(name, outputs)?,
        };
        Ok(self.pack(&weights, &bias))
    }

    fn pack(&self, weights: &[f32], bias: &[f32]) -> DenseLayer {
        DenseLayer::pack(weights, bias, self.backend, self.products)
    }

    /// What queries are multiplied with, so that products with keys are scores.
    fn score_scale(&self) -> f32 {
        1.0 / (self.shape.attention.head_size as f32).sqrt()
    }

    /// The three projections of one tensor without bias.
    fn joined_queries_keys_values(&self, name: &str) -> Result<DenseLayer, WeightsError> {
        let width = self.shape.attention.width();
        let mut weights = self.tensor(&format!("{name}.weight"), &[3 * width, width])?;
        let scale = self.score_scale();
        let queries = weights.iter_mut().take(width * width);
        queries.for_each(|weight| *weight *= scale);
        Ok(self.pack(&weights, &self.no_bias(name, 3 * width)?))
    }

    /// The three projections as one product; the queries carry the scale of the scores.
    fn queries_keys_values(&self, prefix: &str) -> Result<DenseLayer, WeightsError> {
        let width = self.shape.attention.width();
        let scale = self.score_scale();
        let mut weights = Vec::with_capacity(3 * width * width);
        let mut bias = Vec::with_capacity(3 * width);
        for (part, factor) in [("query", scale), ("key", 1.0), ("value", 1.0)] {
            let name = format!("{prefix}.attention.self.{part}");
            let part_weights = self.tensor(&format!("{name}.weight"), &[width, width])?;
            let part_bias = self.tensor(&format!("{name}.bias"), &[width])?;
            weights.extend(part_weights.iter().map(|x| x * factor));
            bias.extend(part_bias.iter().map(|x| x * factor));
        }
        Ok(self.pack(&weights, &bias))
    }

    fn layer(&self, layer: usize) -> Result<LayerWeights, WeightsError> {
        match self.shape.architecture.family {
            Family::Bert => self.bert_layer(layer),
            Family::NomicBert => self.nomic_bert_layer(layer),
            Family::ModernBert => self.modern_bert_layer(layer),
        }
    }

    fn nomic_bert_layer(&self, layer: usize) -> Result<LayerWeights, WeightsError> {
        let (width, intermediate) = (self.shape.attention.width(), self.shape.intermediate);
        let prefix = format!("encoder.layers.{layer}");
        // The half that is bent stands first.
        let mut expand = Vec::with_capacity(2 * intermediate * width);
        let mut bias = Vec::with_capacity(2 * intermediate);
        for part in ["fc12", "fc11"] {
            let name = format!("{prefix}.mlp.{part}");
            let weights = self.tensor(&format!("{name}.weight"), &[intermediate, width])?;
            expand.extend(weights);
            bias.extend(self.no_bias(&name, intermediate)?);
        }
        Ok(LayerWeights {
            queries_keys_values: self.joined_queries_keys_values(&format!("{prefix}.attn.Wqkv"))?,
            attention_output: self.linear(&format!("{prefix}.attn.out_proj"), width, width)?,
            attention_norm: self.norm(&format!("{prefix}.norm1"))?,
            expand: self.pack(&expand, &bias),
            contract: self.linear(&format!("{prefix}.mlp.fc2"), width, intermediate)?,
            output_norm: self.norm(&format!("{prefix}.norm2"))?,
            reach: None,
        })
    }

    /// Its normalisations stand before a step, so each is that of the step after it here; the first
    /// layer's attention gets the embedding's rows as they are.
    fn modern_bert_layer(&self, layer: usize) -> Result<LayerWeights, WeightsError> {
        let (width, intermediate) = (self.shape.attention.width(), self.shape.intermediate);
        let prefix = format!("layers.{layer}");
        let next = layer + 1;
        let output_norm = match next == self.shape.layers {
            true => self.norm("final_norm")?,
            false => self.norm(&format!("layers.{next}.attn_norm"))?,
        };
        Ok(LayerWeights {
            queries_keys_values: self.joined_queries_keys_values(&format!("{prefix}.attn.Wqkv"))?,
            attention_output: self.linear(&format!("{prefix}.attn.Wo"), width, width)?,
            attention_norm: self.norm(&format!("{prefix}.mlp_norm"))?,
            expand: self.linear(&format!("{prefix}.mlp.Wi"), 2 * intermediate, width)?,
            contract: self.linear(&format!("{prefix}.mlp.Wo"), width, intermediate)?,
            output_norm,
            reach: self.shape.architecture.reach(layer),
        })
    }

    fn bert_layer(&self, layer: usize) -> Result<LayerWeights, WeightsError> {
        let (width, intermediate) = (self.shape.attention.width(), self.shape.intermediate);
        let prefix = format!("encoder.layer.{layer}");
        Ok(LayerWeights {
            queries_keys_values: self.queries_keys_values(&prefix)?,
            attention_output: self.linear(
                &format!("{prefix}.attention.output.dense"),
                width,
                width,
            )?,
            attention_norm: self.norm(&format!("{prefix}.attention.output.LayerNorm"))?,
            expand: self.linear(&format!("{prefix}.intermediate.dense"), intermediate, width)?,
            contract: self.linear(&format!("{prefix}.output.dense"), width, intermediate)?,
            output_norm: self.norm(&format!("{prefix}.output.LayerNorm"))?,
            reach: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{SMALL_SHAPE, small_weights};
    use super::*;
    use safetensors::tensor::{TensorView, serialize};

    fn read(file: &[u8]) -> Result<EncoderWeights, String> {
        EncoderWeights::read(file, SMALL_SHAPE, Backend::Portable, Products::F32)
            .map_err(|error| error.to_string())
    }

    fn fault(file: &[u8]) -> String {
        read(file).err().unwrap_or_default()
    }

    /// The small model with one tensor changed.
    fn changed(name: &str, dtype: Dtype, shape: Vec<usize>, data: &[u8]) -> Vec<u8> {
        let whole = small_weights(Dtype::F32, "");
        let whole = SafeTensors::deserialize(&whole).unwrap();
        let mut tensors = whole.tensors();
        tensors.retain(|(it, _)| it != name);
        tensors.push((name.into(), TensorView::new(dtype, shape, data).unwrap()));
        serialize(tensors, None).unwrap()
    }

    #[test]
    fn a_wrong_file_is_an_error() {
        assert!(fault(b"").contains("safetensors"));
        assert!(fault(&[0xFF; 64]).contains("safetensors"));
        let whole = small_weights(Dtype::F32, "");
        assert!(read(&whole).is_ok());
        assert!(fault(&whole[..whole.len() - 1]).contains("safetensors"));
        let name = "embeddings.token_type_embeddings.weight";
        let message = fault(&changed(name, Dtype::F32, vec![3], &[0; 12]));
        assert!(
            message.contains(name) && message.contains("[3] of F32, expected [2, 64]"),
            "{message}"
        );
        let message = fault(&changed(name, Dtype::I32, vec![2, 64], &[0; 512]));
        assert!(message.contains("of I32"), "{message}");
        let message = fault(&changed(name, Dtype::F32, vec![2, 64], &[0xFF; 512]));
        assert!(message.contains("not finite"), "{message}");
    }

    #[test]
    fn smaller_types_and_other_names_are_read() {
        let reference = read(&small_weights(Dtype::F32, "")).unwrap();
        for (dtype, error_max) in [(Dtype::F32, 0.0), (Dtype::F16, 3e-4), (Dtype::BF16, 2e-3)] {
            let same = read(&small_weights(dtype, "bert.")).unwrap();
            for (x, y) in same.words.iter().zip(&reference.words) {
                assert!((x - y).abs() <= error_max, "{dtype:?}: {x} and {y}");
            }
        }
        let older = small_weights(Dtype::F32, "");
        let older = SafeTensors::deserialize(&older).unwrap();
        let renamed = older.tensors().into_iter().map(|(name, tensor)| {
            let name = name.replace("LayerNorm.weight", "LayerNorm.gamma");
            (name.replace("LayerNorm.bias", "LayerNorm.beta"), tensor)
        });
        assert!(read(&serialize(renamed, None).unwrap()).is_ok());
    }

    #[test]
    fn the_count_of_parameters_bounds_every_checkpoint() {
        let file = small_weights(Dtype::F32, "");
        assert!(file.len() < 4 * SMALL_SHAPE.parameters_max() + (1 << 16));
    }
}
