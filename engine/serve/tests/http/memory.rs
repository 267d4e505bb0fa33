//! A query service over a few documents in memory, searched by brute force, with a gate at which
//! queries can be made to wait and words on which it fails.

use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use serde_json::value::RawValue;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::time::{Duration, SystemTime};
use vectide_model::{
    Answer, AsOf, Caller, ChunkId, ContentHash, DocumentChunk, DocumentView, EmbeddingsAnswer, Hit,
    IndexStatus, ModelIdentity, Position, Positions, Query, QueryError, QueryInput, QueryService,
    Readiness, Span, Timings,
};

pub(crate) const DIMENSION: usize = 16;
pub(crate) const MODEL: &str = "letters";

/// A query for this text waits at the gate.
pub(crate) const WAIT: &str = "wait at the gate";
/// A query for this text panics, saying [`SECRET`].
pub(crate) const PANIC: &str = "panic now";
/// A query for this text fails inside, saying [`SECRET`].
pub(crate) const FAIL: &str = "fail now";
/// A query for this text is answered by the service: not available.
pub(crate) const AWAY: &str = "away now";
/// What must never go out.
pub(crate) const SECRET: &str = "/secret/path";

struct Document {
    text: String,
    metadata: String,
    offset: u64,
}

/// The documents and the switches of a test.
pub(crate) struct Memory {
    documents: BTreeMap<String, Document>,
    gate_open: (Mutex<bool>, Condvar),
    pub(crate) serving: AtomicBool,
    pub(crate) waiting: AtomicUsize,
    /// How far the first partition has moved on since the state that answers are from.
    pub(crate) moved: AtomicU64,
    pub(crate) searched: AtomicUsize,
    pub(crate) embedded_pieces: AtomicUsize,
}

/// Counts of letters, to length 1: enough for the order of hits to mean something.
pub(crate) fn embed(text: &str) -> Vec<f32> {
    let mut vector = [0.0_f32; DIMENSION];
    for letter in text
        .to_lowercase()
        .chars()
        .filter(|letter| letter.is_alphanumeric())
    {
        vector[letter as usize % DIMENSION] += 1.0;
    }
    let norm = vector.iter().map(|x| x * x).sum::<f32>().sqrt().max(1e-9);
    vector.iter().map(|x| x / norm).collect()
}

fn chunks(id: &str, text: &str) -> Vec<(ChunkId, Span, String)> {
    let mut start = 0;
    let lines = text.split_inclusive('\n').enumerate();
    lines
        .map(|(number, line)| {
            let end = start + line.chars().count();
            let chunk = ChunkId::new(id, "lines", ContentHash::of(line), number as u32);
            let found = (chunk, Span { start, end }, line.to_owned());
            start = end;
            found
        })
        .collect()
}

/// The only recorder of the process, so that metrics can be read.
pub(crate) fn recorder() -> &'static PrometheusHandle {
    static HANDLE: OnceLock<PrometheusHandle> = OnceLock::new();
    HANDLE.get_or_init(|| PrometheusBuilder::new().install_recorder().unwrap())
}

