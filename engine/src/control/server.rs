//! Answering other processes, on threads of its own.
//!
//! Invariant: one question is worked on at a time, the others wait; a panic in it ends its thread, not
//! the pipeline.

use super::{QUESTION_BYTES_MAX, Question, Reply, SocketPath};
use crate::backup::write_backup;
use crate::compact::measured;
use crate::plan::Derivation;
use crate::state::State;
use crate::state_check::check_snapshot;
use std::fs::{self, Permissions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;
use vectide_model::StopSignal;

/// How often the thread looks for somebody who asks: people and scripts do, seldom.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// How long one who connects may take to ask.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(5);

/// What is asked about.
pub(crate) struct Controlled {
    state: Arc<State>,
    derivation: Derivation,
}

impl Controlled {
    /// A state, and what it is made of.
    pub(crate) fn new(state: &Arc<State>, derivation: Derivation) -> Self {
        Self {
            state: state.clone(),
            derivation,
        }
    }
}

/// The thread that listens.
pub(crate) struct Control {
    socket: SocketPath,
    stop: StopSignal,
    thread: JoinHandle<()>,
}

impl Control {
    /// Starts to listen in the state's folder. A file system that has no sockets is told, and the
    /// pipeline runs without.
    pub(crate) fn start(controlled: Controlled) -> io::Result<Option<Self>> {
        let (socket, listener) = match listen(controlled.state.directory()) {
            Ok(listening) => listening,
            Err(error) => {
                tracing::warn!(
                    %error,
                    "no socket in the state's folder: a running pipeline can't be checked or backed up"
                );
                return Ok(None);
            }
        };
        let stop = StopSignal::new();
        let stopped = stop.clone();
        let controlled = Arc::new(Mutex::new(controlled));
        let thread = crate::pipeline::spawn("control", move || {
            while !stopped.wait(LOOK_INTERVAL) {
                while let Ok((stream, _)) = listener.accept() {
                    serve(stream, controlled.clone());
                }
            }
        })?;
        Ok(Some(Self {
            socket,
            stop,
            thread,
        }))
    }

    /// Listens no longer; what is worked on ends with the process.
    pub(crate) fn end(self) {
        self.stop.stop();
        crate::pipeline::join(self.thread);
        // Best effort: the next process removes it, too.
        let _ = fs::remove_file(&self.socket.path);
    }
}

fn listen(state_directory: &Path) -> io::Result<(SocketPath, UnixListener)> {
    let socket = SocketPath::of(state_directory)?;
    // The folder is locked: what is there belongs to a process that is gone.
    match fs::remove_file(&socket.path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&socket.path)?;
    fs::set_permissions(&socket.path, Permissions::from_mode(0o600))?;
    listener.set_nonblocking(true)?;
    Ok((socket, listener))
}

fn serve(stream: UnixStream, controlled: Arc<Mutex<Controlled>>) {
    let answer = move || {
        if let Err(error) = converse(stream, &controlled) {
            tracing::warn!(%error, "one who asked through the state's socket got no answer");
        }
    };
    let started = std::thread::Builder::new()
        .name("control".into())
        .spawn(answer);
    if let Err(error) = started {
        tracing::warn!(%error, "a question through the state's socket is not answered");
    }
}

fn converse(mut stream: UnixStream, controlled: &Mutex<Controlled>) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(QUESTION_TIMEOUT))?;
    let mut line = String::new();
    BufReader::new(&stream)
        .take(QUESTION_BYTES_MAX)
        .read_line(&mut line)?;
    let reply: Reply = match serde_json::from_str(&line) {
        Ok(question) => {
            let controlled = controlled.lock().unwrap_or_else(PoisonError::into_inner);
            answer(&controlled, &question).map_err(|error| error.to_string())
        }
        Err(error) => Err(format!("the question is not understood: {error}")),
    };
    let mut line = serde_json::to_vec(&reply)?;
    line.push(b'\n');
    stream.write_all(&line)
}

fn answer(
    controlled: &Controlled,
    question: &Question,
) -> Result<serde_json::Value, Box<dyn std::error::Error>> {
    let state = &controlled.state;
    // Before the snapshot: so that its files stay.
    let _pin = state.pin_files();
    let value = match question {
        Question::Check => {
            let read = state.snapshot();
            serde_json::to_value(check_snapshot(&controlled.derivation, &*read)?)
        }
        Question::Backup { target } => {
            let read = state.snapshot();
            serde_json::to_value(write_backup(&*read, state.directory(), target)?)
        }
        Question::Compact => serde_json::to_value(measured(state.directory(), || state.compact())?),
    };
    Ok(value?)
}
