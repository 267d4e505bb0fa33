//! The local cache of models: `$VECTIDE_CACHE`, else `$XDG_CACHE_HOME/vectide`, else
//! `~/.cache/vectide`; each model in `models/NAME/`.
//!
//! Invariant: a file appears under its name only when it is complete, checked and synced, so that
//! processes that fetch at the same time, or are killed meanwhile, leave nothing half-written.

use super::{CheckedFiles, KnownFile, KnownModel, ModelFiles, ModelFilesError};
use sha2::{Digest, Sha256};
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

/// How names of unfinished files and folders begin.
const TEMPORARY_PREFIX: &str = ".fetching-";

/// The folder of a model; it may not exist yet.
pub(super) fn folder(model: &KnownModel) -> Result<PathBuf, ModelFilesError> {
    let root = root(|name| std::env::var_os(name)).ok_or(ModelFilesError::NoCache)?;
    Ok(root.join("models").join(model.name))
}

fn root(variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let folder = |name| {
        variable(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    folder("VECTIDE_CACHE")
        .or_else(|| folder("XDG_CACHE_HOME").map(|cache| cache.join("vectide")))
        .or_else(|| folder("HOME").map(|home| home.join(".cache").join("vectide")))
}

/// Reads and checks both files of a model's folder.
pub(super) fn read(folder: &Path, model: &KnownModel) -> Result<CheckedFiles, ModelFilesError> {
    let paths = ModelFiles {
        weights: folder.join(model.weights.name),
        tokenizer: folder.join(model.tokenizer.name),
    };
    Ok(CheckedFiles {
        // The small one first: a folder without it is told apart quickly.
        tokenizer: read_file(&paths.tokenizer, &model.tokenizer)?,
        weights: read_file(&paths.weights, &model.weights)?,
        paths,
    })
}

fn read_file(path: &Path, known: &KnownFile) -> Result<Vec<u8>, ModelFilesError> {
    let file = File::open(path).map_err(ModelFilesError::io(path))?;
    let mut contents = Vec::new();
    // A file of another size is not read beyond what shows that.
    file.take(known.bytes + 1)
        .read_to_end(&mut contents)
        .map_err(ModelFilesError::io(path))?;
    check(
        path,
        known,
        contents.len() as u64,
        &Sha256::digest(&contents),
    )?;
    Ok(contents)
}

fn check(path: &Path, known: &KnownFile, bytes: u64, digest: &[u8]) -> Result<(), ModelFilesError> {
    let found: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    if bytes == known.bytes && found == known.sha256 {
        return Ok(());
    }
    Err(ModelFilesError::Digest {
        path: path.into(),
        found_bytes: bytes,
        found,
        expected_bytes: known.bytes,
        expected: known.sha256.into(),
    })
}

/// Holds other processes off until it is dropped, so that a model is fetched once.
pub(super) struct FetchLock {
    _file: File,
}

/// Waits for and takes the lock of a model's folder, making the folder.
pub(super) fn lock(folder: &Path) -> Result<FetchLock, ModelFilesError> {
    fs::create_dir_all(folder).map_err(ModelFilesError::io(folder))?;
    let path = folder.join(".lock");
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path);
    let file = file.map_err(ModelFilesError::io(&path))?;
    match file.lock() {
        Ok(()) => remove_leftovers(folder),
        // Some network file systems have no locks: two fetches at once cost time, not correctness.
        Err(error) if error.kind() == io::ErrorKind::Unsupported => {}
        Err(error) => return Err(ModelFilesError::io(&path)(error)),
    }
    Ok(FetchLock { _file: file })
}

/// Removes what a killed process left behind; whoever holds the lock is the only one at work.
fn remove_leftovers(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry
            .file_name()
            .to_string_lossy()
            .starts_with(TEMPORARY_PREFIX)
        {
            let path = entry.path();
            let _ = fs::remove_file(&path).or_else(|_| fs::remove_dir_all(&path));
        }
    }
}

/// A folder inside the model's, removed when it is dropped.
pub(super) fn temporary_folder(folder: &Path) -> Result<tempfile::TempDir, ModelFilesError> {
    tempfile::Builder::new()
        .prefix(TEMPORARY_PREFIX)
        .tempdir_in(folder)
        .map_err(ModelFilesError::io(folder))
}

