//! A real corpus that every machine has which could build this program: the README and CHANGELOG
//! files of the crates that cargo downloaded for it.
//!
//! Invariant: the files are copied first; nothing in cargo's folder is ever changed.

use std::io;
use std::path::{Path, PathBuf};

/// Text that is indexed at most, unless `DEMO_BYTES` says otherwise: a minute of embedding on two
/// cores.
const CORPUS_BYTES: u64 = 600_000;

/// Longer files are left out: a single changelog of a megabyte would be most of the demo.
const FILE_BYTES_MAX: u64 = 40_000;

/// Copies the corpus and gives the names of its documents, sorted.
///
/// # Errors
/// When cargo's folder can't be found or files can't be copied.
pub(crate) fn copy_to(corpus: &Path) -> io::Result<Vec<String>> {
    if corpus.exists() {
        std::fs::remove_dir_all(corpus)?;
    }
    std::fs::create_dir_all(corpus)?;
    let limit = std::env::var("DEMO_BYTES")
        .ok()
        .and_then(|it| it.parse().ok());
    let mut left = limit.unwrap_or(CORPUS_BYTES);
    let mut names = Vec::new();
    for file in candidates()? {
        let bytes = std::fs::metadata(&file)?.len();
        let (Some(folder), Some(name)) =
            (file.parent().and_then(Path::file_name), file.file_name())
        else {
            continue;
        };
        // Only what is text can be a document.
        if bytes > FILE_BYTES_MAX || bytes > left || std::fs::read_to_string(&file).is_err() {
            continue;
        }
        left -= bytes;
        std::fs::create_dir_all(corpus.join(folder))?;
        std::fs::copy(&file, corpus.join(folder).join(name))?;
        names.push(format!(
            "{}/{}",
            folder.to_string_lossy(),
            name.to_string_lossy()
        ));
    }
    names.sort();
    if names.is_empty() {
        let hint = "no README or CHANGELOG was found in cargo's registry folder; set CARGO_HOME";
        return Err(io::Error::new(io::ErrorKind::NotFound, hint));
    }
    Ok(names)
}

/// The files, readmes first so that a small corpus has many crates.
fn candidates() -> io::Result<Vec<PathBuf>> {
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo")));
    let sources = home.unwrap_or_default().join("registry").join("src");
    let mut files = Vec::new();
    for registry in std::fs::read_dir(&sources)? {
        for package in std::fs::read_dir(registry?.path())? {
            let package = package?.path();
            if package.is_dir() {
                for file in std::fs::read_dir(package)? {
                    files.push(file?.path());
                }
            }
        }
    }
    let lower = |file: &Path| {
        file.file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .to_ascii_lowercase()
    };
    files.retain(|file| matches!(&*lower(file), "readme.md" | "changelog.md"));
    files.sort_by_key(|file| (lower(file) != "readme.md", file.clone()));
    Ok(files)
}
