//! What the host needs of a device: memory, and queues that copy and launch in order.
//!
//! Slots and the encoder are written against this, so that their logic runs in tests on the emulator
//! exactly as it does on a GPU ([`crate::cuda`]).
//!
//! Invariant: a fault says whether the device's context is still of use ([`FaultKind`]).

#![allow(unsafe_code)]

use crate::launch::{Address, Launch};

/// What is left of the context after a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// Nothing: every later call on it fails as well, and whatever was under way is lost. A new context
    /// may work, or nothing before the process is started anew (see [`crate::recovery`]).
    Sticky,
    /// Everything; less memory might be asked for.
    OutOfMemory,
    /// Everything; the same call would fail again.
    Refused,
}

/// A call that failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the GPU failed {doing}: {detail}")]
pub struct GpuFault {
    /// What was being done: `launching linear_128`.
    pub doing: String,
    /// What the driver said.
    pub detail: String,
    /// What is left.
    pub kind: FaultKind,
}

/// How soon a queue's work should go ahead of others'.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Urgency {
    /// A person waits.
    High,
    /// Everything else.
    Low,
}

/// A device.
///
/// # Safety
/// Slots and searches hand addresses of what a machine gives to its kernels and copies, so whoever
/// implements this promises:
/// - memory has the length that was asked for, is aligned to 256 bytes, and stays where it is until it is
///   dropped, alone there;
/// - staging has the length that was asked for, and its bytes stay where they are when it is moved;
/// - a queue does nothing with what it was given after [`Queue::finish`] has returned, with or without an
///   error, and a recording runs the launches that it was made of and no others;
/// - dropping memory, staging or a queue never fails and never panics, whatever state the device is in.
pub unsafe trait Machine: Send + Sync {
    /// Memory of the device.
    type Memory: DeviceMemory;
    /// Memory of the host that the device copies from and to.
    type Staging: Staging;
    /// Work in order.
    type Queue: Queue<Staging = Self::Staging>;

    /// Multiprocessors, which decide how products are cut.
    fn multiprocessors(&self) -> usize;

    /// Bytes that are free.
    ///
    /// # Errors
    /// When the device does not answer.
    fn free_bytes(&self) -> Result<usize, GpuFault>;

    /// Memory of that length, with anything in it.
    ///
    /// # Errors
    /// When there is not so much.
    fn allocate(&self, bytes: usize) -> Result<Self::Memory, GpuFault>;

    /// Zeroed memory of the host.
    ///
    /// # Errors
    /// When there is not so much that can be pinned.
    fn staging(&self, bytes: usize) -> Result<Self::Staging, GpuFault>;

    /// A queue.
    ///
    /// # Errors
    /// When the device has no more.
    fn queue(&self, urgency: Urgency) -> Result<Self::Queue, GpuFault>;
}

/// Memory of a device.
///
/// # Safety
/// The address is always the same one, and the device may read and write there, over the whole length,
/// until this is dropped.
pub unsafe trait DeviceMemory: Send + Sync {
    /// Where it begins.
    fn address(&self) -> Address;
}

/// Memory of the host that copies may be under way to or from.
pub trait Staging: Send {
    /// What is there.
    fn bytes(&self) -> &[u8];
    /// To be written.
    fn bytes_mut(&mut self) -> &mut [u8];
}

/// Work that is done in order; of two queues either may be ahead.
///
/// # Safety
/// of every unsafe method: the addresses are of memory that is alive until [`Queue::finish`] has
/// returned, long enough, and used by no other queue meanwhile unless both only read it; launches are
/// those that [`crate::launches`] makes; and nobody touches a staging before `finish` has returned.
pub trait Queue: Send {
    /// Memory of the host.
    type Staging: Staging;
    /// Launches that are replayed at once.
    type Recording: Send;

    /// Copies the first `bytes` of `from` to the device.
    ///
    /// # Errors
    /// When the call fails, or an earlier one of the queue has.
    ///
    /// # Safety
    /// See the trait.
    unsafe fn upload(
        &self,
        from: &Self::Staging,
        bytes: usize,
        to: Address,
    ) -> Result<(), GpuFault>;

    /// Launches a kernel.
    ///
    /// # Errors
    /// As for [`Queue::upload`].
    ///
    /// # Safety
    /// See the trait.
    unsafe fn launch(&self, launch: &Launch) -> Result<(), GpuFault>;

    /// Copies `bytes` from the device to the beginning of `to`.
    ///
    /// # Errors
    /// As for [`Queue::upload`].
    ///
    /// # Safety
    /// See the trait.
    unsafe fn download(
        &self,
        from: Address,
        bytes: usize,
        to: &mut Self::Staging,
    ) -> Result<(), GpuFault>;

    /// Makes a recording of launches, none of which is run.
    ///
    /// # Errors
    /// As for [`Queue::upload`].
    ///
    /// # Safety
    /// See the trait, at every replay.
    unsafe fn record(&self, launches: &[Launch]) -> Result<Self::Recording, GpuFault>;

    /// Runs the launches of a recording that this queue has made.
    ///
    /// # Errors
    /// As for [`Queue::upload`].
    ///
    /// # Safety
    /// See the trait.
    unsafe fn replay(&self, recording: &Self::Recording) -> Result<(), GpuFault>;

    /// Waits until all is done.
    ///
    /// # Errors
    /// When something of it failed. Nothing is under way then either.
    fn finish(&self) -> Result<(), GpuFault>;
}
