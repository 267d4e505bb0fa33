//! Where each tensor of a model stands in the device's memory, and the image that is copied there.
//!
//! Matrices, tables and biases are fp16, norms fp32. One allocation and one copy hold all of them. The
//! projections to queries, keys and values are one matrix, as attention reads their results.
//!
//! Invariant: an image is exactly what its [`WeightLayout`] says, all numbers finite; a file that is
//! not a model of the shape is an error, never a panic.

use crate::shape::BertShape;
use half::{bf16, f16};
use safetensors::{Dtype, SafeTensors};

/// Tensors begin where every vector load may.
const TENSOR_ALIGNMENT: usize = 256;
/// Where the same tensors are in files of BERT models with other heads than an embedder's.
const PREFIXES: [&str; 4] = ["", "bert.", "roberta.", "model."];
const WORD_TABLE: &str = "embeddings.word_embeddings.weight";

/// Offsets of a fully connected layer.
#[derive(Clone, Copy, Debug)]
pub struct LinearPlace {
    /// fp16, `[outputs][inputs]`.
    pub weights: usize,
    /// fp16.
    pub bias: usize,
}

/// Offsets of a layer normalisation.
#[derive(Clone, Copy, Debug)]
pub struct NormPlace {
    /// fp32.
    pub scale: usize,
    /// fp32.
    pub shift: usize,
}

/// Offsets of one layer.
#[derive(Clone, Copy, Debug)]
pub struct LayerPlace {
    /// To queries, keys and values.
    pub packed: LinearPlace,
    /// From all heads.
    pub attention_output: LinearPlace,
    /// After attention.
    pub attention_norm: NormPlace,
    /// To the inner width of the feed-forward network.
    pub expand: LinearPlace,
    /// And back.
    pub contract: LinearPlace,
    /// After it.
    pub output_norm: NormPlace,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Precision {
    Half,
    Single,
}

impl Precision {
    fn bytes(self) -> usize {
        match self {
            Self::Half => 2,
            Self::Single => 4,
        }
    }
}

/// One tensor of the file.
#[derive(Clone, Debug)]
struct Tensor {
    name: String,
    shape: Vec<usize>,
    precision: Precision,
    offset: usize,
}

/// Offsets of a whole model.
#[derive(Clone, Debug)]
pub struct WeightLayout {
    /// fp16, `[vocabulary][width]`.
    pub words: usize,
    /// fp16, `[positions][width]`.
    pub positions: usize,
    /// fp16, `[types][width]`.
    pub types: usize,
    /// After the embeddings.
    pub embedding_norm: NormPlace,
    /// In order.
    pub layers: Vec<LayerPlace>,
    /// Bytes of the image.
    pub bytes: usize,
    tensors: Vec<Tensor>,
}

/// Hands out places.
#[derive(Default)]
struct Placer {
    tensors: Vec<Tensor>,
    end: usize,
}

impl Placer {
    fn align(&mut self) {
        self.end = self.end.next_multiple_of(TENSOR_ALIGNMENT);
    }

    /// Right behind the last tensor.
    fn append(&mut self, name: String, shape: &[usize], precision: Precision) -> usize {
        let offset = self.end;
        self.end += shape.iter().product::<usize>() * precision.bytes();
        self.tensors.push(Tensor {
            name,
            shape: shape.into(),
            precision,
            offset,
        });
        offset
    }

    fn place(&mut self, name: String, shape: &[usize], precision: Precision) -> usize {
        self.align();
        self.append(name, shape, precision)
    }

    fn table(&mut self, name: &str, rows: usize, width: usize) -> usize {
        self.place(name.into(), &[rows, width], Precision::Half)
    }

    fn linear(&mut self, name: &str, outputs: usize, inputs: usize) -> LinearPlace {
        LinearPlace {
            weights: self.place(
                format!("{name}.weight"),
                &[outputs, inputs],
                Precision::Half,
            ),
            bias: self.place(format!("{name}.bias"), &[outputs], Precision::Half),
        }
    }

    fn norm(&mut self, name: &str, width: usize) -> NormPlace {
        NormPlace {
            scale: self.place(format!("{name}.weight"), &[width], Precision::Single),
            shift: self.place(format!("{name}.bias"), &[width], Precision::Single),
        }
    }

    /// Three layers of the file as one: their rows one after the other.
    fn packed(&mut self, name: &str, width: usize) -> LinearPlace {
        let parts = ["query", "key", "value"];
        self.align();
        let weights = self.end;
        for part in parts {
            let name = format!("{name}.{part}.weight");
            self.append(name, &[width, width], Precision::Half);
        }
        self.align();
        let bias = self.end;
        for part in parts {
            self.append(format!("{name}.{part}.bias"), &[width], Precision::Half);
        }
        LinearPlace { weights, bias }
    }

