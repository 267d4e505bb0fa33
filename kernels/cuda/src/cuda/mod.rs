//! The machine behind [`crate::machine`] that is a GPU, over the driver's own interface.
//!
//! The driver's library is looked for at run time, so a build needs none. [`probe`] says what there
//! is; [`CudaMachine`] is a context on one device with the kernels loaded.
//!
//! Not yet run on a GPU: everything above this module is tested on the emulator, this module against a
//! driver that the tests make (`drivers.rs`), whose device is the emulator too.
//!
//! Invariant: no call of the driver is made before [`probe`] has found the library and each function in it,
//! without which calls would panic: a [`CudaMachine`] is opened with [`DeviceFacts`], which [`probe`] alone
//! can make.

#![allow(unsafe_code)]

mod context;
#[cfg(test)]
mod drivers;
mod fault;
mod memory;
mod open;
mod probe;
mod queue;

pub use memory::{CudaMemory, PinnedMemory};
pub use open::{CudaOpener, Gpus};
pub use probe::{DeviceFacts, NoGpu, probe};
pub use queue::{CudaQueue, CudaRecording};

use crate::machine::{GpuFault, Machine, Urgency};
use context::Context;
use cudarc::driver::result as driver;
use fault::named;
use std::sync::Arc;

/// A context on one device.
pub struct CudaMachine {
    context: Arc<Context>,
    multiprocessors: usize,
}

impl CudaMachine {
    /// Makes a context on a device that [`probe`] has named, and loads the kernels.
    ///
    /// # Errors
    /// When the driver refuses.
    pub fn open(device: &DeviceFacts) -> Result<Self, GpuFault> {
        Ok(Self {
            context: Arc::new(Context::open(device.ordinal)?),
            multiprocessors: device.multiprocessors,
        })
    }
}

// SAFETY: the driver gives memory of the asked length, aligned to at least 256 bytes; pinned memory is
// behind a pointer; streams are waited for in `finish`, after which the driver does nothing more with
// what they were given, an error meaning that the work was done or given up; drops ignore errors.
unsafe impl Machine for CudaMachine {
    type Memory = CudaMemory;
    type Staging = PinnedMemory;
    type Queue = CudaQueue;

    fn multiprocessors(&self) -> usize {
        self.multiprocessors
    }

    fn free_bytes(&self) -> Result<usize, GpuFault> {
        self.context.enter()?;
        let (free, _) = driver::mem_get_info().map_err(named("asking for its memory"))?;
        Ok(free)
    }

    fn allocate(&self, bytes: usize) -> Result<CudaMemory, GpuFault> {
        CudaMemory::new(self.context.clone(), bytes)
    }

    fn staging(&self, bytes: usize) -> Result<PinnedMemory, GpuFault> {
        PinnedMemory::new(self.context.clone(), bytes)
    }

    fn queue(&self, urgency: Urgency) -> Result<CudaQueue, GpuFault> {
        CudaQueue::new(self.context.clone(), urgency)
    }
}
