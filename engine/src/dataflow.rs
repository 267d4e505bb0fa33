//! The dataflow of a plan: source -> upsert -> documents -> chunks -> embed -> index -> collect.
//!
//! Invariant: this file wires operators together and decides nothing; what an operator does stands
//! in its own file.

use crate::head_fields::shard_state_with_fields;
use crate::plan::Plan;
use crate::state::State;
use differential_dataflow::{AsCollection, VecCollection};
use std::sync::{Arc, Mutex, PoisonError};
use timely::dataflow::operators::Concatenate;
use timely::dataflow::operators::vec::{Filter, Map};
use timely::dataflow::{Scope, Stream};
use vectide_model::{ChunkedDocument, DeadLetter, Document, Epoch, IndexError, VectorIndex};
use vectide_operators::{
    BatcherHandle, CommittedState, DocumentView, Effect, EmbedStage, Embedded, Feed, FieldPlan,
    HeldRow, OwnedShards, PlanIndex, RowUpdate, WorkerProgress, changed_chunks, chunk_documents,
    collect, embed, index, ingest, upsert,
};

type Effects<'scope> = Stream<'scope, Epoch, Vec<Effect>>;
type Failures<'scope> = VecCollection<'scope, Epoch, Box<DeadLetter>>;

/// What the workers of a process share and take their parts from.
pub(crate) struct Parts {
    pub(crate) state: Arc<State>,
    pub(crate) first_epoch: Epoch,
    pub(crate) views: Vec<(PlanIndex, Arc<DocumentView>)>,
    pub(crate) indexes: Vec<IndexParts>,
    /// Taken by worker 0.
    pub(crate) feed: Mutex<Option<Feed>>,
    pub(crate) progress: crossbeam_channel::Sender<WorkerProgress>,
}

/// What is needed of an index.
pub(crate) struct IndexParts {
    pub(crate) documents: PlanIndex,
    pub(crate) chunker: Arc<dyn vectide_model::Chunker>,
    pub(crate) batcher: BatcherHandle,
    pub(crate) remember: bool,
    pub(crate) fields: Arc<FieldPlan>,
    /// Each shard is taken by the worker that owns it.
    pub(crate) shards: Mutex<Vec<Option<Box<dyn VectorIndex>>>>,
}

impl Parts {
    /// Opens the shards of all indexes and gathers what the workers need.
    pub(crate) fn open(
        plan: &Plan,
        state: Arc<State>,
        batchers: Vec<BatcherHandle>,
        feed: Feed,
        progress: crossbeam_channel::Sender<WorkerProgress>,
    ) -> Result<Self, ShardError> {
        let mut indexes = Vec::new();
        for (planned, batcher) in plan.indexes.iter().zip(batchers) {
            let shards = (0..planned.shards)
                .map(|shard| {
                    let held = state.snapshot();
                    let held =
                        shard_state_with_fields(&*held, &planned.name, shard, &planned.fields)?;
                    let directory = state.shard_directory(&planned.name, shard);
                    let dimension = planned.embedder.identity().dimension;
                    Ok(Some(planned.factory.open(&directory, dimension, held)?))
                })
                .collect::<Result<_, ShardError>>()?;
            indexes.push(IndexParts {
                documents: planned.documents,
                chunker: planned.chunker.clone(),
                batcher,
                remember: planned.embedder.worth_remembering(),
                fields: planned.fields.clone(),
                shards: Mutex::new(shards),
            });
        }
        Ok(Self {
            first_epoch: state.epoch() + 1,
            state,
            views: plan
                .documents
                .iter()
                .map(|view| (view.source, view.view.clone()))
                .collect(),
            indexes,
            feed: Mutex::new(Some(feed)),
            progress,
        })
    }
}

