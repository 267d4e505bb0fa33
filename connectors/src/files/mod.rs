//! A directory of documents: read once, compared with the rows that are held, then watched.
//!
//! Key: the path relative to the directory, with `/`. Row: `{"path", "content", "format"
//! (markdown, text, rst, html), "bytes", "modified_at" (RFC 3339, UTC)}`; of HTML the content is the
//! visible text.
//!
//! Positions: a directory has no log, so the only partition, `observations`, counts the changes and
//! dead letters that were ever told, and goes on from the committed count.
//!
//! A file that can't be a row (not UTF-8, above `max_file`, unreadable) is a dead letter, and the
//! last good row stays; it is told once for each version of the file, and again after a restart.
//! A rename is a delete and an upsert in one batch, and visible as a whole up to 256 files.
//! A path that leads out of the directory by a symbolic link is no document. The directory itself may
//! be or lie behind one, which is followed anew as long as it is watched.
//!
//! A directory that is gone, that is on another device than before, or that is empty at a start while
//! rows of it are held, is an error: a volume that is not mounted looks like that. One that is emptied
//! while it is watched has its rows deleted.
//!
//! Invariant: after a reading of the directory the rows told are those of its files; a file that
//! merely could not be seen is never taken for deleted.

mod config;
mod content;
mod html;
mod patterns;
mod root;
mod run;
mod settle;
mod tree;
mod watch;

pub use config::FilesConfig;

use root::Root;
use run::Run;
use std::time::Duration;
use tree::Tree;
use vectide_model::ByteSize;
use vectide_model::{Source, SourceError, SourceSink, SourceStart};

/// A directory that is ready to be read.
struct FilesSource {
    root: Root,
    tree: Tree,
    settle: Duration,
    file_bytes_max: ByteSize,
    is_watched: bool,
}

impl Source for FilesSource {
    fn run(
        self: Box<Self>,
        start: SourceStart,
        sink: &mut dyn SourceSink,
    ) -> Result<(), SourceError> {
        match Run::new(&self, &start, sink).read() {
            Ok(()) | Err(End::Stopped) => Ok(()),
            Err(End::Failed(error)) => Err(error),
        }
    }
}

/// Why reading ends before its end.
enum End {
    Stopped,
    Failed(SourceError),
}

impl From<vectide_model::Stopped> for End {
    fn from(_: vectide_model::Stopped) -> Self {
        Self::Stopped
    }
}

impl From<SourceError> for End {
    fn from(error: SourceError) -> Self {
        Self::Failed(error)
    }
}
