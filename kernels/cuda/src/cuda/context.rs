//! A context on one device, with the kernels loaded.
//!
//! It is not the device's primary context, so that dropping it frees everything and one that was lost
//! can be made anew.
//!
//! Invariant: whatever lives in a context holds it, so it is destroyed last.

use super::fault::named;
use crate::binary::{KERNELS, kernel_names};
use crate::machine::{FaultKind, GpuFault};
use cudarc::driver::{result, sys};
use std::collections::HashMap;
use std::ffi::CString;
use std::ptr::null_mut;

/// The context.
pub(super) struct Context {
    handle: sys::CUcontext,
    module: sys::CUmodule,
    functions: HashMap<&'static str, sys::CUfunction>,
}

// SAFETY: the driver's handles may be used from any thread in which the context is current, which
// `enter` sees to; the fields never change after the context was made.
unsafe impl Send for Context {}
// SAFETY: as above; the driver locks its context itself.
unsafe impl Sync for Context {}

impl Context {
    pub(super) fn open(ordinal: i32) -> Result<Self, GpuFault> {
        let device = result::device::get(ordinal).map_err(named("finding a device"))?;
        // SAFETY: the device is the driver's; no parameters, no flags.
        let handle = unsafe { result::ctx::create_v4(null_mut(), 0, device) }
            .map_err(named("making a context"))?;
        let mut context = Self {
            handle,
            module: null_mut(),
            functions: HashMap::new(),
        };
        context.enter()?;
        // SAFETY: the image is a whole binary, which says its own length, and lives for ever.
        context.module = unsafe { result::module::load_data(KERNELS.as_ptr().cast()) }
            .map_err(named("loading the kernels"))?;
        let attribute =
            sys::CUdevice_attribute_enum::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN;
        // SAFETY: the device is the driver's.
        let shared_bytes = unsafe { result::device::get_attribute(device, attribute) }
            .map_err(named("asking for its shared memory"))?;
        for name in kernel_names() {
            let function = context.load(name, shared_bytes)?;
            context.functions.insert(name, function);
        }
        Ok(context)
    }

    /// Finds a kernel and lets it use all of a block's shared memory.
    fn load(&self, name: &str, shared_bytes: i32) -> Result<sys::CUfunction, GpuFault> {
        let fault = |error| named(&format!("loading {name}"))(error);
        let c_name = CString::new(name).unwrap_or_default();
        let attribute =
            sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        // SAFETY: the module is loaded, in the current context, and outlives the function's use.
        unsafe {
            let function = result::module::get_function(self.module, c_name).map_err(fault)?;
            result::function::set_function_attribute(function, attribute, shared_bytes)
                .map_err(fault)?;
            Ok(function)
        }
    }

    /// Makes it the calling thread's context; needed before every call that is about it.
    pub(super) fn enter(&self) -> Result<(), GpuFault> {
        // SAFETY: the context is alive as long as `self` is.
        unsafe { result::ctx::set_current(self.handle) }.map_err(named("entering its context"))
    }

    pub(super) fn function(&self, kernel: &str) -> Result<sys::CUfunction, GpuFault> {
        self.functions.get(kernel).copied().ok_or_else(|| GpuFault {
            doing: format!("finding {kernel}"),
            detail: "the binary does not have it".into(),
            kind: FaultKind::Refused,
        })
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // Failures mean that the context is lost already: there is nobody to tell and nothing to do.
        // SAFETY: nothing that lives in the context is left, or it would hold it.
        unsafe {
            if self.enter().is_ok() && !self.module.is_null() {
                let _ = result::module::unload(self.module);
            }
            let _ = sys::cuCtxDestroy_v2(self.handle);
        }
    }
}
