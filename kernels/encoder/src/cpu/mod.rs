//! The encoder on the processor: which instruction set runs it, and its parts.
//!
//! [`lanes`] names the vector operations, [`tile`] is the inner loop of every product, [`linear`],
//! [`attention`] and [`rows`] are the kernels, [`weights`] reads and packs a model, and [`encoder`]
//! is the forward pass over ragged batches.
//!
//! Invariant: a kernel for an instruction set runs only after the processor was asked for it.

mod attention;
mod buffer;
mod encoder;
mod functions;
mod lanes;
mod linear;
mod rows;
mod tile;
mod weights;
#[cfg(target_arch = "x86_64")]
mod x86;

pub(crate) use encoder::Encoder;
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

    /// For a person, and in the fingerprint: `avx2`.
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
    //! Reproducible numbers for the kernels' tests.

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
}
