//! The shard as the engine uses it: the contract, threads, damaged files, ties.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use vectide_faiss::{FaissFactory, FaissOptions, Quantization};
use vectide_model::{
    Attributes, ChunkId, Embedding, IndexRow, RowFields, ScoredChunk, Search, ShardState, Term,
    Terms, VectorIndex, VectorIndexFactory, VectorIndexRead, quantize, vector_index_contract,
};

const DIMENSION: usize = 24;
type Live = BTreeMap<ChunkId, Embedding>;
type Published = (Arc<dyn VectorIndexRead>, Arc<Live>);

/// Every way of finding sealed rows, with the endings of a segment's files.
const WAYS: [(Quantization, &[&str]); 4] = [
    (
        Quantization::Pq,
        &["attributes", "codes", "generation", "rows", "terms"],
    ),
    (Quantization::Sq8, &["attributes", "faiss", "rows", "terms"]),
    (
        Quantization::Fp16,
        &["attributes", "faiss", "rows", "terms"],
    ),
    (Quantization::Flat, &["attributes", "rows", "terms"]),
];

fn factory(head_rows_max: usize) -> FaissFactory {
    factory_of(head_rows_max, Quantization::default())
}

fn factory_of(head_rows_max: usize, quantization: Quantization) -> FaissFactory {
    FaissFactory::new(FaissOptions {
        head_rows_max,
        frozen_heads_max: 3,
        flat_rows_max: 1000,
        quantization,
    })
}

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        self.0 >> 33
    }

    /// A unit vector near one of 50 centres, as embeddings of related texts are.
    fn vector(&mut self) -> Vec<f32> {
        let mut centre = Random(self.next() % 50);
        let raw: Vec<f32> = (0..DIMENSION)
            .map(|_| centre.component() + 0.5 * self.component())
            .collect();
        let norm = raw.iter().map(|x| x * x).sum::<f32>().sqrt();
        raw.iter().map(|x| x / norm).collect()
    }

    fn component(&mut self) -> f32 {
        (self.next() % 2001) as f32 / 1000.0 - 1.0
    }
}

fn chunk(number: u64) -> ChunkId {
    ChunkId::new(
        &number.to_string(),
        "test",
        vectide_model::ContentHash([0; 16]),
        0,
    )
}

fn exact(live: &Live, query: &[f32], k: usize) -> Vec<ChunkId> {
    let score = |vector: &Embedding| -> f32 {
        query
            .iter()
            .zip(vector.0.iter())
            .map(|(x, y)| x * y.to_f32())
            .sum()
    };
    let mut hits: Vec<_> = live
        .iter()
        .map(|(id, vector)| (score(vector), *id))
        .collect();
    hits.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    hits.into_iter().take(k).map(|hit| hit.1).collect()
}

/// How many of the true ten are found, over some queries; panics at a hit that is not live.
fn recall(read: &dyn VectorIndexRead, live: &Live, random: &mut Random) -> f64 {
    let (mut found, mut wanted) = (0, 0);
    for _ in 0..10 {
        let query = random.vector();
        let hits: Vec<ChunkId> = read
            .search(&query, &Search::best(10))
            .hits
            .iter()
            .map(|hit| hit.chunk)
            .collect();
        assert!(
            hits.iter().all(|hit| live.contains_key(hit)),
            "a dead row was found"
        );
        let truth = exact(live, &query, 10);
        wanted += truth.len();
        found += truth.iter().filter(|id| hits.contains(id)).count();
    }
    found as f64 / wanted as f64
}

