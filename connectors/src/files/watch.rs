//! Hears of changes in a directory from the operating system.
//!
//! Invariant: what can't be passed on is not lost: the directory is then to be read anew.

use notify::{Config, Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

/// Events that wait for us. Beyond it a new reading of the directory is cheaper than single events.
const EVENTS_MAX: usize = 16 * 1024;

/// A directory that is being watched.
pub(crate) struct Watch {
    events: Receiver<Vec<PathBuf>>,
    needs_rescan: Arc<AtomicBool>,
    /// Watches until it is dropped.
    _watcher: RecommendedWatcher,
}

impl Watch {
    /// Begins to watch a directory and everything below it.
    pub(crate) fn new(root: &Path) -> notify::Result<Self> {
        let (sender, events) = sync_channel(EVENTS_MAX);
        let needs_rescan = Arc::new(AtomicBool::new(false));
        let flag = needs_rescan.clone();
        let config = Config::default().with_follow_symlinks(false);
        let mut watcher =
            RecommendedWatcher::new(move |event| pass_on(event, &sender, &flag), config)?;
        watcher.watch(root, RecursiveMode::Recursive)?;
        Ok(Self {
            events,
            needs_rescan,
            _watcher: watcher,
        })
    }

    /// The paths of the next event; waits for it at most `timeout`.
    pub(crate) fn next(&self, timeout: Duration) -> Option<Vec<PathBuf>> {
        self.events.recv_timeout(timeout).ok()
    }

    /// Whether events were lost since this was asked last.
    pub(crate) fn take_needs_rescan(&self) -> bool {
        self.needs_rescan.swap(false, Ordering::AcqRel)
    }
}

fn pass_on(
    event: notify::Result<Event>,
    events: &SyncSender<Vec<PathBuf>>,
    needs_rescan: &AtomicBool,
) {
    match event {
        // Reading a file is an event, too; ours would wake us for ever.
        Ok(event) if matches!(event.kind, EventKind::Access(_)) => {}
        Ok(event) => {
            if event.need_rescan() || events.try_send(event.paths).is_err() {
                needs_rescan.store(true, Ordering::Release);
            }
        }
        Err(error) => {
            tracing::warn!("watching a folder: {error}; it is read anew from time to time");
            needs_rescan.store(true, Ordering::Release);
        }
    }
}
