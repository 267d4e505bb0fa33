//! Vectors into the shards, and each shard's state at each epoch.
//!
//! Invariant: a shard is changed by one worker only, by whole epochs in order; the read half that
//! goes out with an epoch holds exactly the rows of that epoch.

use crate::effect::{Effect, PlanIndex};
use crate::embed::ChunkVector;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use timely::dataflow::Stream;
use timely::dataflow::channels::pact::Exchange;
use timely::dataflow::operators::generic::operator::Operator;
use vectide_model::{Epoch, VectorIndex};

/// The shards that this worker owns, by number.
pub type OwnedShards = HashMap<u32, Box<dyn VectorIndex>>;

/// Applies vectors to the shards and emits each changed shard's state once an epoch is complete.
/// A shard belongs to the worker of the number `shard % workers`.
pub fn index<'scope>(
    vectors: Stream<'scope, Epoch, Vec<ChunkVector>>,
    index: PlanIndex,
    mut shards: OwnedShards,
) -> Stream<'scope, Epoch, Vec<Effect>> {
    vectors
        .unary_frontier(
            Exchange::new(|vector: &ChunkVector| u64::from(vector.shard)),
            "index",
            move |_capability, _info| {
                let mut open = BTreeMap::new();
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
                    while let Some(entry) = open.first_entry() {
                        if frontier.frontier().less_equal(entry.key()) {
                            break;
                        }
                        let (capability, vectors) = entry.remove();
                        let effects = apply(index, &mut shards, vectors);
                        output
                            .session(&capability)
                            .give_iterator(effects.into_iter());
                    }
                }
            },
        )
        .container::<Vec<Effect>>()
}

/// Applies an epoch: removals first, since an update removes and adds.
fn apply(index: PlanIndex, shards: &mut OwnedShards, vectors: Vec<ChunkVector>) -> Vec<Effect> {
    let (added, removed): (Vec<_>, Vec<_>) = vectors
        .into_iter()
        .partition(|vector| vector.vector.is_some());
    let mut touched: Vec<u32> = added
        .iter()
        .chain(&removed)
        .map(|vector| vector.shard)
        .collect();
    touched.sort_unstable();
    touched.dedup();
    for vector in removed {
        if let Some(shard) = shards.get_mut(&vector.shard) {
            shard.remove(&vector.chunk);
        }
    }
    for ChunkVector {
        shard,
        chunk,
        vector,
    } in added
    {
        if let (Some(shard), Some(vector)) = (shards.get_mut(&shard), vector) {
            shard.insert(chunk, vector);
        }
    }
    touched
        .into_iter()
        .filter_map(|number| close(index, shards, number))
        .collect()
}

fn close(index: PlanIndex, shards: &mut OwnedShards, shard: u32) -> Option<Effect> {
    Some(match shards.get_mut(&shard)?.close_epoch() {
        Ok(closed) => Effect::Shard {
            index,
            shard,
            read: closed.read,
            commit: Arc::new(closed.commit),
        },
        Err(error) => Effect::ShardFailed(error),
    })
}
