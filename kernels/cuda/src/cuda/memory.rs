//! Memory of the device, and pinned memory of the host.
//!
//! Invariant: each is freed once, in its context, which it keeps alive.

use super::context::Context;
use super::fault::named;
use crate::launch::Address;
use crate::machine::{DeviceMemory, GpuFault, Staging};
use cudarc::driver::{result, sys};
use std::ptr::NonNull;
use std::sync::Arc;

/// Memory of the device.
pub struct CudaMemory {
    pointer: sys::CUdeviceptr,
    context: Arc<Context>,
}

impl CudaMemory {
    pub(super) fn new(context: Arc<Context>, bytes: usize) -> Result<Self, GpuFault> {
        context.enter()?;
        // SAFETY: the memory holds anything at first, which callers of `Machine::allocate` know.
        let pointer =
            unsafe { result::malloc_sync(bytes.max(1)) }.map_err(named("allocating memory"))?;
        Ok(Self { pointer, context })
    }
}

// SAFETY: the pointer never changes, and the driver keeps the memory there until it is freed in `drop`.
unsafe impl DeviceMemory for CudaMemory {
    fn address(&self) -> Address {
        Address(self.pointer)
    }
}

impl Drop for CudaMemory {
    fn drop(&mut self) {
        if self.context.enter().is_ok() {
            // SAFETY: allocated in this context and freed only here. In a lost context this fails,
            // and destroying it frees the memory.
            let _ = unsafe { result::free_sync(self.pointer) };
        }
    }
}

/// Memory of the host that is never moved, so that copies run beside everything else.
pub struct PinnedMemory {
    pointer: NonNull<u8>,
    bytes: usize,
    context: Arc<Context>,
}

// SAFETY: the memory is owned, and the context may be used from any thread.
unsafe impl Send for PinnedMemory {}

impl PinnedMemory {
    pub(super) fn new(context: Arc<Context>, bytes: usize) -> Result<Self, GpuFault> {
        context.enter()?;
        // No flags: memory that is also read must not be write-combined.
        // SAFETY: zeroed over its whole length before anybody sees it; it is not null on success.
        unsafe {
            let pointer = result::malloc_host(bytes.max(1), 0)
                .map_err(named("pinning memory"))?
                .cast::<u8>();
            pointer.write_bytes(0, bytes);
            Ok(Self {
                pointer: NonNull::new_unchecked(pointer),
                bytes,
                context,
            })
        }
    }
}

impl Staging for PinnedMemory {
    fn bytes(&self) -> &[u8] {
        // SAFETY: owned, initialised and of that length; no copy is under way (`Queue`'s contract).
        unsafe { std::slice::from_raw_parts(self.pointer.as_ptr(), self.bytes) }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as for `bytes`, and `self` is borrowed for writing.
        unsafe { std::slice::from_raw_parts_mut(self.pointer.as_ptr(), self.bytes) }
    }
}

impl Drop for PinnedMemory {
    fn drop(&mut self) {
        if self.context.enter().is_ok() {
            // SAFETY: allocated by `malloc_host` and freed only here.
            let _ = unsafe { result::free_host(self.pointer.as_ptr().cast()) };
        }
    }
}
