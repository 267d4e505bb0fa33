//! Exact as of an epoch: while a fifth of a large index changes, over several shards, segments that are sealed
//! and merged meanwhile, and restarts, every answer is one of its epoch. An oracle that folds the script to the
//! answer's position says what that is.
//!
//! | what | how it is checked |
//! | --- | --- |
//! | no deleted hit, no old text, no document twice | each hit against the oracle's documents |
//! | no hit that does not pass the query's filter | the document's own metadata |
//! | the true hits, where they are asked for, and those of keyword search | brute force over the oracle's documents |
//! | the same answer at the same epoch | asked again with `as_of`, at once, later, and after a restart |
//!
//! `VECTIDE_TORTURE=1` asks a million queries instead of six thousand; the seed is printed, and
//! `VECTIDE_SEED` repeats it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use vectide_engine::Pipeline;
use vectide_model::{
    Bm25, Embedder, Embedding, Filter, Include, Lane, Mode, Query, QueryError, QueryInput,
    QueryService, ReadMode, Term, TermStatistics, Terms, quantize,
};
use vectide_operators::{Analyzer, FieldPlan, Language, WordCache};
use vectide_tests::{Random, Script, ScriptedPipeline, is_torture, seed};

/// More than a shard's head and two segments hold in each of the shards, so that they are coded.
const DOCUMENTS: u64 = 60_000;
const SHARDS: u32 = 3;
/// Processes, each of which changes its part of a fifth of the documents.
const PROCESSES: u64 = 3;
const CHANGES: u64 = DOCUMENTS / 5 / PROCESSES;
/// Changes of a batch, which is a transaction.
const BATCH: u64 = 20;
/// One query in so many is compared with brute force, and one in so many asked again later.
/// Not a multiple of three or two, so that questions of each shape are among them.
const EXACT_EVERY: usize = 97;
const LATER_EVERY: usize = 20;
/// Hits of a query.
const K: usize = 10;

const TOPICS: [&str; 12] = [
    "river", "engine", "violin", "harbour", "glacier", "market", "comet", "orchard", "railway",
    "lantern", "library", "volcano",
];

fn text(document: u64, version: u64) -> String {
    let topic = |at: u64| TOPICS[(document.wrapping_mul(at + 7) / 3 % 12) as usize];
    format!(
        "page {document} version {version} of the {} beside the {} and the {} of {}",
        topic(1),
        topic(2),
        topic(3),
        document % 997
    )
}

/// Changes in the order of their offsets: all documents, then one after another is rewritten or deleted.
fn changes(random: &mut Random) -> Vec<(String, Option<String>)> {
    let mut changes: Vec<_> = (0..DOCUMENTS)
        .map(|document| (document.to_string(), Some(text(document, 0))))
        .collect();
    for version in 1..=CHANGES * PROCESSES {
        let document = random.below(DOCUMENTS);
        let is_deleted = random.below(5) == 0;
        let text = (!is_deleted).then(|| text(document, version));
        changes.push((document.to_string(), text));
    }
    changes
}

/// The batches of all processes up to one of them; the source skips those that are committed.
fn script(changes: &[(String, Option<String>)], process: u64) -> Script {
    let all = DOCUMENTS as usize;
    let until = all + (CHANGES * process) as usize;
    let mut batches = vec![(changes[..all].to_vec(), Duration::from_millis(500))];
    for batch in changes[all..until].chunks(BATCH as usize) {
        batches.push((batch.to_vec(), Duration::from_millis(15)));
    }
    Script { batches }
}

/// Rows of a group can be asked for by a filter.
const GROUPS: u64 = 10;

fn group_of(document: &str) -> u64 {
    document.parse::<u64>().unwrap() % GROUPS
}

/// A text that is searched for, and its vector.
struct Question {
    text: String,
    vector: Vec<f32>,
}

/// How a question is asked.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Shape {
    is_exact: bool,
    mode: Mode,
    /// Whose rows alone are asked for.
    group: Option<u64>,
}

impl Shape {
    /// One after the other: by vectors, by vectors of a group, by words of all or of a group.
    fn of(number: usize, random: &mut Random) -> Self {
        let mode = match number % 3 {
            2 => Mode::Keyword,
            _ => Mode::Vector,
        };
        let is_filtered = number % 3 == 1 || number % 6 == 2;
        Self {
            is_exact: number.is_multiple_of(EXACT_EVERY),
            mode,
            group: is_filtered.then(|| random.below(GROUPS)),
        }
    }
}

