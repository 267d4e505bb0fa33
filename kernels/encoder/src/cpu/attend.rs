//! Self-attention in the precision that the model computes with.
//!
//! Invariant: attention in bfloat16 is computed only where the processor has its products.

use super::Backend;
#[cfg(target_arch = "x86_64")]
use super::amx::PairUnit;
use super::attention::{Attention, AttentionScratch, AttentionShape};
#[cfg(target_arch = "x86_64")]
use super::bf16_attention::{Bf16Attention, Bf16AttentionScratch};
use super::dense::Products;

/// Memory of either kind; what is not used stays empty.
#[derive(Default)]
pub(crate) struct AttendScratch {
    exact: AttentionScratch,
    #[cfg(target_arch = "x86_64")]
    rounded: Bf16AttentionScratch,
}

impl AttendScratch {
    /// Memory that it holds.
    pub(crate) fn bytes(&self) -> usize {
        #[cfg(target_arch = "x86_64")]
        let rounded = self.rounded.bytes();
        #[cfg(not(target_arch = "x86_64"))]
        let rounded = 0;
        self.exact.bytes() + rounded
    }
}

/// How a model attends.
#[derive(Clone, Copy)]
pub(crate) struct Attend {
    pub(crate) shape: AttentionShape,
    pub(crate) backend: Backend,
    pub(crate) products: Products,
    /// How far a token looks; `None` where at all.
    pub(crate) reach: Option<usize>,
}

impl Attend {
    /// The attention of one text of `tokens` rows of `[query|key|value]`.
    pub(crate) fn run(
        self,
        tokens: usize,
        queries_keys_values: &[f32],
        out: &mut [f32],
        scratch: &mut AttendScratch,
    ) {
        #[cfg(target_arch = "x86_64")]
        if self.products == Products::Bf16 && self.products.are_available(self.backend) {
            return Bf16Attention {
                unit: PairUnit::best(),
                shape: self.shape,
                tokens,
                reach: self.reach,
                queries_keys_values,
                out,
                scratch: &mut scratch.rounded,
            }
            .run();
        }
        self.backend.run(Attention {
            shape: self.shape,
            tokens,
            reach: self.reach,
            queries_keys_values,
            out,
            scratch: &mut scratch.exact,
        });
    }
}
