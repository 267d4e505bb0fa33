//! Ports for servers that a test starts.
//!
//! Invariant: no port is given twice by a process, and none lies where the system takes ports of
//! outgoing connections from: such a one may be taken between being found free and being listened on.

use std::net::TcpListener;
use std::sync::atomic::{AtomicU32, Ordering};

/// Below the range of outgoing connections (from 32,768 on Linux, 49,152 elsewhere), above what
/// well-known services use.
const PORTS: std::ops::Range<u32> = 13_000..32_000;

/// Most ports that are given side by side.
const SIDE_BY_SIDE_MAX: u32 = 16;

/// The first of `count` ports of 127.0.0.1, side by side, that were free a moment ago.
///
/// # Errors
/// When there are none, or more than 16 are asked for.
pub fn free_ports(count: u16) -> Result<u16, String> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    if u32::from(count) > SIDE_BY_SIDE_MAX {
        return Err(format!("{count} ports are more than {SIDE_BY_SIDE_MAX}"));
    }
    // Processes begin at places of their own: the numbers of processes are next to each other.
    let begin = std::process::id().wrapping_mul(97);
    for _ in PORTS {
        let first = port(begin, NEXT.fetch_add(count.into(), Ordering::Relaxed));
        let is_free = |port| TcpListener::bind(("127.0.0.1", port)).is_ok();
        if (first..first + count).all(is_free) {
            return Ok(first);
        }
    }
    Err(format!("no {count} free ports side by side on 127.0.0.1"))
}

/// The port at a step, whatever is asked for there: so two questions never overlap.
fn port(begin: u32, step: u32) -> u16 {
    let length = PORTS.end - PORTS.start - SIDE_BY_SIDE_MAX;
    (PORTS.start + (begin % length + step % length) % length) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_port_is_given_twice() {
        let mut given = Vec::new();
        for count in [1, 2, 1, 1, 1, 5].into_iter().cycle().take(120) {
            let first = free_ports(count).unwrap();
            given.extend(first..first + count);
        }
        let all = given.len();
        given.sort_unstable();
        given.dedup();
        assert_eq!(given.len(), all);
        assert!(free_ports(17).is_err());
    }

    #[test]
    fn steps_are_side_by_side_wherever_a_process_begins() {
        for process in 1..40_000_u32 {
            let begin = process.wrapping_mul(97);
            let (first, second) = (port(begin, 0), port(begin, 1));
            let wraps = second == PORTS.start as u16;
            assert!(second == first + 1 || wraps, "{process}: {first} {second}");
        }
    }
}
