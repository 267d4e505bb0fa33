//! When a shard has something to do though no row has changed.
//!
//! A build that has ended is news at once. A merge that could not be made is news later: it is optional work, whose
//! inputs answer as before, and what it lacked (room on a disk, most often) may be there by then.
//!
//! Invariant: each merge that could not be made in a row makes the next wait longer, up to a limit, and one that
//! was made ends the waiting; so what can't be done costs little, and what can is done.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How long the first merge that could not be made is left alone, and any at most: a merge may write gigabytes
/// before it fails.
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(600);

/// Stands for no time.
const NEVER_MS: u64 = u64::MAX;

/// What the writer of a shard, its builders and its readers know of it.
#[derive(Debug)]
pub(crate) struct News {
    is_there: AtomicBool,
    began_at: Instant,
    /// When there are news, in milliseconds from the beginning.
    due_ms: AtomicU64,
}

impl Default for News {
    fn default() -> Self {
        Self {
            is_there: AtomicBool::new(false),
            began_at: Instant::now(),
            due_ms: AtomicU64::new(NEVER_MS),
        }
    }
}

impl News {
    /// There are some.
    pub(crate) fn tell(&self) {
        self.is_there.store(true, Ordering::Release);
    }

    /// There will be some after a pause.
    fn tell_after(&self, pause: Duration) {
        let due = self.began_at.elapsed() + pause;
        self.due_ms.store(due.as_millis() as u64, Ordering::Release);
    }

    /// They are taken in; what is told from now on is news again.
    pub(crate) fn take(&self) {
        self.is_there.store(false, Ordering::SeqCst);
    }

    /// Whether there are some.
    pub(crate) fn are_there(&self) -> bool {
        self.is_there.load(Ordering::Acquire) || self.is_due()
    }

    fn is_due(&self) -> bool {
        let due_ms = self.due_ms.load(Ordering::Acquire);
        due_ms != NEVER_MS && self.began_at.elapsed().as_millis() as u64 >= due_ms
    }
}

/// The merges of a shard that could not be made.
#[derive(Debug, Default)]
pub(crate) struct Postponed {
    /// Since the last that was made.
    in_a_row: u32,
    /// Since the shard was opened.
    pub(crate) total: u64,
}

impl Postponed {
    /// Notes another; says how long there will be none.
    pub(crate) fn note(&mut self, news: &News) -> Duration {
        let pause = PAUSE_MIN
            .saturating_mul(2_u32.saturating_pow(self.in_a_row))
            .min(PAUSE_MAX);
        self.in_a_row += 1;
        self.total += 1;
        news.tell_after(pause);
        pause
    }

    /// A merge was made.
    pub(crate) fn end(&mut self) {
        self.in_a_row = 0;
    }

    /// Whether the next merge has to wait. If not, nothing is waited for any more.
    pub(crate) fn is_pausing(&self, news: &News) -> bool {
        if news.due_ms.load(Ordering::Acquire) != NEVER_MS && !news.is_due() {
            return true;
        }
        news.due_ms.store(NEVER_MS, Ordering::Release);
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_until_a_merge_is_made() {
        let (news, mut postponed) = (News::default(), Postponed::default());
        assert!(!postponed.is_pausing(&news) && !news.are_there());
        let pauses: Vec<u64> = (0..40).map(|_| postponed.note(&news).as_secs()).collect();
        assert_eq!(pauses[..4], [1, 2, 4, 8]);
        assert!(pauses[9] == 512 && pauses[10..].iter().all(|pause| *pause == 600));
        assert!(postponed.is_pausing(&news) && !news.are_there());
        postponed.end();
        assert_eq!(postponed.note(&news), PAUSE_MIN);
        assert_eq!(postponed.total, 41);
    }

    #[test]
    fn what_was_put_off_is_news_once() {
        let (news, postponed) = (News::default(), Postponed::default());
        news.tell_after(Duration::from_millis(20));
        assert!(postponed.is_pausing(&news) && !news.are_there());
        std::thread::sleep(Duration::from_millis(40));
        assert!(news.are_there());
        news.take();
        assert!(news.are_there(), "until the merge is looked for");
        assert!(!postponed.is_pausing(&news) && !news.are_there());
    }
}
