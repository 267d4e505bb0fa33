//! Fetches a model from Hugging Face's hub, where it can be reached.
//!
//! A machine without a network must go on quickly, and a stalled transfer must not hang for ever:
//! the client has no time limits of its own, so it works on a thread whose signs of life are watched.
//!
//! Invariant: at a fixed revision, never at a moving branch.

use super::progress::FetchProgress;
use super::{KnownFile, KnownModel, ModelFilesError, cache};
use hf_hub::api::Progress;
use hf_hub::api::sync::{ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, Repo, RepoType};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

/// How long the hub may take to answer at all: a slow line needs a second or two.
const FIRST_ANSWER_MAX: Duration = Duration::from_secs(5);
/// How long a transfer may stand still before the next place is tried.
const STALL_MAX: Duration = Duration::from_secs(30);

/// A sign of life of the fetching thread.
enum Sign {
    Answered,
    Bytes(u64),
    Done(Result<PathBuf, ApiError>),
}

/// Fetches both files into the cache's folder.
pub(super) fn fetch(model: &KnownModel, folder: &Path) -> Result<(), ModelFilesError> {
    if is_offline(std::env::var("HF_HUB_OFFLINE").ok().as_deref()) {
        return Err(ModelFilesError::Hub("HF_HUB_OFFLINE is set".into()));
    }
    for file in [model.tokenizer, model.weights] {
        if take_from_hub_cache(model, &file, folder) {
            continue;
        }
        // A folder of its own, since the client would keep a second copy of the file otherwise.
        let temporary = cache::temporary_folder(folder)?;
        let path = download(model, &file, temporary.path())?;
        let source = File::open(&path).map_err(ModelFilesError::io(&path))?;
        cache::store(folder, &file, source)?;
    }
    Ok(())
}

/// The values that Hugging Face's own libraries take for "yes".
fn is_offline(variable: Option<&str>) -> bool {
    let value = variable.unwrap_or_default().to_ascii_uppercase();
    ["1", "ON", "YES", "TRUE"].contains(&value.as_str())
}

fn repository(model: &KnownModel) -> Repo {
    Repo::with_revision(
        model.hub_repository.into(),
        RepoType::Model,
        model.hub_revision.into(),
    )
}

/// Other programs may have fetched the same file before.
fn take_from_hub_cache(model: &KnownModel, file: &KnownFile, folder: &Path) -> bool {
    let path = Cache::from_env().repo(repository(model)).get(file.name);
    path.and_then(|path| File::open(path).ok())
        .is_some_and(|source| cache::store(folder, file, source).is_ok())
}

fn download(
    model: &KnownModel,
    file: &KnownFile,
    temporary: &Path,
) -> Result<PathBuf, ModelFilesError> {
    let api = ApiBuilder::from_env()
        .with_progress(false)
        .with_cache_dir(temporary.to_path_buf())
        .build()
        .map_err(|error| ModelFilesError::Hub(error.to_string()))?;
    let repository = api.repo(repository(model));
    let url = repository.url(file.name);
    let (send, signs) = channel();
    let name = file.name;
    let work = move || {
        // Asking first tells an unreachable hub from a slow transfer.
        let answer = api.metadata(&url).map(|_| ());
        let _ = send.send(Sign::Answered);
        let outcome = answer.and_then(|()| transfer(&repository, name, &send));
        let _ = send.send(Sign::Done(outcome));
    };
    std::thread::Builder::new()
        .name("model-fetch".into())
        .spawn(work)
        .map_err(|error| ModelFilesError::Hub(error.to_string()))?;
    watch(&signs, &format!("{} from the hub", file.name), file.bytes)
}

fn transfer(repository: &ApiRepo, name: &str, signs: &Sender<Sign>) -> Result<PathBuf, ApiError> {
    let signs = Signs {
        to: signs.clone(),
        bytes: 0,
    };
    repository.download_with_progress(name, signs)
}

/// Waits for the thread as long as it gives signs of life; one that does not is left behind.
fn watch(signs: &Receiver<Sign>, what: &str, bytes: u64) -> Result<PathBuf, ModelFilesError> {
    let mut progress = None;
    let mut patience = FIRST_ANSWER_MAX;
    loop {
        match signs.recv_timeout(patience) {
            Ok(Sign::Answered) => patience = STALL_MAX,
            Ok(Sign::Bytes(done)) => progress
                .get_or_insert_with(|| FetchProgress::start(what, bytes))
                .set(done),
            Ok(Sign::Done(outcome)) => {
                return outcome.map_err(|error| ModelFilesError::Hub(error.to_string()));
            }
            Err(RecvTimeoutError::Timeout) => {
                let seconds = patience.as_secs();
                return Err(ModelFilesError::Hub(format!("silent for {seconds} s")));
            }
            Err(RecvTimeoutError::Disconnected) => {
                return Err(ModelFilesError::Hub("the client failed".into()));
            }
        }
    }
}

/// Passes the client's progress on.
struct Signs {
    to: Sender<Sign>,
    bytes: u64,
}

impl Progress for Signs {
    fn init(&mut self, _size: usize, _filename: &str) {}

    fn update(&mut self, size: usize) {
        self.bytes += size as u64;
        let _ = self.to.send(Sign::Bytes(self.bytes));
    }

    fn finish(&mut self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offline_is_what_the_hubs_libraries_say() {
        for yes in ["1", "true", "Yes", "ON"] {
            assert!(is_offline(Some(yes)), "{yes}");
        }
        for no in [None, Some(""), Some("0"), Some("false")] {
            assert!(!is_offline(no), "{no:?}");
        }
    }

    #[test]
    fn a_client_that_ends_or_fails_is_an_error() {
        let (send, signs) = channel();
        send.send(Sign::Answered).unwrap();
        send.send(Sign::Bytes(10)).unwrap();
        drop(send);
        let error = watch(&signs, "a file", 100).unwrap_err();
        assert!(error.to_string().contains("the client failed"), "{error}");
    }
}
