//! Processes that begin, stop and end beside each other on one state: one of them has it, also while
//! it is stopped, and one that is asked to end leaves nothing to do again.
//!
//! `VECTIDE_TORTURE=1` makes ten times as many of each.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use vectide_tests::{
    Random, Running, append, can_trace, edit, expect_sound, free_port, is_torture, run_to_end,
    signal, vectide, vectide_binary, write_config,
};

const RACES: usize = 20;
const ENDINGS: usize = 5;

/// A supervisor that gets no end kills: systemd waits 90 s, Kubernetes 30 s.
const END_MAX: Duration = Duration::from_secs(10);

fn times(few: usize) -> usize {
    if is_torture() { few * 10 } else { few }
}

/// All of them have one state.
fn config(directory: &Path, name: &str, port: u16) -> PathBuf {
    let source =
        "{type: jsonl, path: ./pages.jsonl, follow: true, format: {type: change, key: id}}";
    let server = format!("server: {{listen: \"127.0.0.1:{port}\"}}");
    write_config(directory, name, source, &server)
}

fn line(id: usize, version: usize) -> String {
    format!("{{\"id\":\"{id}\",\"text\":\"page {id} version {version}\"}}\n")
}

fn start(config: &Path) -> Child {
    let mut command = vectide(&["run", "--until-caught-up"]);
    let command = command.arg(config).stdout(Stdio::piped());
    command.stderr(Stdio::piped()).spawn().unwrap()
}

/// It ended like one that had read everything, with a report and the status 0.
#[test]
fn a_run_that_is_stopped_before_it_is_caught_up_says_so() {
    let directory = tempfile::tempdir().unwrap();
    let lines: String = (0..5_000).map(|id| line(id, 1)).collect();
    fs::write(directory.path().join("pages.jsonl"), lines).unwrap();
    let config = config(directory.path(), "pipeline", 0);
    edit(&config, "server:", "commit: {rows: 10}\nserver:");
    let mut child = start(&config);
    let mut told = BufReader::new(child.stderr.take().unwrap()).lines();
    // From then on it listens to signals.
    assert!(told.any(|line| line.unwrap().contains("serving on")));
    while !directory.path().join("state/last-commit").exists() {
        std::thread::sleep(Duration::from_millis(1));
    }
    signal("-TERM", &child.id().to_string());
    let output = child.wait_with_output().unwrap();
    let complaints: String = told.map_while(Result::ok).collect();
    assert_eq!(output.status.code(), Some(1), "{complaints}");
    assert!(
        complaints.contains("stopped before it was caught up"),
        "{complaints}"
    );
    assert!(output.stdout.is_empty(), "no report: {output:?}");
    expect_sound(&config, "after the stop");
    assert_eq!(run_to_end(&config)["documents"], 5_000);
}

#[test]
fn of_two_processes_on_one_state_one_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let lines: String = (0..300).map(|id| line(id, 1)).collect();
    fs::write(directory.path().join("pages.jsonl"), lines).unwrap();
    let config = config(directory.path(), "pipeline", 0);
    let (mut refused, mut random) = (0, Random::new(3));
    for race in 0..times(RACES) {
        let first = start(&config);
        std::thread::sleep(Duration::from_millis(random.below(40)));
        let outputs = [first, start(&config)].map(|child| child.wait_with_output().unwrap());
        let complaints = outputs.iter().filter(|it| !it.status.success());
        for output in complaints {
            let text = String::from_utf8_lossy(&output.stderr);
            assert!(
                text.contains("another process uses it"),
                "race {race}: {text}"
            );
            refused += 1;
        }
        assert!(
            outputs.iter().any(|it| it.status.success()),
            "race {race}: both were refused"
        );
        expect_sound(&config, &format!("race {race}"));
    }
    println!("{refused} of {} races had a refused process", times(RACES));
    assert!(refused > 0, "the processes never met");
}

