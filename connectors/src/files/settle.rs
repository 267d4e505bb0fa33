//! Waits until a path stays what it is: a file that is being written is not read half.
//!
//! Paths touched at one moment become ready at one moment, so that the two halves of a rename stay
//! together.
//!
//! Invariant: every path that is touched becomes ready at last, also one that never rests.

use super::tree::Entry;
use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime};

/// How many settle times a file may be written without rest before it is read as it is: a log that
/// grows for ever must not be missing for ever.
const UNREST_SETTLES_MAX: u32 = 25;

/// A path that has come to rest.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Settled {
    pub(crate) key: String,
    pub(crate) entry: Entry,
    /// When the first of its changes was noticed.
    pub(crate) noticed_at: SystemTime,
}

struct Waiting {
    noticed_at: SystemTime,
    began_at: Instant,
    seen: Option<Entry>,
    since: Instant,
}

/// The paths that are waited for, in order.
pub(crate) struct Unsettled {
    settle: Duration,
    waiting: BTreeMap<String, Waiting>,
}

impl Unsettled {
    pub(crate) fn new(settle: Duration) -> Self {
        Self {
            settle,
            waiting: BTreeMap::new(),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Notes that something happened at a path.
    pub(crate) fn touch(&mut self, key: String, now: Instant) {
        let waiting = self.waiting.entry(key).or_insert_with(|| Waiting {
            noticed_at: SystemTime::now(),
            began_at: now,
            seen: None,
            since: now,
        });
        waiting.seen = None;
        waiting.since = now;
    }

    /// Takes the paths that have stayed the same, sorted. `look_at` tells what a path leads to now.
    pub(crate) fn take_settled(
        &mut self,
        now: Instant,
        look_at: impl Fn(&str) -> Entry,
    ) -> Vec<Settled> {
        let settle = self.settle;
        let mut settled = Vec::new();
        self.waiting.retain(|key, waiting| {
            let entry = look_at(key);
            if waiting.seen.as_ref() != Some(&entry) {
                waiting.seen = Some(entry.clone());
                waiting.since = now;
            }
            let is_ready = now.duration_since(waiting.since) >= settle
                || now.duration_since(waiting.began_at) >= settle * UNREST_SETTLES_MAX;
            if is_ready {
                settled.push(Settled {
                    key: key.clone(),
                    entry,
                    noticed_at: waiting.noticed_at,
                });
            }
            !is_ready
        });
        settled
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::tree::FileStamp;

    fn file(bytes: u64) -> Entry {
        Entry::File(FileStamp {
            bytes,
            modified_at: SystemTime::UNIX_EPOCH,
            inode: None,
        })
    }

    fn keys(settled: Vec<Settled>) -> Vec<String> {
        settled.into_iter().map(|settled| settled.key).collect()
    }

    #[test]
    fn a_growing_file_waits_and_a_rename_stays_together() {
        let start = Instant::now();
        let at = |milliseconds| start + Duration::from_millis(milliseconds);
        let mut unsettled = Unsettled::new(Duration::from_millis(100));
        for key in ["b", "a", "growing"] {
            unsettled.touch(key.to_owned(), at(0));
        }
        let look = |bytes: u64| {
            move |key: &str| match key {
                "a" => Entry::Absent,
                "growing" => file(bytes),
                _ => file(1),
            }
        };
        assert_eq!(keys(unsettled.take_settled(at(0), look(1))), [""; 0]);
        assert_eq!(keys(unsettled.take_settled(at(99), look(2))), [""; 0]);
        assert_eq!(keys(unsettled.take_settled(at(100), look(2))), ["a", "b"]);
        assert_eq!(keys(unsettled.take_settled(at(198), look(2))), [""; 0]);
        assert_eq!(keys(unsettled.take_settled(at(199), look(2))), ["growing"]);
        assert!(unsettled.is_empty());
    }

    #[test]
    fn a_file_without_rest_is_read_at_last() {
        let start = Instant::now();
        let mut unsettled = Unsettled::new(Duration::from_millis(10));
        unsettled.touch("log".to_owned(), start);
        let mut ticks = 0;
        loop {
            ticks += 1;
            let now = start + Duration::from_millis(ticks);
            if !unsettled.take_settled(now, |_| file(ticks)).is_empty() {
                break;
            }
        }
        assert_eq!(ticks, 250);
    }
}