/// Closes epochs until nothing is being built any more.
fn settle(index: &mut dyn VectorIndex, state: &mut ShardState) -> Arc<dyn VectorIndexRead> {
    let (mut quiet, mut segments) = (0, 0);
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        let closed = index.close_epoch().expect("an epoch");
        state.apply(&closed.commit);
        quiet = if closed.read.segments() == segments {
            quiet + 1
        } else {
            0
        };
        segments = closed.read.segments();
        if quiet > 20 || Instant::now() > end {
            return closed.read;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_shard_says_when_there_is_something_to_take_in() {
    let directory = tempfile::tempdir().expect("a folder");
    let mut random = Random(5);
    let mut index = factory(100)
        .open(directory.path(), DIMENSION, ShardState::default())
        .expect("an empty shard");
    for number in 0..150 {
        index.insert(IndexRow::new(chunk(number), quantize(&random.vector())));
    }
    let first = index.close_epoch().expect("an epoch");
    let end = Instant::now() + Duration::from_secs(60);
    while !index.has_news() {
        assert!(Instant::now() < end, "the full head is never built");
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(first.read.has_news(), "readers know it, too");
    assert_eq!(first.read.segments(), 0);
    let second = index.close_epoch().expect("an epoch");
    assert_eq!(second.read.segments(), 1);
    assert!(!index.has_news() && !second.read.has_news(), "it was taken");
    second.read.renew();
    assert!(index.has_news(), "what is wanted anew is looked at");
}

fn fields(number: u64) -> RowFields {
    let metadata = format!(r#"{{"group": {}}}"#, number % 10);
    RowFields {
        attributes: Attributes::of(&metadata, &["group".into()]),
        terms: Terms::count(vec![Term((number % 100).to_be_bytes())]),
    }
}

/// A settled shard of `rows` rows.
fn shard_of(factory: &FaissFactory, directory: &Path, rows: u64) -> (ShardState, Live) {
    built_shard_of(factory, directory, rows, |_| true)
}

/// The same once its state is as wanted: builders may need long on a loaded machine.
fn built_shard_of(
    factory: &FaissFactory,
    directory: &Path,
    rows: u64,
    is_built: impl Fn(&ShardState) -> bool,
) -> (ShardState, Live) {
    let (mut state, mut live, mut random) = (ShardState::default(), Live::new(), Random(3));
    let mut index = factory
        .open(directory, DIMENSION, state.clone())
        .expect("an empty shard");
    for number in 0..rows {
        let vector = quantize(&random.vector());
        index.insert(IndexRow {
            chunk: chunk(number),
            vector: vector.clone(),
            fields: fields(number),
        });
        live.insert(chunk(number), vector);
    }
    let end = Instant::now() + Duration::from_secs(60);
    settle(&mut *index, &mut state);
    while !is_built(&state) && Instant::now() < end {
        settle(&mut *index, &mut state);
    }
    (state, live)
}

#[test]
fn keeps_the_contract_with_segments_scanned_whole() {
    let directory = tempfile::tempdir().unwrap();
    vector_index_contract(&factory(37), directory.path(), 3000, 1.0);
}

#[test]
fn keeps_the_contract_with_a_head_alone() {
    let directory = tempfile::tempdir().unwrap();
    vector_index_contract(&FaissFactory::default(), directory.path(), 3000, 1.0);
}

#[test]
fn keeps_the_contract_however_sealed_rows_are_found() {
    for (quantization, _) in WAYS {
        let directory = tempfile::tempdir().unwrap();
        // Uniform random vectors have no clusters: the hardest there is for inverted lists.
        let factory = factory_of(1500, quantization);
        vector_index_contract(&factory, directory.path(), 20_000, 0.8);
    }
}

#[test]
fn snapshots_stand_still_while_the_writer_churns() {
    let directory = tempfile::tempdir().unwrap();
    let factory = factory(1100);
    let mut index = factory
        .open(directory.path(), DIMENSION, ShardState::default())
        .unwrap();
    let published: Mutex<Vec<Published>> = Mutex::default();
    let (done, checked) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        let searchers: Vec<_> = (0..2)
            .map(|seed| {
                let (published, done, all_checked) = (&published, &done, &checked);
                scope.spawn(move || {
                    let (mut random, mut checked, mut sum) = (Random(seed), 0, 0.0);
                    while !done.load(Ordering::Relaxed) {
                        let taken = {
                            let published = published.lock().unwrap();
                            let any = random.next() as usize % published.len().max(1);
                            published.get(any).cloned()
                        };
                        if let Some((read, live)) = taken {
                            assert_eq!(read.rows(), live.len());
                            sum += recall(&*read, &live, &mut random);
                            checked += 1;
                            all_checked.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                    assert!(
                        sum / f64::from(checked) > 0.97,
                        "mean recall {}",
                        sum / f64::from(checked)
                    );
                })
            })
            .collect();
        let (mut live, mut random) = (Live::new(), Random(9));
        for round in 0.. {
            // On a busy machine the searchers may get little time: the churn goes on for them.
            if round >= 120 && (checked.load(Ordering::Relaxed) > 20 || round >= 3_000) {
                break;
            }
            for _ in 0..300 {
                let id = chunk(random.next() % 8000);
                if random.next() % 4 == 0 {
                    index.remove(&id);
                    live.remove(&id);
                } else {
                    let vector = quantize(&random.vector());
                    index.insert(IndexRow::new(id, vector.clone()));
                    live.insert(id, vector);
                }
            }
            let closed = index.close_epoch().unwrap();
            for manifest in &closed.commit.segments_removed {
                for (name, _, _) in &manifest.files {
                    fs::remove_file(directory.path().join(name)).unwrap();
                }
            }
            let mut published = published.lock().unwrap();
            published.push((closed.read, Arc::new(live.clone())));
            if published.len() > 12 {
                published.remove(0);
            }
        }
        done.store(true, Ordering::Relaxed);
        for searcher in searchers {
            searcher.join().unwrap();
        }
    });
    let checked = checked.into_inner();
    assert!(checked > 20, "only {checked} snapshots were checked");
}

#[test]
fn damaged_files_are_named() {
    for (quantization, endings) in WAYS {
        damaged_files_are_named_by(quantization, endings);
    }
}

/// The endings of the files that a state names.
fn endings_of(state: &ShardState) -> BTreeSet<&str> {
    let files = state.segments.iter().flat_map(|it| &it.files);
    files
        .map(|(name, ..)| name.split('.').nth(1).expect("an ending"))
        .collect()
}

fn damaged_files_are_named_by(quantization: Quantization, endings: &[&str]) {
    let directory = tempfile::tempdir().expect("what was just written");
    let factory = factory_of(400, quantization);
    let endings: BTreeSet<&str> = endings.iter().copied().collect();
    let is_built = |state: &ShardState| endings_of(state) == endings;
    let (state, live) = built_shard_of(&factory, directory.path(), 3000, is_built);
    let mut index = factory
        .open(directory.path(), DIMENSION, state.clone())
        .expect("what was just written");
    let read = index.close_epoch().expect("what was just written").read;
    assert!(recall(&*read, &live, &mut Random(1)) > 0.95);
    assert!(
        factory
            .open(directory.path(), DIMENSION + 1, state.clone())
            .is_err()
    );
    let fact = |state: &ShardState| match factory.open(directory.path(), DIMENSION, state.clone()) {
        Ok(_) => panic!("opened"),
        Err(error) => {
            assert!(!error.hint.is_empty());
            error.fact
        }
    };
    let names: Vec<String> = state
        .segments
        .iter()
        .flat_map(|manifest| &manifest.files)
        .map(|file| file.0.clone())
        .collect();
    assert_eq!(endings_of(&state), endings);
    for name in &names {
        let path = directory.path().join(name);
        let good = fs::read(&path).expect("what was just written");
        // A new file each time: the shard that is open has the old one mapped.
        let replace = |bytes: &[u8]| {
            fs::remove_file(&path).expect("what was just written");
            fs::write(&path, bytes).expect("what was just written");
        };
        let mut bad = good.clone();
        bad[good.len() / 2] ^= 1;
        replace(&bad);
        assert!(fact(&state).contains(name) && fact(&state).contains("checksum"));
        replace(&good[..good.len() - 1]);
        assert!(fact(&state).contains(name) && fact(&state).contains("bytes"));
        fs::remove_file(&path).expect("what was just written");
        assert!(fact(&state).contains(name) && fact(&state).contains("missing"));
        fs::write(&path, &good).expect("what was just written");
    }
    let mut twice = state.clone();
    let in_segment = live
        .keys()
        .find(|id| state.head.iter().all(|row| row.chunk != **id))
        .expect("what was just written");
    twice
        .head
        .push(IndexRow::new(*in_segment, live[in_segment].clone()));
    assert!(fact(&twice).contains("two rows"));
    let mut foreign = state.clone();
    foreign.tombstones.push((state.segments[0].id, 1_000_000));
    assert!(fact(&foreign).contains("row 1000000"));
    let mut other = state.clone();
    other.segments[0].rows += 1;
    assert!(fact(&other).contains("manifest"));
    assert!(factory.open(directory.path(), DIMENSION, state).is_ok());
    assert!(
        recall(&*read, &live, &mut Random(1)) > 0.95,
        "the open shard did not notice"
    );
}

#[test]
fn files_that_no_commit_names_are_swept() {
    let directory = tempfile::tempdir().unwrap();
    let factory = factory(400);
    let (state, _) = shard_of(&factory, directory.path(), 2000);
    for name in [
        "segment-00000000000000ff.rows",
        "segment-1.faiss.part",
        "other",
    ] {
        fs::write(directory.path().join(name), "left over").unwrap();
    }
    fs::create_dir(directory.path().join("folder")).unwrap();
    factory
        .open(directory.path(), DIMENSION, state.clone())
        .unwrap();
    let mut found: Vec<String> = fs::read_dir(directory.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    let manifests = state.segments.iter();
    let mut named: Vec<String> = manifests
        .flat_map(|manifest| &manifest.files)
        .map(|file| file.0.clone())
        .collect();
    named.push("folder".into());
    found.sort();
    named.sort();
    assert_eq!(found, named);
}

#[test]
fn ties_are_broken_by_chunk_id_wherever_the_rows_lie() {
    let directory = tempfile::tempdir().unwrap();
    let factory = factory(1200);
    let (mut state, mut live) = shard_of(&factory, directory.path(), 6000);
    let mut index = factory
        .open(directory.path(), DIMENSION, state.clone())
        .unwrap();
    // 900 copies of one vector: more than a search asks FAISS for at first.
    let same = quantize(&Random(77).vector());
    for number in 0..900 {
        index.insert(IndexRow::new(chunk(100_000 + number), same.clone()));
        live.insert(chunk(100_000 + number), same.clone());
        if number % 300 == 0 {
            for filler in 0..1300 {
                let vector = quantize(&Random(number * 2000 + filler).vector());
                index.insert(IndexRow::new(
                    chunk(200_000 + number * 2000 + filler),
                    vector.clone(),
                ));
                live.insert(chunk(200_000 + number * 2000 + filler), vector);
            }
        }
    }
    let query = same.to_f32();
    let mut answers = Vec::new();
    for _ in 0..2 {
        let read = index.close_epoch().unwrap();
        state.apply(&read.commit);
        answers.push(read.read.search(&query, &Search::best(50)).hits);
        answers.push(
            settle(&mut *index, &mut state)
                .search(&query, &Search::best(50))
                .hits,
        );
        index = factory
            .open(directory.path(), DIMENSION, state.clone())
            .unwrap();
    }
    let truth = exact(&live, &query, 50);
    for hits in &answers {
        assert_eq!(hits.iter().map(|hit| hit.chunk).collect::<Vec<_>>(), truth);
        assert_eq!(hits, &answers[0], "scores depend on where rows lie");
    }
}

#[test]
fn odd_queries_and_vectors() {
    let directory = tempfile::tempdir().unwrap();
    let factory = factory(1100);
    let (mut state, mut live) = shard_of(&factory, directory.path(), 5000);
    let mut index = factory
        .open(directory.path(), DIMENSION, state.clone())
        .unwrap();
    for number in 0..1500 {
        index.insert(IndexRow::new(
            chunk(50_000 + number),
            quantize(&[0.0; DIMENSION]),
        ));
        live.insert(chunk(50_000 + number), quantize(&[0.0; DIMENSION]));
    }
    let read = settle(&mut *index, &mut state);
    assert!(read.segments() > 0);
    let query = Random(5).vector();
    for k in [live.len(), live.len() + 1, 10_000_000, usize::MAX] {
        let hits: Vec<ChunkId> = read
            .search(&query, &Search::best(k))
            .hits
            .iter()
            .map(|hit| hit.chunk)
            .collect();
        assert_eq!(hits.len(), live.len(), "all live rows");
    }
    assert!(read.search(&query, &Search::best(0)).hits.is_empty());
    assert!(read.search(&query[1..], &Search::best(5)).hits.is_empty());
    assert!(
        read.search(&[f32::NAN; DIMENSION], &Search::best(5))
            .hits
            .is_empty()
    );
    // Finite components, whose products are not: infinite sums of both signs give NaN, and no order.
    for component in [3e38, -3e38, f32::MAX, 1e30] {
        let long: [f32; DIMENSION] =
            std::array::from_fn(|at| if at % 2 == 0 { component } else { -component });
        for search in [Search::best(5), Search::exact(5)] {
            assert!(read.search(&long, &search).hits.is_empty());
        }
        let row = live.keys().next().unwrap();
        assert_eq!(read.score(&long, row), None);
    }
    // A power of two changes nothing but the exponents.
    let long: Vec<f32> = query.iter().map(|x| x * 2_f32.powi(59)).collect();
    for search in [Search::best(5), Search::exact(5)] {
        let found = read.search(&long, &search).hits;
        let same = read.search(&query, &search).hits;
        assert!(found.iter().all(|hit| hit.score.is_finite()));
        let chunks = |hits: &[ScoredChunk]| hits.iter().map(|hit| hit.chunk).collect::<Vec<_>>();
        assert_eq!(chunks(&found), chunks(&same));
    }
    let zero = read.search(&[0.0; DIMENSION], &Search::best(5)).hits;
    assert!(zero.len() == 5 && zero.iter().all(|hit| hit.score == 0.0));
    let empty = factory.open(
        &directory.path().join("new"),
        DIMENSION,
        ShardState::default(),
    );
    let empty = empty.unwrap().close_epoch().unwrap();
    assert!(empty.read.search(&query, &Search::best(10)).hits.is_empty() && empty.read.rows() == 0);
    assert_eq!(empty.commit, Default::default());
}
