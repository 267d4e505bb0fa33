//! Tells how far a fetch is: a bar on a terminal, a few lines elsewhere.
//!
//! Invariant: standard output stays free for results; everything goes to standard error.

use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;

/// Lines that a fetch writes where there is no terminal: one each quarter.
const PLAIN_STEPS: u64 = 4;

/// The progress of one fetch, in bytes.
pub(super) enum FetchProgress {
    /// On a terminal.
    Bar(ProgressBar),
    /// In a log.
    Lines {
        /// What is fetched and from where.
        what: String,
        /// Its size.
        bytes_total: u64,
        /// Quarters told already.
        steps_told: u64,
    },
}

impl FetchProgress {
    /// Begins to tell.
    pub(super) fn start(what: &str, bytes_total: u64) -> Self {
        if std::io::stderr().is_terminal() {
            let bar = ProgressBar::new(bytes_total);
            let template = "{msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec}, {eta} left";
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style);
            }
            bar.set_message(what.to_string());
            return Self::Bar(bar);
        }
        eprintln!("{what}: {} MB", bytes_total / 1_000_000);
        Self::Lines {
            what: what.into(),
            bytes_total,
            steps_told: 0,
        }
    }

    /// So many bytes are there.
    pub(super) fn set(&mut self, bytes: u64) {
        match self {
            Self::Bar(bar) => bar.set_position(bytes),
            Self::Lines {
                what,
                bytes_total,
                steps_told,
            } => {
                let step = bytes.saturating_mul(PLAIN_STEPS) / (*bytes_total).max(1);
                if step > *steps_told && step <= PLAIN_STEPS {
                    *steps_told = step;
                    eprintln!("{what}: {} %", step * 100 / PLAIN_STEPS);
                }
            }
        }
    }
}

impl Drop for FetchProgress {
    fn drop(&mut self) {
        if let Self::Bar(bar) = self {
            bar.finish_and_clear();
        }
    }
}
