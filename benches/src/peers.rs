//! Vectide and Pathway on the same work, the same machine and in the same run: a log is followed, one
//! document is one chunk, embedded by feature hashing, asked over HTTP with keep-alive.
//!
//! Pathway runs where `scripts/peers.sh` has installed it; otherwise it is said to be skipped.

use crate::freshness::{follow_needles, write_changes_until};
use crate::load::{Setup, WORDS, append_to, line, shown, text, write_config, write_log};
use std::io::Write;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use vectide_tests::{Running, free_port};

/// Documents that are appended in one go.
const DOCUMENTS: usize = 20_000;

/// Documents at the end, when the clients ask once more.
const DOCUMENTS_MAX: usize = 100_000;

/// Documents that are there before, so that every system is up when the clock starts.
const DOCUMENTS_BEFORE: usize = 20;

/// How long clients ask.
const ASKING: Duration = Duration::from_secs(5);

/// Samples of freshness.
const SAMPLES: usize = 30;

/// Longest wait for a system to do something.
const PATIENCE: Duration = Duration::from_secs(240);

/// Asks for the text of the best hit.
type Ask = Box<dyn Fn(&str) -> Option<String> + Send>;

/// A system that follows a log.
trait System {
    fn client(&self) -> Ask;
}

struct Vectide(Running);

impl System for Vectide {
    fn client(&self) -> Ask {
        let client = self.0.client();
        Box::new(move |question| {
            let answer = client.query("docs", question, 1).ok()?;
            answer.hits.into_iter().next()?.text
        })
    }
}

struct Pathway {
    child: Child,
    port: u16,
}

impl System for Pathway {
    fn client(&self) -> Ask {
        let agent = ureq::Agent::new_with_defaults();
        let url = format!("http://127.0.0.1:{}/v1/retrieve", self.port);
        Box::new(move |question| {
            let asked = serde_json::json!({"query": question, "k": 1}).to_string();
            let request = agent.post(&url).header("content-type", "application/json");
            let answer = request.send(asked).ok()?.body_mut().read_to_string().ok()?;
            let answer: serde_json::Value = serde_json::from_str(&answer).ok()?;
            Some(answer.get(0)?.get("text")?.as_str()?.to_owned())
        })
    }
}

impl Drop for Pathway {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn run() {
    measure("Vectide", |directory| {
        let port = free_port();
        let setup = Setup {
            sources: &["docs"],
            model: "hashing",
            chunk: "{type: whole}",
            follow: true,
            port,
        };
        let config = write_config(directory, &setup);
        Box::new(Vectide(Running::start(&config, port)))
    });
    let Some(python) = pathway_python() else {
        println!("skipped: Pathway: it is not installed (scripts/peers.sh installs it)");
        return;
    };
    // Its default is the third; the first two are its best for freshness.
    for (kind, commit_ms) in [("usearch", "10"), ("brute", "10"), ("usearch", "1500")] {
        let name = format!("Pathway, {kind}, commits every {commit_ms} ms");
        measure(&name, |directory| {
            let port = free_port();
            let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers/pathway_store.py");
            let child = Command::new(&python)
                .arg(script)
                .arg(directory.join("docs.jsonl"))
                .args([&port.to_string(), kind, commit_ms])
                .current_dir(directory)
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn();
            let child = child.unwrap_or_else(|error| panic!("{error}"));
            Box::new(Pathway { child, port })
        });
    }
}

fn pathway_python() -> Option<PathBuf> {
    let installed = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/peers/bin/python");
    let python = std::env::var_os("VECTIDE_PEERS_PYTHON").map_or(installed, PathBuf::from);
    python.exists().then_some(python)
}

fn measure(name: &str, start: impl FnOnce(&Path) -> Box<dyn System>) {
    println!("{name}:");
    let directory = tempfile::tempdir().unwrap_or_else(|error| panic!("{error}"));
    let log = directory.path().join("docs.jsonl");
    write_log(&log, DOCUMENTS_BEFORE);
    let system = start(directory.path());
    wait_for(&*system, &document(DOCUMENTS_BEFORE - 1));
    load(
        &*system,
        &log,
        DOCUMENTS_BEFORE..DOCUMENTS_BEFORE + DOCUMENTS,
    );
    ask_with_all_clients(&*system);
    let client = system.client();
    let idle = follow_needles(&log, 0..SAMPLES, &client);
    println!("  freshness, idle: {}", shown(idle));
    let done = AtomicBool::new(false);
    let busy = std::thread::scope(|scope| {
        scope.spawn(|| write_changes_until(&done, &log, SAMPLES * 2..DOCUMENTS));
        let busy = follow_needles(&log, SAMPLES..SAMPLES * 2, &client);
        done.store(true, Ordering::Relaxed);
        busy
    });
    println!("  freshness, under 200 changes/s: {}", shown(busy));
    load(&*system, &log, DOCUMENTS_BEFORE + DOCUMENTS..DOCUMENTS_MAX);
    ask_with_all_clients(&*system);
}

fn ask_with_all_clients(system: &dyn System) {
    for clients in [1, 8, 32] {
        ask(system, clients);
    }
}

fn document(number: usize) -> String {
    text(number as u64 + 1, WORDS).trim().to_owned()
}

fn wait_for(system: &dyn System, document: &str) {
    let (client, start) = (system.client(), Instant::now());
    while client(document).is_none_or(|found| found.trim() != document) {
        assert!(start.elapsed() < PATIENCE, "the system does not answer");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Appends all documents at once and asks until the last of them is the answer.
fn load(system: &dyn System, log: &Path, ids: Range<usize>) {
    let lines: String = ids.clone().map(|id| line(id, &document(id))).collect();
    let (client, last) = (system.client(), document(ids.end - 1));
    let start = Instant::now();
    append_to(log)
        .write_all(lines.as_bytes())
        .unwrap_or_else(|error| panic!("{error}"));
    let mut latencies = Vec::new();
    loop {
        let asked = Instant::now();
        let found = client(&last);
        latencies.push(asked.elapsed().as_secs_f64() * 1e3);
        if found.is_some_and(|found| found.trim() == last) {
            break;
        }
        assert!(start.elapsed() < PATIENCE, "the documents do not arrive");
        std::thread::sleep(Duration::from_millis(5));
    }
    let rate = ids.len() as f64 / start.elapsed().as_secs_f64();
    println!(
        "  {} documents followed and answered from: {rate:.0} documents/s; queries meanwhile: {}",
        ids.len(),
        shown(latencies)
    );
}

fn ask(system: &dyn System, clients: u64) {
    let askers: Vec<Ask> = (0..clients).map(|_| system.client()).collect();
    let latencies: Vec<f64> = std::thread::scope(|scope| {
        let asking = askers.into_iter().zip(0..).map(|(client, number)| {
            scope.spawn(move || {
                let start = Instant::now();
                let mut latencies = Vec::new();
                for question in 0.. {
                    if start.elapsed() > ASKING {
                        break;
                    }
                    let asked = Instant::now();
                    client(&text(number * 1_000_000 + question + 1, 8));
                    latencies.push(asked.elapsed().as_secs_f64() * 1e3);
                }
                latencies
            })
        });
        let asking: Vec<_> = asking.collect();
        let joined = asking.into_iter().map(|it| it.join().unwrap_or_default());
        joined.flatten().collect()
    });
    let rate = latencies.len() as f64 / ASKING.as_secs_f64();
    println!(
        "  {clients:>2} clients: {rate:.0} queries/s, {}",
        shown(latencies)
    );
}
