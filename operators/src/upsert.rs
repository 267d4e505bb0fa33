//! Changes to rows: of each key the last change of an epoch counts, and differences come out.
//!
//! Differential's own upsert keeps the greatest *value* of several at one timestamp, not the last
//! one, so this operator reduces each epoch to the greatest position per key before it compares
//! with the row held.
//!
//! A change that leaves out what did not change is completed from the row before it; where there is
//! none it is a dead letter, and the key stays as it was.
//!
//! A source that begins anew states its rows again, from positions that may be lower than those held.
//! The first change of each key since then (`restates`) meets no row: it counts as if the key were new.
//!
//! Invariant: how changes fall into epochs never changes the rows after the last one. Within a
//! partition the greater offset wins, also across epochs; between partitions, the later arrival.

use crate::committed::{CommittedState, unreadable};
use crate::effect::{HeldRow, PlanIndex};
use crate::pending::Pending;
use crate::unchanged::complete;
use rustc_hash::FxHashMap;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use timely::dataflow::Stream;
use timely::dataflow::channels::pact::Exchange;
use timely::dataflow::operators::generic::operator::Operator;
use vectide_model::{Change, DeadLetter, DeadLetterReason, Epoch, Key, Position, Row};

/// A change with the source it is from.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SourcedChange {
    /// The source.
    pub source: PlanIndex,
    /// The change.
    pub change: Change,
    /// Whether it is the first of its key since its source began anew: then whatever row is held
    /// is from before that, neither newer than the change nor fit to complete it.
    pub restates: bool,
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

/// A row update, or a change that could not become one.
pub type UpsertResult = Result<RowUpdate, Box<DeadLetter>>;

/// One change of a key within an epoch.
struct Step {
    position: Position,
    row: Option<Row>,
    unchanged_fields: Vec<Arc<str>>,
    restates: bool,
}

impl Step {
    fn is_whole(&self) -> bool {
        self.unchanged_fields.is_empty()
    }
}

/// The changes of a key within an epoch that decide its row: the last one, and where that needs
/// those before it, they too.
type Steps = Vec<Step>;

/// Routes a key to the worker that holds its row. Not persisted, so any hash will do.
fn route(change: &SourcedChange) -> u64 {
    let mut hasher = rustc_hash::FxHasher::default();
    (change.source, &*change.change.key).hash(&mut hasher);
    hasher.finish()
}

/// Turns changes into row updates, at most one per key and epoch, and changes that can't be applied
/// into dead letters.
pub fn upsert<'scope>(
    changes: Stream<'scope, Epoch, Vec<SourcedChange>>,
    state: Arc<dyn CommittedState>,
) -> Stream<'scope, Epoch, Vec<UpsertResult>> {
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
                    let (_, steps) = open
                        .entry(epoch)
                        .or_insert_with(|| (capability, FxHashMap::default()));
                    batches
                        .flat_map(|batch| batch.drain(..))
                        .for_each(|it| add_step(steps, it));
                });
                while let Some(entry) = open.first_entry() {
                    if frontier.frontier().less_equal(entry.key()) {
                        break;
                    }
                    let (epoch, (capability, steps)) = entry.remove_entry();
                    output
                        .session(&capability)
                        .give_iterator(rows.apply(epoch, steps).into_iter());
                }
            }
        })
        .container::<Vec<UpsertResult>>()
}

fn add_step(steps: &mut FxHashMap<RowKey, Steps>, sourced: SourcedChange) {
    let Change {
        key,
        row,
        unchanged_fields,
        position,
        ..
    } = sourced.change;
    let step = Step {
        position,
        row,
        unchanged_fields,
        restates: sourced.restates,
    };
    let of_key = steps.entry((sourced.source, key)).or_default();
    match of_key.last_mut() {
        Some(last) if is_stale(&step.position, &last.position) => {}
        Some(last) if step.is_whole() && last.is_whole() => {
            let restates = last.restates || step.restates;
            *last = Step { restates, ..step };
        }
        _ => of_key.push(step),
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
    fn apply(&mut self, epoch: Epoch, changes: FxHashMap<RowKey, Steps>) -> Vec<UpsertResult> {
        self.pending.forget_committed(self.state.epoch());
        let committed = self.state.read();
        let mut results = Vec::with_capacity(changes.len());
        for (row_key, steps) in changes {
            let old = match self.pending.get(&row_key) {
                Some(held) => held.clone(),
                None => committed
                    .row(row_key.0, &row_key.1)
                    .unwrap_or_else(|e| unreadable(&e)),
            };
            let mut new = old.clone();
            for step in steps {
                if step.restates {
                    new = None;
                }
                match apply_step(&row_key.1, new.as_ref(), step) {
                    Ok(Some(row)) => new = row,
                    Ok(None) => {}
                    Err(letter) => results.push(Err(letter)),
                }
            }
            if old == new {
                continue;
            }
            self.pending.insert(epoch, row_key.clone(), new.clone());
            let (source, key) = row_key;
            results.push(Ok(RowUpdate {
                source,
                key,
                old,
                new,
            }));
        }
        results
    }
}

/// The row after a change; `None` when the change was overtaken.
fn apply_step(
    key: &Key,
    held: Option<&HeldRow>,
    step: Step,
) -> Result<Option<Option<HeldRow>>, Box<DeadLetter>> {
    let Step {
        position,
        row,
        unchanged_fields,
        ..
    } = step;
    if held.is_some_and(|held| is_stale(&position, &held.position)) {
        return Ok(None);
    }
    let row = match row {
        Some(row) if !unchanged_fields.is_empty() => {
            let completed = complete(&row, &unchanged_fields, held.map(|held| &held.row));
            Some(completed.map_err(|detail| {
                Box::new(DeadLetter::new(
                    DeadLetterReason::Incomplete,
                    position.clone(),
                    Some(key.clone()),
                    detail,
                    row.as_bytes(),
                ))
            })?)
        }
        row => row,
    };
    Ok(Some(row.map(|row| HeldRow { row, position })))
}