/// What a query showed: its epoch and position, and document, text and score of each hit.
#[derive(Clone, Debug, PartialEq)]
struct Seen {
    epoch: u64,
    offset: u64,
    question: usize,
    shape: Shape,
    hits: Vec<(String, String, f32)>,
}

fn ask(
    service: &dyn QueryService,
    (number, question): (usize, &Question),
    shape: Shape,
    as_of: Option<u64>,
) -> Result<Seen, QueryError> {
    let include = Include {
        text: true,
        ..Include::default()
    };
    let input = match shape.mode {
        Mode::Keyword => QueryInput::Text(question.text.clone()),
        _ => QueryInput::Vector(question.vector.clone()),
    };
    let filter = shape
        .group
        .map(|group| Filter::parse(&serde_json::json!({"group": group})));
    let answer = service.query(&Query {
        include,
        mode: shape.mode,
        filter: filter.map(|filter| Arc::new(filter.unwrap())),
        exact: shape.is_exact,
        as_of,
        ..Query::new("pages", input, K)
    })?;
    let position = answer.as_of.positions.get("pages");
    let offset = position.and_then(|it| it.get("script")).copied();
    let hit = |hit: vectide_model::Hit| (hit.document.to_string(), hit.text.unwrap(), hit.score);
    assert!(!answer.is_partial);
    Ok(Seen {
        epoch: answer.as_of.epoch,
        offset: offset.unwrap_or_default(),
        question: number,
        shape,
        hits: answer.hits.into_iter().map(hit).collect(),
    })
}

/// Asks again, at the epoch that the answer came from; whether that epoch was still held.
fn is_repeated(service: &dyn QueryService, questions: &[Question], seen: &Seen) -> bool {
    let question = (seen.question, &questions[seen.question]);
    match ask(service, question, seen.shape, Some(seen.epoch)) {
        Ok(again) => {
            assert_eq!(&again, seen, "another answer at the same epoch");
            true
        }
        Err(QueryError::NotHeld { .. }) => false,
        Err(error) => panic!("{error}"),
    }
}

