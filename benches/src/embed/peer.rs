//! Other libraries in the benchmark, each in a process of its own that waits while others are measured.

use super::contestant::{Contestant, Entry, Round};
use super::texts::TextSet;
use serde_json::{Value, json};
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

/// Whose vectors the others are compared with.
pub(crate) const REFERENCE: &str = "sentence-transformers";
const PEERS: [(&str, &str); 4] = [
    (REFERENCE, "f32"),
    ("onnxruntime", "f32"),
    ("openvino", "f32"),
    ("openvino", "bf16"),
];

struct Peer {
    entry: Entry,
    child: Child,
    answers: BufReader<ChildStdout>,
    folder: tempfile::TempDir,
    log: PathBuf,
}

/// All that are installed, on one thread and on two.
pub(crate) fn contestants() -> Vec<Box<dyn Contestant>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/embed-peers");
    if !folder.join("model/fused.onnx").exists() {
        println!(
            "skipped: the peers: they are not installed (scripts/embed_peers.sh installs them)"
        );
        return Vec::new();
    }
    let mut contestants: Vec<Box<dyn Contestant>> = Vec::new();
    for (library, precision) in PEERS {
        for threads in [1, 2] {
            match Peer::start(&folder, (library, precision), threads) {
                Ok(peer) => contestants.push(Box::new(peer)),
                Err(error) => println!("skipped: {library}, {precision}: {error}"),
            }
        }
    }
    contestants
}

impl Peer {
    /// # Errors
    /// When its library is not there or does not start.
    fn start(
        folder: &Path,
        (library, precision): (&str, &'static str),
        threads: usize,
    ) -> Result<Self, String> {
        let log = folder.join(format!("{library}-{precision}-{threads}.log"));
        let told = File::create(&log).map_err(|error| format!("{}: {error}", log.display()))?;
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers/embed.py");
        let mut child = Command::new(folder.join("environment/bin/python"))
            .arg(script)
            .args([library, precision, &threads.to_string()])
            .arg(folder.join("model"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(told)
            .spawn()
            .map_err(|error| error.to_string())?;
        let answers = child.stdout.take().ok_or("it has no output")?;
        let mut peer = Self {
            entry: Entry {
                library: library.to_owned(),
                precision,
                threads,
            },
            child,
            answers: BufReader::new(answers),
            folder: tempfile::tempdir().map_err(|error| error.to_string())?,
            log,
        };
        let ready = peer.answer()?;
        let version = ready["version"].as_str().unwrap_or("?");
        peer.entry.library = format!("{library} {version}");
        Ok(peer)
    }

    fn answer(&mut self) -> Result<Value, String> {
        let mut line = String::new();
        let read = self.answers.read_line(&mut line);
        let value = read.ok().and_then(|_| serde_json::from_str(&line).ok());
        value.ok_or_else(|| format!("it ended; its last words are in {}", self.log.display()))
    }

    fn ask(&mut self, set: &TextSet, vectors: Option<&Path>) -> Result<Value, String> {
        let texts = self.folder.path().join("texts.json");
        let written = std::fs::write(&texts, json!(set.texts).to_string());
        written.map_err(|error| format!("{}: {error}", texts.display()))?;
        let asked = json!({"texts": texts, "vectors": vectors});
        let input = self.child.stdin.as_mut().ok_or("it has no input")?;
        writeln!(input, "{asked}").map_err(|error| error.to_string())?;
        self.answer()
    }

    /// # Panics
    /// When a library that has started fails: a table without it would not be the one that was asked for.
    fn asked(&mut self, set: &TextSet, vectors: Option<&Path>) -> Value {
        let answer = self.ask(set, vectors);
        answer.unwrap_or_else(|error| panic!("{}: {error}", self.entry.library))
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Contestant for Peer {
    fn entry(&self) -> &Entry {
        &self.entry
    }

    fn embed(&mut self, set: &TextSet) -> Round {
        let answer = self.asked(set, None);
        let number = |name: &str| answer[name].as_f64().unwrap_or(f64::NAN);
        Round {
            seconds: number("seconds"),
            processor_seconds: number("processor_seconds"),
            share_of_peak: None,
        }
    }

    fn vectors(&mut self, set: &TextSet) -> Vec<f32> {
        let path = self.folder.path().join("vectors.f32");
        self.asked(set, Some(&path));
        let bytes = std::fs::read(&path).unwrap_or_else(|error| panic!("{path:?}: {error}"));
        let floats = bytes.chunks_exact(4).map(|it| [it[0], it[1], it[2], it[3]]);
        floats.map(f32::from_le_bytes).collect()
    }
}
