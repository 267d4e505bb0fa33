//! Changes that leave out what did not change: however they fall into epochs, and wherever the
//! process stopped, the end state is a simple fold, and those that nothing completes are dead
//! letters.

use proptest::prelude::*;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use vectide_engine::{ExportKind, StartOptions, export};
use vectide_model::{
    Change, Position, ReadMode, Source, SourceBatch, SourceError, SourceSink, SourceStart,
};
use vectide_tests::ScriptedPipeline;

/// What a change says of a page's text.
#[derive(Clone, Debug)]
enum Said {
    /// It is this now.
    Text(String),
    /// It did not change.
    Unchanged,
    /// The page is gone.
    Gone,
}

type Changes = Vec<(u8, Said)>;

fn changes() -> impl Strategy<Value = Changes> {
    let said = prop_oneof![
        3 => (0..9u8).prop_map(|it| Said::Text(format!("Text {it} \\ \"}},\u{e9}"))),
        4 => Just(Said::Unchanged),
        1 => Just(Said::Gone),
    ];
    prop::collection::vec((0..5u8, said), 1..40)
}

/// Sends changes in batches of the given sizes with pauses between them.
struct Partial {
    changes: Changes,
    cuts: Vec<(usize, u64)>,
}

fn change(source: &Arc<str>, offset: usize, (key, said): &(u8, Said)) -> Change {
    let (row, unchanged_fields): (_, &[&str]) = match said {
        Said::Text(text) => (Some(serde_json::json!({"n": offset, "text": text})), &[]),
        Said::Unchanged => (Some(serde_json::json!({"n": offset})), &["text"]),
        Said::Gone => (None, &[]),
    };
    Change {
        key: format!("page-{key}").into(),
        row: row.map(|row| row.to_string().into()),
        unchanged_fields: unchanged_fields.iter().map(|it| (*it).into()).collect(),
        position: Position {
            source: source.clone(),
            partition: "script".into(),
            offset: offset as u64,
        },
        changed_at: SystemTime::now(),
    }
}

impl Source for Partial {
    fn run(
        self: Box<Self>,
        start: SourceStart,
        sink: &mut dyn SourceSink,
    ) -> Result<(), SourceError> {
        let mut at = start.positions.get("script").copied().unwrap_or_default() as usize;
        let mut cuts = self.cuts.iter().cycle();
        while at < self.changes.len() {
            let Some((size, pause)) = cuts.next() else {
                break;
            };
            let end = self.changes.len().min(at + size);
            let changes = (at..end).map(|it| change(&start.name, it, &self.changes[it]));
            let batch = SourceBatch {
                changes: changes.collect(),
                positions: BTreeMap::from([("script".into(), end as u64)]),
                divisible: size % 2 == 0,
                ..SourceBatch::default()
            };
            if sink.send(batch).is_err() || start.stop.wait(Duration::from_millis(*pause)) {
                return Ok(());
            }
            at = end;
        }
        sink.caught_up();
        Ok(())
    }
}

/// Texts and the offset that wrote each last; and the offsets that nothing completes.
fn fold(changes: &Changes) -> (BTreeMap<String, (String, u64)>, Vec<u64>) {
    let (mut pages, mut incomplete) = (BTreeMap::new(), Vec::new());
    for (offset, (key, said)) in (0..).zip(changes) {
        let key = format!("page-{key}");
        match said {
            Said::Text(text) => drop(pages.insert(key, (text.clone(), offset))),
            Said::Gone => drop(pages.remove(&key)),
            Said::Unchanged => match pages.get_mut(&key) {
                Some((_, at)) => *at = offset,
                None => incomplete.push(offset),
            },
        }
    }
    (pages, incomplete)
}

fn exported(directory: &Path, kind: ExportKind) -> Vec<serde_json::Value> {
    let mut out = Vec::new();
    export(directory, kind, &mut out).unwrap();
    let text = String::from_utf8(out).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, max_shrink_iters: 50, ..ProptestConfig::default() })]

    #[test]
    fn the_end_state_is_a_fold(
        changes in changes(),
        cuts in prop::collection::vec((1..7usize, 0..4u64), 1..6),
        workers in 1..3usize,
        stop_at in prop::option::of(0..40usize),
    ) {
        let pipeline = ScriptedPipeline::with_model("hashing", workers, 2);
        let directory = tempfile::tempdir().unwrap();
        let mut letters = 0;
        for end in stop_at.into_iter().chain([changes.len()]) {
            let changes = changes[..end.min(changes.len())].to_vec();
            let source = Box::new(Partial { changes, cuts: cuts.clone() });
            let options = StartOptions::of(ReadMode::UntilCaughtUp);
            letters += pipeline.run_source(directory.path(), source, options).dead_letters;
        }
        let (pages, incomplete) = fold(&changes);
        let mut found = BTreeMap::new();
        for chunk in exported(directory.path(), ExportKind::Chunks) {
            let text = chunk["text"].as_str().unwrap().to_owned();
            let offset = chunk["position"]["offset"].as_u64().unwrap();
            found.insert(chunk["document"].as_str().unwrap().to_owned(), (text, offset));
        }
        prop_assert_eq!(found, pages);
        let mut told: Vec<u64> = exported(directory.path(), ExportKind::DeadLetters)
            .iter()
            .map(|it| {
                assert_eq!(it["reason"], "incomplete");
                it["position"]["offset"].as_u64().unwrap()
            })
            .collect();
        told.sort_unstable();
        prop_assert_eq!(told.len() as u64, letters);
        prop_assert_eq!(told, incomplete);
    }
}
