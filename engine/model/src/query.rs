//! The contract between the query endpoint and the running system.
//!
//! Invariant: everything in one answer is from one committed epoch.

use crate::{ChunkId, Epoch, Filter, ModelIdentity, Position};
use serde_json::value::RawValue;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// What to search for.
#[derive(Clone, Debug, PartialEq)]
pub enum QueryInput {
    /// A text, embedded with the index's model.
    Text(String),
    /// A vector of the index's dimension; it need not have length 1.
    Vector(Vec<f32>),
}

/// Optional parts of a hit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Include {
    /// The chunk's text.
    pub text: bool,
    /// The document's metadata.
    pub metadata: bool,
    /// The chunk's vector.
    pub vector: bool,
}

/// What hits are found and ranked by.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Mode {
    /// Their vectors.
    #[default]
    Vector,
    /// Their words.
    Keyword,
    /// Both.
    Hybrid(Fusion),
}

/// How the rankings by vectors and by words become one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fusion {
    /// By the sum of 1 / (k + rank).
    ReciprocalRank {
        /// How little the first places count for more than the next.
        k: f32,
    },
    /// By the sum of the scores, those by words as shares of the greatest.
    Weighted {
        /// How much those by vectors count, 0..=1; those by words count for the rest.
        vector: f32,
    },
}

impl Fusion {
    /// The `k` of the paper that reciprocal rank fusion is from.
    pub const RANK_K: f32 = 60.0;
}

impl Default for Fusion {
    fn default() -> Self {
        Self::ReciprocalRank { k: Self::RANK_K }
    }
}

/// A search.
#[derive(Clone, Debug, PartialEq)]
pub struct Query {
    /// Which index.
    pub index: String,
    /// What to search for.
    pub input: QueryInput,
    /// What hits are found by.
    pub mode: Mode,
    /// Which rows may be hits; `None`: all.
    pub filter: Option<Arc<Filter>>,
    /// How many hits, or documents where they are grouped, 1..=[`Query::K_MAX`].
    pub k: usize,
    /// What hits carry.
    pub include: Include,
    /// Best chunks shown of each document, 1..=[`Query::GROUP_MAX`]; without it chunks stand alone.
    pub group_by_document: Option<usize>,
    /// Looks at every row instead of as many as the index's recall takes.
    pub exact: bool,
    /// The epoch to answer from, one that an answer came from lately; without it the newest.
    pub as_of: Option<Epoch>,
    /// How long it may search before it answers with what it has found.
    pub budget: Option<Duration>,
}

impl Query {
    /// Most hits of one query: beyond it an answer is an export.
    pub const K_MAX: usize = 10_000;
    /// Longest query text in bytes; models read some hundred words of it.
    pub const TEXT_BYTES_MAX: usize = 64 * 1024;
    /// Most chunks of a document that a grouped answer shows.
    pub const GROUP_MAX: usize = 100;

    /// A search of the newest epoch for the `k` best chunks, with nothing but where they stand.
    pub fn new(index: impl Into<String>, input: QueryInput, k: usize) -> Self {
        Self {
            index: index.into(),
            input,
            mode: Mode::Vector,
            filter: None,
            k,
            include: Include::default(),
            group_by_document: None,
            exact: false,
            as_of: None,
            budget: None,
        }
    }
}

/// A stretch of a document's text, in Unicode scalar values (as Python counts), end excluded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// First.
    pub start: usize,
    /// One past the last.
    pub end: usize,
}

/// The scores of a hit.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Scores {
    /// Inner product of the query's vector and the chunk's, where it was looked at.
    pub vector: Option<f32>,
    /// BM25 of the query's words in the chunk, where there are any and they were looked at.
    pub keyword: Option<f32>,
}

