//! What measuring an encoder needs: the time that a thread computes, what its arithmetic could do at most,
//! and where the time of a call goes.
//!
//! Invariant: nothing here changes what is computed, and a thread that measures nothing reads one flag for
//! each stage of a micro-batch.

#[cfg(target_arch = "x86_64")]
mod peak;
mod stages;
mod thread_time;

pub use stages::{Stage, StageTime, StageTimes, measure_stages};
pub(crate) use stages::{computes_with, timed};
pub use thread_time::{thread_seconds, thread_time};

use crate::{Backend, Products};

/// What one thread does a second in a loop of nothing but this arithmetic's multiplications and additions,
/// measured now (some 10 ms); nothing where that is not known, as on a matrix unit (AMX).
pub fn peak_flops(backend: Backend, products: Products) -> Option<f64> {
    #[cfg(target_arch = "x86_64")]
    {
        peak::peak_flops(backend, products)
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        let _ = (backend, products);
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peak_is_measured_only_where_the_instructions_are() {
        assert_eq!(peak_flops(Backend::Portable, Products::F32), None);
        assert_eq!(peak_flops(Backend::Portable, Products::Bf16), None);
        for backend in Backend::available() {
            for products in [Products::F32, Products::Bf16] {
                let is_on_tiles = products == Products::Bf16 && crate::cpu::has_matrix_unit();
                let is_known =
                    backend != Backend::Portable && products.are_available(backend) && !is_on_tiles;
                let peak = peak_flops(backend, products);
                assert_eq!(peak.is_some(), is_known, "{backend:?} {products:?}");
                // Not even an emulated processor is slower than that.
                assert!(peak.is_none_or(|peak| peak > 1e6), "{peak:?}");
            }
        }
    }
}
