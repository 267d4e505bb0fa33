//! Reads a model from a folder of its own files, whatever model it is.
//!
//! Nothing is known of such files beforehand, so each is read only as far as it may sensibly go: the
//! small ones to a fixed size, the weights to what the described sizes need.
//!
//! Invariant: what is read is bounded before it is read, and the digests are of exactly those bytes.

use super::description::{Description, SentenceSettings, SmallFiles};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::Path;
use vectide_model::ComponentError;

/// The weights' file.
const WEIGHTS: &str = "model.safetensors";
/// The tokenizer's file.
const TOKENIZER: &str = "tokenizer.json";
/// Configurations have a few kilobytes.
const SMALL_BYTES_MAX: u64 = 4 << 20;
/// XLM-RoBERTa's vocabulary of 250,002 pieces has 17 MB of JSON.
const TOKENIZER_BYTES_MAX: u64 = 24 << 20;
/// The header of a file of weights beside the weights: names, types and offsets.
const HEADER_BYTES_MAX: u64 = 16 << 20;

/// A model's files, read.
pub(crate) struct ModelFolder {
    /// What the small files say.
    pub(crate) description: Description,
    /// Contents of `model.safetensors`.
    pub(crate) weights: Vec<u8>,
    /// Contents of `tokenizer.json`.
    pub(crate) tokenizer: Vec<u8>,
}

impl ModelFolder {
    /// Reads all files.
    ///
    /// # Errors
    /// When one is missing, too large, or describes what this build can't compute.
    pub(crate) fn read(folder: &Path) -> Result<Self, ComponentError> {
        let description = read_description(folder)?;
        let tokenizer = read_bounded(folder, TOKENIZER, TOKENIZER_BYTES_MAX)?;
        let tokenizer = tokenizer.ok_or_else(|| missing(folder, TOKENIZER))?;
        let weights = read_bounded(folder, WEIGHTS, weights_bytes_max(&description))?;
        let weights = weights.ok_or_else(|| missing(folder, WEIGHTS))?;
        Ok(Self {
            description,
            weights,
            tokenizer,
        })
    }
}

/// Reads what the small files say.
///
/// # Errors
/// As for [`ModelFolder::read`].
pub(crate) fn read_description(folder: &Path) -> Result<Description, ComponentError> {
    Description::read(&small_files(folder)?)
}

/// Reads what the small files say of a sentence encoder of any architecture.
///
/// # Errors
/// When one is damaged or too large.
pub fn read_sentence_settings(folder: &Path) -> Result<SentenceSettings, ComponentError> {
    SentenceSettings::read(&small_files(folder)?)
}

fn small_files(folder: &Path) -> Result<SmallFiles, ComponentError> {
    let read = |name| read_bounded(folder, name, SMALL_BYTES_MAX);
    Ok(SmallFiles {
        config: read("config.json")?,
        modules: read("modules.json")?,
        pooling: read("1_Pooling/config.json")?,
        sentence_bert: read("sentence_bert_config.json")?,
        tokenizer_config: read("tokenizer_config.json")?,
        sentence_transformers: read("config_sentence_transformers.json")?,
    })
}

/// Looks at everything but the contents of the two large files.
///
/// # Errors
/// As for [`ModelFolder::read`].
pub(crate) fn look(folder: &Path) -> Result<(), ComponentError> {
    let description = read_description(folder)?;
    let bounds = [
        (TOKENIZER, TOKENIZER_BYTES_MAX),
        (WEIGHTS, weights_bytes_max(&description)),
    ];
    for (name, bytes_max) in bounds {
        let found = std::fs::metadata(folder.join(name));
        let bytes = found.map_err(|_| missing(folder, name))?.len();
        if bytes > bytes_max {
            return Err(too_large(name, bytes_max));
        }
    }
    Ok(())
}

/// The first 16 hex digits of the SHA-256: enough to tell files apart, short enough to read.
pub fn short_digest(contents: &[u8]) -> String {
    let digest = Sha256::digest(contents);
    digest
        .iter()
        .take(8)
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

fn weights_bytes_max(description: &Description) -> u64 {
    4 * description.shape.parameters_max() as u64 + HEADER_BYTES_MAX
}

fn missing(folder: &Path, name: &str) -> ComponentError {
    let hint = match name {
        WEIGHTS => {
            "the weights must be one file in safetensors format; weights in PyTorch's own or in several files \
             are not read"
        }
        _ => "copy it from the model's repository",
    };
    ComponentError::new("path", format!("{} has no {name}", folder.display()), hint)
}

fn too_large(name: &str, bytes_max: u64) -> ComponentError {
    ComponentError::new(
        "path",
        format!(
            "{name} is larger than {bytes_max} bytes, more than a model of the sizes in config.json needs"
        ),
        "copy all files again from the same revision of the model's repository",
    )
}

/// A file's contents, or `None` when there is none.
fn read_bounded(
    folder: &Path,
    name: &str,
    bytes_max: u64,
) -> Result<Option<Vec<u8>>, ComponentError> {
    let path = folder.join(name);
    let fault = |error: std::io::Error| {
        ComponentError::new("path", format!("{}: {error}", path.display()), "")
    };
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(fault(error)),
    };
    let bytes = file.metadata().map_err(fault)?.len();
    if bytes > bytes_max {
        return Err(too_large(name, bytes_max));
    }
    let mut contents = Vec::with_capacity(bytes as usize);
    // A file that grows meanwhile is not followed.
    file.take(bytes).read_to_end(&mut contents).map_err(fault)?;
    Ok(Some(contents))
}