/// A chunk that was found.
#[derive(Clone, Debug)]
pub struct Hit {
    /// The document's id.
    pub document: Arc<str>,
    /// The chunk's id.
    pub chunk: ChunkId,
    /// What it is ranked by: the inner product of the vectors, 1 at best, or BM25 of the words, or what both
    /// come to.
    pub score: f32,
    /// What that is made of, where it is of both.
    pub scores: Option<Scores>,
    /// Where in the document it stands.
    pub span: Span,
    /// The source's last change to the document.
    pub position: Position,
    /// The chunk's text, if asked for.
    pub text: Option<String>,
    /// The document's metadata, if asked for.
    pub metadata: Option<Box<RawValue>>,
    /// The chunk's vector, if asked for.
    pub vector: Option<Vec<f32>>,
}

/// Source -> partition -> next offset.
pub type Positions = BTreeMap<Arc<str>, BTreeMap<Arc<str>, u64>>;

/// Which state an answer is from.
#[derive(Clone, Debug, PartialEq)]
pub struct AsOf {
    /// The epoch.
    pub epoch: Epoch,
    /// Source -> partition -> next offset: everything before it is in the answer.
    pub positions: Arc<Positions>,
    /// When the epoch became visible.
    pub published_at: SystemTime,
}

/// Where the time of a query went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timings {
    /// Embedding the text.
    pub embed: Duration,
    /// Searching the shards and fetching the hits.
    pub search: Duration,
    /// All of it.
    pub total: Duration,
}

/// The answer to a query.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Best first; where they are grouped, the hits of a document stand together, at the place of its
    /// best.
    pub hits: Vec<Hit>,
    /// Whether the query's time was up before all was looked at.
    pub is_partial: bool,
    /// The state it is from.
    pub as_of: AsOf,
    /// Where the time went.
    pub took: Timings,
}

/// What an index holds.
#[derive(Clone, Debug)]
pub struct IndexStatus {
    /// Its name.
    pub name: String,
    /// Its model.
    pub model: ModelIdentity,
    /// Documents, those without chunks included.
    pub documents: u64,
    /// Chunks, each with one vector.
    pub chunks: u64,
    /// Live vectors in all shards.
    pub vectors: u64,
    /// Sealed segments in all shards.
    pub segments: u64,
    /// Shards.
    pub shards: usize,
    /// The state it describes.
    pub as_of: AsOf,
    /// From a change to its being visible: of the newest change published.
    pub freshness: Option<Duration>,
}

/// A chunk of a document that is looked at.
#[derive(Clone, Debug)]
pub struct DocumentChunk {
    /// Identity.
    pub id: ChunkId,
    /// Where it stands.
    pub span: Span,
}

/// A document as the index holds it.
#[derive(Clone, Debug)]
pub struct DocumentView {
    /// Its id.
    pub id: Arc<str>,
    /// Its text.
    pub text: String,
    /// Its metadata, a JSON object.
    pub metadata: Box<RawValue>,
    /// The source's last change to it.
    pub position: Position,
    /// Its chunks in the order of the text.
    pub chunks: Vec<DocumentChunk>,
    /// The state it is from.
    pub as_of: AsOf,
}

/// Texts embedded on request.
#[derive(Clone, Debug, PartialEq)]
pub struct EmbeddingsAnswer {
    /// One vector a text.
    pub vectors: Vec<Vec<f32>>,
    /// Tokens of all texts, without special ones.
    pub tokens: usize,
}

/// Whether queries are answered, and how far the sources are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Readiness {
    /// A state is published.
    pub serving: bool,
    /// All sources have sent what was there when they started, and it is published.
    pub caught_up: bool,
    /// Why no changes are taken at present: the state's disk is short of room.
    pub shortage: Option<String>,
}

