//! Several devices with the same model: each call goes to the one with the least to do.
//!
//! Invariant: a device's load is the tokens of the calls that are on it; a call is refused as lost only
//! when every device is, costs at most two contexts, and waits for a context that is made anew only where
//! no other device is ready.

use crate::encoder::EncodeError;
use crate::recovery::{Attempt, Open, Readiness, Recovering, Unavailable};
use std::sync::atomic::{AtomicUsize, Ordering};

/// The devices.
pub struct Replicas<O: Open> {
    devices: Vec<Replica<O>>,
}

struct Replica<O: Open> {
    device: Recovering<O>,
    tokens: AtomicUsize,
}

/// A call's share of a device's load, until dropped.
struct Share<'a> {
    load: &'a AtomicUsize,
    tokens: usize,
}

impl<'a> Share<'a> {
    fn put(load: &'a AtomicUsize, tokens: usize) -> Self {
        load.fetch_add(tokens, Ordering::Relaxed);
        Self { load, tokens }
    }
}

impl Drop for Share<'_> {
    fn drop(&mut self) {
        self.load.fetch_sub(self.tokens, Ordering::Relaxed);
    }
}

impl<O: Open> Replicas<O> {
    /// Of devices that have nothing to do yet.
    pub fn new(devices: Vec<Recovering<O>>) -> Self {
        let replica = |device| Replica {
            device,
            tokens: AtomicUsize::new(0),
        };
        Self {
            devices: devices.into_iter().map(replica).collect(),
        }
    }

    /// Makes a call of so many tokens on the device with the least to do, the first of equal ones; once
    /// more, on whichever is ready then, where the context was lost under it.
    ///
    /// A call that loses its second context too is taken for the cause, and made no more: it would lose
    /// one device after the other, and everybody else's calls with them.
    ///
    /// # Errors
    /// When all devices are lost, or the call fails.
    pub fn call<R>(
        &self,
        tokens: usize,
        call: impl Fn(&O::Device) -> Result<R, EncodeError>,
    ) -> Result<R, Unavailable> {
        let mut is_second = false;
        while let Some(replica) = self.choose() {
            let _share = Share::put(&replica.tokens, tokens);
            match replica.device.attempt(&call) {
                Attempt::Done(answer) => return Ok(answer),
                Attempt::Failed(error) => return Err(error.into()),
                Attempt::ContextLost(error) if is_second => return Err(error.into()),
                Attempt::ContextLost(_) => is_second = true,
                // It is never chosen again, so this ends.
                Attempt::DeviceLost(_) => {}
            }
        }
        let reasons = self.devices.iter();
        let reasons = reasons.filter_map(|replica| replica.device.lost_reason());
        Err(Unavailable::Lost(reasons.collect::<Vec<_>>().join("; ")))
    }

    /// Makes a call on every device, once.
    pub fn call_each<R>(
        &self,
        call: impl Fn(&O::Device) -> Result<R, EncodeError>,
    ) -> Vec<Result<R, Unavailable>> {
        let attempts = (self.devices.iter()).map(|replica| replica.device.attempt(&call));
        let answers = attempts.map(|attempt| match attempt {
            Attempt::Done(answer) => Ok(answer),
            Attempt::Failed(error) | Attempt::ContextLost(error) => Err(error.into()),
            Attempt::DeviceLost(reason) => Err(Unavailable::Lost(reason)),
        });
        answers.collect()
    }

