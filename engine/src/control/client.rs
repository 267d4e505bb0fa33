//! Asking the process that runs a pipeline.

use super::{Question, Reply, SocketPath};
use crate::backup::BackupReport;
use crate::compact::CompactReport;
use crate::state_check::StateReport;
use serde::de::DeserializeOwned;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// No process listens in that folder.
    #[error("no process answers in {directory}: {error}\nhint: start it anew, or end it")]
    Nobody {
        /// The state's folder.
        directory: String,
        /// What was tried.
        error: io::Error,
    },
    /// It ended, or failed, before it had answered.
    #[error("the process that runs the pipeline gave no answer: {0}\nhint: its log says more")]
    NoAnswer(String),
    /// It says that it could not do it.
    #[error("{0}")]
    Failed(String),
}

/// Has a running pipeline's state checked, as of its newest epoch.
///
/// # Errors
/// When nobody answers, or the state can't be read.
pub fn ask_check(state_directory: &Path) -> Result<StateReport, AskError> {
    ask(state_directory, &Question::Check)
}

/// Has a running pipeline's state backed up, as of its newest epoch.
///
/// # Errors
/// When nobody answers, or the backup can't be written.
pub fn ask_backup(state_directory: &Path, target: &Path) -> Result<BackupReport, AskError> {
    let target =
        std::path::absolute(target).map_err(|error| AskError::Failed(error.to_string()))?;
    ask(state_directory, &Question::Backup { target })
}

/// Has a running pipeline's state compacted.
///
/// # Errors
/// When nobody answers, or the store fails.
pub fn ask_compact(state_directory: &Path) -> Result<CompactReport, AskError> {
    ask(state_directory, &Question::Compact)
}

fn ask<T: DeserializeOwned>(state_directory: &Path, question: &Question) -> Result<T, AskError> {
    let connected = SocketPath::of(state_directory)
        .and_then(|socket| UnixStream::connect(&socket.path))
        .map_err(|error| AskError::Nobody {
            directory: state_directory.display().to_string(),
            error,
        })?;
    let no_answer = |error: &dyn std::fmt::Display| AskError::NoAnswer(error.to_string());
    let line = exchange(connected, question).map_err(|error| no_answer(&error))?;
    if line.is_empty() {
        return Err(no_answer(&"it ended, or this failed in it"));
    }
    let reply: Reply = serde_json::from_str(&line).map_err(|error| no_answer(&error))?;
    let value = reply.map_err(AskError::Failed)?;
    serde_json::from_value(value).map_err(|error| no_answer(&error))
}

fn exchange(mut stream: UnixStream, question: &Question) -> io::Result<String> {
    let mut line = serde_json::to_vec(question)?;
    line.push(b'\n');
    stream.write_all(&line)?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer)?;
    Ok(answer)
}
