//! Places data on a machine, runs launches, and reads results back, all in one queue.
//!
//! Invariant: whatever was placed lies between guards, which every reading checks.

#![allow(unsafe_code)]

use crate::launch::{Address, Launch};
use crate::machine::{DeviceMemory, FaultKind, GpuFault, Machine, Queue, Staging, Urgency};
use half::f16;

/// Bytes before and behind that nobody may write.
const GUARD_BYTES: usize = 1024;
const POISON: u8 = 0xFF;

/// A number as bytes.
pub trait Plain: Copy {
    /// Appends its bytes.
    fn append(self, bytes: &mut Vec<u8>);
    /// Of bytes that are its size.
    fn of(bytes: &[u8]) -> Self;
}

macro_rules! plain {
    ($($type:ty),*) => {$(
        impl Plain for $type {
            fn append(self, bytes: &mut Vec<u8>) {
                bytes.extend_from_slice(&self.to_le_bytes());
            }
            fn of(bytes: &[u8]) -> Self {
                let mut own = [0; size_of::<Self>()];
                own.copy_from_slice(bytes);
                Self::from_le_bytes(own)
            }
        }
    )*};
}
plain!(f16, f32, i32, u32);

/// A machine with one queue.
pub struct Workbench<'a, M: Machine> {
    machine: &'a M,
    queue: M::Queue,
}

/// Data on the machine.
pub struct Placed<M: Machine> {
    memory: M::Memory,
    bytes: usize,
}

impl<M: Machine> Placed<M> {
    /// Where it begins.
    pub fn address(&self) -> Address {
        self.memory.address().offset(GUARD_BYTES)
    }
}

impl<'a, M: Machine> Workbench<'a, M> {
    /// On a machine.
    ///
    /// # Errors
    /// When the machine has no queue.
    pub fn new(machine: &'a M) -> Result<Self, GpuFault> {
        Ok(Self {
            machine,
            queue: machine.queue(Urgency::Low)?,
        })
    }

    /// Places numbers.
    ///
    /// # Errors
    /// When the machine fails.
    pub fn place<T: Plain>(&self, values: &[T]) -> Result<Placed<M>, GpuFault> {
        let mut bytes = vec![POISON; GUARD_BYTES];
        values.iter().for_each(|value| value.append(&mut bytes));
        let length = bytes.len() - GUARD_BYTES;
        bytes.resize(bytes.len() + GUARD_BYTES, POISON);
        let memory = self.machine.allocate(bytes.len())?;
        let mut staging = self.machine.staging(bytes.len())?;
        staging.bytes_mut().copy_from_slice(&bytes);
        // SAFETY: memory and staging have the bytes' length and are not touched until `finish`.
        unsafe { self.queue.upload(&staging, bytes.len(), memory.address())? };
        self.queue.finish()?;
        Ok(Placed {
            memory,
            bytes: length,
        })
    }

    /// Room for numbers that nobody has written: NaNs.
    ///
    /// # Errors
    /// When the machine fails.
    pub fn poisoned<T: Plain>(&self, count: usize) -> Result<Placed<M>, GpuFault> {
        let poison = T::of(&[POISON; 8][..size_of::<T>()]);
        self.place(&vec![poison; count])
    }

    /// Runs launches in order.
    ///
    /// # Errors
    /// When the machine fails.
    ///
    /// # Safety
    /// Whatever the launches use was placed by this workbench, large enough, and is alive.
    pub unsafe fn run(&self, launches: &[Launch]) -> Result<(), GpuFault> {
        let launched = launches.iter().try_for_each(|launch| {
            // SAFETY: this function's contract.
            unsafe { self.queue.launch(launch) }
        });
        // In any case: what was launched must not outlive what it uses.
        let finished = self.queue.finish();
        launched.and(finished)
    }

    /// What is there.
    ///
    /// # Errors
    /// When the machine fails, or a guard was written.
    pub fn read<T: Plain>(&self, placed: &Placed<M>) -> Result<Vec<T>, GpuFault> {
        let length = placed.bytes + 2 * GUARD_BYTES;
        let mut staging = self.machine.staging(length)?;
        // SAFETY: as in `place`.
        unsafe {
            self.queue
                .download(placed.memory.address(), length, &mut staging)?
        };
        self.queue.finish()?;
        let (before, rest) = staging.bytes().split_at(GUARD_BYTES);
        let (own, behind) = rest.split_at(placed.bytes);
        let is_whole = |guard: &[u8]| guard.iter().all(|byte| *byte == POISON);
        if !is_whole(before) || !is_whole(&behind[..GUARD_BYTES]) {
            return Err(GpuFault {
                doing: "keeping to its memory".into(),
                detail: "a guard was written".into(),
                kind: FaultKind::Refused,
            });
        }
        Ok(own.chunks_exact(size_of::<T>()).map(T::of).collect())
    }
}