/// A stopped process keeps the state: whoever comes meanwhile could not know what it does when it goes
/// on.
#[test]
fn a_stopped_process_keeps_its_state_and_goes_on() {
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("pages.jsonl");
    fs::write(&log, line(0, 1)).unwrap();
    let port = free_port();
    let config = config(directory.path(), "pipeline", port);
    let second = self::config(directory.path(), "second", 0);
    let mut running = Running::start(&config, port);
    for round in 1..=3 {
        running.signal("-STOP");
        append(&log, &line(round, 1));
        let output = start(&second).wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(text.contains("another process uses it"), "{text}");
        running.signal("-CONT");
        running.wait_until("followed", Duration::from_secs(20), |it| {
            let index = it.client().index("pages");
            index.is_ok_and(|index| index.documents == round as u64 + 1)
        });
    }
    assert!(running.terminate());
    expect_sound(&config, "at the end");
}

#[test]
fn a_process_that_is_asked_to_end_under_load_leaves_nothing_to_do_again() {
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("pages.jsonl");
    fs::write(&log, "").unwrap();
    let port = free_port();
    let config = config(directory.path(), "pipeline", port);
    let mut written = 0;
    let mut embedded = 0;
    for ending in 0..times(ENDINGS) {
        let running = Running::start(&config, port);
        let bulk: String = (written..written + 20_000).map(|id| line(id, 1)).collect();
        written += 20_000;
        append(&log, &bulk);
        std::thread::sleep(Duration::from_millis(60 + 40 * (ending as u64 % 5)));
        let (_, metrics) = running.get("/metrics");
        embedded += embedded_in(&metrics);
        let asked = Instant::now();
        assert!(running.terminate(), "ending {ending}");
        assert!(
            asked.elapsed() < END_MAX,
            "ending {ending}: {:?}",
            asked.elapsed()
        );
        expect_sound(&config, &format!("ending {ending}"));
    }
    let report = run_to_end(&config);
    assert_eq!(report["documents"], written);
    assert_eq!(run_to_end(&config)["embedded_chunks"], 0);
    println!("{embedded} chunks were embedded by processes that were asked to end");
    assert!(embedded > 0, "the processes ended before they did anything");
    let rest = report["embedded_chunks"].as_u64().unwrap();
    assert!(
        rest + embedded <= written as u64,
        "what was committed is not embedded again"
    );
}

/// A disk that answers no more: the sync of a commit takes a minute.
#[test]
fn a_process_whose_disk_hangs_ends_when_it_is_asked() {
    if !can_trace("a_process_whose_disk_hangs") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("pages.jsonl");
    fs::write(&log, line(0, 1)).unwrap();
    let port = free_port();
    let config = config(directory.path(), "pipeline", port);
    run_to_end(&config);
    // The tracer is a process aside, so that the child is ours.
    let mut child = Command::new("strace")
        .args(["-D", "-f", "-o", "/dev/null", "-e", "trace=fsync,fdatasync"])
        .args(["-e", "inject=fsync,fdatasync:delay_enter=60s:when=4+"])
        .arg(vectide_binary())
        .arg("run")
        .arg(&config)
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .unwrap();
    for version in 0..20 {
        append(&log, &line(1, version));
        std::thread::sleep(Duration::from_millis(100));
    }
    let asked = Instant::now();
    signal("-TERM", &child.id().to_string());
    let lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let told = lines
        .map_while(Result::ok)
        .find(|line| line.starts_with("error: "));
    assert!(asked.elapsed() < END_MAX, "{:?}: {told:?}", asked.elapsed());
    let told = told.unwrap_or_default();
    assert!(told.contains("ending without it"), "{told}");
    // The tracer holds on to the call until its minute is over.
    signal("-KILL", &format!("-{}", child.id()));
    child.wait().unwrap();
    expect_sound(&config, "after the disk hung");
    assert_eq!(run_to_end(&config)["documents"], 2);
}

fn embedded_in(metrics: &str) -> u64 {
    let of_counter = |line: &&str| line.starts_with("vectide_embedded_chunks_total");
    let values = metrics.lines().filter(of_counter);
    values
        .filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
        .sum()
}
