//! What a core's multipliers do at most, measured: chains of multiplications and additions that wait
//! for nothing but each other, on the vectors of each instruction set.
//!
//! Invariant: a loop runs only on a processor whose instructions were seen.

#![allow(unsafe_code)]

use super::thread_time::thread_time;
use crate::cpu::has_matrix_unit;
use crate::{Backend, Products};
use std::arch::x86_64::*;
use std::hint::black_box;

/// Some 10 ms: long beside the clock's steps, short beside what is compared with it.
const STEPS: usize = 4_000_000;
/// Independent chains: more than two multipliers of four steps each wait for, few enough for 16 registers.
const CHAINS: usize = 12;

/// Operations a second of one thread; nothing for arithmetic that is not measured here or that the processor
/// does not have. Products of bfloat16 on a matrix unit are not: a loop of vectors says nothing of them.
pub(super) fn peak_flops(backend: Backend, products: Products) -> Option<f64> {
    if !Backend::available().contains(&backend) || !products.are_available(backend) {
        return None;
    }
    let (operations, run): (usize, unsafe fn(f32) -> f32) = match (backend, products) {
        (Backend::Avx2, _) => (16, avx2),
        (Backend::Avx512, Products::F32) => (32, avx512),
        (Backend::Avx512, Products::Bf16) if has_matrix_unit() => return None,
        (Backend::Avx512, Products::Bf16) => (64, avx512_bf16),
        (Backend::Portable, _) => return None,
    };
    // SAFETY: the backend and its products have just been seen, so the processor has the instructions.
    let seconds = thread_time(|| unsafe { run(black_box(1.0)) });
    Some((STEPS * CHAINS * operations) as f64 / seconds)
}

#[target_feature(enable = "avx2,fma")]
fn avx2(value: f32) -> f32 {
    let mut sums = [_mm256_set1_ps(value); CHAINS];
    let factor = _mm256_set1_ps(black_box(0.999));
    for _ in 0..STEPS {
        for sum in &mut sums {
            *sum = _mm256_fmadd_ps(*sum, factor, factor);
        }
    }
    let mut total = _mm256_setzero_ps();
    for sum in sums {
        total = _mm256_add_ps(total, sum);
    }
    _mm256_cvtss_f32(total)
}

#[target_feature(enable = "avx512f")]
fn avx512(value: f32) -> f32 {
    let mut sums = [_mm512_set1_ps(value); CHAINS];
    let factor = _mm512_set1_ps(black_box(0.999));
    for _ in 0..STEPS {
        for sum in &mut sums {
            *sum = _mm512_fmadd_ps(*sum, factor, factor);
        }
    }
    total(sums)
}

#[target_feature(enable = "avx512f,avx512bf16")]
fn avx512_bf16(value: f32) -> f32 {
    let mut sums = [_mm512_set1_ps(value); CHAINS];
    let factor = _mm512_set1_ps(black_box(0.999));
    let factor = _mm512_cvtne2ps_pbh(factor, factor);
    for _ in 0..STEPS {
        for sum in &mut sums {
            *sum = _mm512_dpbf16_ps(*sum, factor, factor);
        }
    }
    total(sums)
}

#[target_feature(enable = "avx512f")]
fn total(sums: [__m512; CHAINS]) -> f32 {
    let mut total = _mm512_setzero_ps();
    for sum in sums {
        total = _mm512_add_ps(total, sum);
    }
    _mm512_reduce_add_ps(total)
}
