//! Reads a BERT encoder's weights and packs them for one instruction set.
//!
//! Invariant: an [`EncoderWeights`] has exactly the shapes of its [`EncoderShape`]; a file that does
//! not is an error, never a panic.

use super::Backend;
use super::attention::AttentionShape;
use super::buffer::AlignedBuffer;
use super::dense::{DenseLayer, Products};
use super::rows::{LayerNorm, Pooling};
use half::{bf16, f16};
use safetensors::{Dtype, SafeTensors};

/// Sizes of a BERT encoder, and what its files say about its arithmetic.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct EncoderShape {
    /// Word pieces in the vocabulary.
    pub(crate) vocabulary: usize,
    /// Rows of the position embedding.
    pub(crate) positions: usize,
    /// Rows of the token type embedding, of which the first is used.
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
}

impl EncoderShape {
    /// Widths are whole numbers of the widest panel of weights.
    pub(crate) const WIDTH_UNIT: usize = 32;

    /// Parameters of such a model, with the parts of a checkpoint that an encoder does not need: a
    /// pooler, and a head that predicts words.
    pub(crate) fn parameters_max(self) -> usize {
        let width = self.attention.width();
        let embeddings = 2 * self.vocabulary + self.positions + self.token_types;
        let layer = 4 * width + 2 * self.intermediate + 16;
        let feed_forward_bias = self.layers * self.intermediate;
        (embeddings + self.layers * layer + 3 * width) * width
            + feed_forward_bias
            + 2 * self.vocabulary
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
}

/// One layer.
pub(crate) struct LayerWeights {
    pub(crate) queries_keys_values: DenseLayer,
    pub(crate) attention_output: DenseLayer,
    pub(crate) attention_norm: LayerNorm,
    pub(crate) expand: DenseLayer,
    pub(crate) contract: DenseLayer,
    pub(crate) output_norm: LayerNorm,
}

/// A whole encoder.
pub(crate) struct EncoderWeights {
    /// `[vocabulary][width]`
    pub(crate) words: Vec<f32>,
    /// `[positions][width]`, the embedding of token type 0 already added.
    pub(crate) positions: Vec<f32>,
    pub(crate) embedding_norm: LayerNorm,
    pub(crate) layers: Vec<LayerWeights>,
}

impl EncoderWeights {
    /// Reads a safetensors file in the names that Hugging Face's `BertModel` uses, alone or as the
    /// part `bert` of a larger model.
    pub(crate) fn read(
        file: &[u8],
        shape: EncoderShape,
        backend: Backend,
        products: Products,
    ) -> Result<Self, WeightsError> {
        let tensors = SafeTensors::deserialize(file)?;
        let is_part = tensors.tensor(&format!("{PART}{WORDS}")).is_ok();
        let reader = Reader {
            tensors,
            part: if is_part { PART } else { "" },
            shape,
            backend,
            products,
        };
        let width = shape.attention.width();
        let types = reader.tensor(
            "embeddings.token_type_embeddings.weight",
            &[shape.token_types, width],
        )?;
        let mut positions = reader.tensor(
            "embeddings.position_embeddings.weight",
            &[shape.positions, width],
        )?;
        for row in positions.chunks_exact_mut(width) {
            for (value, of_type) in row.iter_mut().zip(&types[..width]) {
                *value += of_type;
            }
        }
        Ok(Self {
            words: reader.tensor(WORDS, &[shape.vocabulary, width])?,
            positions,
            embedding_norm: reader.norm("embeddings.LayerNorm")?,
            layers: (0..shape.layers)
                .map(|layer| reader.layer(layer))
                .collect::<Result<_, _>>()?,
        })
    }
}

/// The word embedding's name.
const WORDS: &str = "embeddings.word_embeddings.weight";
/// What names begin with in a checkpoint of a larger model.
const PART: &str = "bert.";

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
            shift: read("bias", "beta")?,
            variance_floor: self.shape.variance_floor,
        })
    }

    fn linear(
        &self,
        name: &str,
        outputs: usize,
        inputs: usize,
    ) -> Result<DenseLayer, WeightsError> {
        let weights = self.tensor(&format!("{name}.weight"), &[outputs, inputs])?;
        let bias = self.tensor(&format!("{name}.bias"), &[outputs])?;
        Ok(DenseLayer::pack(
            &weights,
            &bias,
            self.backend,
            self.products,
        ))
    }

    /// The three projections as one product; the queries carry the scale of the scores.
    fn queries_keys_values(&self, prefix: &str) -> Result<DenseLayer, WeightsError> {
        let width = self.shape.attention.width();
        let scale = 1.0 / (self.shape.attention.head_size as f32).sqrt();
        let mut weights = Vec::with_capacity(3 * width * width);
        let mut bias = Vec::with_capacity(3 * width);
        for (part, factor) in [("query", scale), ("key", 1.0), ("value", 1.0)] {
            let name = format!("{prefix}.attention.self.{part}");
            let part_weights = self.tensor(&format!("{name}.weight"), &[width, width])?;
            let part_bias = self.tensor(&format!("{name}.bias"), &[width])?;
            weights.extend(part_weights.iter().map(|x| x * factor));
            bias.extend(part_bias.iter().map(|x| x * factor));
        }
        Ok(DenseLayer::pack(
            &weights,
            &bias,
            self.backend,
            self.products,
        ))
    }

    fn layer(&self, layer: usize) -> Result<LayerWeights, WeightsError> {
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