/// Asks until the pipeline has ended; what was seen, and how often the same was asked again.
fn ask_on(
    service: &dyn QueryService,
    questions: &[Question],
    (done, wanted, seed): (&AtomicBool, usize, u64),
    asked: &AtomicUsize,
) -> (Vec<Seen>, usize) {
    let mut random = Random::new(seed);
    let (mut all, mut later, mut repeated): (Vec<Seen>, Vec<Seen>, usize) = Default::default();
    while !done.load(Ordering::Relaxed) || asked.load(Ordering::Relaxed) < wanted {
        let number = asked.fetch_add(1, Ordering::Relaxed);
        let question = random.below(questions.len() as u64) as usize;
        let shape = Shape::of(number, &mut random);
        let seen = ask(service, (question, &questions[question]), shape, None).unwrap();
        repeated += usize::from(is_repeated(service, questions, &seen));
        if number.is_multiple_of(LATER_EVERY) {
            later.push(seen.clone());
        }
        if later.len() > 100 {
            let old = later.swap_remove(random.below(100) as usize);
            repeated += usize::from(is_repeated(service, questions, &old));
        }
        all.push(seen);
        if !is_torture() {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    (all, repeated)
}

/// The documents of a position, and their vectors.
struct Oracle<'a> {
    embedder: &'a dyn Embedder,
    documents: BTreeMap<String, String>,
    vectors: HashMap<String, Embedding>,
    terms: HashMap<String, Terms>,
}

impl Oracle<'_> {
    fn vector(&mut self, text: &str) -> Embedding {
        if !self.vectors.contains_key(text) {
            let made = self.embedder.embed(Lane::Bulk, &[text]).unwrap();
            self.vectors.insert(text.to_owned(), quantize(&made[0]));
        }
        self.vectors[text].clone()
    }

    fn terms(&mut self, text: &str) -> Terms {
        let count = || Terms::count(analyzer().terms(text, &mut WordCache::default()));
        let terms = self.terms.entry(text.to_owned());
        terms.or_insert_with(count).clone()
    }

    /// The scores of all documents of a group for a question's words, the best first.
    fn word_scores(&mut self, question: &str, group: Option<u64>) -> Vec<f32> {
        let mut words = Vec::new();
        for word in analyzer().terms(question, &mut WordCache::default()) {
            if !words.contains(&word) {
                words.push(word);
            }
        }
        let documents = std::mem::take(&mut self.documents);
        let rows: Vec<(u64, Terms)> = documents
            .iter()
            .map(|(id, text)| (group_of(id), self.terms(text)))
            .collect();
        self.documents = documents;
        let with = |word: &Term| {
            let has = |(_, terms): &&(u64, Terms)| terms.count_of(*word) > 0;
            rows.iter().filter(has).count() as u64
        };
        let scale = Bm25::new(&TermStatistics {
            rows: rows.len() as u64,
            length: rows.iter().map(|(_, it)| u64::from(it.length())).sum(),
            rows_with: words.iter().map(with).collect(),
        });
        let score = |terms: &Terms| {
            let counts = words.iter().map(|word| terms.count_of(*word)).enumerate();
            let counts = counts.filter(|(_, count)| *count > 0);
            let parts = counts.map(|(at, count)| scale.part(at, count, terms.length()));
            parts.sum::<f32>()
        };
        let of_group = rows
            .iter()
            .filter(|(of, _)| group.is_none_or(|it| it == *of));
        let scores = of_group.map(|(_, terms)| score(terms));
        let mut scores: Vec<f32> = scores.filter(|score| *score > 0.0).collect();
        scores.sort_by(|a, b| b.total_cmp(a));
        scores
    }

    /// The scores of all documents of a group for a question's vector, the best first.
    fn vector_scores(&mut self, question: &[f32], group: Option<u64>) -> Vec<f32> {
        let documents = std::mem::take(&mut self.documents);
        let of_group = documents
            .iter()
            .filter(|(id, _)| group.is_none_or(|it| it == group_of(id)));
        let scores = of_group.map(|(_, text)| dot(question, &self.vector(text)));
        let mut scores: Vec<f32> = scores.collect();
        self.documents = documents;
        scores.sort_by(|a, b| b.total_cmp(a));
        scores
    }

    fn check(&mut self, seen: &Seen, question: &Question) {
        let documents: HashSet<&String> = seen.hits.iter().map(|hit| &hit.0).collect();
        assert_eq!(
            documents.len(),
            seen.hits.len(),
            "a document twice: {seen:?}"
        );
        for (document, text, score) in &seen.hits {
            let held = self.documents.get(document);
            assert_eq!(held, Some(text), "not of its epoch: {seen:?}");
            let passes = seen.shape.group.is_none_or(|it| it == group_of(document));
            assert!(passes, "not of the group: {seen:?}");
            if seen.shape.mode == Mode::Vector {
                let exact = dot(&question.vector, &self.vector(text));
                assert!(
                    (exact - score).abs() < 1e-3,
                    "{exact} for {score}: {seen:?}"
                );
            }
        }
        let scores = seen.hits.windows(2).all(|pair| pair[0].2 >= pair[1].2);
        assert!(scores, "not the best first: {seen:?}");
        if seen.shape.is_exact && seen.offset > 0 {
            let group = seen.shape.group;
            let scores = match seen.shape.mode {
                Mode::Keyword => self.word_scores(&question.text, group),
                _ => self.vector_scores(&question.vector, group),
            };
            assert_eq!(seen.hits.len(), K.min(scores.len()), "{seen:?}");
            let mut pairs = seen.hits.iter().zip(&scores);
            let is_true = pairs.all(|(hit, score)| (hit.2 - score).abs() < 1e-3);
            assert!(is_true, "not the true hits: {seen:?}, {:?}", &scores[..K]);
        }
    }
}

fn analyzer() -> Analyzer {
    Analyzer::new(Language::English)
}

fn dot(question: &[f32], vector: &Embedding) -> f32 {
    let products = question.iter().zip(vector.0.iter());
    products.map(|(x, y)| x * y.to_f32()).sum()
}

/// The answers of the epoch that a process ended with are those that the next one begins with.
fn check_restart(
    pipeline: &ScriptedPipeline,
    directory: &Path,
    questions: &[Question],
    last: &[Seen],
) -> usize {
    let idle = pipeline.start(directory, Script::default(), ReadMode::Follow);
    let service = idle.service();
    let repeated = last
        .iter()
        .filter(|seen| is_repeated(&*service, questions, seen));
    let repeated = repeated.count();
    idle.stop_signal().stop();
    idle.join().unwrap();
    repeated
}

