//! Memory of forward passes, kept from call to call.
//!
//! Making it anew would cost a small text as much as its arithmetic; keeping whatever was ever needed
//! would hold a long text's hundreds of megabytes for each thread that embedded one.
//!
//! Invariant: what is kept never has more than the pool's bytes.

use super::architecture::Norms;
use super::attend::AttendScratch;
use super::buffer::AlignedBuffer;
use super::dense::DenseScratch;
use super::weights::EncoderShape;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// What a model keeps: the micro-batches of 512 tokens of 16 threads in a width of 384 (8 MB each), or
/// of 6 in a width of 1,024 (21 MB each). More threads than that make theirs anew.
const BYTES_KEPT_MAX: usize = 128 << 20;

/// Memory of one forward pass; grows to the largest batch it has seen.
#[derive(Default)]
pub(crate) struct Scratch {
    /// `[rows][width]`: the tokens' vectors.
    pub(crate) hidden: AlignedBuffer,
    /// `[rows][width]`: what is added to them.
    pub(crate) added: AlignedBuffer,
    /// `[rows][width]`: the output of attention.
    pub(crate) context: AlignedBuffer,
    /// `[rows][width]`: the tokens' vectors before they were normalised, where those are added to.
    pub(crate) sums: AlignedBuffer,
    /// `[rows][3 * width]`
    pub(crate) queries_keys_values: AlignedBuffer,
    /// `[rows][intermediate]`, or twice that before a gate.
    pub(crate) intermediate: AlignedBuffer,
    pub(crate) attention: AttendScratch,
    pub(crate) dense: DenseScratch,
}

impl Scratch {
    /// Makes room for a batch; attention and products make their own.
    pub(crate) fn grow(&mut self, rows: usize, shape: EncoderShape) {
        let width = shape.attention.width();
        for buffer in [&mut self.hidden, &mut self.added, &mut self.context] {
            buffer.grow(rows * width);
        }
        self.queries_keys_values.grow(rows * 3 * width);
        if shape.architecture.norms == Norms::BeforeStep {
            self.sums.grow(rows * width);
        }
        self.intermediate.grow(rows * shape.expanded());
    }

    fn bytes(&self) -> usize {
        let buffers = [
            &self.hidden,
            &self.added,
            &self.context,
            &self.sums,
            &self.queries_keys_values,
            &self.intermediate,
        ];
        let of_buffers: usize = buffers.iter().map(|buffer| buffer.bytes()).sum();
        of_buffers + self.attention.bytes() + self.dense.bytes()
    }
}

/// The memories that no call uses.
pub(crate) struct ScratchPool {
    bytes_max: usize,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    scratches: Vec<Scratch>,
    bytes: usize,
}

impl Default for ScratchPool {
    fn default() -> Self {
        Self::new(BYTES_KEPT_MAX)
    }
}

impl ScratchPool {
    fn new(bytes_max: usize) -> Self {
        Self {
            bytes_max,
            kept: Mutex::default(),
        }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One that was kept, or an empty one.
    pub(crate) fn take(&self) -> Scratch {
        let mut kept = self.kept();
        let scratch = kept.scratches.pop().unwrap_or_default();
        kept.bytes -= scratch.bytes();
        scratch
    }

    /// Keeps one, or drops it where it is beyond what may be kept.
    pub(crate) fn put(&self, scratch: Scratch) {
        let bytes = scratch.bytes();
        let mut kept = self.kept();
        if kept.bytes + bytes <= self.bytes_max {
            kept.bytes += bytes;
            kept.scratches.push(scratch);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::SMALL_SHAPE;
    use super::*;

    fn grown(rows: usize) -> Scratch {
        let mut scratch = Scratch::default();
        scratch.grow(rows, SMALL_SHAPE);
        scratch
    }

    #[test]
    fn no_more_is_kept_than_may_be() {
        let bytes = grown(10).bytes();
        assert_eq!(bytes, 10 * (6 * 64 + 96) * 4);
        let pool = ScratchPool::new(2 * bytes + 1);
        pool.put(grown(21));
        assert_eq!(pool.kept().bytes, 0, "one that is too large is dropped");
        for _ in 0..3 {
            pool.put(grown(10));
        }
        assert_eq!(pool.kept().bytes, 2 * bytes);
        let mut taken = pool.take();
        assert_eq!((taken.bytes(), pool.kept().bytes), (bytes, bytes));
        // It grows in use.
        taken.grow(11, SMALL_SHAPE);
        pool.put(taken);
        assert_eq!(pool.kept().bytes, bytes);
        assert_eq!(pool.take().bytes(), bytes);
        assert_eq!((pool.take().bytes(), pool.kept().bytes), (0, 0));
    }
}
