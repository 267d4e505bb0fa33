//! A source that begins anew: the state becomes that of a rebuild, what is unchanged is not embedded
//! again, a crash in the middle starts over, and questions are answered all along.

use proptest::prelude::*;
use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;
use vectide_engine::{ExportKind, Pipeline, PipelineError, StartOptions, export};
use vectide_model::ReadMode;
use vectide_tests::{
    Changes, Running, Script, ScriptedPipeline, call, free_port, run_to_end, vectide, write_config,
};

const SOURCE: &str = "{type: jsonl, path: log.jsonl, format: {type: change, key: id, op: op}}";

fn row(key: usize, text: &str) -> String {
    serde_json::json!({"id": format!("page-{key:05}"), "op": "u", "text": text}).to_string()
}

fn text(key: usize) -> String {
    format!("Page {key} has a text of its own, number {}.", key * 7)
}

fn exports(config: &Path) -> [String; 2] {
    ["documents", "chunks"].map(|what| {
        let (status, told, complaints) = call(&["export"], config, &[what]);
        assert_eq!(status, Some(0), "{complaints}");
        told
    })
}

/// What a new state makes of the log.
fn rebuilt(log: &str) -> [String; 2] {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("log.jsonl"), log).unwrap();
    let config = write_config(directory.path(), "p", SOURCE, "");
    run_to_end(&config);
    exports(&config)
}

#[test]
fn a_replaced_log_is_read_anew() {
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("log.jsonl");
    let config = write_config(directory.path(), "p", SOURCE, "");
    // Every page is written twice, so that its position is higher than in the next log.
    let twice = |key: usize| format!("{}\n{}\n", row(key, "draft"), row(key, &text(key)));
    let mut first: String = (0..300).map(twice).collect();
    first += "this line is bad\n";
    std::fs::write(&log, first).unwrap();
    run_to_end(&config);

    // The new log has another order, no page from 200 on, one changed and one new page.
    let mut second = String::new();
    for key in (0..200).rev() {
        let text = if key == 50 {
            "changed".to_owned()
        } else {
            text(key)
        };
        writeln!(second, "{}", row(key, &text)).unwrap();
    }
    writeln!(second, "{}", row(900, "new")).unwrap();
    std::fs::write(&log, &second).unwrap();
    let (status, _, complaints) = call(&["run", "--until-caught-up"], &config, &[]);
    assert_eq!(status, Some(1));
    assert!(
        complaints.contains("vectide run CONFIG --resnapshot pages"),
        "{complaints}"
    );

    let resnapshot = ["run", "--until-caught-up", "--resnapshot", "pages"];
    let (status, told, complaints) = call(&resnapshot, &config, &[]);
    assert_eq!(status, Some(0), "{complaints}");
    let report: serde_json::Value = serde_json::from_str(&told).unwrap();
    assert_eq!(
        report["embedded_chunks"], 2,
        "the changed page and the new one: {report}"
    );
    assert_eq!(report["documents"], 201);
    assert_eq!(exports(&config), rebuilt(&second));
    let (_, letters, _) = call(&["dlq", "list"], &config, &[]);
    assert_eq!(letters.lines().count(), 1, "dead letters stay");

    // It is over: the next start goes on from the new positions.
    assert_eq!(run_to_end(&config)["epochs"], 0);
    second += &(row(901, "newer") + "\n");
    std::fs::write(&log, &second).unwrap();
    assert_eq!(run_to_end(&config)["embedded_chunks"], 1);
    assert_eq!(exports(&config), rebuilt(&second));

    let wrong = ["run", "--until-caught-up", "--resnapshot", "pgaes"];
    let (status, _, complaints) = call(&wrong, &config, &[]);
    assert_eq!(status, Some(1));
    assert!(
        complaints.contains("there is no source `pgaes`"),
        "{complaints}"
    );
}

#[test]
fn a_log_that_became_empty_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("log.jsonl");
    let config = write_config(directory.path(), "p", SOURCE, "");
    let first: String = (0..1_200).map(|key| row(key, &text(key)) + "\n").collect();
    std::fs::write(&log, first).unwrap();
    assert_eq!(run_to_end(&config)["documents"], 1_200);
    std::fs::write(&log, "").unwrap();
    let resnapshot = ["run", "--until-caught-up", "--resnapshot", "pages"];
    let (status, told, complaints) = call(&resnapshot, &config, &[]);
    assert_eq!(status, Some(0), "{complaints}");
    assert!(told.contains(r#""documents":0,"chunks":0"#), "{told}");
    std::fs::write(&log, row(1, "again") + "\n").unwrap();
    assert_eq!(run_to_end(&config)["documents"], 1);
}

#[test]
fn a_folder_is_read_anew_without_embedding() {
    let directory = tempfile::tempdir().unwrap();
    let docs = directory.path().join("docs");
    std::fs::create_dir(&docs).unwrap();
    for key in 0..50 {
        std::fs::write(docs.join(format!("{key}.md")), text(key)).unwrap();
    }
    let source = "{type: files, path: ./docs, settle: 10ms}";
    let config = write_config(directory.path(), "p", source, "");
    let yaml = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, yaml.replace("{{ text }}", "{{ content }}")).unwrap();
    assert_eq!(run_to_end(&config)["documents"], 50);
    std::fs::remove_file(docs.join("7.md")).unwrap();
    let resnapshot = ["run", "--until-caught-up", "--resnapshot", "pages"];
    let (status, told, complaints) = call(&resnapshot, &config, &[]);
    assert_eq!(status, Some(0), "{complaints}");
    let report: serde_json::Value = serde_json::from_str(&told).unwrap();
    assert_eq!(
        (&report["documents"], &report["embedded_chunks"]),
        (&49.into(), &0.into())
    );
    // Later changes have positions above the new ones.
    std::fs::write(docs.join("8.md"), "edited").unwrap();
    assert_eq!(run_to_end(&config)["embedded_chunks"], 1);
}

