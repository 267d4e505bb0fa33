//! Dead letters as the state keeps them, and the contract of the places where they are written
//! besides.
//!
//! Invariant: a letter is in the state, under a number of its own, before any other place has it;
//! whoever reads such a place tells repeated letters by that number.

use crate::{ComponentError, ConnectionCheck, DeadLetter, OpenContext};
use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use std::time::SystemTime;

/// A dead letter in the state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptLetter {
    /// Its number: letters are numbered in the order in which they were committed, from 0.
    pub id: u64,
    /// When it was committed first.
    pub written_at: SystemTime,
    /// The letter.
    pub letter: DeadLetter,
}

/// Why letters could not be written: the effect is not known, so they are written again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("dead letters can't be written to {place}: {detail}\nhint: {hint}")]
pub struct DeadLetterSinkError {
    /// The folder or topic.
    pub place: String,
    /// What happened.
    pub detail: String,
    /// The way out.
    pub hint: String,
}

/// A place that dead letters are written to besides the state.
///
/// Obligations of an implementation:
/// - when `write` returns `Ok`, all the letters are durable there, each exactly as given;
/// - after an error or a crash the same letters are given again: they may then be there twice, and
///   a piece of a letter that a crash left behind is never taken for a letter;
/// - a call ends within a minute, whatever the outside world does.
pub trait DeadLetterSink: Send {
    /// Writes letters, which come in the order of their numbers.
    ///
    /// # Errors
    /// When some of them may not be durable.
    fn write(&mut self, letters: &[KeptLetter]) -> Result<(), DeadLetterSinkError>;
}

/// The configuration of such a place. Implement it beside the sink.
pub trait DeadLetterSinkConfig: DeserializeOwned + JsonSchema + Send + Sync + 'static {
    /// The field of the configuration that chooses this kind: `dir`, `topic`.
    const FIELD: &'static str;

    /// Faults that can be seen without touching the outside world; all of them.
    fn check(&self) -> Vec<ComponentError>;

    /// Makes it ready; connecting may wait until the first letter.
    ///
    /// # Errors
    /// When it can't work as configured.
    fn open(self, context: &OpenContext) -> Result<Box<dyn DeadLetterSink>, ComponentError>;

    /// Looks whether letters could be written, and leaves nothing behind.
    fn check_connection(&self, context: &OpenContext) -> Vec<ConnectionCheck>;
}
