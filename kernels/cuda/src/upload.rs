//! Copies what is large and stays, weights or rows, to memory of its own.
//!
//! It goes through pinned memory in pieces, so that it is never pinned as a whole.
//!
//! Invariant: when the memory is given out every byte of it was written.

#![allow(unsafe_code)]

use crate::machine::{DeviceMemory, GpuFault, Machine, Queue, Staging, Urgency};
use std::ops::Range;

/// Bytes of a piece: a millisecond's copying, beside which starting it costs nothing.
const PIECE_BYTES: usize = 16 << 20;

/// Memory of `bytes`, which `write` gives in order: those of a range, for a place of the range's length.
/// A range begins where a number of up to eight bytes does.
pub(crate) fn upload<M: Machine>(
    machine: &M,
    bytes: usize,
    write: impl Fn(Range<usize>, &mut [u8]),
) -> Result<M::Memory, GpuFault> {
    let memory = machine.allocate(bytes)?;
    let mut staging = machine.staging(PIECE_BYTES.min(bytes))?;
    let queue = machine.queue(Urgency::Low)?;
    for start in (0..bytes).step_by(PIECE_BYTES) {
        let piece = start..bytes.min(start + PIECE_BYTES);
        let length = piece.len();
        write(piece, &mut staging.bytes_mut()[..length]);
        // SAFETY: the piece lies within the memory, which nobody else knows yet; the staging is not
        // touched before `finish` has returned.
        unsafe { queue.upload(&staging, length, memory.address().offset(start))? };
        queue.finish()?;
    }
    Ok(memory)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::EmulatedMachine;

    #[test]
    fn all_pieces_are_copied() {
        let bytes: Vec<u8> = (0..PIECE_BYTES + 10).map(|at| at as u8 ^ 0x5A).collect();
        let memory = upload(&EmulatedMachine::new(), bytes.len(), |range, to| {
            to.copy_from_slice(&bytes[range]);
        });
        assert!(memory.unwrap().read::<u8>() == bytes);
    }
}
