//! Recall that is measured on real queries, and the effort of searches that follows it.
//!
//! A query now and then is asked a second time without limits, by a thread of its own: how many of the true
//! hits the search had found is its recall. Where the mean of some dozens of them lies beyond doubt below
//! what the index promises, searches look at more; where it lies beyond doubt above, at less. If doubling the
//! effort is not enough, what leads to the rows is made anew.
//!
//! The effort belongs to an epoch: it changes with a commit and is part of it, so that the same query at the
//! same epoch gives the same answer, also after a restart. An idle pipeline closes an empty epoch for it.
//!
//! Invariant: no query waits for any of this, and measuring takes at most [`SHARE`] of one core.

use crate::plan::PlannedIndex;
use crate::snapshot::Published;
use crate::state::{Efforts, State};
use crate::telemetry;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use vectide_model::{Effort, Filter, Found, Recalls, Search, StopSignal, StoreError, recall};

/// Hits that are compared.
const K: usize = 10;
/// One query in so many is asked again, if the thread is free.
const QUERIES_PER_SHADOW: u64 = 20;
/// Of a core.
const SHARE: u32 = 20;
/// Queries before anything is concluded.
const CONCLUSION_MIN: f64 = 40.0;
/// Queries that are remembered; then the older ones count half.
const REMEMBERED_MAX: f64 = 400.0;
/// Steps up from where an index starts, at which what leads to its rows is made anew: twice the effort.
const STEPS_TO_RENEWAL: u8 = 4;
/// Steps down from there at most: a small index needs nothing, and would be slow to follow when it grows.
const STEPS_DOWN_MAX: u8 = 4;
/// How often the thread looks whether it is to end.
const LOOK: Duration = Duration::from_millis(100);

/// Where an index starts that promises a recall; `None`: everything is looked at.
fn start_of(recall: f64) -> Option<Effort> {
    // By the share of true hits that may be missed: each halving took three to four steps on a million
    // real embeddings (index benchmark).
    let missed = 1.0 - recall;
    if missed <= 0.0 {
        return None;
    }
    let steps = f64::from(Effort::NOMINAL.step()) + (0.02 / missed).log2() * 3.5;
    Some(Effort::of_step(
        steps.clamp(0.0, f64::from(u8::MAX)).round() as u8,
    ))
}

/// The effort to go on with, where an index starts with `start` and an earlier process came to `kept`.
fn resumed(start: Effort, kept: Option<Effort>) -> Effort {
    let least = start.step().saturating_sub(STEPS_DOWN_MAX);
    kept.filter(|kept| kept.step() >= least).unwrap_or(start)
}

/// A query to be asked again.
struct Shadow {
    published: Arc<Published>,
    index: usize,
    vector: Vec<f32>,
    filter: Option<Arc<Filter>>,
}

/// What the ingest, the commit and the queries have to do with it.
pub(crate) struct Steering {
    shadows: Sender<Shadow>,
    asked: AtomicU64,
    /// By index, for the next commit.
    wanted: Mutex<Efforts>,
    /// Whether an epoch has to be closed for it.
    is_due: AtomicBool,
}

impl Steering {
    /// One that nothing follows.
    #[cfg(test)]
    pub(crate) fn idle() -> Self {
        Self {
            shadows: bounded(1).0,
            asked: AtomicU64::new(0),
            wanted: Mutex::default(),
            is_due: AtomicBool::new(false),
        }
    }

    /// Takes a query that is answered from `published`, now and then.
    pub(crate) fn offer(
        &self,
        published: &Arc<Published>,
        index: usize,
        (vector, filter): (&[f32], Option<&Arc<Filter>>),
    ) {
        let asked = self.asked.fetch_add(1, Ordering::Relaxed);
        let is_steered = published.indexes[index].effort.is_some();
        if !is_steered || !asked.is_multiple_of(QUERIES_PER_SHADOW) || self.shadows.is_full() {
            return;
        }
        let shadow = Shadow {
            published: published.clone(),
            index,
            vector: vector.to_vec(),
            filter: filter.cloned(),
        };
        // One that comes while the thread is busy is not asked again.
        let _ = self.shadows.try_send(shadow);
    }

    /// Whether an epoch has to be closed, though nothing else is in it. Says so once.
    pub(crate) fn take_due(&self) -> bool {
        self.is_due.load(Ordering::Relaxed) && self.is_due.swap(false, Ordering::Relaxed)
    }

