//! The contract's body: a seeded churn compared with brute force.

use super::*;
use crate::{Bm25, TermStatistics, quantize};
use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;

const DIMENSION: usize = 32;
type Live = BTreeMap<ChunkId, (Embedding, RowFields)>;

/// Words of the rows: some in most of them, some in few.
const WORDS: u64 = 200;

/// Filters with the rows that pass: all in ten groups, three of them, one of a hundred, none.
const FILTERS: [&str; 5] = [
    "{}",
    r#"{"group": {"$lt": 3}}"#,
    r#"{"place": {"$in": [7, 123]}}"#,
    r#"{"group": {"$ne": 1}, "place": {"$gte": 50, "$lt": 60}}"#,
    r#"{"missing": 1}"#,
];

fn filter(text: &str) -> Arc<Filter> {
    let filter = serde_json::from_str(text).expect("JSON");
    Arc::new(Filter::parse(&filter).expect("a filter"))
}

pub(super) struct Check<'a> {
    factory: &'a dyn VectorIndexFactory,
    directory: PathBuf,
    index: Box<dyn VectorIndex>,
    state: ShardState,
    live: Live,
    old: Vec<(Arc<dyn VectorIndexRead>, Live)>,
    seed: u64,
}

impl<'a> Check<'a> {
    pub(super) fn new(factory: &'a dyn VectorIndexFactory, directory: &Path) -> Self {
        let state = ShardState::default();
        let index = factory
            .open(directory, DIMENSION, state.clone())
            .expect("an empty shard");
        let (live, old) = (Live::new(), Vec::new());
        Self {
            factory,
            directory: directory.into(),
            index,
            state,
            live,
            old,
            seed: 7,
        }
    }

    /// xorshift64: enough for test data, the same everywhere.
    fn random(&mut self) -> u64 {
        self.seed ^= self.seed << 13;
        self.seed ^= self.seed >> 7;
        self.seed ^= self.seed << 17;
        self.seed
    }

    /// The lower, the more often.
    fn random_term(&mut self) -> Term {
        let word = (self.random() % WORDS) * (self.random() % WORDS) / WORDS;
        Term(word.to_be_bytes())
    }

    fn random_unit_vector(&mut self) -> Vec<f32> {
        let raw: Vec<f32> = (0..DIMENSION)
            .map(|_| (self.random() % 2001) as f32 / 1000.0 - 1.0)
            .collect();
        let norm = raw.iter().map(|x| x * x).sum::<f32>().sqrt().max(1e-6);
        raw.iter().map(|x| x / norm).collect()
    }

