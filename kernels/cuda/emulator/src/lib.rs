//! Runs the CUDA kernels on the processor: the same sources, compiled by a C++ compiler against
//! emulated hardware.
//!
//! Each CUDA thread is a fiber; warps run in an order that a seed decides, copies into shared memory
//! happen as early or as late as they may, and shared memory begins as NaNs. `machine/` has how.
//! Only tests use this crate.
//!
//! Invariant: a launch depends on its arguments and its seed alone.

use std::ffi::{CStr, CString, c_char, c_int, c_void};

/// Longer reports are cut.
const REPORT_BYTES: usize = 4096;

#[repr(C)]
struct RawLaunch {
    kernel: *const c_char,
    grid_x: u32,
    grid_y: u32,
    threads: u32,
    shared_bytes: usize,
    seed: u64,
    skipped_site: *const c_char,
}

unsafe extern "C" {
    fn vectide_emulate(
        launch: *const RawLaunch,
        arguments: *mut *mut c_void,
        report: *mut c_char,
        report_bytes: usize,
    ) -> c_int;
    fn vectide_emulated_arguments(kernel: *const c_char) -> usize;
    #[cfg(test)]
    fn vectide_emulated_widen(half: u16) -> f32;
    #[cfg(test)]
    fn vectide_emulated_narrow(value: f32) -> u16;
}

/// What is left to chance, and the error that is planted.
#[derive(Clone, Debug, Default)]
pub struct Schedule {
    /// Decides the order of blocks, warps and lanes, and when copies happen.
    pub seed: u64,
    /// This barrier or wait, as a launch has named it, does nothing.
    pub skipped_site: Option<String>,
}

/// The shape of a launch.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Blocks along x and y.
    pub grid: [u32; 2],
    /// Threads of a block.
    pub threads: u32,
    /// Bytes of shared memory of a block.
    pub shared_bytes: usize,
}

/// Runs a kernel; names the barriers and waits that were reached.
///
/// Each argument stands in the lowest bytes of its word, addresses being those of this process.
///
/// # Errors
/// What went wrong, where the emulator noticed: an unknown kernel, lanes of a warp that do not meet,
/// a block that can't go on, an address outside of shared memory or unaligned.
///
/// # Safety
/// The arguments must be those of the kernel, in number and kind, and whatever it reads or writes by
/// them must be there, with nobody else using it.
///
/// # Panics
/// When a name has a NUL byte.
pub unsafe fn launch(
    kernel: &str,
    shape: Shape,
    arguments: &mut [u64],
    schedule: &Schedule,
) -> Result<Vec<String>, String> {
    let kernel = CString::new(kernel).expect("a name without NUL");
    let skipped = schedule.skipped_site.as_deref().unwrap_or_default();
    let skipped = CString::new(skipped).expect("a name without NUL");
    let raw = RawLaunch {
        kernel: kernel.as_ptr(),
        grid_x: shape.grid[0],
        grid_y: shape.grid[1],
        threads: shape.threads,
        shared_bytes: shape.shared_bytes,
        seed: schedule.seed,
        skipped_site: skipped.as_ptr(),
    };
    let mut pointers: Vec<*mut c_void> = (arguments.iter_mut())
        .map(|word| std::ptr::from_mut(word).cast())
        .collect();
    let mut report = [0 as c_char; REPORT_BYTES];
    // SAFETY: the launch and its names outlive the call; each argument is readable for eight bytes;
    // the report has the length that is said and is ended by NUL; the rest is this function's contract.
    let (code, text) = unsafe {
        let code = vectide_emulate(
            &raw,
            pointers.as_mut_ptr(),
            report.as_mut_ptr(),
            REPORT_BYTES,
        );
        (code, CStr::from_ptr(report.as_ptr()).to_string_lossy())
    };
    if code == 0 {
        Ok(text.lines().map(str::to_owned).collect())
    } else {
        Err(text.into_owned())
    }
}

/// How many arguments a kernel has; none where it is unknown.
pub fn argument_count(kernel: &CStr) -> usize {
    // SAFETY: reads a name that is ended by NUL.
    unsafe { vectide_emulated_arguments(kernel.as_ptr()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_not_every_gpu_takes_is_an_error() {
        let shape = Shape {
            grid: [1, 1],
            threads: 32,
            shared_bytes: 0,
        };
        let run = |kernel: &str, shape: Shape| {
            // SAFETY: refused before any argument is looked at.
            unsafe { launch(kernel, shape, &mut [], &Schedule::default()) }.unwrap_err()
        };
        assert!(run("no_such", shape).contains("no kernel no_such"));
        assert_eq!(
            (
                argument_count(c"no_such"),
                argument_count(c"pool_texts") > 3
            ),
            (0, true)
        );
        for threads in [0, 33, 2048] {
            assert!(run("pool_texts", Shape { threads, ..shape }).contains("not every GPU"));
        }
        let shared_bytes = 99 * 1024 + 1;
        assert!(
            run(
                "pool_texts",
                Shape {
                    shared_bytes,
                    ..shape
                }
            )
            .contains("not every GPU")
        );
    }

    #[test]
    fn fp16_is_converted_as_elsewhere() {
        // SAFETY: plain functions of a number.
        let widen = |half: u16| unsafe { vectide_emulated_widen(half) };
        // SAFETY: likewise.
        let narrow = |value: f32| unsafe { vectide_emulated_narrow(value) };
        for bits in 0..=u16::MAX {
            let (expected, found) = (half::f16::from_bits(bits).to_f32(), widen(bits));
            assert!(
                found == expected || found.is_nan() && expected.is_nan(),
                "{bits:#x}"
            );
            // Each number, and what lies around the middle between it and the next one.
            let next = half::f16::from_bits(bits.wrapping_add(1)).to_f32();
            let middle = (expected + next) / 2.0;
            for value in [expected, middle, middle.next_up(), middle.next_down()] {
                let (expected, found) = (half::f16::from_f32(value), narrow(value));
                let is_same =
                    found == expected.to_bits() || value.is_nan() && widen(found).is_nan();
                assert!(is_same, "{value:e}");
            }
        }
        assert_eq!(narrow(1e9), half::f16::INFINITY.to_bits());
    }
}
