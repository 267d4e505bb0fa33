//! Ports for servers that a test starts.
//!
//! Invariant: no port is given twice by a process, and none lies where the system takes ports of
//! outgoing connections from: such a one may be taken between being found free and being listened on.

use std::net::TcpListener;
use std::sync::atomic::{AtomicU32, Ordering};

/// Below the range of outgoing connections (from 32,768 on Linux, 49,152 elsewhere), above what
/// well-known services use.
const PORTS: std::ops::Range<u32> = 13_000..32_000;

/// The first of `count` ports of 127.0.0.1, side by side, that were free a moment ago.
///
/// # Errors
/// When there are none.
pub fn free_ports(count: u16) -> Result<u16, String> {
    // Processes begin at places of their own: the numbers of processes are next to each other.
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let begin = std::process::id().wrapping_mul(97);
    let length = PORTS.end - PORTS.start - u32::from(count);
    for _ in 0..length {
        let step = NEXT.fetch_add(count.into(), Ordering::Relaxed);
        let first = (PORTS.start + begin.wrapping_add(step) % length) as u16;
        let is_free = |port| TcpListener::bind(("127.0.0.1", port)).is_ok();
        if (first..first + count).all(is_free) {
            return Ok(first);
        }
    }
    Err(format!("no {count} free ports side by side on 127.0.0.1"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_port_is_given_twice() {
        let mut given: Vec<u16> = (0..100).map(|_| free_ports(1).unwrap()).collect();
        given.sort_unstable();
        given.dedup();
        assert_eq!(given.len(), 100);
        let pair = free_ports(2).unwrap();
        let _first = TcpListener::bind(("127.0.0.1", pair)).unwrap();
        let _second = TcpListener::bind(("127.0.0.1", pair + 1)).unwrap();
    }
}
