//! Random choices that are the same in each run, so that a failure can be looked at again.

use std::time::SystemTime;

/// A generator of numbers that are the same in each run (xorshift).
pub struct Random(u64);

impl Random {
    /// Another seed, other numbers.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    /// A number from 0 to below the limit.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % limit
    }
}

/// The seed of a test that strikes at random: told, so that a failure can be looked at again, and
/// taken from `VECTIDE_SEED` where that is set.
pub fn seed() -> u64 {
    let given = std::env::var("VECTIDE_SEED").ok();
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let seed = given
        .and_then(|seed| seed.parse().ok())
        .unwrap_or_else(|| now.map_or(1, |since| u64::from(since.subsec_nanos())));
    println!("seed {seed} (VECTIDE_SEED={seed} repeats it)");
    seed
}