    /// The efforts to commit, where they differ from those that are in force.
    pub(crate) fn news(&self, held: &Efforts) -> Option<Efforts> {
        let wanted = self.wanted();
        (*wanted != *held).then(|| wanted.clone())
    }

    fn wanted(&self) -> MutexGuard<'_, Efforts> {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn want(&self, index: &str, effort: Effort) {
        self.wanted().insert(index.to_owned(), Some(effort));
        self.is_due.store(true, Ordering::Relaxed);
    }
}

/// How an index's searches are steered.
struct Steered {
    name: Arc<str>,
    recall: f64,
    start: Effort,
    /// Recalls of the last queries.
    seen: Recalls,
    is_renewing: bool,
}

/// What follows from what was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Conclusion {
    Stay,
    More,
    Less,
}

impl Steered {
    fn see(&mut self, recall: f64) {
        if self.seen.count() >= REMEMBERED_MAX {
            self.seen.halve();
        }
        self.seen.add(recall);
    }

    fn conclude(&self) -> Conclusion {
        if self.seen.count() < CONCLUSION_MIN {
            return Conclusion::Stay;
        }
        let (mean, doubt) = self.seen.interval();
        // What lies above by half of what may be missed is wasted.
        let wasteful = self.recall + (1.0 - self.recall) / 2.0;
        if mean + doubt < self.recall {
            Conclusion::More
        } else if mean - doubt > wasteful {
            Conclusion::Less
        } else {
            Conclusion::Stay
        }
    }

    /// The effort to go on with, if another one.
    fn next(&self, effort: Effort) -> Option<Effort> {
        let least = self.start.step().saturating_sub(STEPS_DOWN_MAX);
        let next = match self.conclude() {
            Conclusion::Stay => effort,
            Conclusion::More => Effort::of_step(effort.step() + 1),
            Conclusion::Less => Effort::of_step(effort.step().saturating_sub(1).max(least)),
        };
        (next != effort).then_some(next)
    }
}

/// Sets the efforts that searches start with: those that an earlier process came to, but for one that lies
/// below what the index, which may promise more today, goes down to.
pub(crate) fn start(
    state: &State,
    indexes: &[PlannedIndex],
    stop: &StopSignal,
) -> Result<(Arc<Steering>, impl FnOnce() + Send + use<>), StoreError> {
    let kept = state.kept_efforts()?;
    let efforts: Efforts = indexes
        .iter()
        .map(|index| {
            let start = start_of(index.recall);
            let kept = kept.get(&*index.name).copied();
            (
                index.name.to_string(),
                start.map(|start| resumed(start, kept)),
            )
        })
        .collect();
    state.set_efforts(efforts.clone());
    let (shadows, asked) = bounded(1);
    let steering = Arc::new(Steering {
        shadows,
        asked: AtomicU64::new(0),
        wanted: Mutex::new(efforts),
        is_due: AtomicBool::new(false),
    });
    let steered = indexes.iter().enumerate().filter_map(|(at, index)| {
        let steered = Steered {
            name: index.name.clone(),
            recall: index.recall,
            start: start_of(index.recall)?,
            seen: Recalls::default(),
            is_renewing: false,
        };
        Some((at, steered))
    });
    let watch = Watch {
        steering: steering.clone(),
        steered: steered.collect(),
        stop: stop.clone(),
    };
    Ok((steering, move || watch.run(&asked)))
}

/// The thread that asks again.
struct Watch {
    steering: Arc<Steering>,
    steered: BTreeMap<usize, Steered>,
    stop: StopSignal,
}

