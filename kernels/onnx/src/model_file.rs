//! Reads a model's files: the graph, the weights beside it, the tokenizer.
//!
//! Invariant: no file is read beyond a bound that is known before, and the digest covers every byte that ONNX
//! Runtime is given: exactly those, or, where weights lie outside the graph, those of files that had not changed
//! when it had read them.

use crate::external_data::{ExternalDataError, locations};
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::fs::{File, Metadata};
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::time::SystemTime;
use vectide_model::ComponentError;

/// Where exporters put the graph.
const PLACES: [&str; 2] = ["model.onnx", "onnx/model.onnx"];
/// The tokenizer's file.
const TOKENIZER: &str = "tokenizer.json";
/// Protobuf can't hold more.
const GRAPH_BYTES_MAX: u64 = i32::MAX as u64;
/// Weights outside the graph, in one file: those of 16 billion parameters in fp16.
const WEIGHTS_BYTES_MAX: u64 = 32 << 30;
/// Files of weights. Some exporters write one a tensor.
const WEIGHTS_FILES_MAX: usize = 10_000;
/// A vocabulary of 250,000 pieces with their scores has 17 MB of JSON.
const TOKENIZER_BYTES_MAX: u64 = 64 << 20;

/// A graph with the weights that it names.
pub(crate) struct ModelFile {
    /// Where it lies.
    pub(crate) path: PathBuf,
    /// Its contents.
    pub(crate) graph: Vec<u8>,
    /// Its file and those of weights outside it, as they were when they were digested.
    files: Vec<DigestedFile>,
    /// SHA-256 over all of it, the first 16 hex digits.
    pub(crate) digest: String,
}

struct DigestedFile {
    path: PathBuf,
    bytes: u64,
    modified: Option<SystemTime>,
}

impl DigestedFile {
    fn new(path: PathBuf, found: &Metadata) -> Self {
        Self {
            path,
            bytes: found.len(),
            modified: found.modified().ok(),
        }
    }
}

impl ModelFile {
    /// Reads the graph and digests the weights.
    ///
    /// # Errors
    /// When a file is missing, too large, or the graph is damaged as far as it is understood here.
    pub(crate) fn read(folder: &Path, file: Option<&Path>) -> Result<Self, ComponentError> {
        let path = place(folder, file)?;
        let (graph, found) = read_bounded(&path, GRAPH_BYTES_MAX)?;
        let names = locations(&graph).map_err(|error| match error {
            ExternalDataError::Damaged => damaged(&path, "it is no ONNX model"),
            ExternalDataError::Outside(name) => damaged(
                &path,
                &format!("its weights lie in `{name}`, which is not in its folder"),
            ),
        })?;
        let mut files = vec![DigestedFile::new(path.clone(), &found)];
        let digest = digest(&path, &graph, &names, &mut files)?;
        Ok(Self {
            path,
            graph,
            files,
            digest,
        })
    }

    /// Whether all of it is in the graph's file.
    pub(crate) fn is_whole(&self) -> bool {
        self.files.len() == 1
    }

    /// Bytes of everything.
    pub(crate) fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }

    /// Whether the files are still those that were digested.
    ///
    /// # Errors
    /// When one was written meanwhile.
    pub(crate) fn check_unchanged(&self) -> Result<(), ComponentError> {
        for file in &self.files {
            let found = std::fs::metadata(&file.path).map_err(|error| fault(&file.path, &error))?;
            if (found.len(), found.modified().ok()) != (file.bytes, file.modified) {
                return Err(damaged(&file.path, "it changed while it was read"));
            }
        }
        Ok(())
    }
}

/// Looks at the large files without reading them: where the graph lies.
///
/// # Errors
/// When one is missing or too large.
pub(crate) fn look(folder: &Path, file: Option<&Path>) -> Result<PathBuf, ComponentError> {
    let path = place(folder, file)?;
    for (path, bytes_max) in [
        (&path, GRAPH_BYTES_MAX),
        (&folder.join(TOKENIZER), TOKENIZER_BYTES_MAX),
    ] {
        let found = std::fs::metadata(path).map_err(|error| fault(path, &error))?;
        check_size(path, &found, bytes_max)?;
    }
    Ok(path)
}

