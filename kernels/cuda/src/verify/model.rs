//! A small model with random weights, its file, and its forward pass by the definition.
//!
//! Invariant: its numbers are those that fp16 has, so that only the arithmetic is compared.

use super::noise::Noise;
use super::reference::{attention_reference, gelu_reference, normalise_reference, pool_reference};
use crate::shape::BertShape;
use half::{bf16, f16};
use safetensors::Dtype;
use safetensors::tensor::{TensorView, serialize};

/// A small BERT with random weights, and the widths that kernels are compiled for.
#[derive(Clone)]
pub struct TinyModel {
    /// Its sizes.
    pub shape: BertShape,
    /// Name, shape and numbers of each tensor.
    pub tensors: Vec<(String, Vec<usize>, Vec<f32>)>,
}

impl TinyModel {
    /// Of as many layers, heads and numbers of a head.
    pub fn new(layers: usize, heads: usize, head_size: usize) -> Self {
        Self::of(Self::shape(layers, heads, head_size))
    }

    /// The shape of such a model.
    pub fn shape(layers: usize, heads: usize, head_size: usize) -> BertShape {
        BertShape {
            vocabulary: 100,
            positions: 80,
            layers,
            heads,
            head_size,
            intermediate: 256,
            dimensions: heads * head_size,
            ..BertShape::MINILM_L6
        }
    }

    /// Of any shape.
    pub fn of(shape: BertShape) -> Self {
        let mut model = Self {
            shape,
            tensors: Vec::new(),
        };
        let mut noise = Noise::new(shape.heads as u64);
        let width = shape.width();
        for (name, rows) in [
            ("word", shape.vocabulary),
            ("position", shape.positions),
            ("token_type", shape.types),
        ] {
            let name = format!("embeddings.{name}_embeddings.weight");
            model.add(name, &[rows, width], noise.floats(rows * width, 1.0));
        }
        model.add_norm("embeddings.LayerNorm", &mut noise);
        for layer in 0..shape.layers {
            model.add_layer(&format!("encoder.layer.{layer}"), &mut noise);
        }
        model
    }

    fn add(&mut self, name: String, shape: &[usize], values: Vec<f32>) {
        let rounded = values.iter().map(|x| f16::from_f32(*x).to_f32()).collect();
        self.tensors.push((name, shape.into(), rounded));
    }

    fn add_norm(&mut self, name: &str, noise: &mut Noise) {
        let width = self.shape.width();
        let scale = noise.floats(width, 0.5).iter().map(|x| x + 1.0).collect();
        self.add(format!("{name}.weight"), &[width], scale);
        self.add(format!("{name}.bias"), &[width], noise.floats(width, 0.5));
    }

    fn add_linear(&mut self, name: &str, outputs: usize, inputs: usize, noise: &mut Noise) {
        let spread = 3.0 / (inputs as f32).sqrt();
        let weights = noise.floats(outputs * inputs, spread);
        self.add(format!("{name}.weight"), &[outputs, inputs], weights);
        self.add(
            format!("{name}.bias"),
            &[outputs],
            noise.floats(outputs, 0.2),
        );
    }

    fn add_layer(&mut self, name: &str, noise: &mut Noise) {
        let (width, intermediate) = (self.shape.width(), self.shape.intermediate);
        for part in ["query", "key", "value"] {
            self.add_linear(
                &format!("{name}.attention.self.{part}"),
                width,
                width,
                noise,
            );
        }
        self.add_linear(
            &format!("{name}.attention.output.dense"),
            width,
            width,
            noise,
        );
        self.add_norm(&format!("{name}.attention.output.LayerNorm"), noise);
        self.add_linear(
            &format!("{name}.intermediate.dense"),
            intermediate,
            width,
            noise,
        );
        self.add_linear(&format!("{name}.output.dense"), width, intermediate, noise);
        self.add_norm(&format!("{name}.output.LayerNorm"), noise);
    }

    /// Shape and numbers of a tensor.
    ///
    /// # Panics
    /// When there is none of that name.
    pub fn tensor(&self, name: &str) -> (&[usize], &[f32]) {
        let found = self.tensors.iter().find(|tensor| tensor.0 == name);
        let (_, shape, values) = found.unwrap_or_else(|| panic!("no tensor {name}"));
        (shape, values)
    }
}

