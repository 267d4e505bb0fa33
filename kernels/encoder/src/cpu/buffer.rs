//! A block of floats that starts at a cache line, so that no vector load of it straddles two.
//!
//! Invariant: it only ever grows, and what it holds is always initialised.

#![allow(unsafe_code)]

/// Floats in a cache line.
const LINE_FLOATS: usize = 16;

#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([f32; LINE_FLOATS]);

/// Zeroed at first; keeps its contents until somebody writes.
#[derive(Default)]
pub(crate) struct AlignedBuffer {
    lines: Vec<Line>,
}

impl AlignedBuffer {
    /// A buffer of at least `floats` zeros.
    pub(crate) fn zeroed(floats: usize) -> Self {
        let mut buffer = Self::default();
        buffer.grow(floats);
        buffer
    }

    /// A copy of `values`.
    pub(crate) fn copy_of(values: &[f32]) -> Self {
        let mut buffer = Self::zeroed(values.len());
        buffer[..values.len()].copy_from_slice(values);
        buffer
    }

    /// Makes room for `floats`, keeping what is there.
    pub(crate) fn grow(&mut self, floats: usize) {
        let lines = floats.div_ceil(LINE_FLOATS);
        if lines > self.lines.len() {
            self.lines.resize(lines, Line([0.0; LINE_FLOATS]));
        }
    }
}

impl std::ops::Deref for AlignedBuffer {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        // SAFETY: `Line` is exactly LINE_FLOATS floats without padding (`repr(C)`, 64 bytes at an
        // alignment of 64), so the lines are that many initialised floats in a row.
        unsafe {
            std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.lines.len() * LINE_FLOATS)
        }
    }
}

impl std::ops::DerefMut for AlignedBuffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        // SAFETY: as for `deref`, and `self` is borrowed for writing.
        unsafe {
            std::slice::from_raw_parts_mut(
                self.lines.as_mut_ptr().cast(),
                self.lines.len() * LINE_FLOATS,
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_aligned_and_keeps_its_contents() {
        let mut buffer = AlignedBuffer::copy_of(&[1.0; 17]);
        assert_eq!(buffer.len(), 32);
        buffer.grow(1000);
        assert_eq!(buffer.as_ptr() as usize % 64, 0);
        assert_eq!(buffer[..17], [1.0; 17]);
        assert!(buffer[17..].iter().all(|x| *x == 0.0));
        assert!(AlignedBuffer::default().is_empty());
    }
}
