//! The encoder on the processor: which instruction set runs it, and its parts.
//!
//! [`lanes`] names the vector operations, [`tile`] is the inner loop of every product of 32-bit
//! floats, [`linear`], [`attention`], [`rotary`], [`gate`] and [`rows`] are the kernels. The files named `bf16` have the
//! same in bfloat16 where the processor has it, and [`dense`] and [`attend`] choose. [`weights`] reads
//! and packs a model, [`architecture`] says what tells models apart beside sizes, [`encoder`] is the
//! forward pass over ragged batches, and [`scratch`] its memory.
//!
//! Invariant: a kernel for an instruction set runs only after the processor was asked for it.

#[cfg(target_arch = "x86_64")]
mod amx;
mod architecture;
mod attend;
mod attention;
#[cfg(target_arch = "x86_64")]
mod bf16_attention;
#[cfg(target_arch = "x86_64")]
mod bf16_linear;
#[cfg(target_arch = "x86_64")]
mod bf16_tile;
mod buffer;
mod dense;
mod encoder;
mod functions;
mod gate;
mod lanes;
mod linear;
mod rotary;
mod rows;
mod scratch;
mod tile;
mod weights;
#[cfg(target_arch = "x86_64")]
mod x86;

pub(crate) use architecture::{Architecture, Family, FeedForward, Norms, Positions, Window};
pub(crate) use attention::AttentionShape;
pub use dense::Products;
pub(crate) use dense::{bf16_unit, has_matrix_unit};
pub(crate) use encoder::Encoder;
pub use rows::Pooling;
pub(crate) use weights::EncoderShape;

use lanes::{Kernel, Lanes, Portable};

/// The instruction set that the arithmetic uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// Plain Rust; any processor.
    Portable,
    /// AVX2 and FMA.
    Avx2,
    /// AVX-512F.
    Avx512,
}