    /// A device that is opened anew answers in seconds: it is waited for only where no other is ready.
    fn choose(&self) -> Option<&Replica<O>> {
        // Each is asked once: one that becomes ready meanwhile is not overlooked.
        let asked = self.devices.iter().map(|replica| {
            let load = replica.tokens.load(Ordering::Relaxed);
            ((replica.device.readiness(), load), replica)
        });
        let of_use = asked.filter(|((readiness, _), _)| *readiness != Readiness::Lost);
        let (_, best) = of_use.min_by_key(|(rank, _)| *rank)?;
        Some(best)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::{FaultKind, GpuFault};
    use std::sync::{Arc, RwLock};

    /// Opens its number once.
    struct Once(usize, AtomicUsize);

    impl Open for Once {
        type Device = usize;
        fn open(&self) -> Result<usize, String> {
            match self.1.fetch_add(1, Ordering::Relaxed) {
                0 => Ok(self.0),
                _ => Err(format!("device {} does not come back", self.0)),
            }
        }
    }

    fn replicas(count: usize) -> Replicas<Once> {
        let open = |number| Recovering::open(Once(number, AtomicUsize::new(0))).unwrap();
        Replicas::new((0..count).map(open).collect())
    }

    fn lost() -> EncodeError {
        EncodeError::Fault(GpuFault {
            doing: "a test".into(),
            detail: "planted".into(),
            kind: FaultKind::Sticky,
        })
    }

    #[test]
    fn the_least_loaded_is_taken() {
        let replicas = replicas(3);
        // Calls within calls: each sees the load of those around it.
        let seen = replicas.call(100, |first| {
            let second = replicas.call(10, |second| {
                let third = replicas.call(1, |third| {
                    let fourth = replicas.call(1, |fourth| Ok(*fourth)).unwrap();
                    Ok([*third, fourth])
                });
                Ok((*second, third.unwrap()))
            });
            Ok((*first, second.unwrap()))
        });
        assert_eq!(seen.unwrap(), (0, (1, [2, 2])));
        assert_eq!(replicas.call(5, |device| Ok(*device)), Ok(0));
        let each = replicas.call_each(|device| Ok(*device));
        assert_eq!(each, [Ok(0), Ok(1), Ok(2)]);
    }

    #[test]
    fn a_lost_device_s_calls_go_to_the_others_until_there_is_none() {
        let replicas = replicas(2);
        let answer = replicas.call(1, |device| {
            if *device == 0 {
                Err(lost())
            } else {
                Ok(*device)
            }
        });
        assert_eq!(answer, Ok(1));
        assert_eq!(replicas.call(1, |device| Ok(*device)), Ok(1));
        let answer = replicas.call(1, |_| Err::<(), _>(lost()));
        let why = "device 0 does not come back; device 1 does not come back".to_owned();
        assert_eq!(answer, Err(Unavailable::Lost(why)));
        assert!(replicas.call(1, |device| Ok(*device)).is_err());
    }

    /// Opens a device as often as it is asked to; while the gate is shut it waits, but for the first time.
    struct Gated {
        opened: AtomicUsize,
        gate: Arc<RwLock<()>>,
    }

    impl Open for Gated {
        type Device = usize;
        fn open(&self) -> Result<usize, String> {
            let opened = self.opened.fetch_add(1, Ordering::Relaxed);
            if opened > 0 {
                drop(self.gate.read().unwrap());
            }
            Ok(opened)
        }
    }

    fn gated(count: usize, gate: &Arc<RwLock<()>>) -> Replicas<Gated> {
        let open = |_| {
            let opened = AtomicUsize::new(0);
            let gate = gate.clone();
            Recovering::open(Gated { opened, gate }).unwrap()
        };
        Replicas::new((0..count).map(open).collect())
    }

    /// One such call once went on until every device was given up.
    #[test]
    fn a_poisonous_call_fails_alone() {
        for devices in [1, 2, 5] {
            let replicas = gated(devices, &Arc::default());
            let attempts = AtomicUsize::new(0);
            let answer = replicas.call(1, |_| {
                attempts.fetch_add(1, Ordering::Relaxed);
                Err::<(), _>(lost())
            });
            assert_eq!(answer, Err(Unavailable::Failed(lost())));
            assert_eq!(attempts.into_inner(), 2);
            assert!(replicas.call(1, |_| Ok(())).is_ok());
            let is_ready = |replica: &Replica<_>| replica.device.readiness() == Readiness::Ready;
            assert!(replicas.devices.iter().all(is_ready));
        }
    }

    #[test]
    fn a_call_waits_for_a_rebuild_only_where_no_other_device_is_ready() {
        let gate = Arc::new(RwLock::new(()));
        let replicas = gated(2, &gate);
        let is_rebuilding = |at: usize| {
            while replicas.devices[at].device.readiness() != Readiness::Rebuilding {
                std::thread::yield_now();
            }
        };
        std::thread::scope(|scope| {
            let shut = gate.write().unwrap();
            // By its load alone the other device would always be taken.
            let _busy = Share::put(&replicas.devices[1].tokens, 100);
            // The first opening of each device is number 0, the second 1.
            let lose = || {
                replicas.call(1, |opened| match opened {
                    0 => Err(lost()),
                    opened => Ok(*opened),
                })
            };
            let first = scope.spawn(lose);
            is_rebuilding(0);
            for _ in 0..3 {
                assert_eq!(replicas.call(1, |opened| Ok(*opened)), Ok(0));
            }
            let second = scope.spawn(lose);
            is_rebuilding(1);
            let waiting = scope.spawn(|| replicas.call(1, |opened| Ok(*opened)));
            drop(shut);
            assert_eq!(waiting.join().unwrap(), Ok(1));
            assert_eq!(first.join().unwrap(), Ok(1));
            assert_eq!(second.join().unwrap(), Ok(1));
        });
    }
}
