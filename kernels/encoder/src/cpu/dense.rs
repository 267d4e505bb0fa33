//! A fully connected layer in the precision that the model computes with.
//!
//! Invariant: a layer that was packed for bfloat16 exists only where the processor has its products.

use super::Backend;
#[cfg(target_arch = "x86_64")]
use super::amx::PairUnit;
#[cfg(target_arch = "x86_64")]
use super::bf16_linear::{Bf16Linear, PackedBf16};
#[cfg(target_arch = "x86_64")]
use super::buffer::AlignedBuffer;
use super::linear::{Linear, PackedLinear};
use super::tile::Finish;

/// The numbers that products are made of; sums have 32 bits in any case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Products {
    /// 32-bit floats.
    F32,
    /// bfloat16: half the memory and, where the processor has them, twice the speed.
    Bf16,
}

impl Products {
    /// Whether this processor can multiply them beside a backend's other arithmetic.
    pub fn are_available(self, backend: Backend) -> bool {
        self == Self::F32 || (backend == Backend::Avx512 && has_bf16())
    }
}

/// What makes the products of bfloat16 where there are some, for a person.
pub(crate) fn bf16_unit() -> &'static str {
    match has_matrix_unit() {
        false => "bf16",
        true => "bf16 on amx",
    }
}

/// Whether products of bfloat16 are made on a matrix unit and not on vectors.
#[cfg(target_arch = "x86_64")]
pub(crate) fn has_matrix_unit() -> bool {
    has_bf16() && PairUnit::best() != PairUnit::Vectors
}

#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn has_matrix_unit() -> bool {
    false
}

#[cfg(target_arch = "x86_64")]
fn has_bf16() -> bool {
    super::bf16_tile::is_available()
}

#[cfg(not(target_arch = "x86_64"))]
fn has_bf16() -> bool {
    false
}

/// One layer's packed weights.
pub(crate) enum DenseLayer {
    F32(PackedLinear),
    #[cfg(target_arch = "x86_64")]
    Bf16(PackedBf16),
}

/// Rounded input of a product; reused.
#[derive(Default)]
pub(crate) struct DenseScratch {
    #[cfg(target_arch = "x86_64")]
    rounded: AlignedBuffer<u32>,
}

impl DenseScratch {
    /// Memory that it holds.
    pub(crate) fn bytes(&self) -> usize {
        #[cfg(target_arch = "x86_64")]
        let rounded = self.rounded.bytes();
        #[cfg(not(target_arch = "x86_64"))]
        let rounded = 0;
        rounded
    }
}

impl DenseLayer {
    /// Packs `weights` (`[outputs][inputs]`, row-major) with `bias` (`[outputs]`); products that are
    /// not available are made in 32 bits.
    pub(crate) fn pack(
        weights: &[f32],
        bias: &[f32],
        backend: Backend,
        products: Products,
    ) -> Self {
        #[cfg(target_arch = "x86_64")]
        if products == Products::Bf16 && products.are_available(backend) {
            return Self::Bf16(PackedBf16::pack(weights, bias));
        }
        let _ = products;
        Self::F32(PackedLinear::pack(weights, bias, backend.panel_width()))
    }

    /// The layer's output for `rows` rows of `input`, both sides row-major and dense.
    pub(crate) fn run(
        &self,
        backend: Backend,
        (rows, input): (usize, &[f32]),
        out: &mut [f32],
        finish: Finish,
        scratch: &mut DenseScratch,
    ) {
        match self {
            Self::F32(layer) => backend.run(Linear {
                layer,
                input,
                rows,
                out,
                finish,
            }),
            #[cfg(target_arch = "x86_64")]
            Self::Bf16(layer) => Bf16Linear {
                unit: PairUnit::best(),
                layer,
                input,
                rows,
                out,
                finish,
                rounded: &mut scratch.rounded,
            }
            .run(),
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = scratch;
    }
}