/// Contents of `tokenizer.json`.
///
/// # Errors
/// When it is missing or too large.
pub(crate) fn read_tokenizer(folder: &Path) -> Result<Vec<u8>, ComponentError> {
    read_bounded(&folder.join(TOKENIZER), TOKENIZER_BYTES_MAX).map(|(contents, _)| contents)
}

/// Where the graph lies.
fn place(folder: &Path, file: Option<&Path>) -> Result<PathBuf, ComponentError> {
    if let Some(file) = file {
        let path = folder.join(file);
        return match path.is_file() {
            true => Ok(path),
            false => Err(ComponentError::new(
                "file",
                format!("there is no file {}", path.display()),
                "`file` is relative to `path`",
            )),
        };
    }
    let mut places = PLACES.iter().map(|place| folder.join(place));
    places.find(|path| path.is_file()).ok_or_else(|| {
        ComponentError::new(
            "path",
            format!(
                "{} has neither {} nor {}",
                folder.display(),
                PLACES[0],
                PLACES[1]
            ),
            "name the model's file in `file`, or export it: `optimum-cli export onnx --model NAME FOLDER`",
        )
    })
}

/// Digests a graph and the weights that it names, whose files go to `files`.
fn digest(
    path: &Path,
    graph: &[u8],
    names: &BTreeSet<PathBuf>,
    files: &mut Vec<DigestedFile>,
) -> Result<String, ComponentError> {
    if names.len() > WEIGHTS_FILES_MAX {
        let detail = format!("its weights lie in more than {WEIGHTS_FILES_MAX} files");
        return Err(damaged(path, &detail));
    }
    let mut digest = Sha256::new();
    digest.update(graph);
    for name in names {
        let path = path.with_file_name("").join(name);
        let file = File::open(&path).map_err(|error| fault(&path, &error))?;
        let found = file.metadata().map_err(|error| fault(&path, &error))?;
        check_size(&path, &found, WEIGHTS_BYTES_MAX)?;
        // Framed, so that bytes can't move from one file to the next unseen.
        digest.update(found.len().to_le_bytes());
        let mut file = file.take(found.len());
        std::io::copy(&mut file, &mut digest).map_err(|error| fault(&path, &error))?;
        files.push(DigestedFile::new(path, &found));
    }
    let digest = digest.finalize();
    let digits = digest.iter().take(8).map(|byte| format!("{byte:02x}"));
    Ok(digits.collect())
}

fn read_bounded(path: &Path, bytes_max: u64) -> Result<(Vec<u8>, Metadata), ComponentError> {
    let file = File::open(path).map_err(|error| fault(path, &error))?;
    let found = file.metadata().map_err(|error| fault(path, &error))?;
    check_size(path, &found, bytes_max)?;
    let mut contents = Vec::with_capacity(found.len() as usize);
    // A file that grows meanwhile is not followed.
    let mut file = file.take(found.len());
    file.read_to_end(&mut contents)
        .map_err(|error| fault(path, &error))?;
    Ok((contents, found))
}

fn check_size(path: &Path, found: &Metadata, bytes_max: u64) -> Result<(), ComponentError> {
    match (found.is_file(), found.len() <= bytes_max) {
        (true, true) => Ok(()),
        (false, _) => Err(damaged(path, "it is no file")),
        (true, false) => Err(damaged(
            path,
            &format!("it is larger than {bytes_max} bytes"),
        )),
    }
}

fn fault(path: &Path, error: &std::io::Error) -> ComponentError {
    let hint = match error.kind() {
        ErrorKind::NotFound => "copy it from the model's repository",
        _ => "",
    };
    ComponentError::new("path", format!("{}: {error}", path.display()), hint)
}

/// The error of a file that is not what it should be.
pub(crate) fn damaged(path: &Path, detail: &str) -> ComponentError {
    ComponentError::new(
        "path",
        format!("{}: {detail}", path.display()),
        "copy or export all files again from the same revision of the model",
    )
}
