//! `exp`, `erf`, GELU and SiLU over vectors.
//!
//! Invariant: errors stay below 3e-7 of the value (`exp`) and 4e-7 absolute (`erf`, for GELU times
//! half the input); the tests compare with f64.

#![allow(unsafe_code)]

use super::lanes::Lanes;

/// Below this `exp` is taken as at it: 1.6e-38, nothing beside the largest term 1 of a softmax.
const EXP_INPUT_MIN: f32 = -87.0;
/// ln 2 in two parts, so that a multiple of it is subtracted without rounding (Cephes `expf`).
const LN_2_HIGH: f32 = 0.693_359_4;
const LN_2_LOW: f32 = -2.121_944_4e-4;
/// Cephes `expf`: (exp(r) - 1 - r) / r^2 for |r| <= ln 2 / 2, highest power first.
const EXP_POLYNOMIAL: [f32; 6] = [
    1.987_569_1e-4,
    1.398_199_9e-3,
    8.333_452e-3,
    4.166_579_6e-2,
    1.666_666_5e-1,
    5e-1,
];

/// Where `erf` reaches 1 in 32 bits.
const ERF_INPUT_MAX: f32 = 4.0;
/// Rational approximation erf(x) = x P(x^2) / Q(x^2) for |x| <= 4, as in Eigen's `erf_float`;
/// highest power first.
const ERF_NUMERATOR: [f32; 7] = [
    -2.726_142e-10,
    2.770_681_4e-8,
    -2.101_024e-6,
    -5.692_506_5e-5,
    -7.349_906_3e-4,
    -2.954_6e-3,
    -1.609_603_3e-2,
];
const ERF_DENOMINATOR: [f32; 5] = [
    -1.456_607_2e-5,
    -2.133_740_6e-4,
    -1.682_827e-3,
    -7.373_329e-3,
    -1.426_473_9e-2,
];

/// # Safety
/// The processor must have the instruction set of `V`.
#[inline(always)]
unsafe fn polynomial<V: Lanes, const TERMS: usize>(x: V, coefficients: &[f32; TERMS]) -> V {
    // SAFETY: this function's contract.
    unsafe {
        let mut value = V::splat(coefficients[0]);
        for coefficient in &coefficients[1..] {
            value = value.mul_add(x, V::splat(*coefficient));
        }
        value
    }
}

/// e to the power of `x`, for `x` up to 80; below -87 as at -87, and so for NaN, which callers that can
/// have one look for themselves.
///
/// # Safety
/// The processor must have the instruction set of `V`.
#[inline(always)]
pub(crate) unsafe fn exp<V: Lanes>(x: V) -> V {
    // SAFETY: this function's contract.
    unsafe {
        let x = x.max(V::splat(EXP_INPUT_MIN));
        let exponent = x.mul(V::splat(std::f32::consts::LOG2_E)).round();
        let rest = exponent.mul_add(V::splat(-LN_2_HIGH), x);
        let rest = exponent.mul_add(V::splat(-LN_2_LOW), rest);
        let tail = polynomial(rest, &EXP_POLYNOMIAL).mul(rest);
        let mantissa = tail.mul_add(rest, rest).add(V::splat(1.0));
        mantissa.mul(exponent.power_of_two())
    }
}

/// The error function.
///
/// # Safety
/// The processor must have the instruction set of `V`.
#[inline(always)]
pub(crate) unsafe fn erf<V: Lanes>(x: V) -> V {
    // SAFETY: this function's contract.
    unsafe {
        let x = x.max(V::splat(-ERF_INPUT_MAX)).min(V::splat(ERF_INPUT_MAX));
        let square = x.mul(x);
        let numerator = polynomial(square, &ERF_NUMERATOR).mul(x);
        numerator.div(polynomial(square, &ERF_DENOMINATOR))
    }
}

