//! Reproducible numbers.
//!
//! Invariant: a seed gives the same numbers everywhere.

use half::f16;

/// A seeded generator (xorshift64*, Vigna 2016).
pub struct Noise(u64);

impl Noise {
    /// From a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.next_u64() >> 16) as usize % bound
    }

    /// Floats in [-spread / 2, spread / 2).
    pub fn floats(&mut self, count: usize, spread: f32) -> Vec<f32> {
        (0..count)
            .map(|_| ((self.next_u64() >> 40) as f32 / (1 << 24) as f32 - 0.5) * spread)
            .collect()
    }

    /// The same, rounded to fp16.
    pub fn halves(&mut self, count: usize, spread: f32) -> Vec<f16> {
        let floats = self.floats(count, spread);
        floats.into_iter().map(f16::from_f32).collect()
    }
}