impl Memory {
    pub(crate) fn new() -> Arc<Self> {
        recorder();
        let documents = [
            ("docs/guide/start.md", "Install the engine.\nThen run it.\n"),
            (
                "docs/guide/größe.md",
                "Größe über alles.\nZwölf Boxkämpfer jagen Viktor.\n",
            ),
            ("plain", "Vectors follow their sources.\n"),
            ("a%2Fb", "A percent sign in an id.\n"),
            ("with space?#.txt", "Odd characters in an id.\n"),
        ];
        let documents = documents.into_iter().zip(0..).map(|((id, text), offset)| {
            let metadata = format!(r#"{{"path":"{id}","big":12345678901234567890}}"#);
            (
                id.to_owned(),
                Document {
                    text: text.into(),
                    metadata,
                    offset,
                },
            )
        });
        Arc::new(Self {
            documents: documents.collect(),
            gate_open: (Mutex::new(false), Condvar::new()),
            serving: AtomicBool::new(true),
            waiting: AtomicUsize::new(0),
            moved: AtomicU64::new(0),
            searched: AtomicUsize::new(0),
            embedded_pieces: AtomicUsize::new(0),
        })
    }

    pub(crate) fn open_gate(&self) {
        *self.gate_open.0.lock().unwrap() = true;
        self.gate_open.1.notify_all();
    }

    fn wait_at_gate(&self) {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let open = self.gate_open.0.lock().unwrap();
        drop(self.gate_open.1.wait_while(open, |open| !*open).unwrap());
    }

    /// Documents and scores in the order in which a query must find them.
    pub(crate) fn expected(&self, text: &str, k: usize) -> Vec<(String, f32)> {
        let query = embed(text);
        let scored = self.scored(&query);
        scored
            .into_iter()
            .take(k)
            .map(|(score, id, ..)| (id, score))
            .collect()
    }

    fn scored(&self, query: &[f32]) -> Vec<(f32, String, ChunkId, Span, String)> {
        let mut scored = Vec::new();
        for (id, document) in &self.documents {
            for (chunk, span, text) in chunks(id, &document.text) {
                let score: f32 = query.iter().zip(embed(&text)).map(|(x, y)| x * y).sum();
                scored.push((score, id.clone(), chunk, span, text));
            }
        }
        scored.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.2.cmp(&b.2)));
        scored
    }

    fn as_of() -> AsOf {
        let partitions = BTreeMap::from([(Arc::from("pages/0"), 5)]);
        AsOf {
            epoch: 42,
            positions: Arc::new(BTreeMap::from([(Arc::from("pages"), partitions)])),
            published_at: SystemTime::UNIX_EPOCH + Duration::from_micros(1_700_000_000_123_456),
        }
    }

    fn known_index(index: &str) -> Result<(), QueryError> {
        let known = vec!["pages".to_owned()];
        let missing = QueryError::NotFound {
            kind: "index",
            name: index.into(),
            known,
        };
        (index == "pages").then_some(()).ok_or(missing)
    }

    fn position(document: &Document) -> Position {
        Position {
            source: "pages".into(),
            partition: "pages/0".into(),
            offset: document.offset,
        }
    }

    fn input_vector(&self, input: &QueryInput) -> Result<Vec<f32>, QueryError> {
        match input {
            QueryInput::Text(text) => match text.as_str() {
                PANIC => panic!("{SECRET}"),
                FAIL => Err(QueryError::Internal(SECRET.into())),
                AWAY => Err(QueryError::Unavailable("nothing is published yet".into())),
                WAIT => {
                    self.wait_at_gate();
                    Ok(embed(text))
                }
                text => Ok(embed(text)),
            },
            QueryInput::Vector(vector) if vector.len() == DIMENSION => Ok(vector.clone()),
            QueryInput::Vector(vector) => Err(QueryError::Invalid {
                field: "vector",
                fact: format!("`vector` has {} numbers", vector.len()),
                hint: format!("send {DIMENSION}"),
            }),
        }
    }

    fn model() -> ModelIdentity {
        ModelIdentity {
            name: MODEL.into(),
            fingerprint: "letters-1".into(),
            dimension: DIMENSION,
            tokens_max: 256,
            device: "cpu".into(),
        }
    }
}

impl Memory {
    fn answer(&self, query: &Query) -> Result<Answer, QueryError> {
        self.searched.fetch_add(1, Ordering::SeqCst);
        Self::known_index(&query.index)?;
        if let Some(asked) = query.as_of.filter(|epoch| *epoch != Self::as_of().epoch) {
            let newest = Self::as_of().epoch;
            return Err(QueryError::NotHeld { asked, newest });
        }
        let vector = self.input_vector(&query.input)?;
        let include = query.include;
        let hit = |(score, id, chunk, span, text): (f32, String, ChunkId, Span, String)| {
            let document = &self.documents[&id];
            let metadata = || RawValue::from_string(document.metadata.clone()).unwrap();
            Hit {
                document: id.as_str().into(),
                chunk,
                score,
                scores: None,
                span,
                position: Self::position(document),
                vector: include.vector.then(|| embed(&text)),
                text: include.text.then_some(text),
                metadata: include.metadata.then(metadata),
            }
        };
        Ok(Answer {
            hits: self
                .scored(&vector)
                .into_iter()
                .take(query.k)
                .map(hit)
                .collect(),
            is_partial: false,
            as_of: Self::as_of(),
            took: Timings {
                embed: Duration::from_nanos(1_234_567),
                search: Duration::from_micros(500),
                total: Duration::from_micros(1_734),
            },
        })
    }
}