impl Watch {
    fn run(mut self, asked: &Receiver<Shadow>) {
        while !self.stop.is_stopped() {
            match asked.recv_timeout(LOOK) {
                Ok(shadow) => {
                    let began_at = Instant::now();
                    self.look(&shadow);
                    drop(shadow);
                    self.stop.wait(began_at.elapsed() * (SHARE - 1));
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn look(&mut self, shadow: &Shadow) {
        let held = &shadow.published.indexes[shadow.index];
        let (Some(effort), Some(steered)) = (held.effort, self.steered.get_mut(&shadow.index))
        else {
            return;
        };
        let Some(recall) = recall_of(shadow, effort) else {
            return;
        };
        let wanted = self
            .steering
            .wanted()
            .get(&*steered.name)
            .copied()
            .flatten();
        if wanted != Some(effort) {
            // Of a snapshot from before the last step.
            return;
        }
        steered.see(recall);
        telemetry::recall(&steered.name, steered.seen.interval(), effort);
        let Some(next) = steered.next(effort) else {
            return;
        };
        let (mean, doubt) = steered.seen.interval();
        tracing::info!(
            index = %steered.name, recall = mean, doubt, from = effort.step(), to = next.step(),
            "searches change how much they look at"
        );
        steered.seen = Recalls::default();
        let is_doubled = next.step() >= steered.start.step() + STEPS_TO_RENEWAL;
        if is_doubled && !steered.is_renewing {
            tracing::warn!(
                index = %steered.name,
                "twice the effort does not give the recall: what leads to the rows is made anew"
            );
            held.shards.iter().for_each(|shard| shard.renew());
        }
        steered.is_renewing = is_doubled;
        self.steering.want(&steered.name, next);
    }
}

/// The share of the true hits that a search finds; `None` where there is nothing to find.
fn recall_of(shadow: &Shadow, effort: Effort) -> Option<f64> {
    let ask = |search: Search| {
        let shards = shadow.published.indexes[shadow.index].shards.iter();
        let found = Found::merge(shards.map(|it| it.search(&shadow.vector, &search)), K);
        let hits = found.hits.into_iter().map(|hit| (hit.chunk, hit.score));
        hits.collect::<Vec<_>>()
    };
    let exact = Search {
        filter: shadow.filter.clone(),
        ..Search::exact(K)
    };
    let best = ask(Search {
        effort: Some(effort),
        ..exact.clone()
    });
    let exact = ask(exact);
    recall(&best, &exact)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steered(recall: f64, seen: &[f64]) -> Steered {
        let mut steered = Steered {
            name: "pages".into(),
            recall,
            start: start_of(recall).unwrap(),
            seen: Recalls::default(),
            is_renewing: false,
        };
        seen.iter().for_each(|recall| steered.see(*recall));
        steered
    }

    #[test]
    fn nothing_is_concluded_from_little() {
        for recall in [0.0, 1.0] {
            let seen = vec![recall; CONCLUSION_MIN as usize - 1];
            assert_eq!(steered(0.98, &seen).conclude(), Conclusion::Stay);
        }
    }

    #[test]
    fn what_is_beyond_doubt_is_followed() {
        let mixed = |good: usize, bad: usize| {
            let seen = std::iter::repeat_n(1.0, good).chain(std::iter::repeat_n(0.9, bad));
            steered(0.98, &seen.collect::<Vec<f64>>()).conclude()
        };
        assert_eq!(mixed(20, 30), Conclusion::More);
        assert_eq!(mixed(80, 20), Conclusion::Stay, "0.98");
        assert_eq!(mixed(90, 30), Conclusion::Stay, "0.975 +- 0.008");
        assert_eq!(mixed(399, 1), Conclusion::Less);
    }

    #[test]
    fn steps_have_an_end() {
        let bad = steered(0.98, &[0.5; 50]);
        assert_eq!(bad.next(Effort::MAX), None);
        assert_eq!(
            bad.next(Effort::NOMINAL).map(Effort::step),
            Some(Effort::NOMINAL.step() + 1)
        );
        let good = steered(0.98, &[1.0; 50]);
        let least = Effort::of_step(Effort::NOMINAL.step() - STEPS_DOWN_MAX);
        assert_eq!(good.next(least), None);
    }

    #[test]
    fn a_promise_has_its_start() {
        assert_eq!(start_of(1.0), None);
        assert_eq!(start_of(0.98), Some(Effort::NOMINAL));
        assert!(start_of(0.9) < start_of(0.95) && start_of(0.95) < start_of(0.99));
        assert!(start_of(0.999_999) <= Some(Effort::MAX));
        assert_eq!(start_of(0.0), Some(Effort::of_step(0)));
    }

    #[test]
    fn a_kept_effort_is_gone_on_with_unless_more_is_promised() {
        let (low, high) = (start_of(0.9).unwrap(), start_of(0.99).unwrap());
        assert_eq!(resumed(low, None), low);
        assert_eq!(resumed(low, Some(high)), high);
        assert_eq!(resumed(high, Some(low)), high);
        let less = Effort::of_step(high.step() - STEPS_DOWN_MAX);
        assert_eq!(resumed(high, Some(less)), less);
    }

    #[test]
    fn old_queries_are_forgotten() {
        let mut steered = steered(0.98, &[1.0; 2000]);
        (0..1000).for_each(|_| steered.see(0.5));
        let seen = steered.seen;
        assert!(seen.interval().0 < 0.6, "{seen:?}");
        assert!(seen.count() <= REMEMBERED_MAX);
    }
}
