//! Where the time of a call goes: a clock around each stage of an encoder, on the threads that ask for it.
//!
//! Each stage of a micro-batch is one closure, given with its arithmetic; its parts row by row are never timed.
//! The clock is the thread's own time, so that other programs are not counted, and it belongs to the thread
//! that asked: others run beside it unmeasured.
//!
//! Invariant: a stage does the same whether it is timed or not, and a call that fails or panics leaves no clock
//! running.

use super::thread_time::thread_seconds;
use crate::{Backend, Products};
use std::cell::RefCell;

/// A part of the work on a text. What one stage hands to the next without a pass of its own (GELU in the
/// first feed-forward product) is counted where it is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Text to token ids.
    Tokenization,
    /// Ids to rows of the embedding tables.
    Lookup,
    /// Adding and normalising rows.
    Norms,
    /// The product that makes queries, keys and values.
    QueriesKeysValues,
    /// Scores, their softmax, and the mixture of values.
    Attention,
    /// The product behind attention.
    AttentionOutput,
    /// The first product of the feed-forward network, with its GELU.
    Expand,
    /// The second one.
    Contract,
    /// Rows to a vector of length 1.
    Pooling,
}

impl Stage {
    /// In the order of the work.
    pub const ALL: [Self; 9] = [
        Self::Tokenization,
        Self::Lookup,
        Self::QueriesKeysValues,
        Self::Attention,
        Self::AttentionOutput,
        Self::Norms,
        Self::Expand,
        Self::Contract,
        Self::Pooling,
    ];

    /// For a person.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tokenization => "tokenization",
            Self::Lookup => "embedding lookup",
            Self::Norms => "adding and normalising",
            Self::QueriesKeysValues => "query, key and value product",
            Self::Attention => "attention",
            Self::AttentionOutput => "attention output product",
            Self::Expand => "feed-forward product 1, GELU",
            Self::Contract => "feed-forward product 2",
            Self::Pooling => "pooling",
        }
    }
}

/// What a stage took.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StageTime {
    /// Seconds of the thread.
    pub seconds: f64,
    /// Multiplications and additions of its products; 0 for a stage that has none.
    pub flops: f64,
}

/// What the stages of a thread's calls took.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StageTimes {
    times: [StageTime; Stage::ALL.len()],
    /// Tokens that were computed, special ones included.
    pub tokens: usize,
    /// What the products were computed with; nothing where no encoder of this crate's own arithmetic ran.
    pub arithmetic: Option<(Backend, Products)>,
}

impl StageTimes {
    /// What one stage took.
    pub fn of(&self, stage: Stage) -> StageTime {
        self.times[stage as usize]
    }

    /// What all stages took.
    pub fn total(&self) -> StageTime {
        let mut total = StageTime::default();
        for time in &self.times {
            total.add(*time);
        }
        total
    }

    /// Adds what others took, of another thread or call.
    pub fn add(&mut self, others: &Self) {
        for (time, other) in self.times.iter_mut().zip(&others.times) {
            time.add(*other);
        }
        self.tokens += others.tokens;
        self.arithmetic = self.arithmetic.or(others.arithmetic);
    }
}

impl StageTime {
    fn add(&mut self, other: Self) {
        self.seconds += other.seconds;
        self.flops += other.flops;
    }
}

thread_local! {
    static CLOCK: RefCell<Option<Box<StageTimes>>> = const { RefCell::new(None) };
}

/// Stops the clock however the work ends.
struct Running;

impl Drop for Running {
    fn drop(&mut self) {
        CLOCK.set(None);
    }
}

/// Runs work that calls an embedder on this thread, and says what its stages took. An embedder that has none,
/// or computes elsewhere, leaves nothing but zeros.
pub fn measure_stages<T>(work: impl FnOnce() -> T) -> (T, StageTimes) {
    CLOCK.set(Some(Box::default()));
    let running = Running;
    let result = work();
    let times = CLOCK.take().map_or_else(StageTimes::default, |it| *it);
    drop(running);
    (result, times)
}

/// Runs a stage, which has so many multiplications and additions in its products.
pub(crate) fn timed<T>(stage: Stage, flops: usize, work: impl FnOnce() -> T) -> T {
    if CLOCK.with_borrow(Option::is_none) {
        return work();
    }
    let start = thread_seconds();
    let result = work();
    let seconds = thread_seconds() - start;
    CLOCK.with_borrow_mut(|clock| {
        if let Some(times) = clock {
            times.times[stage as usize].add(StageTime {
                seconds,
                flops: flops as f64,
            });
        }
    });
    result
}

/// Notes that so many tokens are about to be computed, and with what.
pub(crate) fn computes_with(backend: Backend, products: Products, tokens: usize) {
    CLOCK.with_borrow_mut(|clock| {
        if let Some(times) = clock {
            times.tokens += tokens;
            times.arithmetic = Some((backend, products));
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_stage_has_a_place_and_a_name_of_its_own() {
        let mut places: Vec<usize> = Stage::ALL.iter().map(|it| *it as usize).collect();
        places.sort_unstable();
        assert!(places.into_iter().eq(0..Stage::ALL.len()));
        let mut names = Stage::ALL.map(Stage::name);
        names.sort_unstable();
        assert!(names.windows(2).all(|pair| pair[0] != pair[1]));
    }

    #[test]
    fn only_the_thread_that_asks_is_measured() {
        timed(Stage::Lookup, 7, || ());
        let ((), times) = measure_stages(|| {
            std::thread::scope(|scope| {
                scope.spawn(|| timed(Stage::Expand, 5, || ()));
            });
            timed(Stage::Expand, 2, || ());
            timed(Stage::Expand, 1, || ());
            timed(Stage::Norms, 0, || ());
            computes_with(Backend::Portable, Products::F32, 4);
        });
        assert_eq!(times.of(Stage::Lookup), StageTime::default());
        assert_eq!(times.of(Stage::Expand).flops, 3.0);
        assert_eq!((times.total().flops, times.tokens), (3.0, 4));
        assert_eq!(times.arithmetic, Some((Backend::Portable, Products::F32)));
        let mut sum = times.clone();
        sum.add(&times);
        assert_eq!((sum.total().flops, sum.tokens), (6.0, 8));
        assert_eq!(measure_stages(|| ()).1, StageTimes::default());
    }

    #[test]
    fn a_panic_stops_the_clock() {
        let panicked = std::panic::catch_unwind(|| {
            measure_stages(|| timed(Stage::Pooling, 1, || panic!("as planned")))
        });
        assert!(panicked.is_err());
        assert!(CLOCK.with_borrow(Option::is_none));
    }
}
