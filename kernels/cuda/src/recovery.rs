//! What is done when a device's context is lost: it is made anew, or the device is given up.
//!
//! After an illegal access, a hardware fault or a reset every call on the context fails. Everything on
//! it is dropped and a new one is opened. Where that does not help, the device is lost until the process
//! ends, and the caller goes to the processor.
//!
//! This is best effort, and untested on a GPU: of most such errors the driver's documentation says
//! that they leave the process in an inconsistent state, and that it must be ended and started anew to
//! go on using CUDA. A new context that can't be made, or fails too, ends in a lost device; a process
//! that must have the device back is to be started anew by whoever watches `vectide_gpu_lost`.
//!
//! ```text
//!            sticky fault                    opened
//!   READY ----------------> REBUILDING ------------------> READY, next generation
//!                               |
//!                               +-- not opened, or too often --> LOST
//! ```
//!
//! `vectide_gpu_rebuilds_total` counts contexts made anew; `vectide_gpu_lost` is the number of devices
//! given up.
//!
//! Invariant: a device is dropped and opened while no call is on it, and whoever asks whether it is ready
//! never waits for that.

use crate::encoder::EncodeError;
use crate::machine::FaultKind;
use crate::telemetry;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};
use vectide_model::contained;

/// Contexts made anew within [`WINDOW`] before the device is given up: a bad kernel or a dying card
/// would otherwise fail and be opened for ever, at a second each. One call alone, which is made twice,
/// does not reach it.
const REBUILDS_MAX: usize = 3;
const WINDOW: Duration = Duration::from_secs(600);

/// Opens a device.
pub trait Open: Send + Sync {
    /// What it opens.
    type Device;

    /// Opens it, after everything of the one before was dropped.
    ///
    /// # Errors
    /// Says why there is none.
    fn open(&self) -> Result<Self::Device, String>;
}

/// Why a call has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unavailable {
    /// All devices are given up: use the processor.
    #[error("the GPU is lost: {0}")]
    Lost(String),
    /// This call would fail again; others are served.
    #[error(transparent)]
    Failed(#[from] EncodeError),
}

/// Whether a device takes calls, the best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Readiness {
    /// At once.
    Ready,
    /// Once its context was made anew, if it can be.
    Rebuilding,
    /// Never again.
    Lost,
}

/// What came of a call's one attempt on a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Attempt<R> {
    /// The answer.
    Done(R),
    /// It failed in a way that leaves the context whole.
    Failed(EncodeError),
    /// The context was lost under it, by this call or by another one; it has been made anew since, or the
    /// device was given up.
    ContextLost(EncodeError),
    /// The device had been given up before.
    DeviceLost(String),
}

enum State<D> {
    Ready { device: D, generation: u64 },
    Lost(String),
}

/// A device that is opened anew when its context is lost.
pub struct Recovering<O: Open> {
    opener: O,
    state: RwLock<State<O::Device>>,
    /// A [`Readiness`], written under a lock of the state alone: who finds the context lost still has the
    /// lost generation's, so it can't call the next one lost.
    readiness: AtomicU8,
    rebuilds: Mutex<VecDeque<Instant>>,
}

impl<O: Open> Recovering<O> {
    /// Opens the device.
    ///
    /// # Errors
    /// When there is none to begin with.
    pub fn open(opener: O) -> Result<Self, String> {
        let device = opener.open()?;
        Ok(Self {
            opener,
            state: RwLock::new(State::Ready {
                device,
                generation: 0,
            }),
            readiness: AtomicU8::new(Readiness::Ready as u8),
            rebuilds: Mutex::default(),
        })
    }

