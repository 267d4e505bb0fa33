//! Reads a BERT encoder's weights and packs them for one instruction set.
//!
//! Invariant: an [`EncoderWeights`] has exactly the shapes of its [`EncoderShape`]; a file that does
//! not is an error, never a panic.

use super::Backend;
use super::attention::AttentionShape;
use super::buffer::AlignedBuffer;
use super::linear::PackedLinear;
use super::rows::LayerNorm;
use safetensors::{Dtype, SafeTensors};

/// Sizes of a BERT encoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct EncoderShape {
    /// Word pieces in the vocabulary.
    pub(crate) vocabulary: usize,
    /// Rows of the position embedding.
    pub(crate) positions: usize,
    /// Layers.
    pub(crate) layers: usize,
    /// Attention heads and their size; together the width of a token's vector.
    pub(crate) attention: AttentionShape,
    /// Width between the two halves of the feed-forward network.
    pub(crate) intermediate: usize,
}

impl EncoderShape {
    /// `all-MiniLM-L6-v2`, from its `config.json`.
    pub(crate) const MINILM_L6: Self = Self {
        vocabulary: 30_522,
        positions: 512,
        layers: 6,
        attention: AttentionShape {
            heads: 12,
            head_size: 32,
        },
        intermediate: 1536,
    };
}

/// Why a file of weights can't be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WeightsError {
    /// Not the format.
    #[error("the weights are not a valid safetensors file: {0}")]
    Format(#[from] safetensors::SafeTensorError),
    /// A tensor has another shape or type.
    #[error("tensor `{name}` is {found}, expected F32 {expected:?}")]
    Shape {
        /// Name of the tensor.
        name: String,
        /// What the file has.
        found: String,
        /// What the model needs.
        expected: Vec<usize>,
    },
}

/// One layer.
pub(crate) struct LayerWeights {
    pub(crate) queries_keys_values: PackedLinear,
    pub(crate) attention_output: PackedLinear,
    pub(crate) attention_norm: LayerNorm,
    pub(crate) expand: PackedLinear,
    pub(crate) contract: PackedLinear,
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
    /// Reads a safetensors file in the names that Hugging Face's `BertModel` uses.
    pub(crate) fn read(
        file: &[u8],
        shape: EncoderShape,
        backend: Backend,
    ) -> Result<Self, WeightsError> {
        let reader = Reader {
            tensors: SafeTensors::deserialize(file)?,
            shape,
            panel_width: backend.panel_width(),
        };
        let width = shape.attention.width();
        let types = reader.tensor("embeddings.token_type_embeddings.weight", &[2, width])?;
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
            words: reader.tensor(
                "embeddings.word_embeddings.weight",
                &[shape.vocabulary, width],
            )?,
            positions,
            embedding_norm: reader.norm("embeddings.LayerNorm")?,
            layers: (0..shape.layers)
                .map(|layer| reader.layer(layer))
                .collect::<Result<_, _>>()?,
        })
    }
}

struct Reader<'a> {
    tensors: SafeTensors<'a>,
    shape: EncoderShape,
    panel_width: usize,
}

impl Reader<'_> {
    fn tensor(&self, name: &str, expected: &[usize]) -> Result<Vec<f32>, WeightsError> {
        let tensor = self.tensors.tensor(name)?;
        if tensor.dtype() != Dtype::F32 || tensor.shape() != expected {
            return Err(WeightsError::Shape {
                name: name.into(),
                found: format!("{:?} {:?}", tensor.dtype(), tensor.shape()),
                expected: expected.into(),
            });
        }
        let (bytes, _) = tensor.data().as_chunks::<4>();
        Ok(bytes.iter().map(|b| f32::from_le_bytes(*b)).collect())
    }

    fn norm(&self, name: &str) -> Result<LayerNorm, WeightsError> {
        let width = self.shape.attention.width();
        let read = |part| {
            let values = self.tensor(&format!("{name}.{part}"), &[width])?;
            Ok::<_, WeightsError>(AlignedBuffer::copy_of(&values))
        };
        Ok(LayerNorm {
            scale: read("weight")?,
            shift: read("bias")?,
        })
    }

    fn linear(
        &self,
        name: &str,
        outputs: usize,
        inputs: usize,
    ) -> Result<PackedLinear, WeightsError> {
        let weights = self.tensor(&format!("{name}.weight"), &[outputs, inputs])?;
        let bias = self.tensor(&format!("{name}.bias"), &[outputs])?;
        Ok(PackedLinear::pack(&weights, &bias, self.panel_width))
    }

    /// The three projections as one product; the queries carry the scale of the scores.
    fn queries_keys_values(&self, prefix: &str) -> Result<PackedLinear, WeightsError> {
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
        Ok(PackedLinear::pack(&weights, &bias, self.panel_width))
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
    use super::*;
    use safetensors::tensor::{TensorView, serialize};

    fn read(file: &[u8]) -> String {
        match EncoderWeights::read(file, EncoderShape::MINILM_L6, Backend::Portable) {
            Ok(_) => "read".into(),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn a_wrong_file_is_an_error() {
        assert!(read(b"").contains("safetensors"));
        assert!(read(&[0xFF; 64]).contains("safetensors"));
        let name = "embeddings.token_type_embeddings.weight";
        let data = [0; 12];
        let view = TensorView::new(Dtype::F32, vec![3], &data).unwrap();
        let file = serialize([(name, view)], None).unwrap();
        let message = read(&file);
        assert!(
            message.contains(name) && message.contains("[2, 384]"),
            "{message}"
        );
        assert!(read(&file[..file.len() - 1]).contains("safetensors"));
    }
}