    fn layer(&mut self, layer: usize, shape: &BertShape) -> LayerPlace {
        let (width, intermediate) = (shape.width(), shape.intermediate);
        let name = |part: &str| format!("encoder.layer.{layer}.{part}");
        LayerPlace {
            packed: self.packed(&name("attention.self"), width),
            attention_output: self.linear(&name("attention.output.dense"), width, width),
            attention_norm: self.norm(&name("attention.output.LayerNorm"), width),
            expand: self.linear(&name("intermediate.dense"), intermediate, width),
            contract: self.linear(&name("output.dense"), width, intermediate),
            output_norm: self.norm(&name("output.LayerNorm"), width),
        }
    }
}

/// Why a file of weights can't be used.
#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    /// Not the format, or without a tensor.
    #[error("the weights are not a valid safetensors file of the model: {0}")]
    Format(#[from] safetensors::SafeTensorError),
    /// A tensor has another shape or type.
    #[error("tensor `{name}` is {found}, expected numbers of shape {expected:?}")]
    Shape {
        /// Name of the tensor.
        name: String,
        /// What the file has.
        found: String,
        /// What the model needs.
        expected: Vec<usize>,
    },
    /// fp16 ends at 65,504.
    #[error("tensor `{name}` has {value}, which fp16 can't hold")]
    Range {
        /// Name of the tensor.
        name: String,
        /// The first such number.
        value: f32,
    },
    /// A norm, which is kept in fp32, has what is no number.
    #[error("tensor `{name}` has {value}, which is not a finite number")]
    NotFinite {
        /// Name of the tensor.
        name: String,
        /// The first such value.
        value: f32,
    },
}

impl WeightLayout {
    /// Of a model's weights, under the names that Hugging Face's `BertModel` uses. The shape is one that
    /// [`BertShape::check`] has passed.
    pub fn of(shape: &BertShape) -> Self {
        let mut placer = Placer::default();
        let width = shape.width();
        let words = placer.table(WORD_TABLE, shape.vocabulary, width);
        let name = "embeddings.position_embeddings.weight";
        let positions = placer.table(name, shape.positions, width);
        let name = "embeddings.token_type_embeddings.weight";
        let types = placer.table(name, shape.types, width);
        let embedding_norm = placer.norm("embeddings.LayerNorm", width);
        let layers = (0..shape.layers)
            .map(|layer| placer.layer(layer, shape))
            .collect();
        placer.align();
        Self {
            words,
            positions,
            types,
            embedding_norm,
            layers,
            bytes: placer.end,
            tensors: placer.tensors,
        }
    }

