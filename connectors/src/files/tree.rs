//! What lies in a directory now.
//!
//! Symbolic links to folders are not followed; those to files are, when the file lies within the
//! directory.
//!
//! Invariant: a folder that can't be read is told as such, so that its files are not taken for gone.

use super::patterns::FilePatterns;
use std::collections::BTreeMap;
use std::fs::{self, Metadata};
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// What tells one version of a file from another without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FileStamp {
    pub(crate) bytes: u64,
    pub(crate) modified_at: SystemTime,
    /// Where the operating system tells it.
    pub(crate) inode: Option<InodeStamp>,
}

/// What no program can set, as copies that keep the time of change do: the file itself, and when
/// anything about it last changed (seconds, nanoseconds).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct InodeStamp {
    pub(crate) number: u64,
    pub(crate) changed_at: (i64, i64),
}

#[cfg(unix)]
fn inode_of(metadata: &Metadata) -> Option<InodeStamp> {
    use std::os::unix::fs::MetadataExt as _;
    Some(InodeStamp {
        number: metadata.ino(),
        changed_at: (metadata.ctime(), metadata.ctime_nsec()),
    })
}

#[cfg(not(unix))]
fn inode_of(_: &Metadata) -> Option<InodeStamp> {
    None
}

impl FileStamp {
    pub(crate) fn of(metadata: &Metadata) -> Self {
        Self {
            bytes: metadata.len(),
            modified_at: metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH),
            inode: inode_of(metadata),
        }
    }
}

/// What a path leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    File(FileStamp),
    Directory,
    /// Nothing, or something that is no document.
    Absent,
    /// Something that can't be looked at.
    Unreadable,
}

/// The files of a directory.
#[derive(Debug, Default)]
pub(crate) struct Listing {
    /// By path relative to the directory, with `/`.
    pub(crate) files: BTreeMap<String, FileStamp>,
    /// Folders that could not be read.
    pub(crate) unreadable: Vec<String>,
}

impl Listing {
    /// Whether a file that is not listed may lie in a folder that could not be read.
    pub(crate) fn may_hide(&self, key: &str) -> bool {
        self.unreadable
            .iter()
            .any(|directory| is_within(key, directory))
    }
}

/// Whether `key` is `directory` or lies in it; all lie in the folder named by no text.
pub(crate) fn is_within(key: &str, directory: &str) -> bool {
    directory.is_empty()
        || key
            .strip_prefix(directory)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// A directory with documents.
#[derive(Clone, Debug)]
pub(crate) struct Tree {
    /// Without symbolic links.
    root: PathBuf,
    patterns: FilePatterns,
}

impl Tree {
    pub(crate) fn new(root: PathBuf, patterns: FilePatterns) -> Self {
        Self { root, patterns }
    }

    /// The documents of another directory, by the same patterns.
    pub(crate) fn at(&self, root: &Path) -> Self {
        Self::new(root.to_owned(), self.patterns.clone())
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn path_of(&self, key: &str) -> PathBuf {
        self.root.join(key)
    }

    /// The key of a path; `None` for one outside of the directory and for names that are no UTF-8,
    /// which no key can hold.
    pub(crate) fn key_of(&self, path: &Path) -> Option<String> {
        let relative = path.strip_prefix(&self.root).ok()?;
        let mut key = String::new();
        for name in relative {
            if !key.is_empty() {
                key.push('/');
            }
            key.push_str(name.to_str()?);
        }
        Some(key)
    }

    pub(crate) fn accept_file(&self, key: &str) -> bool {
        self.patterns.accept_file(key)
    }

    pub(crate) fn accept_directory(&self, key: &str) -> bool {
        key.is_empty() || self.patterns.accept_directory(key)
    }

    /// What a key leads to.
    pub(crate) fn look_at(&self, key: &str) -> Entry {
        let path = self.path_of(key);
        let metadata = match fs::symlink_metadata(&path) {
            Ok(metadata) if metadata.is_symlink() => return self.look_at_link(key, &path),
            Ok(metadata) => metadata,
            Err(error) if is_absence(&error) => return Entry::Absent,
            Err(_) => return Entry::Unreadable,
        };
        if metadata.is_dir() && self.accept_directory(key) {
            return Entry::Directory;
        }
        self.file(key, &metadata)
    }

    fn look_at_link(&self, key: &str, path: &Path) -> Entry {
        match path.canonicalize() {
            Ok(target) if target.starts_with(&self.root) => match fs::metadata(&target) {
                Ok(metadata) => self.file(key, &metadata),
                Err(_) => Entry::Absent,
            },
            _ => Entry::Absent,
        }
    }

    fn file(&self, key: &str, metadata: &Metadata) -> Entry {
        if metadata.is_file() && self.accept_file(key) {
            return Entry::File(FileStamp::of(metadata));
        }
        Entry::Absent
    }

    /// All documents in a folder (`""` for the whole directory) and below it.
    ///
    /// # Errors
    /// When the folder itself can't be read.
    pub(crate) fn list(&self, directory: &str) -> io::Result<Listing> {
        let mut listing = Listing::default();
        let mut directories = vec![directory.to_owned()];
        while let Some(current) = directories.pop() {
            let entries = match fs::read_dir(self.path_of(&current)) {
                Ok(entries) => entries,
                Err(error) if current == directory => return Err(error),
                Err(error) if is_absence(&error) => continue,
                Err(_) => {
                    listing.unreadable.push(current);
                    continue;
                }
            };
            for entry in entries {
                let Ok(entry) = entry else {
                    listing.unreadable.push(current.clone());
                    break;
                };
                let Some(key) = self.key_of(&entry.path()) else {
                    tracing::warn!(path = %entry.path().display(), "the name is not UTF-8: left out");
                    continue;
                };
                match self.look_at(&key) {
                    Entry::File(stamp) => drop(listing.files.insert(key, stamp)),
                    Entry::Directory => directories.push(key),
                    Entry::Unreadable => listing.unreadable.push(key),
                    Entry::Absent => {}
                }
            }
        }
        Ok(listing)
    }
}

/// Whether an error says that a path leads nowhere.
pub(crate) fn is_absence(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}
