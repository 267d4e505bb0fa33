//! Which GPUs can run the kernels, or in one line why none can.
//!
//! Invariant: nothing here panics, whatever of a driver is installed.

use crate::binary::CAPABILITY_MIN;
use cudarc::driver::{result, sys};
use vectide_model::contained;

/// What the compiler of the binary was made for; older drivers refuse its code.
const DRIVER_MIN: i32 = 13_000;

/// A device that can run the kernels. Who has one has asked the driver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceFacts {
    /// The driver's number for it.
    pub ordinal: i32,
    /// Its name: `NVIDIA H100 80GB HBM3`.
    pub name: String,
    /// Compute capability, major and minor.
    pub capability: (i32, i32),
    /// Multiprocessors.
    pub multiprocessors: usize,
    /// All its memory.
    pub memory_bytes: usize,
    _probed: Probed,
}

/// What only this module makes, in this crate too.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Probed;

/// Why there is none, in one line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no GPU: {0}")]
pub struct NoGpu(pub String);

/// Asks the driver.
///
/// # Errors
/// Says what is missing: the driver's library, a driver that is new enough, a device, or a device that
/// is new enough.
pub fn probe() -> Result<Vec<DeviceFacts>, NoGpu> {
    // The driver is bound function by function, and one that is missing panics. `ask` has looked for each
    // before; this is for what it does not look for.
    let asked = contained(ask);
    asked.unwrap_or_else(|_| Err(NoGpu("the NVIDIA driver's library is damaged".into())))
}

/// What is called before the driver's version is known, and what is called after. Every function that is
/// used in [`crate::cuda`] stands here, which a test compares with a driver that has no others.
const FUNCTIONS_FIRST: [&str; 2] = ["cuInit", "cuDriverGetVersion"];
const FUNCTIONS: [&str; 31] = [
    "cuCtxCreate_v4",
    "cuCtxDestroy_v2",
    "cuCtxGetStreamPriorityRange",
    "cuCtxSetCurrent",
    "cuDeviceGet",
    "cuDeviceGetAttribute",
    "cuDeviceGetCount",
    "cuDeviceGetName",
    "cuDeviceTotalMem_v2",
    "cuFuncSetAttribute",
    "cuGraphDestroy",
    "cuGraphExecDestroy",
    "cuGraphInstantiateWithFlags",
    "cuGraphLaunch",
    "cuGraphUpload",
    "cuLaunchKernel",
    "cuMemAlloc_v2",
    "cuMemFreeHost",
    "cuMemFree_v2",
    "cuMemGetInfo_v2",
    "cuMemHostAlloc",
    "cuMemcpyDtoHAsync_v2",
    "cuMemcpyHtoDAsync_v2",
    "cuModuleGetFunction",
    "cuModuleLoadData",
    "cuModuleUnload",
    "cuStreamBeginCapture_v2",
    "cuStreamCreateWithPriority",
    "cuStreamDestroy_v2",
    "cuStreamEndCapture",
    "cuStreamSynchronize",
];

/// Looks for functions in the driver's library, which is there.
fn require(functions: &[&str]) -> Result<(), NoGpu> {
    // SAFETY: loads the library, which has just been loaded, for good.
    let library = unsafe { sys::culib() };
    let is_missing = |name: &&&str| {
        // SAFETY: a function by its name, which is not called.
        unsafe { library.get::<unsafe extern "C" fn()>(name.as_bytes()) }.is_err()
    };
    match functions.iter().find(is_missing) {
        Some(name) => Err(NoGpu(format!(
            "the NVIDIA driver's library lacks the function {name}"
        ))),
        None => Ok(()),
    }
}

fn ask() -> Result<Vec<DeviceFacts>, NoGpu> {
    // SAFETY: loads a library by name and lets it go; its initialisers are the driver's own.
    if !unsafe { sys::is_culib_present() } {
        return Err(NoGpu(
            "the NVIDIA driver's library libcuda is not installed".into(),
        ));
    }
    let refused = |doing: &str, error: result::DriverError| {
        NoGpu(format!("the NVIDIA driver fails {doing}: {:?}", error.0))
    };
    require(&FUNCTIONS_FIRST)?;
    result::init().map_err(|error| refused("to start", error))?;
    // An older driver lacks functions too, and is better told by its version.
    let version = driver_version();
    check_version(version)?;
    require(&FUNCTIONS)?;
    let count = result::device::get_count().map_err(|error| refused("to count devices", error))?;
    let described = (0..count).map(|ordinal| {
        facts(ordinal).map_err(|error| refused(&format!("to describe device {ordinal}"), error))
    });
    judge(those_that_work(described)?)
}

