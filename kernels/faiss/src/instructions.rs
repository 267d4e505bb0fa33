//! What the processor has, asked once a search.
//!
//! Invariant: a way of computing is only chosen where the processor was found to have all that it uses.

/// Instruction sets that there is code for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Instructions {
    /// AVX-512F and AVX-512BW.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// AVX2, FMA and F16C.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// Whatever the program was compiled for.
    Portable,
}

impl Instructions {
    /// The best that this machine has.
    pub(crate) fn of_this_machine() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            if std::arch::is_x86_feature_detected!("avx512f")
                && std::arch::is_x86_feature_detected!("avx512bw")
            {
                return Self::Avx512;
            }
            if Self::has_avx2() {
                return Self::Avx2;
            }
        }
        Self::Portable
    }

    /// Whether the processor has what FAISS was compiled for.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn has_avx2() -> bool {
        std::arch::is_x86_feature_detected!("avx2")
            && std::arch::is_x86_feature_detected!("fma")
            && std::arch::is_x86_feature_detected!("f16c")
    }

    /// All that can be tried on this machine, for tests that compare them.
    #[cfg(test)]
    pub(crate) fn all_here() -> Vec<Self> {
        let mut all = vec![Self::Portable];
        #[cfg(target_arch = "x86_64")]
        {
            all.extend(Self::has_avx2().then_some(Self::Avx2));
            let best = Self::of_this_machine();
            all.extend((best == Self::Avx512).then_some(best));
        }
        all
    }
}