#[test]
fn a_crash_in_the_middle_starts_over() {
    const PAGES: usize = 20_000;
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("log.jsonl");
    let config = write_config(directory.path(), "p", SOURCE, "");
    let first: String = (0..PAGES).map(|key| row(key, &text(key)) + "\n").collect();
    std::fs::write(&log, first).unwrap();
    run_to_end(&config);
    let kept = (0..PAGES).rev().filter(|key| key % 3 != 0);
    let second: String = kept.map(|key| row(key, &text(key)) + "\n").collect();
    std::fs::write(&log, &second).unwrap();

    let mut under_way = 0;
    for round in 0..6_u64 {
        let mut command = vectide(&["run", "--until-caught-up"]);
        command
            .arg(&config)
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        command.env("VECTIDE_LOG", "info");
        if round == 0 {
            command.args(["--resnapshot", "pages"]);
        }
        let mut child = command.spawn().unwrap();
        let mut told = BufReader::new(child.stderr.take().unwrap()).lines();
        let is_anew = told.any(|line| line.unwrap().contains("is read anew"));
        std::thread::sleep(Duration::from_millis(10 + 30 * round));
        child.kill().unwrap();
        child.wait().unwrap();
        let is_whole = told.any(|line| line.unwrap().contains("is whole again"));
        under_way += usize::from(round > 0 && is_anew && !is_whole);
    }
    println!("{under_way} starts without the flag were under way again when they were killed");
    assert!(under_way > 0);
    let report = run_to_end(&config);
    assert_eq!(report["embedded_chunks"], 0, "{report}");
    assert_eq!(exports(&config), rebuilt(&second));
}

#[test]
fn questions_are_answered_all_along() {
    const PAGES: usize = 3_000;
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("log.jsonl");
    let all: String = (0..PAGES).map(|key| row(key, &text(key)) + "\n").collect();
    std::fs::write(&log, &all).unwrap();
    let port = free_port();
    let more = format!("server: {{listen: \"127.0.0.1:{port}\"}}");
    let config = write_config(directory.path(), "p", SOURCE, &more);
    run_to_end(&config);
    let reversed: Vec<&str> = all.lines().rev().take(PAGES - 1).collect();
    std::fs::write(&log, reversed.join("\n") + "\n").unwrap();
    let mut running = Running::start_with(&config, port, &["--resnapshot", "pages"]);
    let gone = "/v1/indexes/pages/documents/page-00000";
    let mut asked = 0;
    while running.get(gone).0 == 200 {
        for key in [1, PAGES / 2, PAGES - 1] {
            let path = format!("/v1/indexes/pages/documents/page-{key:05}");
            assert_eq!(running.get(&path).0, 200, "{path} after {asked} questions");
            asked += 1;
        }
    }
    running.wait_until("answered", Duration::from_secs(10), |it| {
        let answer = it.client().query("pages", &text(9), 1);
        answer.is_ok_and(|answer| &*answer.hits[0].document == "page-00009")
    });
    println!("{asked} questions while the source began anew");
    assert!(running.terminate());
}

fn changes() -> impl Strategy<Value = Changes> {
    let change = (
        (0..8u8).prop_map(|number| format!("page-{number}")),
        prop::option::weighted(0.8, (0..5u8).prop_map(|it| format!("text {it}"))),
    );
    prop::collection::vec(change, 0..30)
}

fn script(changes: &Changes, size: usize, pause: Duration) -> Script {
    let batches = changes.chunks(size).map(|it| (it.to_vec(), pause));
    Script {
        batches: batches.collect(),
    }
}

fn exported(directory: &Path) -> [String; 2] {
    [ExportKind::Documents, ExportKind::Chunks].map(|kind| {
        let mut out = Vec::new();
        export(directory, kind, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 30, max_shrink_iters: 50, ..ProptestConfig::default() })]

    #[test]
    fn the_end_state_is_that_of_a_rebuild(
        before in changes(),
        after in changes(),
        size in 1..6usize,
        workers in 1..3usize,
        stop_after in prop::option::of(0..20u64),
    ) {
        let pipeline = ScriptedPipeline::with_model("hashing", workers, 2);
        let (anew, fresh) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let millisecond = Duration::from_millis(1);
        pipeline.run(anew.path(), script(&before, 3, Duration::ZERO));
        let options = || StartOptions::of(ReadMode::UntilCaughtUp);
        let asked_for = || options().resnapshot(vec!["pages".into()]);
        let mut is_asked_for = false;
        if let Some(stop_after) = stop_after {
            let source = Box::new(script(&after, size, millisecond));
            let plan = pipeline.plan(anew.path(), vec![("pages", source)]);
            let stopped = Pipeline::start_with(plan, asked_for()).unwrap();
            std::thread::sleep(Duration::from_millis(stop_after));
            stopped.stop_signal().stop();
            let ended = stopped.join();
            prop_assert!(matches!(ended, Ok(_) | Err(PipelineError::Stopped)), "{ended:?}");
            is_asked_for = true;
        }
        // A stop in the middle is not forgotten: the next start need not be told. One that came
        // after the end resumes at the end, which is the same.
        let options = if is_asked_for { options() } else { asked_for() };
        pipeline.run_source(anew.path(), Box::new(script(&after, size, millisecond)), options);
        pipeline.run(fresh.path(), script(&after, 30, Duration::ZERO));
        prop_assert_eq!(exported(anew.path()), exported(fresh.path()));
    }
}