/// Writes one file from `source` into the folder, if it is the known one.
pub(super) fn store(
    folder: &Path,
    known: &KnownFile,
    source: impl Read,
) -> Result<(), ModelFilesError> {
    let path = folder.join(known.name);
    let fault = |error| ModelFilesError::io(&path)(error);
    let mut temporary = tempfile::Builder::new()
        .prefix(TEMPORARY_PREFIX)
        .tempfile_in(folder)
        .map_err(fault)?;
    let mut source = source.take(known.bytes + 1);
    let mut digest = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    let mut bytes = 0;
    loop {
        let read = source.read(&mut buffer).map_err(fault)?;
        if read == 0 {
            break;
        }
        digest.update(&buffer[..read]);
        temporary.write_all(&buffer[..read]).map_err(fault)?;
        bytes += read as u64;
    }
    check(&path, known, bytes, &digest.finalize())?;
    temporary.as_file().sync_all().map_err(fault)?;
    make_readable(temporary.as_file()).map_err(fault)?;
    temporary
        .persist(&path)
        .map_err(|error| fault(error.error))?;
    sync_folder(folder).map_err(ModelFilesError::io(folder))
}

/// Temporary files are the owner's alone; a cache may be shared by users.
#[cfg(unix)]
fn make_readable(file: &File) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    file.set_permissions(fs::Permissions::from_mode(0o644))
}

#[cfg(not(unix))]
fn make_readable(_file: &File) -> io::Result<()> {
    Ok(())
}

#[cfg(unix)]
fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

#[cfg(not(unix))]
fn sync_folder(_folder: &Path) -> io::Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model_files::ALL_MINILM_L6_V2;

    const SMALL: KnownFile = KnownFile {
        name: "small",
        bytes: 3,
        // SHA-256 of "abc" (FIPS 180-2, appendix B.1).
        sha256: "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
    };

    fn small_model() -> KnownModel {
        KnownModel {
            weights: SMALL,
            tokenizer: KnownFile {
                name: "other",
                ..SMALL
            },
            ..ALL_MINILM_L6_V2
        }
    }

    #[test]
    fn the_cache_is_where_the_variables_say() {
        let check = |set: &[(&str, &str)], expected: Option<&str>| {
            let found = root(|name| {
                let value = set.iter().find(|(key, _)| *key == name);
                value.map(|(_, value)| value.into())
            });
            assert_eq!(found, expected.map(PathBuf::from), "{set:?}");
        };
        let home = ("HOME", "/h");
        check(
            &[("VECTIDE_CACHE", "/v"), ("XDG_CACHE_HOME", "/x"), home],
            Some("/v"),
        );
        check(&[("XDG_CACHE_HOME", "/x"), home], Some("/x/vectide"));
        check(&[("VECTIDE_CACHE", ""), home], Some("/h/.cache/vectide"));
        check(&[], None);
    }

    #[test]
    fn a_wrong_file_is_neither_stored_nor_read() {
        let folder = tempfile::tempdir().unwrap();
        for wrong in ["", "ab", "abd", "abcd"] {
            let error = store(folder.path(), &SMALL, wrong.as_bytes()).unwrap_err();
            assert!(matches!(error, ModelFilesError::Digest { .. }), "{error}");
            assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "{wrong}");
            fs::write(folder.path().join("small"), wrong).unwrap();
            let error = read_file(&folder.path().join("small"), &SMALL).unwrap_err();
            assert!(error.to_string().contains("expected 3 bytes"), "{error}");
            fs::remove_file(folder.path().join("small")).unwrap();
        }
        store(folder.path(), &SMALL, "abc".as_bytes()).unwrap();
        assert!(matches!(
            read(folder.path(), &small_model()),
            Err(ModelFilesError::Io { .. })
        ));
        store(folder.path(), &small_model().tokenizer, "abc".as_bytes()).unwrap();
        let files = read(folder.path(), &small_model()).unwrap();
        assert_eq!(files.weights, b"abc");
        assert_eq!(files.paths.weights, folder.path().join("small"));
    }

    #[test]
    fn writers_and_readers_at_once_never_see_a_broken_file() {
        let folder = tempfile::tempdir().unwrap();
        store(folder.path(), &SMALL, "abc".as_bytes()).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..25 {
                        store(folder.path(), &SMALL, "abc".as_bytes()).unwrap();
                        read_file(&folder.path().join("small"), &SMALL).unwrap();
                    }
                });
            }
        });
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn leftovers_go_when_the_lock_is_taken() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(".fetching-a"), "x").unwrap();
        fs::create_dir_all(folder.path().join(".fetching-b/c")).unwrap();
        store(folder.path(), &SMALL, "abc".as_bytes()).unwrap();
        drop(lock(folder.path()).unwrap());
        let names = fs::read_dir(folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name());
        let mut names: Vec<_> = names.collect();
        names.sort();
        assert_eq!(names, [".lock", "small"]);
    }

    #[test]
    fn the_lock_lets_one_in_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let inside = std::sync::atomic::AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let _lock = lock(folder.path()).unwrap();
                    let order = std::sync::atomic::Ordering::SeqCst;
                    assert_eq!(inside.fetch_add(1, order), 0);
                    std::thread::sleep(std::time::Duration::from_millis(5));
                    inside.fetch_sub(1, order);
                });
            }
        });
    }
}
