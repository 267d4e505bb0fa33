//! The emulator as a [`Machine`]: nothing is done before somebody waits for it, so what is touched too
//! early shows.
//!
//! Invariant: work is done in order, and a planted fault happens at the call it is planted at.

#![allow(unsafe_code)]

use super::memory::Memory;
use super::run;
use crate::accelerator::{OnDevices, image_of, shape_of};
use crate::encoder::Encoder;
use crate::launch::{Address, Launch};
use crate::machine::{DeviceMemory, FaultKind, GpuFault, Machine, Queue, Staging, Urgency};
use crate::recovery::{Open, Recovering};
use crate::shape::BertShape;
use std::sync::{Arc, Mutex};
use vectide_model::{AcceleratedEncoder, Accelerator, BertSizes, NoAccelerator};

/// When calls fail.
#[derive(Clone, Default)]
pub(crate) struct Faults(Arc<Mutex<Option<(usize, FaultKind)>>>);

impl Faults {
    /// Every call after so many.
    pub(crate) fn fail_after(&self, calls: usize, kind: FaultKind) {
        *self.0.lock().unwrap() = Some((calls, kind));
    }

    pub(crate) fn never(&self) {
        *self.0.lock().unwrap() = None;
    }

    fn call(&self, doing: &str) -> Result<(), GpuFault> {
        match &mut *self.0.lock().unwrap() {
            Some((0, kind)) => Err(GpuFault {
                doing: doing.into(),
                detail: "planted".into(),
                kind: *kind,
            }),
            Some((calls, _)) => {
                *calls -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }
}

pub(crate) struct EmulatedMachine {
    faults: Faults,
}

impl EmulatedMachine {
    pub(crate) fn new() -> Self {
        Self {
            faults: Faults::default(),
        }
    }

    pub(crate) fn faults(&self) -> Faults {
        self.faults.clone()
    }
}

/// Emulated devices with the same faults, as an encoder of texts gets them.
#[derive(Clone)]
pub(crate) struct EmulatedDevices {
    pub(crate) count: usize,
    pub(crate) faults: Faults,
}

struct EmulatedOpener {
    shape: BertShape,
    image: Arc<[u8]>,
    budget_bytes: Option<usize>,
    faults: Faults,
}

impl Open for EmulatedOpener {
    type Device = Encoder<EmulatedMachine>;

    fn open(&self) -> Result<Self::Device, String> {
        let machine = EmulatedMachine {
            faults: self.faults.clone(),
        };
        Encoder::open(machine, self.shape, &self.image, self.budget_bytes)
            .map_err(|error| error.to_string())
    }
}

impl Accelerator for EmulatedDevices {
    fn look(&self, sizes: &BertSizes) -> Result<String, NoAccelerator> {
        shape_of(sizes).map(|_| "emulated".into())
    }

    fn open(
        &self,
        sizes: &BertSizes,
        weights: &[u8],
        memory_bytes_max: Option<usize>,
    ) -> Result<Box<dyn AcceleratedEncoder>, NoAccelerator> {
        let shape = shape_of(sizes)?;
        let image = image_of(&shape, weights)?;
        let open = |_| {
            let opener = EmulatedOpener {
                shape,
                image: image.clone(),
                budget_bytes: memory_bytes_max,
                faults: self.faults.clone(),
            };
            let opened = Recovering::open(opener).map_err(NoAccelerator)?;
            Ok(("emulated".to_owned(), opened))
        };
        let devices = (0..self.count).map(open).collect::<Result<_, _>>()?;
        Ok(Box::new(OnDevices::new(devices)))
    }
}

// SAFETY: memory is a block of its own, of the asked length and aligned to 256 bytes behind its guard;
// staging is boxed; all work is done, or dropped with the queue, when `finish` returns.
unsafe impl Machine for EmulatedMachine {
    type Memory = Memory;
    type Staging = Box<[u8]>;
    type Queue = LazyQueue;

    fn multiprocessors(&self) -> usize {
        4
    }

    fn free_bytes(&self) -> Result<usize, GpuFault> {
        Ok(2 << 30)
    }

    fn allocate(&self, bytes: usize) -> Result<Memory, GpuFault> {
        self.faults.call("allocating")?;
        Ok(Memory::poisoned::<u8>(bytes))
    }

    fn staging(&self, bytes: usize) -> Result<Box<[u8]>, GpuFault> {
        self.faults.call("pinning")?;
        Ok(vec![0; bytes].into())
    }

    fn queue(&self, _urgency: Urgency) -> Result<LazyQueue, GpuFault> {
        self.faults.call("making a queue")?;
        Ok(LazyQueue {
            work: Mutex::default(),
            faults: self.faults.clone(),
        })
    }
}

// SAFETY: the block is owned.
unsafe impl Send for Memory {}
// SAFETY: kernels write it through its address only while the one queue that uses it is waited for.
unsafe impl Sync for Memory {}

// SAFETY: the block is where it is until dropped.
unsafe impl DeviceMemory for Memory {
    fn address(&self) -> Address {
        Memory::address(self)
    }
}

impl Staging for Box<[u8]> {
    fn bytes(&self) -> &[u8] {
        self
    }
    fn bytes_mut(&mut self) -> &mut [u8] {
        self
    }
}

enum Work {
    Copy { from: u64, to: u64, bytes: usize },
    Launch(Launch),
}

pub(crate) struct LazyQueue {
    work: Mutex<Vec<Work>>,
    faults: Faults,
}

impl LazyQueue {
    fn push(&self, doing: &str, work: Work) -> Result<(), GpuFault> {
        self.faults.call(doing)?;
        self.work.lock().unwrap().push(work);
        Ok(())
    }
}

impl Queue for LazyQueue {
    type Staging = Box<[u8]>;
    type Recording = Vec<Launch>;

    unsafe fn upload(&self, from: &Box<[u8]>, bytes: usize, to: Address) -> Result<(), GpuFault> {
        assert!(bytes <= from.len());
        let from = from.as_ptr() as u64;
        self.push(
            "uploading",
            Work::Copy {
                from,
                to: to.0,
                bytes,
            },
        )
    }

    unsafe fn launch(&self, launch: &Launch) -> Result<(), GpuFault> {
        self.push("launching", Work::Launch(launch.clone()))
    }

    unsafe fn download(
        &self,
        from: Address,
        bytes: usize,
        to: &mut Box<[u8]>,
    ) -> Result<(), GpuFault> {
        assert!(bytes <= to.len());
        let to = to.as_mut_ptr() as u64;
        self.push(
            "downloading",
            Work::Copy {
                from: from.0,
                to,
                bytes,
            },
        )
    }

    unsafe fn record(&self, launches: &[Launch]) -> Result<Vec<Launch>, GpuFault> {
        self.faults.call("recording")?;
        Ok(launches.to_vec())
    }

    unsafe fn replay(&self, recording: &Vec<Launch>) -> Result<(), GpuFault> {
        self.faults.call("replaying")?;
        let launches = recording.iter().cloned().map(Work::Launch);
        self.work.lock().unwrap().extend(launches);
        Ok(())
    }

    fn finish(&self) -> Result<(), GpuFault> {
        for work in std::mem::take(&mut *self.work.lock().unwrap()) {
            match work {
                // SAFETY: the queue's contract: both sides are alive and of that length.
                Work::Copy { from, to, bytes } => unsafe {
                    (to as *mut u8).copy_from_nonoverlapping(from as *const u8, bytes);
                },
                Work::Launch(launch) => {
                    run(&launch, 1).unwrap();
                }
            }
        }
        self.faults.call("waiting")
    }
}
