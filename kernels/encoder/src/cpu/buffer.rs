//! A block of 32-bit values that starts at a cache line, so that no vector load of it straddles two.
//!
//! Invariant: it only ever grows, and what it holds is always initialised.

#![allow(unsafe_code)]

use std::marker::PhantomData;

/// Values in a cache line.
const LINE_VALUES: usize = 16;

#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u32; LINE_VALUES]);

/// A value of 32 bits, every pattern of which is one.
///
/// # Safety
/// The type must have the size and no more than the alignment of `u32`, and no invalid pattern.
pub(crate) unsafe trait Word: Copy {}

// SAFETY: four bytes, any pattern.
unsafe impl Word for f32 {}
// SAFETY: four bytes, any pattern.
unsafe impl Word for u32 {}

/// Zeroed at first; keeps its contents until somebody writes.
pub(crate) struct AlignedBuffer<T: Word = f32> {
    lines: Vec<Line>,
    values: PhantomData<T>,
}

impl<T: Word> Default for AlignedBuffer<T> {
    fn default() -> Self {
        Self {
            lines: Vec::new(),
            values: PhantomData,
        }
    }
}

impl<T: Word> AlignedBuffer<T> {
    /// A buffer of at least `values` zeros.
    pub(crate) fn zeroed(values: usize) -> Self {
        let mut buffer = Self::default();
        buffer.grow(values);
        buffer
    }

    /// A copy of `values`.
    pub(crate) fn copy_of(values: &[T]) -> Self {
        let mut buffer = Self::zeroed(values.len());
        buffer[..values.len()].copy_from_slice(values);
        buffer
    }

    /// Makes room for `values`, keeping what is there.
    pub(crate) fn grow(&mut self, values: usize) {
        let lines = values.div_ceil(LINE_VALUES);
        if lines > self.lines.len() {
            // Exactly, for scratch memory is counted and grows a few times only.
            self.lines.reserve_exact(lines - self.lines.len());
            self.lines.resize(lines, Line([0; LINE_VALUES]));
        }
    }

    /// Memory that it holds.
    pub(crate) fn bytes(&self) -> usize {
        self.lines.capacity() * size_of::<Line>()
    }
}

impl<T: Word> std::ops::Deref for AlignedBuffer<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        // SAFETY: `Line` is exactly LINE_VALUES words without padding (`repr(C)`, 64 bytes at an
        // alignment of 64), so the lines are that many initialised words in a row, and every word is
        // a value of `T`.
        unsafe {
            std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.lines.len() * LINE_VALUES)
        }
    }
}

impl<T: Word> std::ops::DerefMut for AlignedBuffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as for `deref`, and `self` is borrowed for writing.
        unsafe {
            std::slice::from_raw_parts_mut(
                self.lines.as_mut_ptr().cast(),
                self.lines.len() * LINE_VALUES,
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_aligned_and_keeps_its_contents() {
        let mut buffer = AlignedBuffer::copy_of(&[1.0_f32; 17]);
        assert_eq!(buffer.len(), 32);
        buffer.grow(1000);
        assert_eq!(buffer.as_ptr() as usize % 64, 0);
        assert_eq!(buffer[..17], [1.0; 17]);
        assert!(buffer[17..].iter().all(|x| *x == 0.0));
        assert!(AlignedBuffer::<u32>::default().is_empty());
        assert_eq!(
            AlignedBuffer::copy_of(&[u32::MAX; 3])[..4],
            [u32::MAX, u32::MAX, u32::MAX, 0]
        );
    }
}