/// x times the normal distribution's cumulative function: GELU in its exact form.
///
/// # Safety
/// The processor must have the instruction set of `V`.
#[inline(always)]
pub(crate) unsafe fn gelu<V: Lanes>(x: V) -> V {
    // SAFETY: this function's contract.
    unsafe {
        let half = x.mul(V::splat(0.5));
        let erf = erf(x.mul(V::splat(std::f32::consts::FRAC_1_SQRT_2)));
        half.mul_add(erf, half)
    }
}

/// Beyond this the logistic function's denominator would leave what [`exp`] can say; at it the function is
/// already below 2e-35.
const SILU_EXPONENT_MAX: f32 = 80.0;

/// x times its logistic function.
///
/// # Safety
/// The processor must have the instruction set of `V`.
#[inline(always)]
pub(crate) unsafe fn silu<V: Lanes>(x: V) -> V {
    // SAFETY: this function's contract.
    unsafe {
        let exponent = V::splat(0.0).sub(x).min(V::splat(SILU_EXPONENT_MAX));
        x.div(exp(exponent).add(V::splat(1.0)))
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Backend, lanes::Kernel};
    use super::*;

    #[derive(Clone, Copy)]
    enum Function {
        Exp,
        Erf,
    }

    struct Apply<'a>(Function, &'a mut [f32]);
    impl Kernel for Apply<'_> {
        #[inline(always)]
        unsafe fn run<V: Lanes>(self) {
            for chunk in self.1.chunks_exact_mut(V::WIDTH) {
                // SAFETY: a chunk has WIDTH floats.
                unsafe {
                    let x = V::load(chunk.as_ptr());
                    match self.0 {
                        Function::Exp => exp(x),
                        Function::Erf => erf(x),
                    }
                    .store(chunk.as_mut_ptr());
                }
            }
        }
    }

    /// The Maclaurin series and, for large inputs, the continued fraction of the complement, in f64.
    fn erf_reference(x: f64) -> f64 {
        if x.abs() > 3.0 {
            let mut fraction = 0.0;
            for k in (1..=60).rev() {
                fraction = f64::from(k) / 2.0 / (x.abs() + fraction);
            }
            let complement = (-x * x).exp() / ((x.abs() + fraction) * std::f64::consts::PI.sqrt());
            return x.signum() * (1.0 - complement);
        }
        let mut term = x;
        let mut sum = x;
        for n in 1..80 {
            term *= -x * x / f64::from(n);
            sum += term / f64::from(2 * n + 1);
        }
        sum * 2.0 / std::f64::consts::PI.sqrt()
    }

    fn inputs(from: f32, to: f32) -> Vec<f32> {
        let count = 1 << 16;
        (0..count)
            .map(|i| from + (to - from) * i as f32 / count as f32)
            .collect()
    }

    #[test]
    fn exp_is_exact_to_a_few_units_in_the_last_place() {
        for backend in Backend::available() {
            let inputs = inputs(-87.0, 10.0);
            let mut outputs = inputs.clone();
            backend.run(Apply(Function::Exp, &mut outputs));
            for (x, y) in inputs.iter().zip(&outputs) {
                let expected = f64::from(*x).exp();
                let error = (f64::from(*y) - expected).abs() / expected;
                assert!(error < 3e-7, "{backend:?} exp({x}) = {y}, error {error:e}");
            }
            let mut deep = vec![-1e30_f32; 16];
            backend.run(Apply(Function::Exp, &mut deep));
            assert!(deep.iter().all(|y| (0.0..1e-37).contains(y)), "{deep:?}");
        }
    }

    #[test]
    fn erf_is_exact_to_a_few_units_in_the_last_place() {
        for backend in Backend::available() {
            let inputs = inputs(-8.0, 8.0);
            let mut outputs = inputs.clone();
            backend.run(Apply(Function::Erf, &mut outputs));
            for (x, y) in inputs.iter().zip(&outputs) {
                let error = (f64::from(*y) - erf_reference(f64::from(*x))).abs();
                assert!(error < 4e-7, "{backend:?} erf({x}) = {y}, error {error:e}");
            }
        }
    }
}
