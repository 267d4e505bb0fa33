//! Atomic: while documents are rewritten, no query sees an old and a new chunk of one document
//! together, nor a document half there.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use vectide_model::{Include, Query, QueryInput, QueryService, ReadMode};
use vectide_tests::{Script, ScriptedPipeline};

const DOCUMENTS: usize = 20;
const PARAGRAPHS: usize = 12;
const VERSIONS: usize = 150;
const QUERIES_MIN: usize = 10_000;

/// Every paragraph of a version names it, so a mixture shows; they are long enough to be chunks.
fn version(document: usize, version: usize) -> String {
    let paragraph = |number: usize| {
        let body = "and the text goes on for a while so that chunks are cut here and there. ";
        format!(
            "marker doc{document} v{version}e paragraph {number} {}\n\n",
            body.repeat(6)
        )
    };
    (0..PARAGRAPHS).map(paragraph).collect()
}

fn script() -> Script {
    let batch = |number: usize| {
        let all = (0..DOCUMENTS).map(|it| (format!("doc{it}"), Some(version(it, number))));
        (all.collect(), Duration::from_millis(15))
    };
    Script {
        batches: (0..VERSIONS).map(batch).collect(),
    }
}

/// Which versions of each document an answer shows, with the number of its chunks.
fn seen(service: &dyn QueryService) -> BTreeMap<String, (BTreeMap<String, usize>, usize)> {
    let query = Query {
        include: Include {
            text: true,
            ..Include::default()
        },
        ..Query::new(
            "pages",
            QueryInput::Text("marker paragraph".into()),
            Query::K_MAX,
        )
    };
    let answer = service.query(&query).unwrap();
    let mut documents: BTreeMap<String, (BTreeMap<String, usize>, usize)> = BTreeMap::new();
    for hit in &answer.hits {
        let text = hit.text.as_deref().unwrap();
        let entry = documents.entry(hit.document.to_string()).or_default();
        entry.1 += text.matches("marker").count();
        for word in text
            .split(' ')
            .filter(|word| word.starts_with('v') && word.ends_with('e'))
        {
            *entry.0.entry(word.to_owned()).or_default() += 1;
        }
    }
    documents
}

#[test]
fn queries_never_see_two_versions_of_a_document() {
    let directory = tempfile::tempdir().unwrap();
    let pipeline = ScriptedPipeline::with_model("hashing", 2, 3);
    let running = pipeline.start(directory.path(), script(), ReadMode::UntilCaughtUp);
    let service = running.service();
    let done = AtomicBool::new(false);
    let (asked, versions) = std::thread::scope(|scope| {
        let askers: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(|| {
                    let (mut asked, mut versions) = (0, 0);
                    let mut last = BTreeMap::new();
                    while asked < QUERIES_MIN / 3 + 1 || !done.load(Ordering::Relaxed) {
                        let documents = seen(&*service);
                        for (document, (shown, paragraphs)) in &documents {
                            assert_eq!(shown.len(), 1, "{document} shows {shown:?}");
                            assert_eq!(*paragraphs, PARAGRAPHS, "{document} is not whole");
                        }
                        // All documents change in one transaction, so all show one version.
                        let all: Vec<_> = documents.values().flat_map(|it| it.0.keys()).collect();
                        assert!(
                            all.windows(2).all(|pair| pair[0] == pair[1]),
                            "{documents:?}"
                        );
                        assert!(documents.is_empty() || documents.len() == DOCUMENTS);
                        versions += usize::from(documents != last);
                        last = documents;
                        asked += 1;
                    }
                    (asked, versions)
                })
            })
            .collect();
        while !running.is_finished() {
            std::thread::sleep(Duration::from_millis(5));
        }
        done.store(true, Ordering::Relaxed);
        let results = askers.into_iter().map(|asker| asker.join().unwrap());
        results.fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1))
    });
    let report = running.join().unwrap();
    println!(
        "{asked} queries, {versions} versions seen, {} epochs",
        report.epochs
    );
    assert!(asked >= QUERIES_MIN);
    assert!(
        versions > 20,
        "the queries ran beside the updates: {versions}"
    );
    assert_eq!(report.documents, DOCUMENTS as u64);
}
