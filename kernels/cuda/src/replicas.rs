//! Several devices with the same model: each call goes to the one with the least to do.
//!
//! Invariant: a device's load is the tokens of the calls that are on it, and a call is refused as lost
//! only when every device is.

use crate::encoder::EncodeError;
use crate::recovery::{Open, Recovering, Unavailable};
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

    /// Makes a call of so many tokens on the device with the least to do, the first of equal ones; on
    /// another where that one is lost meanwhile.
    ///
    /// # Errors
    /// When all devices are lost, or the call fails on one that is not.
    pub fn call<R>(
        &self,
        tokens: usize,
        call: impl Fn(&O::Device) -> Result<R, EncodeError>,
    ) -> Result<R, Unavailable> {
        let mut reason = "there is no other".to_owned();
        loop {
            let ready = self
                .devices
                .iter()
                .filter(|replica| replica.device.is_ready());
            let load = |replica: &&Replica<O>| replica.tokens.load(Ordering::Relaxed);
            let Some(replica) = ready.min_by_key(load) else {
                return Err(Unavailable::Lost(reason));
            };
            let _share = Share::put(&replica.tokens, tokens);
            match replica.device.call(&call) {
                // A lost device never becomes ready again, so this ends.
                Err(Unavailable::Lost(why)) => reason = why,
                answer => return answer,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::{FaultKind, GpuFault};

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
        let why = "device 1 does not come back".to_owned();
        assert_eq!(answer, Err(Unavailable::Lost(why)));
        assert!(replicas.call(1, |device| Ok(*device)).is_err());
    }
}