/// The model as a file, its numbers in `dtype` and its names behind `prefix`.
///
/// # Panics
/// When the format has no such type.
pub fn as_safetensors(model: &TinyModel, dtype: Dtype, prefix: &str) -> Vec<u8> {
    let bytes: Vec<Vec<u8>> = (model.tensors.iter())
        .map(|(_, _, values)| match dtype {
            Dtype::F16 => values
                .iter()
                .flat_map(|x| f16::from_f32(*x).to_le_bytes())
                .collect(),
            Dtype::BF16 => values
                .iter()
                .flat_map(|x| bf16::from_f32(*x).to_le_bytes())
                .collect(),
            _ => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
        })
        .collect();
    let views = model
        .tensors
        .iter()
        .zip(&bytes)
        .map(|((name, shape, _), bytes)| {
            let view = TensorView::new(dtype, shape.clone(), bytes).expect("a tensor's bytes");
            (format!("{prefix}{name}"), view)
        });
    serialize(views, None).expect("a file of tensors")
}

fn linear_reference(model: &TinyModel, name: &str, rows: &[f64]) -> Vec<f64> {
    let (shape, weights) = model.tensor(&format!("{name}.weight"));
    let (_, bias) = model.tensor(&format!("{name}.bias"));
    let product = |row: &[f64], weights: &[f32]| {
        row.iter()
            .zip(weights)
            .map(|(x, w)| x * f64::from(*w))
            .sum::<f64>()
    };
    rows.chunks_exact(shape[1])
        .flat_map(|row| {
            let outputs = weights.chunks_exact(shape[1]).zip(bias);
            outputs.map(|(weights, bias)| product(row, weights) + f64::from(*bias))
        })
        .collect()
}

fn norm_reference(model: &TinyModel, name: &str, rows: &[f64]) -> Vec<f64> {
    let (_, scale) = model.tensor(&format!("{name}.weight"));
    let (_, shift) = model.tensor(&format!("{name}.bias"));
    rows.chunks_exact(model.shape.width())
        .flat_map(|row| normalise_reference(row, scale, shift, model.shape.epsilon))
        .collect()
}

fn added(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a + b).collect()
}

/// One text's vector by the definition of BERT (Devlin et al. 2018), in f64.
pub fn encode_reference(model: &TinyModel, text: &[u32]) -> Vec<f64> {
    let shape = &model.shape;
    let width = shape.width();
    let row = |table: &str, at: usize| {
        let (_, values) = model.tensor(&format!("embeddings.{table}_embeddings.weight"));
        values[at * width..][..width]
            .iter()
            .map(|x| f64::from(*x))
            .collect::<Vec<_>>()
    };
    let embedded: Vec<f64> = (text.iter().enumerate())
        .flat_map(|(at, id)| {
            let sum = added(&row("word", *id as usize), &row("position", at));
            added(&sum, &row("token_type", 0))
        })
        .collect();
    let mut hidden = norm_reference(model, "embeddings.LayerNorm", &embedded);
    for layer in 0..shape.layers {
        let name = format!("encoder.layer.{layer}");
        let [queries, keys, values] = ["query", "key", "value"]
            .map(|part| linear_reference(model, &format!("{name}.attention.self.{part}"), &hidden));
        let packed: Vec<f64> = (0..text.len())
            .flat_map(|token| {
                let of = |part: &[f64]| part[token * width..][..width].to_vec();
                [of(&queries), of(&keys), of(&values)].concat()
            })
            .collect();
        let heads = attention_reference(&packed, &[text.len()], shape.heads, shape.head_size);
        let out = linear_reference(model, &format!("{name}.attention.output.dense"), &heads);
        let norm = format!("{name}.attention.output.LayerNorm");
        hidden = norm_reference(model, &norm, &added(&out, &hidden));
        let mut inner = linear_reference(model, &format!("{name}.intermediate.dense"), &hidden);
        inner.iter_mut().for_each(|x| *x = gelu_reference(*x));
        let out = linear_reference(model, &format!("{name}.output.dense"), &inner);
        hidden = norm_reference(
            model,
            &format!("{name}.output.LayerNorm"),
            &added(&out, &hidden),
        );
    }
    pool_reference(&hidden, width, shape.dimensions, shape.pooling)
}
