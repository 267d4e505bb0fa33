//! The few vector operations that the kernels are written in, so that each kernel exists once.
//!
//! A kernel is generic over [`Lanes`] and inlined into a function that is compiled for the
//! instruction set ([`Lanes::call`]); the portable implementation here serves every other processor.
//!
//! Invariant: all implementations compute the same formula in the same order of operations a lane;
//! they differ only in how many lanes they have and in whether a product is rounded before it is
//! added.

#![allow(unsafe_code)]

/// A piece of work that is compiled once per instruction set.
pub(crate) trait Kernel {
    /// Does the work.
    ///
    /// # Safety
    /// The processor must have the instruction set of `V`. Implementations must be
    /// `#[inline(always)]`, or they would be compiled without it.
    unsafe fn run<V: Lanes>(self);
}

/// A vector of `WIDTH` 32-bit floats.
///
/// # Safety
/// of every method: the processor must have the implementation's instruction set, and pointers must
/// be valid for `WIDTH` floats (no alignment is asked for).
pub(crate) trait Lanes: Copy {
    /// Floats in a vector.
    const WIDTH: usize;
    /// Columns of a weight panel: two vectors.
    const PANEL_WIDTH: usize = 2 * Self::WIDTH;
    /// Rows of the register tile of the matrix product: 2 * rows accumulators, 2 vectors of weights
    /// and one of input fill the register file.
    const TILE_ROWS: usize;

    unsafe fn call<K: Kernel>(kernel: K);
    unsafe fn load(from: *const f32) -> Self;
    unsafe fn store(self, to: *mut f32);
    unsafe fn splat(value: f32) -> Self;
    unsafe fn add(self, other: Self) -> Self;
    unsafe fn sub(self, other: Self) -> Self;
    unsafe fn mul(self, other: Self) -> Self;
    unsafe fn div(self, other: Self) -> Self;
    unsafe fn max(self, other: Self) -> Self;
    unsafe fn min(self, other: Self) -> Self;
    /// `self * factor + summand`.
    unsafe fn mul_add(self, factor: Self, summand: Self) -> Self;
    /// The nearest whole number, for magnitudes below 2^22.
    unsafe fn round(self) -> Self;
    /// 2 to the power of whole numbers from -126 to 127.
    unsafe fn power_of_two(self) -> Self;
    unsafe fn sum_lanes(self) -> f32;
    unsafe fn max_lane(self) -> f32;
}

/// Adding and subtracting 1.5 * 2^23 rounds a small float to a whole number.
const ROUNDING: f32 = 12_582_912.0;

/// Eight lanes in plain Rust, which the compiler maps to what the target always has.
#[derive(Clone, Copy)]
pub(crate) struct Portable([f32; 8]);

impl Portable {
    #[inline(always)]
    fn zip(self, other: Self, operation: impl Fn(f32, f32) -> f32) -> Self {
        Self(std::array::from_fn(|i| operation(self.0[i], other.0[i])))
    }
}

impl Lanes for Portable {
    const WIDTH: usize = 8;
    // Eight lanes are two registers of such targets: 32 registers on AArch64, 16 elsewhere.
    const TILE_ROWS: usize = if cfg!(target_arch = "aarch64") { 6 } else { 2 };

    #[inline(always)]
    unsafe fn call<K: Kernel>(kernel: K) {
        // SAFETY: plain Rust needs no instruction set.
        unsafe { kernel.run::<Self>() }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: valid for eight floats by the trait's contract; arrays need no more alignment.
        Self(unsafe { from.cast::<[f32; 8]>().read_unaligned() })
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: valid for eight floats by the trait's contract.
        unsafe { to.cast::<[f32; 8]>().write_unaligned(self.0) }
    }
    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        Self([value; 8])
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        self.zip(other, |x, y| x + y)
    }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        self.zip(other, |x, y| x - y)
    }
    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        self.zip(other, |x, y| x * y)
    }
    #[inline(always)]
    unsafe fn div(self, other: Self) -> Self {
        self.zip(other, |x, y| x / y)
    }
    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        self.zip(other, |x, y| if x > y { x } else { y })
    }
    #[inline(always)]
    unsafe fn min(self, other: Self) -> Self {
        self.zip(other, |x, y| if x < y { x } else { y })
    }
    #[inline(always)]
    unsafe fn mul_add(self, factor: Self, summand: Self) -> Self {
        Self(std::array::from_fn(|i| {
            // Without the instruction `mul_add` would be a slow library call.
            if cfg!(target_arch = "aarch64") {
                self.0[i].mul_add(factor.0[i], summand.0[i])
            } else {
                self.0[i] * factor.0[i] + summand.0[i]
            }
        }))
    }
    #[inline(always)]
    unsafe fn round(self) -> Self {
        Self(self.0.map(|x| (x + ROUNDING) - ROUNDING))
    }
    #[inline(always)]
    unsafe fn power_of_two(self) -> Self {
        // The sum has the exponent in its lowest mantissa bits; shifting moves them into place.
        Self(self.0.map(|x| {
            let biased = (x + (ROUNDING + 127.0)).to_bits();
            f32::from_bits(biased << 23)
        }))
    }
    #[inline(always)]
    unsafe fn sum_lanes(self) -> f32 {
        let [a, b, c, d, e, f, g, h] = self.0;
        ((a + e) + (c + g)) + ((b + f) + (d + h))
    }
    #[inline(always)]
    unsafe fn max_lane(self) -> f32 {
        self.0.into_iter().fold(f32::NEG_INFINITY, f32::max)
    }
}
