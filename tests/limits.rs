//! What a person may limit: the room of the state, and when epochs close. A pipeline that is short of room
//! goes on answering, says why it takes no changes, and takes them when there is room again.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use vectide_tests::{
    Running, SmallDisk, append, call, edit, expect_sound, free_port, run_to_end, texts,
    write_config,
};

const MIB: u64 = 1024 * 1024;

/// Longest wait for something to be seen.
const PATIENCE: Duration = Duration::from_secs(60);

/// A log beside the state's folder, and the configuration that follows it.
struct Follower {
    log: PathBuf,
    config: PathBuf,
    port: u16,
    written: usize,
}

impl Follower {
    fn new(directory: &Path) -> Self {
        let log = directory.join("pages.jsonl");
        fs::write(&log, "").unwrap();
        let format = "{type: change, key: id, op: op}";
        let source =
            format!("{{type: jsonl, path: ./pages.jsonl, format: {format}, follow: true}}");
        let port = free_port();
        let server = format!("server: {{listen: \"127.0.0.1:{port}\"}}");
        let config = write_config(directory, "pipeline", &source, &server);
        Self {
            log,
            config,
            port,
            written: 0,
        }
    }

    fn write(&mut self, documents: usize) {
        let line = |id: usize| {
            let text = format!("page {id} ").repeat(20);
            format!(
                "{{\"op\":\"u\",\"id\":\"{id}\",\"text\":\"{}\"}}\n",
                text.trim()
            )
        };
        let lines: String = (self.written..self.written + documents).map(line).collect();
        append(&self.log, &lines);
        self.written += documents;
    }
}

fn documents(running: &Running) -> usize {
    let (status, body) = running.get("/v1/indexes/pages");
    assert_eq!(status, 200, "{body}");
    let status: serde_json::Value = serde_json::from_str(&body).unwrap();
    status["documents"].as_u64().unwrap() as usize
}

fn is_short(running: &Running, limit: &str) -> bool {
    let (status, body) = running.get("/readyz");
    assert_eq!(status, 200, "{body}");
    body.contains(limit)
}

/// Writes until no more is taken, and sees that what was taken is answered.
fn fill(follower: &mut Follower, running: &mut Running, limit: &str) {
    let began_at = Instant::now();
    while !is_short(running, limit) {
        assert!(began_at.elapsed() < PATIENCE, "never short of room");
        follower.write(1_000);
        let written = follower.written;
        running.wait_until("taken or short", PATIENCE, |running| {
            documents(running) == written || is_short(running, limit)
        });
    }
    let held = documents(running);
    assert!(held > 0);
    follower.write(10);
    std::thread::sleep(Duration::from_millis(600));
    assert!(documents(running) < follower.written, "changes are taken");
    let question = r#"{"text": "page 7", "k": 3}"#;
    let (status, answer) = running.post("/v1/indexes/pages/query", question);
    assert_eq!(status, 200, "{answer}");
    let (_, metrics) = running.get("/metrics");
    assert!(metrics.contains("vectide_state_short 1"), "{metrics}");
}

fn goes_on(follower: &Follower, running: &mut Running) {
    running.wait_until("everything taken", PATIENCE, |running| {
        documents(running) == follower.written
    });
    assert!(!is_short(running, "hint"));
}

#[test]
fn a_disk_below_its_floor_takes_no_changes_until_there_is_room() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path().join("disk");
    let Some(disk) = SmallDisk::mount(&at, 96 * MIB) else {
        eprintln!("skipped: a_disk_below_its_floor: this user may not mount a tmpfs");
        return;
    };
    let mut follower = Follower::new(&at);
    edit(&follower.config, "./state}", "./state, min_free: 40MiB}");
    let mut running = Running::start(&follower.config, follower.port);
    fill(&mut follower, &mut running, "state.min_free");

    // Who waits for nobody to make room is told at once. (What ended left some room.)
    assert!(running.terminate());
    edit(&follower.config, "40MiB", "90MiB");
    let (status, _, complaints) = call(&["run", "--until-caught-up"], &follower.config, &[]);
    assert_eq!(status, Some(1), "{complaints}");
    assert!(complaints.contains("state.min_free"), "{complaints}");

    let mut running = Running::start(&follower.config, follower.port);
    running.wait_until("short again", PATIENCE, |running| {
        is_short(running, "state.min_free")
    });
    disk.grow(512 * MIB);
    goes_on(&follower, &mut running);
    assert!(running.terminate());
    expect_sound(&follower.config, "after there was room");
    assert_eq!(texts(&follower.config).len(), follower.written);
}

#[test]
fn a_state_at_its_limit_takes_no_changes_until_that_is_raised() {
    let directory = tempfile::tempdir().unwrap();
    let mut follower = Follower::new(directory.path());
    edit(&follower.config, "./state}", "./state, max_bytes: 30MiB}");
    let mut running = Running::start(&follower.config, follower.port);
    fill(&mut follower, &mut running, "state.max_bytes");
    assert!(running.terminate());
    edit(&follower.config, "30MiB", "1GiB");
    let mut running = Running::start(&follower.config, follower.port);
    goes_on(&follower, &mut running);
    assert!(running.terminate());
    expect_sound(&follower.config, "after the limit was raised");
}

#[test]
fn epochs_close_by_rows_bytes_and_time() {
    let directory = tempfile::tempdir().unwrap();
    let epochs = |name: &str, commit: &str| {
        let mut follower = {
            let folder = directory.path().join(name);
            fs::create_dir(&folder).unwrap();
            Follower::new(&folder)
        };
        follower.write(1_000);
        edit(
            &follower.config,
            "server:",
            &format!("commit: {commit}\nserver:"),
        );
        let report = run_to_end(&follower.config);
        assert_eq!(report["documents"], 1_000, "{report}");
        report["epochs"].as_u64().unwrap()
    };
    assert!(epochs("default", "{}") < 50);
    assert!(epochs("rows", "{rows: 10}") >= 100);
    // Each row has some 200 bytes.
    assert!(epochs("bytes", "{bytes: 2KiB}") >= 50);

    let mut follower = Follower::new(directory.path());
    let interval = Duration::from_millis(300);
    edit(
        &follower.config,
        "server:",
        "commit: {interval: 300ms}\nserver:",
    );
    let running = Running::start(&follower.config, follower.port);
    let began_at = Instant::now();
    for _ in 0..100 {
        follower.write(1);
        std::thread::sleep(Duration::from_millis(10));
    }
    let (_, metrics) = running.get("/metrics");
    let passed = began_at.elapsed();
    let epoch = metrics
        .lines()
        .find_map(|line| line.strip_prefix("vectide_epoch "));
    let epochs: u32 = epoch.unwrap().parse().unwrap();
    assert!(
        epochs <= 1 + passed.div_duration_f64(interval).ceil() as u32,
        "{epochs} in {passed:?}"
    );
    assert!(running.terminate());
}