impl Backend {
    /// The backends that this processor can run, fastest first.
    pub fn available() -> Vec<Self> {
        let mut backends = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            let has_fma = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
            if has_fma && is_x86_feature_detected!("avx512f") {
                backends.push(Self::Avx512);
            }
            if has_fma {
                backends.push(Self::Avx2);
            }
        }
        backends.push(Self::Portable);
        backends
    }

    /// The fastest one.
    pub fn best() -> Self {
        Self::available().first().copied().unwrap_or(Self::Portable)
    }

    /// For a person: `avx2`. Fingerprints do not have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
        }
    }

    /// Columns of a packed panel.
    pub(crate) fn panel_width(self) -> usize {
        match self {
            Self::Portable => Portable::PANEL_WIDTH,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => x86::Avx2::PANEL_WIDTH,
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => x86::Avx512::PANEL_WIDTH,
            #[cfg(not(target_arch = "x86_64"))]
            Self::Avx2 | Self::Avx512 => Portable::PANEL_WIDTH,
        }
    }

    /// Whether this processor can run it.
    fn is_available(self) -> bool {
        match self {
            Self::Portable => true,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => {
                is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
            }
            #[cfg(not(target_arch = "x86_64"))]
            Self::Avx2 | Self::Avx512 => false,
        }
    }

    /// Runs a kernel on it.
    ///
    /// # Panics
    /// When the processor lacks the instruction set: running it would be undefined.
    #[allow(unsafe_code)]
    pub(crate) fn run<K: Kernel>(self, kernel: K) {
        // Two cached loads a kernel, which is nothing beside a kernel's thousands of operations.
        assert!(self.is_available(), "{} is not available", self.name());
        // SAFETY: the instruction set has just been seen.
        unsafe {
            match self {
                Self::Portable => Portable::call(kernel),
                #[cfg(target_arch = "x86_64")]
                Self::Avx2 => x86::Avx2::call(kernel),
                #[cfg(target_arch = "x86_64")]
                Self::Avx512 => x86::Avx512::call(kernel),
                #[cfg(not(target_arch = "x86_64"))]
                Self::Avx2 | Self::Avx512 => unreachable!("not available"),
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod testing {
    //! Reproducible numbers and a small model for the kernels' tests.

    use super::{Architecture, AttentionShape, EncoderShape, Pooling};
    use half::{bf16, f16};
    use safetensors::Dtype;
    use safetensors::tensor::{TensorView, serialize};

    /// A seeded generator (xorshift64*).
    pub(crate) struct Noise(u64);

    impl Noise {
        pub(crate) fn new(seed: u64) -> Self {
            Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
        }

        pub(crate) fn next_u64(&mut self) -> u64 {
            self.0 ^= self.0 >> 12;
            self.0 ^= self.0 << 25;
            self.0 ^= self.0 >> 27;
            self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
        }

        /// Floats in [-0.5, 0.5).
        pub(crate) fn floats(&mut self, count: usize) -> Vec<f32> {
            (0..count)
                .map(|_| (self.next_u64() >> 40) as f32 / (1 << 24) as f32 - 0.5)
                .collect()
        }
    }
    /// A model of two layers.
    pub(crate) const SMALL_SHAPE: EncoderShape = EncoderShape {
        vocabulary: 100,
        positions: 40,
        token_types: 2,
        layers: 2,
        attention: AttentionShape {
            heads: 2,
            head_size: 32,
        },
        intermediate: 96,
        variance_floor: 1e-12,
        pooling: Pooling::Mean,
        architecture: Architecture::BERT,
    };

    /// A safetensors file with random weights of [`SMALL_SHAPE`], each name after `part`.
    pub(crate) fn small_weights(dtype: Dtype, part: &str) -> Vec<u8> {
        let (width, intermediate) = (SMALL_SHAPE.attention.width(), SMALL_SHAPE.intermediate);
        let mut shapes: Vec<(String, Vec<usize>)> = Vec::new();
        let mut add = |name: String, shape: &[usize]| shapes.push((name, shape.to_vec()));
        add(
            "embeddings.word_embeddings.weight".into(),
            &[SMALL_SHAPE.vocabulary, width],
        );
        add(
            "embeddings.position_embeddings.weight".into(),
            &[SMALL_SHAPE.positions, width],
        );
        add(
            "embeddings.token_type_embeddings.weight".into(),
            &[SMALL_SHAPE.token_types, width],
        );
        let mut norms = vec!["embeddings.LayerNorm".to_owned()];
        for layer in 0..SMALL_SHAPE.layers {
            let layer = format!("encoder.layer.{layer}");
            for (name, outputs, inputs) in [
                ("attention.self.query", width, width),
                ("attention.self.key", width, width),
                ("attention.self.value", width, width),
                ("attention.output.dense", width, width),
                ("intermediate.dense", intermediate, width),
                ("output.dense", width, intermediate),
            ] {
                add(format!("{layer}.{name}.weight"), &[outputs, inputs]);
                add(format!("{layer}.{name}.bias"), &[outputs]);
            }
            norms.push(format!("{layer}.attention.output.LayerNorm"));
            norms.push(format!("{layer}.output.LayerNorm"));
        }
        for norm in norms {
            add(format!("{norm}.weight"), &[width]);
            add(format!("{norm}.bias"), &[width]);
        }
        let mut noise = Noise::new(5);
        let tensors: Vec<_> = shapes
            .into_iter()
            .map(|(name, shape)| {
                let values = noise.floats(shape.iter().product());
                let data: Vec<u8> = match dtype {
                    Dtype::F16 => encode(&values, |x| f16::from_f32(x).to_le_bytes()),
                    Dtype::BF16 => encode(&values, |x| bf16::from_f32(x).to_le_bytes()),
                    _ => encode(&values, f32::to_le_bytes),
                };
                (format!("{part}{name}"), shape, data)
            })
            .collect();
        let views = tensors.iter().map(|(name, shape, data)| {
            let view = TensorView::new(dtype, shape.clone(), data);
            (name, view.expect("the data has the shape's size"))
        });
        serialize(views, None).expect("no name stands twice")
    }

    fn encode<const BYTES: usize>(values: &[f32], one: impl Fn(f32) -> [u8; BYTES]) -> Vec<u8> {
        values.iter().flat_map(|value| one(*value)).collect()
    }
}