    /// Makes a call on the device, once. Where the context is lost under it the device is opened anew
    /// before this returns, whatever becomes of the call.
    pub fn attempt<R>(
        &self,
        call: impl FnOnce(&O::Device) -> Result<R, EncodeError>,
    ) -> Attempt<R> {
        let (error, failed_generation) = {
            // A panic of a call leaves the state as it was.
            let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
            let (device, generation) = match &*state {
                State::Ready { device, generation } => (device, *generation),
                State::Lost(reason) => {
                    // Whoever is told so must not be sent here again, whatever was said before.
                    self.set(Readiness::Lost);
                    return Attempt::DeviceLost(reason.clone());
                }
            };
            match call(device) {
                Ok(answer) => return Attempt::Done(answer),
                Err(error) if !is_sticky(&error) => return Attempt::Failed(error),
                Err(error) => {
                    tracing::warn!(%error, "the GPU's context is lost");
                    self.set(Readiness::Rebuilding);
                    (error, generation)
                }
            }
        };
        self.rebuild(failed_generation);
        Attempt::ContextLost(error)
    }

    /// Whether it takes calls, now.
    pub fn readiness(&self) -> Readiness {
        match self.readiness.load(Ordering::Acquire) {
            ready if ready == Readiness::Ready as u8 => Readiness::Ready,
            rebuilding if rebuilding == Readiness::Rebuilding as u8 => Readiness::Rebuilding,
            _ => Readiness::Lost,
        }
    }

    /// Why the device was given up, if it was. Waits while it is opened anew.
    pub fn lost_reason(&self) -> Option<String> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        match &*state {
            State::Ready { .. } => None,
            State::Lost(reason) => Some(reason.clone()),
        }
    }

    fn set(&self, readiness: Readiness) {
        self.readiness.store(readiness as u8, Ordering::Release);
    }

    /// Opens the device anew, unless somebody has since `failed`.
    fn rebuild(&self, failed: u64) {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        if !matches!(&*state, State::Ready { generation, .. } if *generation == failed) {
            return;
        }
        // Dropped first: the new context needs the memory of the old one.
        *state = State::Lost("its context is being made anew".into());
        *state = match self.reopen() {
            Ok(device) => {
                self.set(Readiness::Ready);
                State::Ready {
                    device,
                    generation: failed + 1,
                }
            }
            Err(reason) => {
                self.set(Readiness::Lost);
                telemetry::count_lost();
                tracing::error!(%reason, "the GPU is given up; embedding goes on without it");
                State::Lost(reason)
            }
        };
    }

    fn reopen(&self) -> Result<O::Device, String> {
        let mut rebuilds = self.rebuilds.lock().unwrap_or_else(PoisonError::into_inner);
        while rebuilds.front().is_some_and(|at| at.elapsed() > WINDOW) {
            rebuilds.pop_front();
        }
        if rebuilds.len() >= REBUILDS_MAX {
            let minutes = WINDOW.as_secs() / 60;
            return Err(format!(
                "{REBUILDS_MAX} contexts were lost within {minutes} minutes"
            ));
        }
        rebuilds.push_back(Instant::now());
        telemetry::count_rebuild();
        // A function that the driver lacks panics; whoever waits for this device must not wait for ever.
        let opened = contained(|| self.opener.open());
        opened.unwrap_or_else(|panic| Err(format!("opening it anew has panicked: {panic}")))
    }
}

