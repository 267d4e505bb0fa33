//! The end of the dataflow: a worker's effects, gathered by epoch and handed to the commit.
//!
//! Invariant: when a worker reports a frontier, it has handed over all its effects of every epoch
//! before it.

use crate::effect::Effect;
use std::collections::BTreeMap;
use timely::container::CapacityContainerBuilder;
use timely::dataflow::Stream;
use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::generic::OutputBuilderSession;
use timely::dataflow::operators::generic::operator::Operator;
use vectide_model::Epoch;

type Nothing<'a> = OutputBuilderSession<'a, Epoch, CapacityContainerBuilder<Vec<()>>>;

/// A worker's progress.
pub struct WorkerProgress {
    /// Which worker.
    pub worker: usize,
    /// All epochs before this one are complete on this worker; `Epoch::MAX` at the end.
    pub frontier: Epoch,
    /// The effects of the epochs completed since the last report, in order.
    pub effects: Vec<(Epoch, Vec<Effect>)>,
}

/// Gathers effects and reports whenever the frontier moves.
pub fn collect<'scope>(
    effects: Stream<'scope, Epoch, Vec<Effect>>,
    worker: usize,
    report: impl Fn(WorkerProgress) + 'static,
) -> Stream<'scope, Epoch, Vec<()>> {
    effects.unary_frontier(Pipeline, "collect", move |capability, _info| {
        drop(capability);
        let mut open: BTreeMap<Epoch, Vec<Effect>> = BTreeMap::new();
        let mut reported = 0;
        move |(input, frontier), _output: &mut Nothing<'_>| {
            input.for_each_stamp(|capability, batches| {
                let Some(epoch) = capability.least().copied() else {
                    return;
                };
                let stash = open.entry(epoch).or_default();
                stash.extend(batches.flat_map(|batch| batch.drain(..)));
            });
            let frontier = frontier.frontier().first().copied().unwrap_or(Epoch::MAX);
            if frontier > reported {
                reported = frontier;
                let rest = open.split_off(&frontier);
                let effects = std::mem::replace(&mut open, rest).into_iter().collect();
                report(WorkerProgress {
                    worker,
                    frontier,
                    effects,
                });
            }
        }
    })
}
