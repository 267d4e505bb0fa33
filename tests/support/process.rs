//! The `vectide` binary as its users run it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// The binary. `cargo test --workspace` builds it before any test runs, because its own package has
/// a test of it; a build from here would choose other features and compile everything again.
pub fn vectide_binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        // Beside a benchmark's program, one folder above a test's.
        let this = std::env::current_exe().unwrap_or_else(|error| panic!("{error}"));
        let mut folders = this
            .ancestors()
            .skip(1)
            .take(2)
            .map(|it| it.join("vectide"));
        let binary = folders.find(|it| it.is_file());
        binary.unwrap_or_else(|| panic!("the binary is missing: build the workspace"))
    })
}

/// A call of the binary.
pub fn vectide(arguments: &[&str]) -> Command {
    let mut command = Command::new(vectide_binary());
    command.args(arguments).env("VECTIDE_LOG", "warn");
    command
}

/// Runs a configuration until it is caught up and gives what it printed.
pub fn run_to_end(config: &Path) -> serde_json::Value {
    let output = output(vectide(&["run", "--until-caught-up"]).arg(config));
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

/// Runs the binary with a configuration after `command` and `rest` after that: exit status, standard
/// output and error.
pub fn call(command: &[&str], config: &Path, rest: &[&str]) -> (Option<i32>, String, String) {
    let output = output(vectide(command).arg(config).args(rest));
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    let (told, complaints) = (text(output.stdout), text(output.stderr));
    (output.status.code(), told, complaints)
}

/// What a configuration's state holds: one object a line of `vectide export`.
pub fn export(config: &Path, what: &str) -> Vec<serde_json::Value> {
    let (status, told, complaints) = call(&["export"], config, &[what]);
    assert_eq!(status, Some(0), "{complaints}");
    let object =
        |line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
    told.lines().map(object).collect()
}

/// The text of each document of a configuration's state, where each is one chunk.
pub fn texts(config: &Path) -> BTreeMap<String, String> {
    let chunk = |json: serde_json::Value| {
        let field = |name: &str| json[name].as_str().unwrap_or_default().to_owned();
        (field("document"), field("text"))
    };
    export(config, "chunks").into_iter().map(chunk).collect()
}

/// What `vectide check` says of a configuration's state, in which nothing may be wrong.
pub fn expect_sound(config: &Path, place: &str) -> serde_json::Value {
    let (status, told, complaints) = call(&["check"], config, &["--json"]);
    assert_eq!(status, Some(0), "{place}: {told}{complaints}");
    serde_json::from_str(&told).unwrap_or_else(|error| panic!("{error}: {told}"))
}

/// The epoch of a state at rest in which nothing is wrong; 0 when nothing was committed yet.
pub fn sound_epoch(config: &Path, place: &str) -> u64 {
    let (status, told, complaints) = call(&["check"], config, &["--json"]);
    let is_empty = ["there is no state", "it has no commit"];
    if is_empty.iter().any(|it| complaints.contains(it)) {
        return 0;
    }
    assert_eq!(status, Some(0), "{place}: {told}{complaints}");
    let report: serde_json::Value = serde_json::from_str(&told).unwrap_or_default();
    report["epoch"]
        .as_u64()
        .unwrap_or_else(|| panic!("{place}: {told}"))
}

/// Whether a test may trace. Tracing may be forbidden where everything else is allowed, so it is never
/// required: what is skipped is told.
pub fn can_trace(test: &str) -> bool {
    let strace = strace();
    if let Err(reason) = &strace {
        println!("skipped: {test}: {reason}");
    }
    strace.is_ok()
}

/// Whether there is a strace that may trace, and stops at the calls that are traced alone
/// (`--seccomp-bpf`, from 5.3 on): otherwise it takes ten times as long.
fn strace() -> Result<(), String> {
    let tried = Command::new("strace")
        .args([
            "-f",
            "--seccomp-bpf",
            "-e",
            "trace=fsync",
            "-o",
            "/dev/null",
            "true",
        ])
        .output();
    match tried {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        Err(error) => Err(format!("strace can't be run: {error}")),
    }
}

/// Sends a signal (`-TERM`) to a process, or to the group of one with a minus before its number.
pub fn signal(name: &str, process: &str) {
    let sent = Command::new("kill").args([name, "--", process]).status();
    assert!(
        sent.is_ok_and(|status| status.success()),
        "no signal was sent"
    );
}

/// Writes `NAME.yaml` with one source `pages`, documents of its rows' `text`, an index of feature
/// hashes, and `more` sections. Its state is the folder `state` beside it.
pub fn write_config(directory: &Path, name: &str, source: &str, more: &str) -> PathBuf {
    let path = directory.join(format!("{name}.yaml"));
    let server = if more.contains("server:") {
        ""
    } else {
        "server: {listen: \"127.0.0.1:0\"}"
    };
    let yaml = format!(
        r#"
apiVersion: vectide/v1
state: {{dir: ./state}}
sources:
  pages: {source}
documents:
  pages: {{from: pages, text: "{{{{ text }}}}"}}
indexes:
  pages:
    from: pages
    chunk: {{type: structured}}
    embed: {{model: hashing}}
{server}
{more}
"#
    );
    std::fs::write(&path, yaml).unwrap_or_else(|error| panic!("{path:?}: {error}"));
    path
}

/// Replaces a text that is in a configuration.
pub fn edit(config: &Path, text: &str, by: &str) {
    let read = std::fs::read_to_string(config);
    let yaml = read.unwrap_or_else(|error| panic!("{config:?}: {error}"));
    assert!(yaml.contains(text), "no {text} in {yaml}");
    let written = std::fs::write(config, yaml.replace(text, by));
    written.unwrap_or_else(|error| panic!("{config:?}: {error}"));
}

fn output(command: &mut Command) -> Output {
    command
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

/// A running pipeline; it is killed when the test ends.
pub struct Running {
    child: Child,
    /// Its endpoint.
    pub url: String,
}

impl Running {
    /// Starts a configuration that listens on `port`, and waits until it answers.
    pub fn start(config: &Path, port: u16) -> Self {
        Self::start_with(config, port, &[])
    }

    /// Starts a configuration with more arguments, and waits until it answers.
    pub fn start_with(config: &Path, port: u16, arguments: &[&str]) -> Self {
        let mut command = vectide(&["run"]);
        command.arg(config).args(arguments);
        Self::spawn(command, port)
    }

    /// Starts a command that runs a pipeline which listens on `port`, and waits until it answers.
    pub fn spawn(mut command: Command, port: u16) -> Self {
        let child = command.stdout(Stdio::null()).spawn();
        let child = child.unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let mut running = Self {
            child,
            url: format!("http://127.0.0.1:{port}"),
        };
        running.wait_until("serving", Duration::from_secs(300), |running| {
            ureq::get(format!("{}/readyz", running.url)).call().is_ok()
        });
        running
    }

    /// Waits until something holds; fails when it takes too long or the process has ended.
    pub fn wait_until(&mut self, what: &str, timeout: Duration, holds: impl Fn(&Self) -> bool) {
        let start = Instant::now();
        while !holds(self) {
            let ended = self
                .child
                .try_wait()
                .unwrap_or_else(|error| panic!("{error}"));
            assert!(
                ended.is_none(),
                "the process ended before {what}: {ended:?}"
            );
            assert!(start.elapsed() < timeout, "not {what} after {timeout:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Ends it as a supervisor would, and says whether it ended cleanly.
    pub fn terminate(mut self) -> bool {
        self.signal("-TERM");
        self.child.wait().is_ok_and(|status| status.success())
    }

    /// Sends it a signal (`-STOP`).
    pub fn signal(&self, name: &str) {
        signal(name, &self.child.id().to_string());
    }

    /// Bytes of memory that it has.
    pub fn memory_bytes(&self) -> u64 {
        let path = format!("/proc/{}/status", self.child.id());
        let status =
            std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kibibytes = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
        kibibytes.unwrap_or_else(|| panic!("{status}")) * 1024
    }

    /// Kills it where it stands (SIGKILL).
    pub fn kill(mut self) {
        self.child.kill().unwrap_or_else(|error| panic!("{error}"));
        self.child.wait().unwrap_or_else(|error| panic!("{error}"));
    }

    /// A client of its endpoint.
    pub fn client(&self) -> vectide_serve::Client {
        vectide_serve::Client::new(&self.url).unwrap_or_else(|error| panic!("{error}"))
    }

    /// A GET of a path: status and body.
    pub fn get(&self, path: &str) -> (u16, String) {
        let agent: ureq::Agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .build()
            .into();
        let mut answer = agent
            .get(format!("{}{path}", self.url))
            .call()
            .unwrap_or_else(|error| panic!("{path}: {error}"));
        let body = answer.body_mut().read_to_string().unwrap_or_default();
        (answer.status().as_u16(), body)
    }

    /// A POST of a body: status and body.
    pub fn post(&self, path: &str, body: &str) -> (u16, serde_json::Value) {
        let agent: ureq::Agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .build()
            .into();
        let mut answer = agent
            .post(format!("{}{path}", self.url))
            .header("content-type", "application/json")
            .send(body)
            .unwrap_or_else(|error| panic!("{path}: {error}"));
        let text = answer.body_mut().read_to_string().unwrap_or_default();
        (
            answer.status().as_u16(),
            serde_json::from_str(&text).unwrap_or_default(),
        )
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Already gone when it was terminated.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A port that was free a moment ago, and that nobody takes by chance.
pub fn free_port() -> u16 {
    vectide_connectors::testing::free_ports(1).unwrap_or_else(|error| panic!("{error}"))
}
