//! What a pipeline needs of the outside world, looked at without starting it:
//! `vectide validate --connect`.
//!
//! Invariant: nothing is changed that stays, and every check has an answer within the limit, whatever
//! the outside world does.

use crate::config::LoadedConfig;
use crate::state::{DirectoryLock, StateError};
use crossbeam_channel::bounded;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use vectide_model::{ComponentError, ConnectionCheck};

/// What was found for one section of the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SectionCheck {
    /// Path of the section: `sources.pages`.
    pub section: String,
    /// What was looked at there.
    pub checks: Vec<ConnectionCheck>,
}

type Job = Box<dyn FnOnce() -> Vec<ConnectionCheck> + Send>;

/// The checks of a configuration.
pub struct ConnectionChecks {
    jobs: Vec<(String, Job)>,
}

impl LoadedConfig {
    /// Everything that can be looked at.
    pub fn connection_checks(self) -> ConnectionChecks {
        let mut jobs: Vec<(String, Job)> = Vec::new();
        let state_directory = self.state_directory();
        let check_state = move || vec![check_state(&state_directory)];
        jobs.push(("state".into(), Box::new(check_state)));
        for (name, embedder) in self.embedders {
            let context = self.context.clone();
            let job = move || {
                let what = format!("model {}", embedder.model());
                let result = embedder.locate(&context);
                vec![ConnectionCheck { what, result }]
            };
            jobs.push((format!("indexes.{name}"), Box::new(job)));
        }
        if let Some(sink) = self.dead_letters.sink {
            let context = self.context.clone();
            let job = move || sink.check_connection(&context);
            jobs.push(("dead_letters".into(), Box::new(job)));
        }
        for (name, _, source) in self.sources {
            let context = self.context.clone();
            let section = format!("sources.{name}");
            let job = move || source.check_connection(name.as_str(), &context);
            jobs.push((section, Box::new(job)));
        }
        ConnectionChecks { jobs }
    }
}

impl ConnectionChecks {
    /// Looks at everything at the same time; what has no answer within `limit` is a fault. The
    /// answers come in the order of the sections.
    ///
    /// # Errors
    /// When a thread can't be started.
    pub fn run(self, limit: Duration) -> std::io::Result<Vec<SectionCheck>> {
        let deadline = Instant::now() + limit;
        let mut waiting = Vec::new();
        for (section, job) in self.jobs {
            let (answer, answers) = bounded(1);
            std::thread::Builder::new()
                .name("check".into())
                .spawn(move || {
                    // Nobody waits any more when it took too long.
                    let _ = answer.send(job());
                })?;
            waiting.push((section, answers));
        }
        let checks = waiting.into_iter().map(|(section, answers)| {
            let late = |_| {
                let fact = format!("no answer within {} s", limit.as_secs());
                let hint = "check the network and the addresses in this section";
                vec![ConnectionCheck {
                    what: "connection".into(),
                    result: Err(ComponentError::new("", fact, hint)),
                }]
            };
            let checks = answers.recv_deadline(deadline).unwrap_or_else(late);
            SectionCheck { section, checks }
        });
        Ok(checks.collect())
    }
}

/// Whether the state can be made or opened by this process.
fn check_state(directory: &Path) -> ConnectionCheck {
    let result = if directory.exists() {
        check_lock(directory).and_then(|found| can_write(directory).map(|()| found))
    } else {
        let parent = nearest_existing(directory);
        can_write(&parent).map(|()| "it can be made".to_owned())
    };
    ConnectionCheck {
        what: format!("folder {}", directory.display()),
        result,
    }
}

fn check_lock(directory: &Path) -> Result<String, ComponentError> {
    // A folder without one has no state; taking the lock would leave the file behind.
    if !directory.join("lock").exists() {
        return Ok("it holds no state yet".into());
    }
    match DirectoryLock::take(directory) {
        Ok(_) => Ok("it is there and no process uses it".into()),
        Err(StateError::Unusable { fact, hint, .. }) => Err(ComponentError::new("dir", fact, hint)),
        Err(StateError::InUse { .. }) => Err(ComponentError::new(
            "dir",
            "another process uses it",
            "end that process, or give this one a state folder of its own",
        )),
        Err(StateError::Store(error)) => Err(ComponentError::new("dir", error.to_string(), "")),
    }
}

fn nearest_existing(path: &Path) -> PathBuf {
    let mut ancestors = path.ancestors().skip(1);
    let found = ancestors.find(|it| it.exists());
    match found {
        Some(found) if !found.as_os_str().is_empty() => found.to_owned(),
        _ => ".".into(),
    }
}

/// Makes a file and removes it: permissions alone do not tell a read-only file system.
fn can_write(directory: &Path) -> Result<(), ComponentError> {
    // A name of its own: other checks look at the same folder at the same time.
    let probe = directory.join(format!(".vectide-check-state-{}", std::process::id()));
    let made = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(&probe);
    made.and_then(|_| std::fs::remove_file(&probe))
        .map_err(|error| {
            ComponentError::new(
                "dir",
                format!("{} can't be written: {error}", directory.display()),
                "name a folder that this user may write",
            )
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_folder_is_looked_at_and_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let state = directory.path().join("a/b");
        assert!(check_state(&state).result.is_ok());
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);

        let lock = DirectoryLock::take(&state).unwrap();
        let used = check_state(&state).result.unwrap_err();
        assert!(used.fact.contains("another process"), "{used}");
        drop(lock);
        assert!(check_state(&state).result.is_ok());

        let file = directory.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert!(check_state(&file.join("state")).result.is_err());
    }

    #[test]
    fn what_does_not_answer_is_a_fault() {
        let job: Job = Box::new(|| {
            std::thread::sleep(Duration::from_secs(5));
            Vec::new()
        });
        let quick: Job = Box::new(Vec::new);
        let checks = ConnectionChecks {
            jobs: vec![("slow".into(), job), ("quick".into(), quick)],
        };
        let found = checks.run(Duration::from_millis(100)).unwrap();
        assert!(found[0].checks[0].result.is_err());
        assert_eq!(found[1].checks, []);
    }
}
