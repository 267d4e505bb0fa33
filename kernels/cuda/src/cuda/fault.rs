//! What an error of the driver leaves behind.
//!
//! The driver's documentation says of most errors inside of a kernel (an illegal or misaligned address, a
//! failed launch) that the process is left in an inconsistent state and must be started anew. They are
//! sticky here, which means that a new context is tried (see [`crate::recovery`]): best effort, and untested.
//!
//! Invariant: an error after which the context is of no use is sticky; one that is not known is taken for
//! sticky too, since going on would be worse.

use crate::machine::{FaultKind, GpuFault};
use cudarc::driver::result::DriverError;
use cudarc::driver::sys::CUresult;

/// Makes a fault of an error in doing this.
pub(crate) fn named(doing: &str) -> impl FnOnce(DriverError) -> GpuFault {
    move |error| GpuFault {
        doing: doing.into(),
        detail: in_words(error.0),
        kind: kind(error.0),
    }
}

/// With what a person can do something about.
fn in_words(code: CUresult) -> String {
    let words = match code {
        CUresult::CUDA_ERROR_OUT_OF_MEMORY => "not enough of its memory is free, ",
        CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU
        | CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION
        | CUresult::CUDA_ERROR_JIT_COMPILER_NOT_FOUND
        | CUresult::CUDA_ERROR_INVALID_IMAGE => "the binary is for other architectures, ",
        _ => "",
    };
    format!("{words}{code:?}")
}

/// Errors of a call that was wrong or asked for too much; the context does not mind them.
fn kind(code: CUresult) -> FaultKind {
    match code {
        CUresult::CUDA_ERROR_OUT_OF_MEMORY => FaultKind::OutOfMemory,
        CUresult::CUDA_ERROR_INVALID_VALUE
        | CUresult::CUDA_ERROR_INVALID_HANDLE
        | CUresult::CUDA_ERROR_INVALID_IMAGE
        | CUresult::CUDA_ERROR_INVALID_PTX
        | CUresult::CUDA_ERROR_INVALID_DEVICE
        | CUresult::CUDA_ERROR_NO_DEVICE
        | CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU
        | CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION
        | CUresult::CUDA_ERROR_JIT_COMPILER_NOT_FOUND
        | CUresult::CUDA_ERROR_NOT_FOUND
        | CUresult::CUDA_ERROR_NOT_READY
        | CUresult::CUDA_ERROR_NOT_SUPPORTED
        | CUresult::CUDA_ERROR_NOT_PERMITTED
        | CUresult::CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES
        | CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED
        | CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED
        | CUresult::CUDA_ERROR_STREAM_CAPTURE_UNMATCHED
        | CUresult::CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD => FaultKind::Refused,
        _ => FaultKind::Sticky,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_say_what_is_left() {
        let fault = |code| named("launching a_kernel")(DriverError(code));
        let lost = fault(CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
        assert_eq!(lost.kind, FaultKind::Sticky);
        assert_eq!(
            lost.to_string(),
            "the GPU failed launching a_kernel: CUDA_ERROR_ILLEGAL_ADDRESS"
        );
        for code in [
            CUresult::CUDA_ERROR_LAUNCH_FAILED,
            CUresult::CUDA_ERROR_ECC_UNCORRECTABLE,
            CUresult::CUDA_ERROR_MISALIGNED_ADDRESS,
            CUresult::CUDA_ERROR_HARDWARE_STACK_ERROR,
            CUresult::CUDA_ERROR_LAUNCH_TIMEOUT,
            CUresult::CUDA_ERROR_CONTEXT_IS_DESTROYED,
            CUresult::CUDA_ERROR_UNKNOWN,
        ] {
            assert_eq!(fault(code).kind, FaultKind::Sticky, "{code:?}");
        }
        let full = fault(CUresult::CUDA_ERROR_OUT_OF_MEMORY);
        assert_eq!(full.kind, FaultKind::OutOfMemory);
        assert!(full.detail.contains("memory is free"), "{full}");
        let other = fault(CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU);
        assert_eq!(other.kind, FaultKind::Refused);
        assert!(other.detail.contains("architectures"), "{other}");
        let wrong = fault(CUresult::CUDA_ERROR_INVALID_VALUE);
        assert_eq!(wrong.kind, FaultKind::Refused);
    }
}
