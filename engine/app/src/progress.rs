//! One line that says how far a run is: documents, chunks, embeddings a second, time left.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;
use std::time::{Duration, Instant};
use vectide_engine::Progress;

/// How often the line is drawn on a terminal, and printed elsewhere.
const REDRAW: Duration = Duration::from_millis(100);
const REPRINT: Duration = Duration::from_secs(5);

/// Shows progress on standard error: a bar on a terminal, a line now and then elsewhere.
pub struct ProgressLine {
    bar: ProgressBar,
    is_terminal: bool,
    documents_expected: Option<u64>,
    started: Instant,
    shown: Instant,
    last: Progress,
}

impl ProgressLine {
    /// A line; with `documents_expected` it has a bar and the time left.
    pub fn new(documents_expected: Option<u64>) -> Self {
        let is_terminal = std::io::stderr().is_terminal();
        let bar = ProgressBar::with_draw_target(documents_expected, ProgressDrawTarget::stderr());
        let template = match documents_expected {
            Some(_) => "{bar:30} {pos}/{len} documents, {msg}, {eta} left",
            None => "{spinner} {pos} documents, {msg}",
        };
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        let now = Instant::now();
        let last = Progress::default();
        Self {
            bar,
            is_terminal,
            documents_expected,
            started: now,
            shown: now,
            last,
        }
    }

    /// Shows a state of affairs, if it is time to.
    pub fn show(&mut self, progress: Progress) {
        let pause = if self.is_terminal { REDRAW } else { REPRINT };
        if self.shown.elapsed() < pause || progress == self.last {
            return;
        }
        (self.shown, self.last) = (Instant::now(), progress);
        self.bar.set_position(progress.documents);
        self.bar.set_message(self.message(&progress));
        if !self.is_terminal {
            let expected = self
                .documents_expected
                .map(|it| format!("/{it}"))
                .unwrap_or_default();
            eprintln!(
                "{}{expected} documents, {}",
                progress.documents,
                self.message(&progress)
            );
        }
    }

    fn message(&self, progress: &Progress) -> String {
        let rate = progress.embedded_chunks as f64 / self.started.elapsed().as_secs_f64().max(1e-3);
        format!("{} chunks, {rate:.0} embeddings/s", progress.chunks)
    }

    /// Removes the bar.
    pub fn end(&self) {
        self.bar.finish_and_clear();
    }
}