/// What there is of them; each that does not work is left out and told: in a line of its own where others
/// work, else in the error alone.
///
/// # Errors
/// When there are some and none works.
pub(super) fn those_that_work<T>(
    found: impl IntoIterator<Item = Result<T, NoGpu>>,
) -> Result<Vec<T>, NoGpu> {
    let (mut working, mut reasons) = (Vec::new(), Vec::new());
    for found in found {
        match found {
            Ok(found) => working.push(found),
            Err(NoGpu(reason)) => reasons.push(reason),
        }
    }
    if working.is_empty() && !reasons.is_empty() {
        return Err(NoGpu(reasons.join("; ")));
    }
    for reason in reasons {
        tracing::warn!(reason, "a GPU is left out");
    }
    Ok(working)
}

/// CUDA's version that the driver is for, as the driver has it: 13000.
fn driver_version() -> i32 {
    let mut version = 0;
    // SAFETY: writes one int. A failure leaves 0, an old version.
    let _ = unsafe { sys::cuDriverGetVersion(&raw mut version) };
    version
}

fn facts(ordinal: i32) -> Result<DeviceFacts, result::DriverError> {
    use sys::CUdevice_attribute_enum as Attribute;
    let device = result::device::get(ordinal)?;
    // SAFETY: the device was given by the driver.
    let attribute = |which| unsafe { result::device::get_attribute(device, which) };
    Ok(DeviceFacts {
        ordinal,
        name: result::device::get_name(device)?,
        capability: (
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ),
        multiprocessors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?
            .try_into()
            .unwrap_or(1),
        // SAFETY: as above.
        memory_bytes: unsafe { result::device::total_mem(device)? },
        _probed: Probed,
    })
}

/// Whether a driver can run the binary.
fn check_version(driver_version: i32) -> Result<(), NoGpu> {
    if driver_version < DRIVER_MIN {
        return Err(NoGpu(format!(
            "the NVIDIA driver is for CUDA {}.{}, and the kernels need {}.{}",
            driver_version / 1000,
            driver_version % 1000 / 10,
            DRIVER_MIN / 1000,
            DRIVER_MIN % 1000 / 10,
        )));
    }
    Ok(())
}

/// Which of the devices can run the kernels.
fn judge(devices: Vec<DeviceFacts>) -> Result<Vec<DeviceFacts>, NoGpu> {
    if devices.is_empty() {
        return Err(NoGpu("the NVIDIA driver has no device".into()));
    }
    let is_new_enough = |device: &DeviceFacts| device.capability >= CAPABILITY_MIN;
    let (able, old): (Vec<_>, Vec<_>) = devices.into_iter().partition(is_new_enough);
    if able.is_empty() {
        let described = |device: &DeviceFacts| {
            let (major, minor) = device.capability;
            format!("{} ({major}.{minor})", device.name)
        };
        let found: Vec<String> = old.iter().map(described).collect();
        let (major, minor) = CAPABILITY_MIN;
        return Err(NoGpu(format!(
            "none of compute capability {major}.{minor} or later: {}",
            found.join(", ")
        )));
    }
    Ok(able)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(name: &str, capability: (i32, i32)) -> DeviceFacts {
        DeviceFacts {
            ordinal: 0,
            name: name.into(),
            capability,
            multiprocessors: 40,
            memory_bytes: 16 << 30,
            _probed: Probed,
        }
    }

    /// On the machine that runs the tests, whatever it has.
    #[test]
    fn it_answers_in_one_line_and_never_panics() {
        match probe() {
            Ok(devices) => assert!(!devices.is_empty()),
            Err(why) => {
                let line = why.to_string();
                assert!(
                    line.starts_with("no GPU: ") && !line.contains('\n'),
                    "{line}"
                );
            }
        }
    }

    #[test]
    fn one_that_does_not_work_is_left_out() {
        let broken = |name: &str| Err(NoGpu(format!("{name} is broken")));
        let found = [broken("A"), Ok(1), broken("B"), Ok(2)];
        assert_eq!(those_that_work(found), Ok(vec![1, 2]));
        let none = [broken("A"), broken("B")];
        assert_eq!(
            those_that_work::<u8>(none),
            Err(NoGpu("A is broken; B is broken".into()))
        );
        assert_eq!(those_that_work::<u8>([]), Ok(vec![]));
    }

    #[test]
    fn what_is_too_old_is_named() {
        let line = |devices| judge(devices).unwrap_err().to_string();
        assert_eq!(
            check_version(12_040).unwrap_err().to_string(),
            "no GPU: the NVIDIA driver is for CUDA 12.4, and the kernels need 13.0"
        );
        assert_eq!(line(vec![]), "no GPU: the NVIDIA driver has no device");
        assert_eq!(
            line(vec![device("NVIDIA T4", (7, 5))]),
            "no GPU: none of compute capability 8.0 or later: NVIDIA T4 (7.5)"
        );
        let devices = vec![device("T4", (7, 5)), device("L4", (8, 9))];
        let able = judge(devices).unwrap();
        assert_eq!(able, [device("L4", (8, 9))]);
    }
}