/// Lets a process apply its part of the changes while three threads ask; what they saw.
fn run(
    running: Pipeline,
    questions: &[Question],
    (wanted, seed): (usize, u64),
) -> (Vec<Seen>, usize) {
    let service = running.service();
    let (done, asked) = (AtomicBool::new(false), AtomicUsize::new(0));
    let (all, repeated) = std::thread::scope(|scope| {
        let (service, done, asked) = (&*service, &done, &asked);
        let askers = (0..3).map(|number| {
            scope.spawn(move || ask_on(service, questions, (done, wanted, seed + number), asked))
        });
        let askers: Vec<_> = askers.collect();
        let end = Instant::now() + Duration::from_secs(600);
        while !service.readiness().caught_up {
            assert!(Instant::now() < end, "the script does not end");
            std::thread::sleep(Duration::from_millis(5));
        }
        done.store(true, Ordering::Relaxed);
        let seen = askers.into_iter().map(|asker| asker.join().unwrap());
        seen.fold((Vec::new(), 0), |(mut all, repeated), (seen, more)| {
            all.extend(seen);
            (all, repeated + more)
        })
    });
    let segments = service.index("pages").unwrap().segments;
    assert!(segments >= u64::from(SHARDS), "{segments} segments");
    running.stop_signal().stop();
    running.join().unwrap();
    (all, repeated)
}

#[test]
fn every_answer_is_exact_as_of_its_epoch() {
    let wanted = if is_torture() { 1_000_000 } else { 6_000 } / PROCESSES as usize;
    let seed = seed();
    let changes = changes(&mut Random::new(seed));
    let pipeline = ScriptedPipeline {
        chunker: ("whole", serde_json::json!({})),
        metadata: [("group".into(), format!("{{{{ key | int % {GROUPS} }}}}"))].into(),
        fields: FieldPlan {
            filterable: vec!["group".into()],
            analyzer: Some(analyzer()),
        },
        ..ScriptedPipeline::with_model("hashing", 2, SHARDS)
    };
    let texts: Vec<String> = (0..200).map(|at| text(at * 131, 3)).collect();
    let asked: Vec<&str> = texts.iter().map(String::as_str).collect();
    let vectors = pipeline.embedder.embed(Lane::Query, &asked).unwrap();
    let questions = texts.into_iter().zip(vectors);
    let questions: Vec<Question> = questions
        .map(|(text, vector)| Question { text, vector })
        .collect();
    let directory = tempfile::tempdir().unwrap();
    let (mut all, mut repeated, mut after_restart) = (Vec::new(), 0, 0);
    for process in 1..=PROCESSES {
        let script = script(&changes, process);
        let running = pipeline.start(directory.path(), script, ReadMode::Follow);
        let (seen, more) = run(running, &questions, (wanted, seed + process * 10));
        let last = seen.iter().map(|it| it.epoch).max().unwrap();
        let last: Vec<Seen> = seen
            .iter()
            .filter(|it| it.epoch == last)
            .take(500)
            .cloned()
            .collect();
        all.extend(seen);
        repeated += more;
        after_restart += check_restart(&pipeline, directory.path(), &questions, &last);
    }
    all.sort_by_key(|seen| seen.offset);
    let mut oracle = Oracle {
        embedder: &*pipeline.embedder,
        documents: BTreeMap::new(),
        vectors: HashMap::new(),
        terms: HashMap::new(),
    };
    let (mut applied, mut offsets) = (0, HashSet::new());
    for seen in &all {
        for (document, text) in &changes[applied..seen.offset as usize] {
            match text {
                Some(text) => oracle.documents.insert(document.clone(), text.clone()),
                None => oracle.documents.remove(document),
            };
        }
        applied = seen.offset as usize;
        offsets.insert(seen.offset);
        oracle.check(seen, &questions[seen.question]);
    }
    println!(
        "{} queries at {} positions, {repeated} asked again at their epoch and {after_restart} after a \
         restart: no hit of another epoch, no other answer",
        all.len(),
        offsets.len()
    );
    assert!(all.len() >= wanted * PROCESSES as usize);
    assert!(offsets.len() > 100, "{} positions", offsets.len());
    assert!(repeated > all.len() / 2, "{repeated} repeated");
    assert!(after_restart > 0, "none after a restart");
}
