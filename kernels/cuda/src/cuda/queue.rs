//! A stream: copies and launches in order, and launches recorded into a graph.
//!
//! Invariant: a graph is launched on the stream that it was recorded on, so never twice at once.

use super::context::Context;
use super::fault::named;
use super::memory::PinnedMemory;
use crate::launch::{Address, Launch};
use crate::machine::{GpuFault, Queue, Staging, Urgency};
use cudarc::driver::{result, sys};
use std::ffi::c_void;
use std::sync::Arc;

/// A stream.
pub struct CudaQueue {
    stream: sys::CUstream,
    context: Arc<Context>,
}

/// A graph.
pub struct CudaRecording {
    graph: sys::CUgraphExec,
    context: Arc<Context>,
}

// SAFETY: the driver ties a stream to its context, not to a thread, and every method makes the context
// current in the calling thread first. A capture, which is a thread's, begins and ends in one call.
unsafe impl Send for CudaQueue {}
// SAFETY: the driver ties an instantiated graph to its context, not to a thread, and asks only that two
// threads don't use one at the same time. None can: this is not `Sync` (a raw pointer), so `replay` has
// its `&` in the one thread that owns it or has borrowed it from there, and `drop` is its last use.
unsafe impl Send for CudaRecording {}

impl CudaQueue {
    pub(super) fn new(context: Arc<Context>, urgency: Urgency) -> Result<Self, GpuFault> {
        context.enter()?;
        let (least, greatest) =
            result::stream::get_priority_range().map_err(named("asking for priorities"))?;
        let priority = match urgency {
            Urgency::High => greatest,
            Urgency::Low => least,
        };
        let kind = result::stream::StreamKind::NonBlocking;
        let stream = result::stream::create_with_priority(kind, priority)
            .map_err(named("making a stream"))?;
        Ok(Self { stream, context })
    }

    /// # Safety
    /// As for [`Queue::launch`], in the current context.
    unsafe fn launch_entered(&self, launch: &Launch) -> Result<(), GpuFault> {
        let function = self.context.function(launch.kernel)?;
        let mut words: Vec<u64> = launch
            .arguments
            .iter()
            .map(|argument| argument.word())
            .collect();
        let mut pointers: Vec<*mut c_void> = (words.iter_mut())
            .map(|word| std::ptr::from_mut(word).cast())
            .collect();
        let shared_bytes = u32::try_from(launch.shared_bytes).unwrap_or(u32::MAX);
        // SAFETY: the arguments are the kernel's (`Launch`'s invariant) and are copied by the call;
        // what they point to is this function's contract.
        unsafe {
            result::launch_kernel(
                function,
                (launch.grid[0], launch.grid[1], 1),
                (launch.threads, 1, 1),
                shared_bytes,
                self.stream,
                &mut pointers,
            )
        }
        .map_err(|error| named(&format!("launching {}", launch.kernel))(error))
    }

    /// # Safety
    /// As for [`Queue::record`], in the current context.
    unsafe fn capture(&self, launches: &[Launch]) -> Result<sys::CUgraph, GpuFault> {
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream is alive; while it captures nothing runs.
        unsafe {
            result::stream::begin_capture(self.stream, mode).map_err(named("beginning a graph"))?;
            let launched = launches
                .iter()
                .try_for_each(|launch| self.launch_entered(launch));
            // Ended in any case, or the stream could not be used any more.
            let graph = result::stream::end_capture(self.stream).map_err(named("ending a graph"));
            if let (Err(fault), Ok(graph)) = (&launched, &graph) {
                let _ = result::graph::destroy(*graph);
                return Err(fault.clone());
            }
            launched.and(graph)
        }
    }
}

impl Queue for CudaQueue {
    type Staging = PinnedMemory;
    type Recording = CudaRecording;

    unsafe fn upload(
        &self,
        from: &PinnedMemory,
        bytes: usize,
        to: Address,
    ) -> Result<(), GpuFault> {
        self.context.enter()?;
        // SAFETY: this function's contract.
        unsafe { result::memcpy_htod_async(to.0, &from.bytes()[..bytes], self.stream) }
            .map_err(named("copying to it"))
    }

    unsafe fn launch(&self, launch: &Launch) -> Result<(), GpuFault> {
        self.context.enter()?;
        // SAFETY: this function's contract.
        unsafe { self.launch_entered(launch) }
    }

    unsafe fn download(
        &self,
        from: Address,
        bytes: usize,
        to: &mut PinnedMemory,
    ) -> Result<(), GpuFault> {
        self.context.enter()?;
        // SAFETY: this function's contract.
        unsafe { result::memcpy_dtoh_async(&mut to.bytes_mut()[..bytes], from.0, self.stream) }
            .map_err(named("copying from it"))
    }

    unsafe fn record(&self, launches: &[Launch]) -> Result<CudaRecording, GpuFault> {
        self.context.enter()?;
        // SAFETY: this function's contract, and handles that were just made.
        unsafe {
            let captured = self.capture(launches)?;
            let flags = sys::CUgraphInstantiate_flags(0);
            let graph = result::graph::instantiate(captured, flags);
            let _ = result::graph::destroy(captured);
            let recording = CudaRecording {
                graph: graph.map_err(named("instantiating a graph"))?,
                context: self.context.clone(),
            };
            // So that the first replay does not wait for it.
            result::graph::upload(recording.graph, self.stream)
                .map_err(named("uploading a graph"))?;
            Ok(recording)
        }
    }

    unsafe fn replay(&self, recording: &CudaRecording) -> Result<(), GpuFault> {
        self.context.enter()?;
        // SAFETY: this function's contract.
        unsafe { result::graph::launch(recording.graph, self.stream) }
            .map_err(named("launching a graph"))
    }

    fn finish(&self) -> Result<(), GpuFault> {
        self.context.enter()?;
        // SAFETY: the stream is alive.
        unsafe { result::stream::synchronize(self.stream) }.map_err(named("computing"))
    }
}

impl Drop for CudaQueue {
    fn drop(&mut self) {
        if self.context.enter().is_ok() {
            // SAFETY: made in this context and destroyed only here.
            let _ = unsafe { result::stream::destroy(self.stream) };
        }
    }
}

impl Drop for CudaRecording {
    fn drop(&mut self) {
        if self.context.enter().is_ok() {
            // SAFETY: made in this context and destroyed only here.
            let _ = unsafe { result::graph::exec_destroy(self.graph) };
        }
    }
}
