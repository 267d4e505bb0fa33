//! What is done when a device's context is lost: it is made anew, or the device is given up.
//!
//! After an illegal access, a hardware fault or a reset every call on the context fails. Everything on
//! it is dropped, a new one is opened, and the calls that failed are made once more. Where that does
//! not help, the device is lost until the process ends, and the caller goes to the processor.
//!
//! ```text
//!            sticky fault                opened
//!   ready ----------------> (write lock) -------> ready, next generation
//!                                |
//!                                +-- not opened, or too often --> lost
//! ```
//!
//! `vectide_gpu_rebuilds_total` counts contexts made anew; `vectide_gpu_lost` is the number of devices
//! given up.
//!
//! Invariant: a device is dropped and opened while no call is on it.

use crate::encoder::EncodeError;
use crate::machine::FaultKind;
use std::collections::VecDeque;
use std::sync::{PoisonError, RwLock};
use std::time::{Duration, Instant};

/// Contexts made anew within [`WINDOW`] before the device is given up: a bad kernel or a dying card
/// would otherwise fail and be opened for ever, at a second each.
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
    /// The device is given up: use the processor.
    #[error("the GPU is lost: {0}")]
    Lost(String),
    /// This call would fail again.
    #[error(transparent)]
    Failed(#[from] EncodeError),
}

enum State<D> {
    Ready { device: D, generation: u64 },
    Lost(String),
}

/// A device that is opened anew when its context is lost.
pub struct Recovering<O: Open> {
    opener: O,
    state: RwLock<State<O::Device>>,
    rebuilds: RwLock<VecDeque<Instant>>,
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
            rebuilds: RwLock::default(),
        })
    }

    /// Makes a call on the device, once more after each time that its context had to be made anew.
    ///
    /// # Errors
    /// When the device is lost, or the call failed in a way that leaves the context whole.
    pub fn call<R>(
        &self,
        call: impl Fn(&O::Device) -> Result<R, EncodeError>,
    ) -> Result<R, Unavailable> {
        loop {
            let failed_generation = {
                // A panic of a call leaves the state as it was.
                let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
                let (device, generation) = match &*state {
                    State::Ready { device, generation } => (device, *generation),
                    State::Lost(reason) => return Err(Unavailable::Lost(reason.clone())),
                };
                match call(device) {
                    Ok(answer) => return Ok(answer),
                    Err(error) if !is_sticky(&error) => return Err(error.into()),
                    Err(error) => {
                        tracing::warn!(%error, "the GPU's context is lost");
                        generation
                    }
                }
            };
            self.rebuild(failed_generation);
        }
    }

    /// Whether calls are of use.
    pub fn is_ready(&self) -> bool {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        matches!(&*state, State::Ready { .. })
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
            Ok(device) => State::Ready {
                device,
                generation: failed + 1,
            },
            Err(reason) => {
                metrics::gauge!("vectide_gpu_lost").increment(1.0);
                tracing::error!(%reason, "the GPU is given up; embedding goes on on the CPU");
                State::Lost(reason)
            }
        };
    }

    fn reopen(&self) -> Result<O::Device, String> {
        let mut rebuilds = self
            .rebuilds
            .write()
            .unwrap_or_else(PoisonError::into_inner);
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
        metrics::counter!("vectide_gpu_rebuilds_total").increment(1);
        self.opener.open()
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

    #[test]
    fn a_lost_context_is_made_anew_and_the_call_repeated() {
        let device = recovering(10);
        let answer = device.call(|device| match device.number {
            0 | 1 => Err(fault(FaultKind::Sticky)),
            number => Ok(number),
        });
        assert_eq!(answer, Ok(2));
        assert!(device.is_ready());
    }

    #[test]
    fn other_faults_are_told_and_change_nothing() {
        let device = recovering(1);
        for kind in [FaultKind::OutOfMemory, FaultKind::Refused] {
            let answer = device.call(|_| Err::<(), _>(fault(kind)));
            assert!(matches!(answer, Err(Unavailable::Failed(_))));
        }
        assert_eq!(device.call(|device| Ok(device.number)), Ok(0));
    }

    #[test]
    fn a_device_that_does_not_come_back_is_given_up() {
        let device = recovering(1);
        let answer = device.call(|_| Err::<(), _>(fault(FaultKind::Sticky)));
        assert_eq!(answer, Err(Unavailable::Lost("no device".into())));
        assert!(!device.is_ready());
        assert!(device.call(|device| Ok(device.number)).is_err());
    }

    #[test]
    fn one_that_is_lost_again_and_again_is_given_up() {
        let device = recovering(100);
        let answer = device.call(|_| Err::<(), _>(fault(FaultKind::Sticky)));
        let Err(Unavailable::Lost(reason)) = answer else {
            panic!("{answer:?}");
        };
        assert!(reason.contains("3 contexts"), "{reason}");
    }

    #[test]
    fn many_callers_of_a_lost_context_make_it_anew_once() {
        let device = recovering(100);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let answer = device.call(|device| match device.number {
                        0 => Err(fault(FaultKind::Sticky)),
                        number => Ok(number),
                    });
                    assert_eq!(answer, Ok(1));
                });
            }
        });
    }
}