    pub(super) fn churn(&mut self, inserts: usize, round: u64) {
        let gone: Vec<ChunkId> = self
            .live
            .keys()
            .copied()
            .filter(|id| (u64::from(id.0[0]) + round).is_multiple_of(5))
            .collect();
        for chunk in gone {
            self.index.remove(&chunk);
            self.live.remove(&chunk);
        }
        self.index.remove(&ChunkId([0; 16]));
        for _ in 0..inserts {
            let (a, b) = (self.random(), self.random());
            let mut id = [0; 16];
            id[..8].copy_from_slice(&a.to_le_bytes());
            id[8..].copy_from_slice(&b.to_le_bytes());
            let vector = quantize(&self.random_unit_vector());
            let metadata = format!(r#"{{"group": {}, "place": {}}}"#, a % 10, b % 100);
            let attributes = Attributes::of(&metadata, &["group".into(), "place".into()]);
            let words = (0..1 + a % 30).map(|_| self.random_term()).collect();
            let fields = RowFields {
                attributes,
                terms: Terms::count(words),
            };
            self.live
                .insert(ChunkId(id), (vector.clone(), fields.clone()));
            let chunk = ChunkId(id);
            self.index.insert(IndexRow {
                chunk,
                vector,
                fields,
            });
        }
    }

    pub(super) fn close_and_compare(&mut self, recall_min: f64) {
        let closed = self.index.close_epoch().expect("an epoch");
        self.state.apply(&closed.commit);
        let live = self.live.clone();
        self.compare(&*closed.read, &live, recall_min);
        self.old.push((closed.read, live));
    }

    fn compare(&mut self, read: &dyn VectorIndexRead, live: &Live, recall_min: f64) {
        assert_eq!(read.rows(), live.len(), "live rows");
        let queries: Vec<Vec<f32>> = (0..20).map(|_| self.random_unit_vector()).collect();
        for text in FILTERS {
            let filter = filter(text);
            let passing: Live = live
                .iter()
                .filter(|(_, (_, fields))| filter.passes(&fields.attributes))
                .map(|(chunk, row)| (*chunk, row.clone()))
                .collect();
            let filter = (text != "{}").then_some(filter);
            let words = [0, 1, 2].map(|_| self.random_term());
            compare_terms(read, &words, (filter.clone(), &passing), live);
            compare_filtered(read, &queries, (filter, &passing), recall_min);
        }
        let all = read.search(&[0.5; DIMENSION], &Search::best(10_000_000));
        assert!(all.hits.len() <= live.len());
        let bad: [&[f32]; 2] = [&[0.5; DIMENSION + 1], &[f32::NAN; DIMENSION]];
        for found in read.search_all(&bad, &Search::best(10)) {
            assert_eq!(found, Found::default(), "a query that is none");
        }
        let late = Search {
            until: Some(Instant::now()),
            ..Search::best(10)
        };
        let found = read.search(&[0.5; DIMENSION], &late);
        assert!(found.is_partial || live.is_empty(), "no time at all");
    }

    pub(super) fn reopen(&mut self) {
        let read = self
            .factory
            .read(&self.directory, DIMENSION, self.state.clone())
            .expect("the committed state can be looked at");
        assert_eq!(read.rows(), self.live.len(), "rows of a shard looked at");
        self.index = self
            .factory
            .open(&self.directory, DIMENSION, self.state.clone())
            .expect("the committed state opens again");
    }

    pub(super) fn old_readers_did_not_move(&mut self, recall_min: f64) {
        for (read, live) in std::mem::take(&mut self.old) {
            self.compare(&*read, &live, recall_min);
        }
    }
}

/// Compares what keyword search finds of the rows that pass a filter with brute force over all live rows.
fn compare_terms(
    read: &dyn VectorIndexRead,
    words: &[Term],
    (filter, passing): (Option<Arc<Filter>>, &Live),
    live: &Live,
) {
    let mut words = words.to_vec();
    words.sort_unstable();
    words.dedup();
    let matches = read.matches(&words);
    let with = |word: &Term| {
        let rows = live.values();
        rows.filter(|(_, fields)| fields.terms.count_of(*word) > 0)
            .count() as u64
    };
    let lengths = live.values().map(|(_, it)| u64::from(it.terms.length()));
    let statistics = TermStatistics {
        rows: live.len() as u64,
        length: lengths.sum(),
        rows_with: words.iter().map(with).collect(),
    };
    assert_eq!(matches.statistics(), statistics, "of {words:?}");
    let scale = Bm25::new(&statistics);
    let score = |terms: &Terms| {
        let counts = words.iter().map(|word| terms.count_of(*word)).enumerate();
        let parts = counts.filter(|(_, count)| *count > 0);
        let parts = parts.map(|(at, count)| scale.part(at, count, terms.length()));
        parts.reduce(|a, b| a + b)
    };
    let scored = |(chunk, (_, fields)): (&ChunkId, &(Embedding, RowFields))| {
        let (chunk, score) = (*chunk, score(&fields.terms)?);
        Some(ScoredChunk { chunk, score })
    };
    for row in live.iter().take(50) {
        let expected = scored(row).map(|hit| hit.score);
        assert_eq!(matches.score(&scale, row.0), expected);
    }
    let truth = Found {
        hits: passing.iter().filter_map(scored).collect(),
        is_partial: false,
    };
    let search = Search {
        filter,
        ..Search::best(10)
    };
    let found = matches.search(&scale, &search);
    assert_eq!(found, Found::merge([truth], 10), "keyword search");
    assert_eq!(matches.score(&scale, &ChunkId([0; 16])), None);
}

/// Compares what searches find of the rows that pass a filter with brute force.
fn compare_filtered(
    read: &dyn VectorIndexRead,
    queries: &[Vec<f32>],
    (filter, live): (Option<Arc<Filter>>, &Live),
    recall_min: f64,
) {
    let (mut found, mut wanted) = (0, 0);
    let best = Search {
        filter,
        ..Search::best(10)
    };
    let exact = Search {
        effort: None,
        ..best.clone()
    };
    let together: Vec<&[f32]> = queries.iter().map(Vec::as_slice).collect();
    let together = read.search_all(&together, &best);
    for (query, together) in queries.iter().zip(together) {
        let answer = read.search(query, &best);
        assert_eq!(answer, together, "alone and together");
        assert!(!answer.is_partial, "there was time");
        let hits = answer.hits;
        let ordered = |pair: &[ScoredChunk]| {
            pair[0].score > pair[1].score
                || (pair[0].score == pair[1].score && pair[0].chunk < pair[1].chunk)
        };
        assert!(
            hits.windows(2).all(ordered),
            "order or duplicates: {hits:?}"
        );
        for hit in &hits {
            let (vector, _) = live.get(&hit.chunk).expect("only live rows are found");
            assert!(
                (dot(query, vector) - hit.score).abs() < 2e-3,
                "score of {hit:?}"
            );
            assert_eq!(read.vector(&hit.chunk).as_ref(), Some(vector));
            assert_eq!(read.score(query, &hit.chunk), Some(hit.score));
        }
        let mut truth: Vec<(f32, ChunkId)> = live
            .iter()
            .map(|(id, (vector, _))| (dot(query, vector), *id))
            .collect();
        truth.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        truth.truncate(10);
        let true_hits = read.search(query, &exact).hits;
        let scores = true_hits.iter().map(|hit| hit.score);
        let is_close = |(score, truth): (f32, &(f32, ChunkId))| (score - truth.0).abs() < 2e-3;
        assert_eq!(true_hits.len(), truth.len(), "true hits");
        assert!(scores.zip(&truth).all(is_close), "true hits: {true_hits:?}");
        let got: HashSet<ChunkId> = hits.iter().map(|hit| hit.chunk).collect();
        wanted += truth.len();
        found += truth.iter().filter(|(_, id)| got.contains(id)).count();
    }
    let recall = if wanted == 0 {
        1.0
    } else {
        found as f64 / wanted as f64
    };
    assert!(
        recall >= recall_min,
        "recall {recall} of {} rows",
        live.len()
    );
}

fn dot(query: &[f32], vector: &Embedding) -> f32 {
    query
        .iter()
        .zip(vector.0.iter())
        .map(|(x, y)| x * y.to_f32())
        .sum()
}
