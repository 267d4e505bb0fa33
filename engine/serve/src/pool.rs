//! Threads for calls that block: searching and embedding never run on the threads that serve
//! connections.
//!
//! Invariants: at most `queue_max` calls wait; a call that nobody waits for any more is not begun; a
//! panic in a call is the answer to that call and ends no thread.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;
use std::time::Duration;
use tokio::sync::oneshot;
use vectide_model::Caller;

type Job = Box<dyn FnOnce() + Send>;

/// The threads, and the queue before them. They end when the pool is dropped and the queue is empty.
pub(crate) struct QueryPool {
    jobs: crossbeam_channel::Sender<Job>,
    timeout: Duration,
}

/// Why a call has no result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PoolError {
    /// The queue is full.
    Overloaded,
    /// It took longer than the timeout.
    TimedOut,
    /// It panicked.
    Panicked,
}

impl QueryPool {
    pub(crate) fn new(threads: usize, queue_max: usize, timeout: Duration) -> io::Result<Self> {
        let (jobs, queue) = crossbeam_channel::bounded::<Job>(queue_max);
        for number in 0..threads {
            let queue = queue.clone();
            thread::Builder::new()
                .name(format!("query-{number}"))
                .spawn(move || {
                    queue.iter().for_each(|job| job());
                })?;
        }
        Ok(Self { jobs, timeout })
    }

    /// Runs a call on one of the threads and waits for its result. When the returned future is
    /// dropped while the call still waits, the call is not made.
    pub(crate) async fn run<T, W>(&self, work: W) -> Result<T, PoolError>
    where
        T: Send + 'static,
        W: FnOnce(&Caller<'_>) -> T + Send + 'static,
    {
        let (reply, result) = oneshot::channel();
        let job = Box::new(move || {
            let has_left = || reply.is_closed();
            if has_left() {
                return;
            }
            // The call's state is dropped with it: nothing half-changed is seen again.
            let outcome = catch_unwind(AssertUnwindSafe(|| work(&Caller::new(&has_left))));
            // Nobody may be waiting any more, which is no fault.
            let _ = reply.send(outcome.map_err(|_| PoolError::Panicked));
        });
        self.jobs.try_send(job).map_err(|_| PoolError::Overloaded)?;
        match tokio::time::timeout(self.timeout, result).await {
            Ok(outcome) => outcome.unwrap_or(Err(PoolError::Panicked)),
            Err(_) => Err(PoolError::TimedOut),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;

    const LONG: Duration = Duration::from_secs(60);

    /// A pool of one thread that is kept busy until the returned sender is dropped.
    fn busy_pool(queue_max: usize, timeout: Duration) -> (Arc<QueryPool>, mpsc::Sender<()>) {
        let pool = QueryPool::new(1, queue_max, timeout).unwrap();
        let (hold, held) = mpsc::channel::<()>();
        let (begun, begin) = mpsc::channel();
        let job = Box::new(move || {
            begun.send(()).unwrap();
            let _ = held.recv();
        });
        pool.jobs.send(job).unwrap();
        begin.recv().unwrap();
        (Arc::new(pool), hold)
    }

    #[tokio::test]
    async fn a_full_queue_is_told_at_once() {
        let (pool, hold) = busy_pool(1, LONG);
        let waiting = Arc::clone(&pool);
        let first = tokio::spawn(async move { waiting.run(|_| 1).await });
        while pool.jobs.is_empty() {
            tokio::task::yield_now().await;
        }
        assert_eq!(pool.run(|_| 2).await, Err(PoolError::Overloaded));
        drop(hold);
        assert_eq!(first.await.unwrap(), Ok(1));
    }

    #[tokio::test]
    async fn a_call_nobody_waits_for_is_not_made() {
        let (pool, hold) = busy_pool(8, Duration::from_millis(20));
        let calls = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&calls);
        let count = move |_: &Caller<'_>| counted.fetch_add(1, Ordering::SeqCst);
        assert_eq!(pool.run(count).await, Err(PoolError::TimedOut));
        drop(hold);
        assert_eq!(pool.run(|_| 5).await, Ok(5));
        assert_eq!(calls.load(Ordering::SeqCst), 0);
    }

    #[tokio::test]
    async fn a_running_call_sees_that_its_caller_left() {
        let pool = QueryPool::new(1, 1, Duration::from_millis(20)).unwrap();
        let (seen, saw) = mpsc::channel();
        let work = move |caller: &Caller<'_>| {
            while !caller.has_left() {
                thread::yield_now();
            }
            seen.send(()).unwrap();
        };
        assert_eq!(pool.run(work).await, Err(PoolError::TimedOut));
        saw.recv_timeout(LONG).unwrap();
    }

    #[tokio::test]
    async fn a_panic_ends_the_call_alone() {
        let pool = QueryPool::new(1, 8, LONG).unwrap();
        let outcome: Result<(), PoolError> = pool.run(|_| panic!("on purpose")).await;
        assert_eq!(outcome, Err(PoolError::Panicked));
        assert_eq!(pool.run(|_| 3).await, Ok(3));
    }
}
