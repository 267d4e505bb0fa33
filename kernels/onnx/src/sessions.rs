//! Sessions of ONNX Runtime: copies of one model that compute beside each other.
//!
//! The binding lets a session be run by one caller at a time. Each lane has sessions of its own, so a query waits
//! for no bulk work. A small model has one session a thread, each of which computes on its caller's thread; of a
//! large one, whose weights should not lie in memory that often, fewer sessions share the threads. Threads that a
//! bulk session makes are of low priority, as its callers are.
//!
//! What attention needs grows by the square of a text's length, in each session that computes one. So of a lane's
//! long texts one is computed at a time.
//!
//! Invariant: a session is in the pool or with one caller, whatever becomes of that caller; at most one of a lane's
//! sessions is with a long text.

use crate::model_file::ModelFile;
use ort::environment::ThreadManager;
use ort::logging::LogLevel;
use ort::session::Session;
use ort::session::builder::{GraphOptimizationLevel, SessionBuilder};
use std::num::NonZero;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use vectide_encoder::lower_for_bulk;
use vectide_model::{Lane, contained};

/// Memory for the weights of one lane's sessions: two of a small model's, so that more than one caller computes,
/// and one of any other's.
const LANE_WEIGHTS_BYTES: u64 = 256 << 20;
/// A text of more tokens is long: attention's scores of so many take 50 MB for each twelve heads.
pub(crate) const LONG_TEXT_TOKENS: usize = 1024;

/// Sessions of one lane.
pub(crate) struct Sessions {
    free: Mutex<Vec<Session>>,
    returned: Condvar,
    /// Held while a long text is computed.
    long_text: Mutex<()>,
    count: usize,
}

impl Sessions {
    /// Makes the sessions of a lane, for `threads` threads together.
    ///
    /// # Errors
    /// What ONNX Runtime says about the model.
    pub(crate) fn open(
        model: &ModelFile,
        lane: Lane,
        threads: NonZero<usize>,
    ) -> Result<Self, String> {
        let copies = LANE_WEIGHTS_BYTES / model.bytes().max(1);
        let copies = usize::try_from(copies).unwrap_or(usize::MAX);
        let count = copies.clamp(1, threads.get());
        let sessions = (0..count).map(|_| {
            // The binding panics over types of inputs that it does not know.
            contained(|| session(model, lane, threads.get() / count))?
                .map_err(|error| error.message().to_owned())
        });
        Ok(Self {
            free: Mutex::new(sessions.collect::<Result<_, _>>()?),
            returned: Condvar::new(),
            long_text: Mutex::new(()),
            count,
        })
    }

    /// How many callers compute at once.
    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// Computes a batch whose longest text has so many tokens, once a session is free and it is a long text's
    /// turn. Who waits for the turn holds no session meanwhile.
    pub(crate) fn with_tokens<T>(
        &self,
        tokens: usize,
        compute: impl FnOnce(&mut Session) -> T,
    ) -> T {
        let turn = self.turn(tokens);
        let result = self.with(compute);
        drop(turn);
        result
    }

    /// The turn of a long text; other texts need none.
    fn turn(&self, tokens: usize) -> Option<MutexGuard<'_, ()>> {
        let turn = (tokens > LONG_TEXT_TOKENS).then(|| self.long_text.lock());
        turn.map(|turn| turn.unwrap_or_else(PoisonError::into_inner))
    }

    /// Computes with a session, once one is free.
    pub(crate) fn with<T>(&self, compute: impl FnOnce(&mut Session) -> T) -> T {
        let free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let free = self.returned.wait_while(free, |free| free.is_empty());
        let mut free = free.unwrap_or_else(PoisonError::into_inner);
        let session = free.pop();
        drop(free);
        let mut borrowed = Borrowed {
            sessions: self,
            session,
        };
        match &mut borrowed.session {
            Some(session) => compute(session),
            // The wait ends with a session only.
            None => self.with(compute),
        }
    }
}

/// Gives its session back, also when its caller panics.
struct Borrowed<'a> {
    sessions: &'a Sessions,
    session: Option<Session>,
}

impl Drop for Borrowed<'_> {
    fn drop(&mut self) {
        let free = self.sessions.free.lock();
        let mut free = free.unwrap_or_else(PoisonError::into_inner);
        free.extend(self.session.take());
        drop(free);
        self.sessions.returned.notify_one();
    }
}

fn session(model: &ModelFile, lane: Lane, threads: usize) -> ort::Result<Session> {
    let mut builder = builder(lane, threads)?;
    match model.is_whole() {
        true => builder.commit_from_memory(&model.graph),
        // It looks for the weights where the graph's file lies.
        false => builder.commit_from_file(&model.path),
    }
}

fn builder(lane: Lane, threads: usize) -> ort::Result<SessionBuilder> {
    let builder = Session::builder()?
        // `Level3` is another thing to some versions, and unknown to others.
        .with_optimization_level(GraphOptimizationLevel::All)?
        .with_intra_threads(threads)?
        .with_inter_threads(1)?
        // Threads that wait for work by spinning would take cores from whatever else runs.
        .with_intra_op_spinning(false)?
        // A pattern is kept for each shape, and there are as many as pairs of texts and lengths.
        .with_memory_pattern(false)?
        .with_log_level(LogLevel::Warning)?;
    Ok(match lane {
        Lane::Bulk => builder.with_thread_manager(BulkThreads)?,
        Lane::Query => builder,
    })
}

/// Makes a bulk session's threads.
struct BulkThreads;

impl ThreadManager for BulkThreads {
    type Thread = JoinHandle<()>;

    fn create(&self, work: impl FnOnce() + Send + 'static) -> ort::Result<JoinHandle<()>> {
        let thread = std::thread::Builder::new().name("onnx-bulk".into());
        let thread = thread.spawn(|| {
            lower_for_bulk();
            work();
        });
        thread.map_err(|error| ort::Error::new(error.to_string()))
    }

    fn join(thread: JoinHandle<()>) -> ort::Result<()> {
        let ended = thread.join();
        ended.map_err(|_| ort::Error::new("a thread of a session panicked"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_long_text_has_its_turn_and_short_ones_need_none() {
        let sessions = Sessions {
            free: Mutex::default(),
            returned: Condvar::new(),
            long_text: Mutex::new(()),
            count: 0,
        };
        let turn = sessions.turn(LONG_TEXT_TOKENS + 1);
        assert!(turn.is_some());
        assert!(sessions.long_text.try_lock().is_err());
        assert!(sessions.turn(LONG_TEXT_TOKENS).is_none());
        drop(turn);
        assert!(sessions.turn(usize::MAX).is_some());
    }
}
