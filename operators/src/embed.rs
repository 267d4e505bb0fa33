//! Chunks to vectors, without ever embedding on the worker's thread.
//!
//! The operator keeps the epoch's capability, hands a ticket to the embedder's threads and yields;
//! the answer comes back by a channel and wakes it. Before it asks, it looks whether the text was
//! embedded before: in this worker's uncommitted epochs, then in the state.
//!
//! Invariant: an epoch's frontier passes only when all its chunks have their vector, or are dead
//! letters; an embedding is computed once per content.

use crate::batcher::{BatcherHandle, Reply, ReplyTo, Ticket};
use crate::chunks::ChunkItem;
use crate::committed::{Committed, CommittedState, unreadable};
use crate::effect::{Effect, PlanIndex};
use crate::fields::{FieldPlan, WordCache};
use crate::pending::Pending;
use crossbeam_channel::Receiver;
use differential_dataflow::VecCollection;
use rustc_hash::FxHashMap;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use timely::dataflow::Stream;
use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::Capability;
use timely::dataflow::operators::generic::operator::Operator;
use vectide_model::{
    ChunkId, ContentHash, DeadLetter, DeadLetterReason, Embedding, Epoch, RowFields, stable_hash,
};

/// What the index has to do about one chunk.
#[derive(Clone, Serialize, Deserialize)]
pub struct ChunkVector {
    /// The shard that owns the chunk's document.
    pub shard: u32,
    /// The chunk.
    pub chunk: ChunkId,
    /// Its vector, or `None` when it goes.
    #[serde(with = "vector_bytes")]
    pub vector: Option<Embedding>,
    /// What else it is found by; nothing when it goes.
    pub fields: RowFields,
}

mod vector_bytes {
    //! A vector between workers, as the bytes it has on disk.
    use super::Embedding;
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(
        vector: &Option<Embedding>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        vector
            .as_ref()
            .map(Embedding::to_bytes)
            .serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Embedding>, D::Error> {
        let bytes = Option::<Vec<u8>>::deserialize(deserializer)?;
        bytes
            .map(|bytes| {
                Embedding::from_bytes(&bytes).ok_or_else(|| D::Error::custom("odd length"))
            })
            .transpose()
    }
}

/// How an index embeds.
#[derive(Clone)]
pub struct EmbedStage {
    /// Number of the index in the plan.
    pub index: PlanIndex,
    /// Its shards.
    pub shards: u32,
    /// Makes the vectors.
    pub batcher: BatcherHandle,
    /// What is kept of a chunk besides its vector.
    pub fields: Arc<FieldPlan>,
    /// Whether vectors are remembered by content.
    pub remember: bool,
    /// The committed state.
    pub state: Arc<dyn CommittedState>,
}

/// Which shard owns a document. Persisted: never change it.
pub fn shard_of(document: &str, shards: u32) -> u32 {
    (stable_hash(document.as_bytes()) % u64::from(shards.max(1))) as u32
}

/// An output of the operator: for the index or for the commit.
#[derive(Clone)]
pub enum Embedded {
    /// For the index.
    Vector(ChunkVector),
    /// For the commit.
    Effect(Effect),
}

/// Embeds the chunks that came and passes on those that went.
pub fn embed<'scope>(
    chunks: VecCollection<'scope, Epoch, ChunkItem>,
    stage: EmbedStage,
) -> Stream<'scope, Epoch, Vec<Embedded>> {
    let scope = chunks.inner.scope();
    chunks
        .inner
        .unary(Pipeline, "embed", move |_capability, info| {
            let (sender, replies) = crossbeam_channel::unbounded();
            let activator = scope.worker().sync_activator_for(info.address.to_vec());
            let wake = Arc::new(move || {
                // The worker is gone only when the process is ending.
                let _ = activator.activate();
            });
            let state = stage.state.clone();
            let mut waiting = WaitingRoom::new(stage, ReplyTo { sender, wake }, replies);
            move |input, output| {
                input.for_each_stamp(|capability, batches| {
                    let Some(capability) = capability.retain_least(output.output_index()) else {
                        return;
                    };
                    let mut out: BTreeMap<Epoch, Outputs> = BTreeMap::new();
                    waiting.begin();
                    let committed = state.read();
                    for (item, epoch, difference) in batches.flat_map(|batch| batch.drain(..)) {
                        let outputs = if difference > 0 {
                            waiting.arrive(item, &*committed, || capability.delayed(&epoch))
                        } else {
                            Some(waiting.leave(&item))
                        };
                        out.entry(epoch)
                            .or_default()
                            .extend(outputs.into_iter().flatten());
                    }
                    for (epoch, outputs) in out {
                        output
                            .session(&capability.delayed(&epoch))
                            .give_iterator(outputs.into_iter());
                    }
                });
                waiting.collect(|capability, outputs| {
                    output
                        .session(capability)
                        .give_iterator(outputs.into_iter());
                });
            }
        })
        .container::<Vec<Embedded>>()
}

/// A chunk whose vector is being computed.
struct Waiting {
    capability: Capability<Epoch>,
    item: ChunkItem,
}

/// The chunks in the embedder's hands, by content.
struct WaitingRoom {
    stage: EmbedStage,
    reply_to: ReplyTo,
    replies: Receiver<Reply>,
    waiting: FxHashMap<ContentHash, Vec<Waiting>>,
    recent: Pending<ContentHash, Embedding>,
    words: WordCache,
}

