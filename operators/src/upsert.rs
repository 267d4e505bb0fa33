//! Changes to rows: of each key the last change of an epoch counts, and differences come out.
//!
//! Differential's own upsert keeps the greatest *value* of several at one timestamp, not the last
//! one, so this operator reduces each epoch to the greatest position per key before it compares
//! with the row held.
//!
//! Invariant: how changes fall into epochs never changes the rows after the last one. Within a
//! partition the greater offset wins, also across epochs; between partitions, the later arrival.

use crate::committed::{CommittedState, unreadable};
use crate::effect::{HeldRow, PlanIndex};
use crate::pending::Pending;
use rustc_hash::FxHashMap;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use timely::dataflow::Stream;
use timely::dataflow::channels::pact::Exchange;
use timely::dataflow::operators::generic::operator::Operator;
use vectide_model::{Change, Epoch, Key, Position};

/// A change with the source it is from.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SourcedChange {
    /// The source.
    pub source: PlanIndex,
    /// The change.
    pub change: Change,
}

/// What an epoch did to one row.
#[derive(Clone, Debug)]
pub struct RowUpdate {
    /// The source.
    pub source: PlanIndex,
    /// The row's key.
    pub key: Key,
    /// The row before.
    pub old: Option<HeldRow>,
    /// The row after.
    pub new: Option<HeldRow>,
}

type RowKey = (PlanIndex, Key);

/// The last change of a key within an epoch.
struct Last {
    position: Position,
    row: Option<vectide_model::Row>,
}

/// Routes a key to the worker that holds its row. Not persisted, so any hash will do.
fn route(change: &SourcedChange) -> u64 {
    let mut hasher = rustc_hash::FxHasher::default();
    (change.source, &*change.change.key).hash(&mut hasher);
    hasher.finish()
}

/// Turns changes into row updates, at most one per key and epoch.
pub fn upsert<'scope>(
    changes: Stream<'scope, Epoch, Vec<SourcedChange>>,
    state: Arc<dyn CommittedState>,
) -> Stream<'scope, Epoch, Vec<RowUpdate>> {
    changes
        .unary_frontier(Exchange::new(route), "upsert", |_capability, _info| {
            let mut rows = Rows {
                pending: Pending::new(),
                state,
            };
            let mut open = BTreeMap::new();
            move |(input, frontier), output| {
                input.for_each_stamp(|capability, batches| {
                    let Some(capability) = capability.retain_least(output.output_index()) else {
                        return;
                    };
                    let epoch = *capability.time();
                    let (_, last) = open
                        .entry(epoch)
                        .or_insert_with(|| (capability, FxHashMap::default()));
                    batches
                        .flat_map(|batch| batch.drain(..))
                        .for_each(|it| keep_last(last, it));
                });
                while let Some(entry) = open.first_entry() {
                    if frontier.frontier().less_equal(entry.key()) {
                        break;
                    }
                    let (epoch, (capability, last)) = entry.remove_entry();
                    output
                        .session(&capability)
                        .give_iterator(rows.apply(epoch, last).into_iter());
                }
            }
        })
        .container::<Vec<RowUpdate>>()
}

fn keep_last(last: &mut FxHashMap<RowKey, Last>, sourced: SourcedChange) {
    let Change {
        key, row, position, ..
    } = sourced.change;
    let new = Last { position, row };
    match last.entry((sourced.source, key)) {
        std::collections::hash_map::Entry::Vacant(entry) => drop(entry.insert(new)),
        std::collections::hash_map::Entry::Occupied(mut entry) => {
            if !is_stale(&new.position, &entry.get().position) {
                entry.insert(new);
            }
        }
    }
}

/// Whether a change was overtaken by one already seen: the same partition at a greater offset.
fn is_stale(new: &Position, held: &Position) -> bool {
    new.partition == held.partition && new.offset < held.offset
}

struct Rows {
    pending: Pending<RowKey, Option<HeldRow>>,
    state: Arc<dyn CommittedState>,
}

impl Rows {
    fn apply(&mut self, epoch: Epoch, changes: FxHashMap<RowKey, Last>) -> Vec<RowUpdate> {
        self.pending.forget_committed(self.state.epoch());
        let committed = self.state.read();
        let mut updates = Vec::with_capacity(changes.len());
        for ((source, key), Last { position, row }) in changes {
            let row_key = (source, key);
            let old = match self.pending.get(&row_key) {
                Some(held) => held.clone(),
                None => committed
                    .row(source, &row_key.1)
                    .unwrap_or_else(|e| unreadable(&e)),
            };
            if old
                .as_ref()
                .is_some_and(|old| is_stale(&position, &old.position))
            {
                continue;
            }
            let new = row.map(|row| HeldRow { row, position });
            if old == new {
                continue;
            }
            self.pending.insert(epoch, row_key.clone(), new.clone());
            updates.push(RowUpdate {
                source,
                key: row_key.1,
                old,
                new,
            });
        }
        updates
    }
}