fn is_sticky(error: &EncodeError) -> bool {
    matches!(error, EncodeError::Fault(fault) if fault.kind == FaultKind::Sticky)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::GpuFault;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// Opens so many devices, each of which knows its number and how many are alive.
    struct Counting {
        opened: AtomicUsize,
        alive: Arc<AtomicUsize>,
        openings_max: usize,
    }

    struct Device {
        number: usize,
        alive: Arc<AtomicUsize>,
    }

    impl Drop for Device {
        fn drop(&mut self) {
            self.alive.fetch_sub(1, Ordering::SeqCst);
        }
    }

    impl Open for Counting {
        type Device = Device;
        fn open(&self) -> Result<Device, String> {
            let number = self.opened.fetch_add(1, Ordering::SeqCst);
            if number >= self.openings_max {
                return Err("no device".into());
            }
            assert_eq!(self.alive.fetch_add(1, Ordering::SeqCst), 0, "two at once");
            Ok(Device {
                number,
                alive: self.alive.clone(),
            })
        }
    }

    fn recovering(openings_max: usize) -> Recovering<Counting> {
        let opener = Counting {
            opened: AtomicUsize::new(0),
            alive: Arc::default(),
            openings_max,
        };
        Recovering::open(opener).unwrap()
    }

    fn fault(kind: FaultKind) -> EncodeError {
        EncodeError::Fault(GpuFault {
            doing: "a test".into(),
            detail: "planted".into(),
            kind,
        })
    }

    fn sticky<R>() -> Result<R, EncodeError> {
        Err(fault(FaultKind::Sticky))
    }

    #[test]
    fn a_lost_context_is_made_anew_whatever_becomes_of_the_call() {
        let device = recovering(10);
        for number in 0..2 {
            assert_eq!(
                device.attempt(|device| Ok(device.number)),
                Attempt::Done(number)
            );
            let lost = device.attempt(|_| sticky::<()>());
            assert_eq!(lost, Attempt::ContextLost(fault(FaultKind::Sticky)));
            assert_eq!(device.readiness(), Readiness::Ready);
        }
    }

    #[test]
    fn other_faults_are_told_and_change_nothing() {
        let device = recovering(1);
        for kind in [FaultKind::OutOfMemory, FaultKind::Refused] {
            let answer = device.attempt(|_| Err::<(), _>(fault(kind)));
            assert_eq!(answer, Attempt::Failed(fault(kind)));
        }
        assert_eq!(device.attempt(|device| Ok(device.number)), Attempt::Done(0));
    }

    #[test]
    fn a_device_that_does_not_come_back_is_given_up() {
        let device = recovering(1);
        assert!(matches!(
            device.attempt(|_| sticky::<()>()),
            Attempt::ContextLost(_)
        ));
        assert_eq!(device.readiness(), Readiness::Lost);
        assert_eq!(device.lost_reason().as_deref(), Some("no device"));
        let answer = device.attempt(|device| Ok(device.number));
        assert_eq!(answer, Attempt::DeviceLost("no device".into()));
    }

    #[test]
    fn one_that_is_lost_again_and_again_is_given_up() {
        let device = recovering(100);
        for _ in 0..REBUILDS_MAX {
            device.attempt(|_| sticky::<()>());
            assert_eq!(device.readiness(), Readiness::Ready);
        }
        device.attempt(|_| sticky::<()>());
        let reason = device.lost_reason().unwrap();
        assert!(reason.contains("3 contexts"), "{reason}");
    }

    #[test]
    fn many_callers_of_a_lost_context_make_it_anew_once() {
        let device = recovering(100);
        let all_failed = std::sync::Barrier::new(8);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let lost = device.attempt(|_| {
                        all_failed.wait();
                        sticky::<()>()
                    });
                    assert!(matches!(lost, Attempt::ContextLost(_)));
                    assert_eq!(device.attempt(|device| Ok(device.number)), Attempt::Done(1));
                });
            }
        });
        assert_eq!(device.readiness(), Readiness::Ready);
    }

    /// An opener that panics leaves nothing that is waited for.
    #[test]
    fn a_panic_while_it_is_opened_is_a_lost_device() {
        struct Panicking(AtomicUsize);
        impl Open for Panicking {
            type Device = ();
            fn open(&self) -> Result<(), String> {
                assert_eq!(self.0.fetch_add(1, Ordering::SeqCst), 0, "planted");
                Ok(())
            }
        }
        let device = Recovering::open(Panicking(AtomicUsize::new(0))).unwrap();
        assert!(matches!(
            device.attempt(|()| sticky::<()>()),
            Attempt::ContextLost(_)
        ));
        assert_eq!(device.readiness(), Readiness::Lost);
        assert!(matches!(
            device.attempt(|()| Ok(())),
            Attempt::DeviceLost(_)
        ));
    }
}