type Outputs = Vec<Embedded>;

impl WaitingRoom {
    fn new(stage: EmbedStage, reply_to: ReplyTo, replies: Receiver<Reply>) -> Self {
        let (waiting, recent) = (FxHashMap::default(), Pending::new());
        Self {
            stage,
            reply_to,
            replies,
            waiting,
            recent,
            words: WordCache::default(),
        }
    }

    fn begin(&mut self) {
        self.recent.forget_committed(self.stage.state.epoch());
    }

    fn vector_of(
        &self,
        item: &ChunkItem,
        vector: Option<Embedding>,
        fields: RowFields,
    ) -> Embedded {
        Embedded::Vector(ChunkVector {
            shard: shard_of(&item.document, self.stage.shards),
            chunk: item.id,
            vector,
            fields,
        })
    }

    fn put(&mut self, item: &ChunkItem, vector: Embedding) -> [Embedded; 2] {
        let effect = Effect::ChunkPut {
            index: self.stage.index,
            chunk: item.id,
            document: item.document.clone(),
        };
        let (attributes, text) = (item.attributes.clone(), item.text.as_str());
        let fields = &self.stage.fields;
        let fields = fields.of_chunk(attributes, text, &mut self.words);
        let vector = self.vector_of(item, Some(vector), fields);
        [Embedded::Effect(effect), vector]
    }

    /// A chunk came: its vector if it is known, otherwise a ticket is on its way.
    fn arrive(
        &mut self,
        item: ChunkItem,
        committed: &dyn Committed,
        capability: impl FnOnce() -> Capability<Epoch>,
    ) -> Option<[Embedded; 2]> {
        if let Some(vector) = self.known(item.content, committed) {
            return Some(self.put(&item, vector));
        }
        let waiting = self.waiting.entry(item.content).or_default();
        if waiting.is_empty() {
            self.stage.batcher.send(Ticket {
                content: item.content,
                text: item.text.clone(),
                reply_to: self.reply_to.clone(),
            });
        }
        waiting.push(Waiting {
            capability: capability(),
            item,
        });
        None
    }

    fn leave(&self, item: &ChunkItem) -> [Embedded; 2] {
        let effect = Effect::ChunkRemove {
            index: self.stage.index,
            chunk: item.id,
        };
        let vector = self.vector_of(item, None, RowFields::default());
        [Embedded::Effect(effect), vector]
    }

    fn known(&self, content: ContentHash, committed: &dyn Committed) -> Option<Embedding> {
        if !self.stage.remember {
            return None;
        }
        self.recent.get(&content).cloned().or_else(|| {
            committed
                .embedding(self.stage.index, content)
                .unwrap_or_else(|e| unreadable(&e))
        })
    }

    /// Takes what the embedder has finished.
    fn collect(&mut self, mut give: impl FnMut(&Capability<Epoch>, Outputs)) {
        let mut done: BTreeMap<Epoch, (Capability<Epoch>, Outputs, u64, Duration)> =
            BTreeMap::new();
        while let Ok(Reply {
            content,
            vector,
            busy,
        }) = self.replies.try_recv()
        {
            let Some(waiting) = self.waiting.remove(&content) else {
                continue;
            };
            let mut first = true;
            for Waiting { capability, item } in waiting {
                let epoch = *capability.time();
                let entry = done
                    .entry(epoch)
                    .or_insert_with(|| (capability, Vec::new(), 0, Duration::ZERO));
                match &vector {
                    Ok(vector) => entry.1.extend(self.put(&item, vector.clone())),
                    Err(error) => entry.1.extend(self.refuse(&item, &error.to_string())),
                }
                if first && let Ok(vector) = &vector {
                    first = false;
                    (entry.2, entry.3) = (entry.2 + 1, entry.3 + busy);
                    entry.1.extend(self.remember(epoch, content, vector));
                }
            }
        }
        for (capability, mut outputs, texts, busy) in done.into_values() {
            let index = self.stage.index;
            outputs.push(Embedded::Effect(Effect::Embedded { index, texts, busy }));
            give(&capability, outputs);
        }
    }

    fn remember(
        &mut self,
        epoch: Epoch,
        content: ContentHash,
        vector: &Embedding,
    ) -> Option<Embedded> {
        self.stage.remember.then(|| {
            self.recent.insert(epoch, content, vector.clone());
            let (index, vector) = (self.stage.index, vector.clone());
            Embedded::Effect(Effect::Remember {
                index,
                content,
                vector,
            })
        })
    }

    /// The chunk stays part of its document, so that it is counted and removed like any other, but
    /// no vector finds it; it is not remembered, so the next document with this text tries again.
    fn refuse(&mut self, item: &ChunkItem, error: &str) -> [Embedded; 3] {
        let detail = format!("chunk {} can't be embedded: {error}", item.id);
        let raw = item.text.as_str().as_bytes();
        let letter = DeadLetter::new(
            DeadLetterReason::Embed,
            item.position.clone(),
            Some(item.document.clone()),
            detail,
            raw,
        );
        let [put, vector] = self.put(item, self.stage.batcher.nothing());
        [put, vector, Embedded::Effect(Effect::DeadLetter(letter))]
    }
}
