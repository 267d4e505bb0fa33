//! What other processes may ask of the one that runs a pipeline: a socket in the state's folder.
//!
//! `vectide check`, `backup` and `compact` take the state themselves where nobody uses it; where a
//! process does, they ask it. Who may open the socket is whoever may use the folder: it is the owner's
//! alone, and needs no other authentication.
//!
//! A question and its answer are one line of JSON each.
//!
//! Invariant: what is asked for reads snapshots; neither the dataflow nor queries wait for it.

mod client;
mod server;

pub use client::{AskError, ask_backup, ask_check, ask_compact};
pub(crate) use server::{Control, Controlled};

use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Question {
    /// Compare the state with the rows it was made from.
    Check,
    /// Copy it to a folder.
    Backup {
        /// An absolute path.
        target: PathBuf,
    },
    /// Give back the room of what is gone.
    Compact,
}

/// The answer as JSON, or what went wrong.
type Reply = Result<serde_json::Value, String>;

/// A question is a path at most.
const QUESTION_BYTES_MAX: u64 = 16 * 1024;

/// Where the socket is. Its path may be longer than a socket's address can be (some 100 bytes), so it
/// goes by the folder's descriptor, which has to stay open.
struct SocketPath {
    path: PathBuf,
    _folder: File,
}

impl SocketPath {
    fn of(state_directory: &Path) -> io::Result<Self> {
        let folder = File::open(state_directory)?;
        let by_descriptor = PathBuf::from(format!("/proc/self/fd/{}/control", folder.as_raw_fd()));
        let plain = state_directory.join("control");
        let path = if cfg!(target_os = "linux") {
            by_descriptor
        } else {
            plain
        };
        Ok(Self {
            path,
            _folder: folder,
        })
    }
}
