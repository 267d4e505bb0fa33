//! The fold: whatever the changes are, however they fall into epochs, and wherever the process
//! stopped in between, the state at the end is that of a rebuild.

use proptest::prelude::*;
use std::collections::BTreeMap;
use std::num::NonZero;
use std::path::Path;
use std::time::Duration;
use vectide_engine::{ExportKind, Pipeline, export};
use vectide_model::ReadMode;
use vectide_tests::{Changes, Script, ScriptedPipeline, SplitScript};

/// Sentences that are kept, moved, dropped and repeated, so that chunks of versions overlap.
fn text() -> impl Strategy<Value = String> {
    let sentence = prop::sample::select(vec![
        "# A heading\n\n",
        "The quick brown fox jumps over the lazy dog while the epoch is still open. ",
        "Every chunk has one owner, and every owner has one shard of the index to keep. ",
        "日本語の文章もここにあります。短い文です。",
        "- a list item about positions\n- another one about offsets\n",
        "```\nlet code = that_is_never_cut_inside_a_word();\n```\n\n",
        "Words ",
        "\n\n",
    ]);
    prop::collection::vec(sentence, 0..40).prop_map(|parts| parts.concat())
}

fn changes() -> impl Strategy<Value = Changes> {
    let key = (0..6u8).prop_map(|number| format!("page-{number}"));
    let change = (key, prop::option::weighted(0.8, text()));
    prop::collection::vec(change, 1..40)
}

fn exported(directory: &Path, kind: ExportKind) -> String {
    let mut out = Vec::new();
    export(directory, kind, &mut out).unwrap();
    String::from_utf8(out).unwrap()
}

/// One epoch for each batch at most: the pauses let most batches close their own.
fn cut(changes: &Changes, sizes: &[usize], pauses: &[u64]) -> Script {
    let (mut rest, mut batches) = (&changes[..], Vec::new());
    for (size, pause) in sizes.iter().cycle().zip(pauses.iter().cycle()) {
        if rest.is_empty() {
            break;
        }
        let (batch, after) = rest.split_at((*size).min(rest.len()));
        batches.push((batch.to_vec(), Duration::from_millis(*pause)));
        rest = after;
    }
    Script { batches }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, max_shrink_iters: 50, ..ProptestConfig::default() })]

    #[test]
    fn the_end_state_is_that_of_a_rebuild(
        changes in changes(),
        sizes in prop::collection::vec(1..5usize, 1..8),
        pauses in prop::collection::vec(0..4u64, 1..8),
        (workers, shards) in (1..4usize, 1..4u32),
        stop_after in prop::option::of(0..40usize),
    ) {
        let pipeline = ScriptedPipeline::with_model("hashing", workers, shards);
        let (pieces, rebuilt) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let script = cut(&changes, &sizes, &pauses);
        if let Some(stop_after) = stop_after {
            let mut first = script.clone();
            first.batches.truncate(stop_after);
            pipeline.run(pieces.path(), first);
        }
        let report = pipeline.run(pieces.path(), script);
        pipeline.run(rebuilt.path(), cut(&changes, &[changes.len()], &[0]));

        let mut expected = BTreeMap::new();
        for (key, text) in &changes {
            match text {
                Some(text) => drop(expected.insert(key.clone(), text.clone())),
                None => drop(expected.remove(key)),
            }
        }
        prop_assert_eq!(report.documents, expected.len() as u64);
        for kind in [ExportKind::Documents, ExportKind::Chunks] {
            prop_assert_eq!(exported(pieces.path(), kind), exported(rebuilt.path(), kind));
        }
        let mut texts: BTreeMap<String, String> = BTreeMap::new();
        for line in exported(pieces.path(), ExportKind::Chunks).lines() {
            let chunk: serde_json::Value = serde_json::from_str(line).unwrap();
            let document = chunk["document"].as_str().unwrap().to_owned();
            texts.entry(document).or_default().push_str(chunk["text"].as_str().unwrap());
        }
        let squeeze = |text: &str| text.split_whitespace().collect::<String>();
        for (key, text) in &expected {
            let chunks = texts.get(key).map(String::as_str).unwrap_or_default();
            prop_assert_eq!(squeeze(chunks), squeeze(text), "chunks of {}", key);
        }
    }

    /// All changes of a transaction have one position, and it is read again from its start where a process
    /// ends between its parts: a version can't be told from another one by where it comes from.
    #[test]
    fn parts_of_a_transaction_that_come_again_change_nothing(
        changes in changes(),
        sizes in prop::collection::vec(1..5usize, 1..8),
        pauses in prop::collection::vec(0..4u64, 1..8),
        parts in 2..6usize,
        stops in prop::collection::vec(0..30usize, 1..4),
    ) {
        let pipeline = ScriptedPipeline::default();
        let (pieces, rebuilt) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let run = |directory: &Path, script: &Script, batches: usize| {
            let source = SplitScript { script: script.clone(), parts, batches };
            let mut plan = pipeline.plan(directory, vec![("pages", Box::new(source))]);
            // Each batch is an epoch, and several are under way at once.
            plan.commit.rows = NonZero::<usize>::MIN;
            let running = Pipeline::start(plan, ReadMode::UntilCaughtUp).unwrap();
            running.join().unwrap();
        };
        let script = cut(&changes, &sizes, &pauses);
        for stop in stops {
            run(pieces.path(), &script, stop);
        }
        run(pieces.path(), &script, usize::MAX);
        run(rebuilt.path(), &cut(&changes, &sizes, &[0]), usize::MAX);
        for kind in [ExportKind::Documents, ExportKind::Chunks] {
            prop_assert_eq!(exported(pieces.path(), kind), exported(rebuilt.path(), kind));
        }
    }
}