/// Why a shard could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum ShardError {
    /// Its rows in the store.
    #[error(transparent)]
    Store(#[from] vectide_model::StoreError),
    /// Its files.
    #[error(transparent)]
    Index(#[from] IndexError),
}

/// Builds the dataflow of one worker.
pub(crate) fn build(scope: Scope<'_, Epoch>, parts: &Parts, worker: usize, workers: usize) {
    let state: Arc<dyn CommittedState> = parts.state.clone();
    let feed = match worker {
        0 => lock(&parts.feed).take(),
        _ => None,
    };
    let changes = ingest(scope, parts.first_epoch, feed);
    let upserted = upsert(changes, state.clone());
    let updates = upserted.clone().flat_map(Result::ok);
    let incomplete = upserted.flat_map(Result::err);
    let mut effects: Vec<Effects<'_>> = vec![
        row_effects(updates.clone()),
        incomplete.map(|letter| Effect::DeadLetter(*letter)),
    ];
    for (number, (source, view)) in parts.views.iter().enumerate() {
        let readers: Vec<_> = parts
            .indexes
            .iter()
            .enumerate()
            .filter(|(_, index)| usize::from(index.documents) == number)
            .collect();
        let (documents, failures) = documents(updates.clone(), *source, view.clone());
        effects.push(failure_effects(failures));
        for (number, index) in readers {
            let number = number as PlanIndex;
            let stage = EmbedStage {
                index: number,
                shards: lock(&index.shards).len() as u32,
                batcher: index.batcher.clone(),
                remember: index.remember,
                fields: index.fields.clone(),
                state: state.clone(),
            };
            let shards = own_shards(index, worker, workers);
            let documents = documents.clone();
            let of_index = index_effects(documents, index, stage, shards, parts.first_epoch);
            effects.extend(of_index);
        }
    }
    let progress = parts.progress.clone();
    collect(scope.concatenate(effects), worker, move |report| {
        // The commit is gone only when the process is ending.
        let _ = progress.send(report);
    });
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn own_shards(index: &IndexParts, worker: usize, workers: usize) -> OwnedShards {
    let mut shards = lock(&index.shards);
    let owned = shards
        .iter_mut()
        .enumerate()
        .filter(|(shard, _)| shard % workers == worker);
    owned
        .filter_map(|(shard, index)| Some((shard as u32, index.take()?)))
        .collect()
}

fn row_effects<'scope>(updates: Stream<'scope, Epoch, Vec<RowUpdate>>) -> Effects<'scope> {
    updates.map(
        |RowUpdate {
             source, key, new, ..
         }| Effect::Row {
            source,
            key,
            row: new,
        },
    )
}

/// The documents of a view, and the rows that give none.
fn documents<'scope>(
    updates: Stream<'scope, Epoch, Vec<RowUpdate>>,
    source: PlanIndex,
    view: Arc<DocumentView>,
) -> (VecCollection<'scope, Epoch, Document>, Failures<'scope>) {
    use timely::dataflow::channels::pact::Pipeline;
    use timely::dataflow::operators::generic::operator::Operator;
    let rendered = updates
        .filter(move |update| update.source == source)
        .unary(Pipeline, "documents", move |_capability, _info| {
            move |input, output| {
                input.for_each(|capability, batch| {
                    let epoch = capability.least().copied().unwrap_or_default();
                    let mut session = output.session(&capability);
                    for RowUpdate { key, old, new, .. } in batch.drain(..) {
                        let render = |held: HeldRow| view.render(&key, &held);
                        if let Some(old) = old {
                            session.give((render(old), epoch, -1));
                        }
                        if let Some(new) = new {
                            session.give((render(new), epoch, 1));
                        }
                    }
                });
            }
        })
        .container::<Vec<(Result<Document, Box<DeadLetter>>, Epoch, isize)>>()
        .as_collection();
    (
        rendered.clone().flat_map(Result::ok),
        rendered.flat_map(Result::err),
    )
}

/// A failure is told when it comes; that it goes again changes nothing.
fn failure_effects(failures: Failures<'_>) -> Effects<'_> {
    failures
        .inner
        .filter(|(_, _, difference)| *difference > 0)
        .map(|(letter, _, _)| Effect::DeadLetter(*letter))
}

fn document_effects<'scope>(
    chunked: VecCollection<'scope, Epoch, ChunkedDocument>,
    index: PlanIndex,
) -> Effects<'scope> {
    chunked.inner.map(move |(document, _, difference)| {
        if difference > 0 {
            Effect::DocumentPut { index, document }
        } else {
            Effect::DocumentRemove {
                index,
                id: document.document.id,
            }
        }
    })
}

fn index_effects<'scope>(
    documents: VecCollection<'scope, Epoch, Document>,
    parts: &IndexParts,
    stage: EmbedStage,
    shards: OwnedShards,
    first_epoch: Epoch,
) -> Vec<Effects<'scope>> {
    let number = stage.index;
    let chunked = chunk_documents(
        documents,
        number,
        parts.chunker.clone(),
        stage.state.clone(),
    );
    let whole = chunked.clone().flat_map(Result::ok);
    let failures = chunked.flat_map(Result::err);
    let changed = changed_chunks(whole.clone(), stage.fields.clone());
    let embedded = embed(changed, stage);
    let vectors = embedded.clone().flat_map(|output| match output {
        Embedded::Vector(vector) => Some(vector),
        Embedded::Effect(_) => None,
    });
    let notes = embedded.flat_map(|output| match output {
        Embedded::Effect(effect) => Some(effect),
        Embedded::Vector(_) => None,
    });
    vec![
        document_effects(whole, number),
        failure_effects(failures),
        notes,
        index(vectors, number, shards, first_epoch),
    ]
}