    /// The image of a safetensors file, whose numbers are fp32, fp16 or bf16.
    ///
    /// # Errors
    /// When the file is not that of such a model, fp16 can't hold a number of it, or a norm is not finite.
    pub fn read(&self, file: &[u8]) -> Result<Vec<u8>, WeightsError> {
        let file = SafeTensors::deserialize(file)?;
        let has_words = |prefix: &&&str| file.tensor(&format!("{prefix}{WORD_TABLE}")).is_ok();
        let prefix = PREFIXES.iter().find(has_words).copied().unwrap_or("");
        let mut image = vec![0; self.bytes];
        for tensor in &self.tensors {
            let name = format!("{prefix}{}", tensor.name);
            let values = numbers(&file, &name, &tensor.shape)?;
            let to = &mut image[tensor.offset..];
            match tensor.precision {
                Precision::Single => write_singles(&values, to)
                    .map_err(|value| WeightsError::NotFinite { name, value })?,
                Precision::Half => write_halves(&values, to)
                    .map_err(|value| WeightsError::Range { name, value })?,
            }
        }
        Ok(image)
    }
}

#[cfg(any(test, feature = "verify"))]
impl WeightLayout {
    /// Weights that mean nothing, for measuring: small random numbers, and norms that scale by 1.
    pub fn random_image(&self, seed: u64) -> Vec<u8> {
        let mut noise = crate::verify::Noise::new(seed);
        let mut image = vec![0; self.bytes];
        for tensor in &self.tensors {
            let count = tensor.shape.iter().product();
            let to = &mut image[tensor.offset..];
            // Never out of range.
            let _ = match tensor.precision {
                Precision::Half => write_halves(&noise.floats(count, 0.1), to),
                Precision::Single => write_singles(&vec![1.0; count], to),
            };
        }
        image
    }
}

fn numbers(
    file: &SafeTensors<'_>,
    name: &str,
    expected: &[usize],
) -> Result<Vec<f32>, WeightsError> {
    let tensor = file.tensor(name)?;
    let data = tensor.data();
    let (pairs, _) = data.as_chunks::<2>();
    match tensor.dtype() {
        _ if tensor.shape() != expected => {}
        Dtype::F32 => {
            let (words, _) = data.as_chunks::<4>();
            return Ok(words
                .iter()
                .map(|bytes| f32::from_le_bytes(*bytes))
                .collect());
        }
        Dtype::F16 => {
            let number = |bytes: &[u8; 2]| f16::from_le_bytes(*bytes).to_f32();
            return Ok(pairs.iter().map(number).collect());
        }
        Dtype::BF16 => {
            let number = |bytes: &[u8; 2]| bf16::from_le_bytes(*bytes).to_f32();
            return Ok(pairs.iter().map(number).collect());
        }
        _ => {}
    }
    Err(WeightsError::Shape {
        name: name.into(),
        found: format!("{:?} {:?}", tensor.dtype(), tensor.shape()),
        expected: expected.into(),
    })
}

/// The first number that is none is the error.
fn write_singles(values: &[f32], to: &mut [u8]) -> Result<(), f32> {
    for (to, value) in to.chunks_exact_mut(4).zip(values) {
        if !value.is_finite() {
            return Err(*value);
        }
        to.copy_from_slice(&value.to_le_bytes());
    }
    Ok(())
}

/// The first number that does not fit is the error.
fn write_halves(values: &[f32], to: &mut [u8]) -> Result<(), f32> {
    for (to, value) in to.chunks_exact_mut(2).zip(values) {
        let half = f16::from_f32(*value);
        if !half.is_finite() {
            return Err(*value);
        }
        to.copy_from_slice(&half.to_le_bytes());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Noise, TinyModel, as_safetensors};

    #[test]
    fn a_file_becomes_an_image() {
        let model = TinyModel::new(1, 12, 32);
        let layout = WeightLayout::of(&model.shape);
        for (dtype, prefix) in [
            (Dtype::F32, ""),
            (Dtype::F16, "bert."),
            (Dtype::BF16, "model."),
        ] {
            let image = layout.read(&as_safetensors(&model, dtype, prefix)).unwrap();
            assert_eq!(image.len(), layout.bytes);
            let key = &model.tensor("encoder.layer.0.attention.self.key.weight").1;
            let width = model.shape.width();
            let at = layout.layers[0].packed.weights + width * width * 2;
            let found = f16::from_le_bytes([image[at], image[at + 1]]).to_f32();
            assert!(
                (found - key[0]).abs() < 1e-3,
                "{dtype:?} {found} {}",
                key[0]
            );
        }
    }

    #[test]
    fn places_do_not_overlap() {
        let layout = WeightLayout::of(&BertShape::BGE_BASE);
        let mut end = 0;
        for tensor in &layout.tensors {
            assert!(tensor.offset >= end, "{}", tensor.name);
            end = tensor.offset + tensor.shape.iter().product::<usize>() * tensor.precision.bytes();
        }
        assert!(end <= layout.bytes);
    }

    #[test]
    fn a_wrong_file_is_an_error() {
        let model = TinyModel::new(1, 12, 32);
        let layout = WeightLayout::of(&model.shape);
        let refused = |file: &[u8]| layout.read(file).unwrap_err().to_string();
        assert!(refused(b"").contains("safetensors"));
        assert!(refused(&[0xFF; 64]).contains("safetensors"));
        let file = as_safetensors(&model, Dtype::F32, "");
        assert!(refused(&file[..file.len() - 1]).contains("safetensors"));
        assert!(refused(&as_safetensors(&model, Dtype::F32, "other.")).contains(WORD_TABLE));
        let narrow = WeightLayout::of(&TinyModel::new(1, 12, 64).shape);
        let message = narrow.read(&file).unwrap_err().to_string();
        assert!(
            message.contains(WORD_TABLE) && message.contains("768"),
            "{message}"
        );
        let mut noise = Noise::new(1);
        for _ in 0..200 {
            let mut file = file.clone();
            // The header is at the beginning: most changes go there.
            let end = if noise.below(4) == 0 {
                file.len()
            } else {
                4000
            };
            for _ in 0..=noise.below(3) {
                file[noise.below(end)] = noise.next_u64() as u8;
            }
            file.truncate(file.len() - noise.below(2) * noise.below(file.len()));
            // Whatever it says, it answers.
            let _ = layout.read(&file);
        }
        for value in [1e6, f32::NAN, f32::INFINITY] {
            let mut model = model.clone();
            model.tensors[0].2[3] = value;
            let message = refused(&as_safetensors(&model, Dtype::F32, ""));
            assert!(message.contains("fp16"), "{message}");
        }
    }

    /// Norms are fp32, so they were once read without a look; one NaN makes every vector NaN.
    #[test]
    fn a_norm_that_is_not_finite_is_an_error() {
        let model = TinyModel::new(1, 12, 32);
        let layout = WeightLayout::of(&model.shape);
        let norms =
            (0..model.tensors.len()).filter(|at| model.tensors[*at].0.contains("LayerNorm"));
        for at in norms {
            for value in [f32::NAN, f32::INFINITY] {
                let mut model = model.clone();
                model.tensors[at].2[5] = value;
                let file = as_safetensors(&model, Dtype::F32, "");
                let message = layout.read(&file).unwrap_err().to_string();
                assert!(
                    message.contains(&model.tensors[at].0) && message.contains("not a finite"),
                    "{message}"
                );
            }
        }
    }
}
