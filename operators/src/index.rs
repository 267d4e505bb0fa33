//! Vectors into the shards, and each shard's state at each epoch.
//!
//! Invariant: a shard is changed by one worker only, by whole epochs in order; the read half that
//! goes out with an epoch holds exactly the rows of that epoch.

use crate::effect::{Effect, PlanIndex};
use crate::embed::ChunkVector;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Instant;
use timely::dataflow::Stream;
use timely::dataflow::channels::pact::Exchange;
use timely::dataflow::operators::generic::operator::Operator;
use vectide_model::{Epoch, IndexRow, VectorIndex};

/// The shards that this worker owns, by number.
pub type OwnedShards = HashMap<u32, Box<dyn VectorIndex>>;

/// Applies vectors to the shards and emits each changed shard's state once an epoch is complete.
/// A shard belongs to the worker of the number `shard % workers`.
///
/// A shard that has been made better in the background is closed with the newest complete epoch, too,
/// whether that changes it or not: so an index that has stopped changing takes in what its builders have
/// finished with the next empty epoch. No epoch before `first_epoch` is closed: those are committed.
pub fn index<'scope>(
    vectors: Stream<'scope, Epoch, Vec<ChunkVector>>,
    index: PlanIndex,
    mut shards: OwnedShards,
    first_epoch: Epoch,
) -> Stream<'scope, Epoch, Vec<Effect>> {
    vectors
        .unary_frontier(
            Exchange::new(|vector: &ChunkVector| u64::from(vector.shard)),
            "index",
            move |mut capability, _info| {
                capability.downgrade(&first_epoch);
                let mut open = BTreeMap::new();
                // Of the first epoch that is not complete; given back at the end.
                let mut next_epoch = Some(capability);
                move |(input, frontier), output| {
                    input.for_each_stamp(|capability, batches| {
                        let Some(capability) = capability.retain_least(output.output_index())
                        else {
                            return;
                        };
                        let epoch = *capability.time();
                        let (_, stash) = open
                            .entry(epoch)
                            .or_insert_with(|| (capability, Vec::new()));
                        stash.extend(batches.flat_map(|batch| batch.drain(..)));
                    });
                    let next = frontier.frontier().first().copied();
                    let is_complete = |epoch: Epoch| next.is_none_or(|next| epoch < next);
                    let newest = next.and_then(|next| next.checked_sub(1));
                    let mut taken_in_at = None;
                    while let Some(entry) = open.first_entry() {
                        let epoch = *entry.key();
                        if !is_complete(epoch) {
                            break;
                        }
                        let (capability, vectors) = entry.remove();
                        let mut due = apply(&mut shards, vectors);
                        if Some(epoch) == newest {
                            taken_in_at = newest;
                            due.extend(with_news(&shards));
                        }
                        let effects = close_all(index, &mut shards, due);
                        output
                            .session(&capability)
                            .give_iterator(effects.into_iter());
                    }
                    next_epoch = next_epoch.take().zip(next).map(|(mut held, next)| {
                        // An earlier epoch than the newest could come before one that is applied already.
                        let newest =
                            newest.filter(|it| it >= held.time() && taken_in_at != Some(*it));
                        if let Some(newest) = newest {
                            let due = with_news(&shards).collect();
                            let effects = close_all(index, &mut shards, due);
                            output
                                .session(&held.delayed(&newest))
                                .give_iterator(effects.into_iter());
                        }
                        if next > *held.time() {
                            held.downgrade(&next);
                        }
                        held
                    });
                }
            },
        )
        .container::<Vec<Effect>>()
}

/// The shards that have something to take in.
fn with_news(shards: &OwnedShards) -> impl Iterator<Item = u32> {
    let have_news = shards.iter().filter(|(_, shard)| shard.has_news());
    have_news.map(|(number, _)| *number)
}

/// Applies an epoch, removals first, since an update removes and adds; gives the shards that it changed.
fn apply(shards: &mut OwnedShards, vectors: Vec<ChunkVector>) -> Vec<u32> {
    let changed = vectors.iter().map(|vector| vector.shard).collect();
    let (added, removed): (Vec<_>, Vec<_>) = vectors
        .into_iter()
        .partition(|vector| vector.vector.is_some());
    for vector in removed {
        if let Some(shard) = shards.get_mut(&vector.shard) {
            shard.remove(&vector.chunk);
        }
    }
    for ChunkVector {
        shard,
        chunk,
        vector,
        fields,
    } in added
    {
        if let (Some(shard), Some(vector)) = (shards.get_mut(&shard), vector) {
            shard.insert(IndexRow {
                chunk,
                vector,
                fields,
            });
        }
    }
    changed
}

/// Closes shards, each once however often it is named: a shard may have changed and have news as well.
fn close_all(index: PlanIndex, shards: &mut OwnedShards, mut due: Vec<u32>) -> Vec<Effect> {
    due.sort_unstable();
    due.dedup();
    let closed = due
        .into_iter()
        .filter_map(|number| close(index, shards, number));
    closed.collect()
}

fn close(index: PlanIndex, shards: &mut OwnedShards, shard: u32) -> Option<Effect> {
    let start = Instant::now();
    Some(match shards.get_mut(&shard)?.close_epoch() {
        Ok(closed) => Effect::Shard {
            index,
            shard,
            read: closed.read,
            commit: Arc::new(closed.commit),
            pause: start.elapsed(),
        },
        Err(error) => Effect::ShardFailed(error),
    })
}