impl QueryService for Memory {
    fn indexes(&self) -> Vec<IndexStatus> {
        self.index("pages").into_iter().collect()
    }

    fn index(&self, index: &str) -> Result<IndexStatus, QueryError> {
        Self::known_index(index)?;
        let chunks = self
            .documents
            .values()
            .map(|document| document.text.lines().count() as u64);
        let chunks = chunks.sum();
        Ok(IndexStatus {
            name: index.into(),
            model: Self::model(),
            documents: self.documents.len() as u64,
            chunks,
            vectors: chunks,
            segments: 0,
            shards: 1,
            as_of: Self::as_of(),
            freshness: Some(Duration::from_millis(12)),
        })
    }

    fn document(&self, index: &str, id: &str) -> Result<DocumentView, QueryError> {
        Self::known_index(index)?;
        let document = self.documents.get(id).ok_or_else(|| QueryError::NotFound {
            kind: "document",
            name: id.into(),
            known: self.documents.keys().cloned().collect(),
        })?;
        let chunks = chunks(id, &document.text).into_iter();
        Ok(DocumentView {
            id: id.into(),
            text: document.text.clone(),
            metadata: RawValue::from_string(document.metadata.clone()).unwrap(),
            position: Self::position(document),
            chunks: chunks
                .map(|(id, span, _)| DocumentChunk { id, span })
                .collect(),
            as_of: Self::as_of(),
        })
    }

    fn query_all(&self, queries: &[Query], _: &Caller<'_>) -> Result<Vec<Answer>, QueryError> {
        queries.iter().map(|query| self.answer(query)).collect()
    }

    fn models(&self) -> Vec<ModelIdentity> {
        vec![Self::model()]
    }

    fn embed(
        &self,
        model: &str,
        texts: &[String],
        _: &Caller<'_>,
    ) -> Result<EmbeddingsAnswer, QueryError> {
        self.embedded_pieces.fetch_add(1, Ordering::SeqCst);
        if model != MODEL {
            let known = vec![MODEL.into()];
            return Err(QueryError::NotFound {
                kind: "model",
                name: model.into(),
                known,
            });
        }
        if texts.iter().any(|text| text == WAIT) {
            self.wait_at_gate();
        }
        Ok(EmbeddingsAnswer {
            vectors: texts.iter().map(|text| embed(text)).collect(),
            tokens: texts
                .iter()
                .map(|text| text.split_whitespace().count())
                .sum(),
        })
    }

    fn sources(&self) -> Vec<String> {
        Self::as_of()
            .positions
            .keys()
            .map(|it| it.to_string())
            .collect()
    }

    fn end_of(&self, source: &str) -> Result<Positions, QueryError> {
        match source {
            "pages" => Ok(Positions::clone(&Self::as_of().positions)),
            "gone" => Err(QueryError::Unavailable("it does not answer".into())),
            name => Err(QueryError::NotFound {
                kind: "source",
                name: name.into(),
                known: self.sources(),
            }),
        }
    }

    fn positions(&self) -> Option<Arc<Positions>> {
        let mut positions = Positions::clone(&Self::as_of().positions);
        // A test moves the first partition forward.
        let moved = self.moved.load(Ordering::SeqCst);
        let first = positions.values_mut().flat_map(|it| it.values_mut()).next();
        *first.unwrap() += moved;
        Some(Arc::new(positions))
    }

    fn readiness(&self) -> Readiness {
        Readiness {
            serving: self.serving.load(Ordering::SeqCst),
            caught_up: false,
            shortage: None,
        }
    }

    fn metrics(&self) -> String {
        recorder().render()
    }
}
