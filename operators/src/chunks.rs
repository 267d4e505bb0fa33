//! Documents to chunks, of which only those that changed go on.
//!
//! Each version of a document is cut into chunks; the old version's are taken away, the new one's
//! added, and differential's consolidation cancels what is in both. What comes out has to be
//! embedded or dropped, nothing else.
//!
//! Invariant: two chunks are the same record exactly when they have the same id, and with it the same text,
//! from which it is made, and the same attributes: one whose attributes alone have changed goes and comes,
//! with the vector that is remembered (or made again where that was forgotten).

use crate::committed::CommittedState;
use crate::effect::PlanIndex;
use crate::fields::FieldPlan;
use differential_dataflow::{AsCollection, VecCollection};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::Digest;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use vectide_model::{
    Attributes, ChunkId, ChunkSpan, ChunkedDocument, Chunker, ContentHash, DeadLetter,
    DeadLetterReason, Document, Epoch, Position, chunk_document,
};

/// A stretch of a document's text, shared with it instead of copied.
#[derive(Clone, Debug)]
pub struct TextSlice {
    text: Arc<str>,
    start: u32,
    end: u32,
}

impl TextSlice {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.text[self.start as usize..self.end as usize]
    }
}

impl Serialize for TextSlice {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.as_str().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for TextSlice {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Arc::<str>::deserialize(deserializer)?;
        let end = u32::try_from(text.len()).map_err(serde::de::Error::custom)?;
        Ok(Self {
            text,
            start: 0,
            end,
        })
    }
}

/// A chunk on its way to the embedder and the index.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ChunkItem {
    /// Identity; equality and order are those of the id and the attributes.
    pub id: ChunkId,
    /// What filters look at.
    pub attributes: Attributes,
    /// Hash of the text.
    pub content: ContentHash,
    /// The document it belongs to.
    pub document: Arc<str>,
    /// The change that brought it, should it become a dead letter.
    pub position: Position,
    /// The text.
    pub text: TextSlice,
}

impl PartialEq for ChunkItem {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id && self.attributes == other.attributes
    }
}

impl Eq for ChunkItem {}

impl PartialOrd for ChunkItem {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for ChunkItem {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        let by_id = self.id.cmp(&other.id);
        by_id.then_with(|| self.attributes.cmp(&other.attributes))
    }
}

/// By content, so that equal texts meet on one worker and are embedded once.
impl Hash for ChunkItem {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.content.hash(state);
    }
}

/// A document's chunks, or why there are none.
pub type ChunkResult = Result<ChunkedDocument, Box<DeadLetter>>;

/// Cuts documents. A version whose text was committed is not cut again: its spans are in the state,
/// and a chunker gives the same spans for the same text. Positions don't tell versions apart: all changes of
/// a transaction may have one, and a transaction may be read again.
pub fn chunk_documents<'scope>(
    documents: VecCollection<'scope, Epoch, Document>,
    index: PlanIndex,
    chunker: Arc<dyn Chunker>,
    state: Arc<dyn CommittedState>,
) -> VecCollection<'scope, Epoch, ChunkResult> {
    use timely::dataflow::channels::pact::Pipeline;
    use timely::dataflow::operators::generic::operator::Operator;
    documents
        .inner
        .unary(Pipeline, "chunk", move |_capability, _info| {
            move |input, output| {
                input.for_each(|capability, batch| {
                    let committed = state.read();
                    let mut session = output.session(&capability);
                    for (document, epoch, difference) in batch.drain(..) {
                        let known = if difference < 0 {
                            committed.document(index, &document.id).ok().flatten()
                        } else {
                            None
                        };
                        let result = match known {
                            Some(known) if known.sha256 == sha256(&document.text) => {
                                Ok(ChunkedDocument {
                                    document,
                                    chunks: known.chunks,
                                })
                            }
                            _ => cut(&*chunker, document),
                        };
                        session.give((result, epoch, difference));
                    }
                });
            }
        })
        .container::<Vec<_>>()
        .as_collection()
}

fn sha256(text: &str) -> [u8; 32] {
    sha2::Sha256::digest(text.as_bytes()).into()
}

fn cut(chunker: &dyn Chunker, document: Document) -> ChunkResult {
    chunk_document(chunker, document).map_err(|(document, error)| {
        Box::new(DeadLetter::new(
            DeadLetterReason::Embed,
            document.position.clone(),
            Some(document.id.clone()),
            format!("the text can't be cut into chunks: {error}"),
            document.text.as_bytes(),
        ))
    })
}

/// The chunks that came or went: what is in both versions of a document has cancelled.
pub fn changed_chunks<'scope>(
    documents: VecCollection<'scope, Epoch, ChunkedDocument>,
    fields: Arc<FieldPlan>,
) -> VecCollection<'scope, Epoch, ChunkItem> {
    let items = move |chunked| items(chunked, &fields);
    documents.flat_map(items).consolidate()
}

fn items(chunked: ChunkedDocument, fields: &FieldPlan) -> impl Iterator<Item = ChunkItem> + use<> {
    let ChunkedDocument { document, chunks } = chunked;
    let attributes = fields.attributes(&document.metadata);
    (0..chunks.len()).map(move |at| {
        let ChunkSpan {
            id,
            content,
            start,
            end,
        } = chunks[at];
        let text = TextSlice {
            text: document.text.clone(),
            start,
            end,
        };
        let position = document.position.clone();
        ChunkItem {
            id,
            attributes: attributes.clone(),
            content,
            document: document.id.clone(),
            position,
            text,
        }
    })
}