/// Why a query has no answer. Each kind has one HTTP status.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QueryError {
    /// No index, document or model of that name; `known` lists what there is, when short.
    #[error("there is no {kind} `{name}`")]
    NotFound {
        /// `index`, `document` or `model`.
        kind: &'static str,
        /// What was asked for.
        name: String,
        /// What there is.
        known: Vec<String>,
    },
    /// The request can't be answered as it is.
    #[error("{fact}")]
    Invalid {
        /// Which field.
        field: &'static str,
        /// What is wrong with it.
        fact: String,
        /// What is allowed.
        hint: String,
    },
    /// An epoch is asked for that is not held any more, or not yet.
    #[error("epoch {asked} is not held: the newest is {newest}")]
    NotHeld {
        /// What was asked for.
        asked: Epoch,
        /// The newest one.
        newest: Epoch,
    },
    /// Nothing is published yet, or the process is ending.
    #[error("{0}")]
    Unavailable(String),
    /// Our fault.
    #[error("{0}")]
    Internal(String),
}

/// Who waits for an answer.
#[derive(Clone, Copy)]
pub struct Caller<'a>(&'a dyn Fn() -> bool);

impl<'a> Caller<'a> {
    /// One of whom `has_left` tells.
    pub fn new(has_left: &'a dyn Fn() -> bool) -> Self {
        Self(has_left)
    }

    /// Whether nobody reads the answer any more: the request timed out, or its connection was closed.
    pub fn has_left(&self) -> bool {
        (self.0)()
    }
}

impl Caller<'static> {
    /// One that stays for as long as it takes.
    pub const STAYS: Self = Self(&|| false);
}

/// The running system, as the endpoint sees it. Calls block for as long as a query takes and may
/// come from many threads at once.
pub trait QueryService: Send + Sync + 'static {
    /// All indexes.
    fn indexes(&self) -> Vec<IndexStatus>;

    /// One index.
    ///
    /// # Errors
    /// [`QueryError::NotFound`].
    fn index(&self, index: &str) -> Result<IndexStatus, QueryError>;

    /// One document of an index.
    ///
    /// # Errors
    /// [`QueryError::NotFound`], or the store can't be read.
    fn document(&self, index: &str, id: &str) -> Result<DocumentView, QueryError>;

    /// Searches for several things at once, all in one epoch; texts whose caller leaves are not embedded.
    ///
    /// # Errors
    /// Any [`QueryError`], of the first query that has no answer; the limits of [`Query`] are checked
    /// here.
    fn query_all(&self, queries: &[Query], caller: &Caller<'_>) -> Result<Vec<Answer>, QueryError>;

    /// Searches for somebody who stays.
    ///
    /// # Errors
    /// As [`QueryService::query_all`].
    fn query(&self, query: &Query) -> Result<Answer, QueryError> {
        self.query_for(query, &Caller::STAYS)
    }

    /// Searches for a caller.
    ///
    /// # Errors
    /// As [`QueryService::query_all`].
    fn query_for(&self, query: &Query, caller: &Caller<'_>) -> Result<Answer, QueryError> {
        let answers = self.query_all(std::slice::from_ref(query), caller)?;
        let missing = || QueryError::Internal("a query had no answer".into());
        answers.into_iter().next().ok_or_else(missing)
    }

    /// The models that indexes use.
    fn models(&self) -> Vec<ModelIdentity>;

    /// Embeds texts with one of them, on the query lane, for as long as the caller stays.
    ///
    /// # Errors
    /// [`QueryError::NotFound`] for another model, [`QueryError::Invalid`] for bad texts.
    fn embed(
        &self,
        model: &str,
        texts: &[String],
        caller: &Caller<'_>,
    ) -> Result<EmbeddingsAnswer, QueryError>;

    /// Names of the sources, configured or not yet read alike.
    fn sources(&self) -> Vec<String>;

    /// Where a source ends now, with its name before the partitions: what a query's `at_least` takes
    /// to read everything that was written before. Asks the source itself.
    ///
    /// # Errors
    /// [`QueryError::NotFound`]; [`QueryError::Unavailable`] when the source does not tell.
    fn end_of(&self, source: &str) -> Result<Positions, QueryError>;

    /// The positions of the published state; `None` while nothing is published. Does not block.
    fn positions(&self) -> Option<Arc<Positions>>;

    /// Whether queries are answered.
    fn readiness(&self) -> Readiness;

    /// Metrics in Prometheus's text format.
    fn metrics(&self) -> String;
}
