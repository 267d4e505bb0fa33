//! Dead letters of a state at rest, for a person: which there are, and which of them are meant.
//!
//! Invariant: it reads one snapshot of a state that no process writes.

use crate::state::{
    DirectoryLock, FjallStore, StateError, dead_letter_key, kept_letter, open_at_rest, read_commit,
};
use serde::Serialize;
use std::path::Path;
use std::sync::Arc;
use vectide_model::{DeadLetterReason, KeptLetter, Store, StoreError, StoreRead, Table};

/// How many letters there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct DeadLetterCounts {
    /// In the state.
    pub held: u64,
    /// Ever written.
    pub written: u64,
    /// Removed because there were more than `dead_letters.keep`.
    pub dropped: u64,
}

/// Which letters are meant; what is empty accepts all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LetterSelection {
    /// These numbers.
    pub ids: Vec<u64>,
    /// Letters of this source.
    pub source: Option<String>,
    /// Letters with this reason.
    pub reason: Option<DeadLetterReason>,
}

impl LetterSelection {
    /// Whether a letter is meant.
    pub fn accepts(&self, kept: &KeptLetter) -> bool {
        let is_of_source = |source: &String| **source == *kept.letter.position.source;
        (self.ids.is_empty() || self.ids.contains(&kept.id))
            && self.source.as_ref().is_none_or(is_of_source)
            && self.reason.is_none_or(|it| it == kept.letter.reason)
    }
}

/// The letters of a state at rest; nobody else can use the state meanwhile.
pub struct DeadLetters {
    _store: FjallStore,
    read: Arc<dyn StoreRead>,
    _lock: DirectoryLock,
}

impl DeadLetters {
    /// Opens a state.
    ///
    /// # Errors
    /// When it is missing, in use or damaged.
    pub fn open(state_directory: &Path) -> Result<Self, StateError> {
        let (lock, store) = open_at_rest(state_directory)?;
        let read = store.snapshot();
        // Names the version of a state that is not of this program.
        read_commit(&*read)?;
        Ok(Self {
            _store: store,
            read,
            _lock: lock,
        })
    }

    /// How many there are.
    ///
    /// # Errors
    /// When the store can't be read.
    pub fn counts(&self) -> Result<DeadLetterCounts, StoreError> {
        let letters = read_commit(&*self.read)?.unwrap_or_default().letters;
        Ok(DeadLetterCounts {
            held: letters.held,
            written: letters.written,
            dropped: letters.dropped,
        })
    }

    /// The letters in the order of their numbers, one at a time.
    pub fn iter(&self) -> impl Iterator<Item = Result<KeptLetter, StoreError>> {
        letters(&*self.read)
    }

    /// One letter.
    ///
    /// # Errors
    /// When the store can't be read.
    pub fn get(&self, id: u64) -> Result<Option<KeptLetter>, StoreError> {
        let key = dead_letter_key(id);
        let value = self.read.get(Table::DeadLetters, &key)?;
        value.map(|value| kept_letter(&key, &value)).transpose()
    }
}

/// All letters of a snapshot.
pub(crate) fn letters(
    read: &dyn StoreRead,
) -> impl Iterator<Item = Result<KeptLetter, StoreError>> {
    read.scan(Table::DeadLetters, &[]).map(|entry| {
        let (key, value) = entry?;
        kept_letter(&key, &value)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::SystemTime;
    use vectide_model::{DeadLetter, Position};

    #[test]
    fn what_is_not_said_accepts_all() {
        let position = Position {
            source: "log".into(),
            partition: "p".into(),
            offset: 1,
        };
        let kept = KeptLetter {
            id: 7,
            written_at: SystemTime::UNIX_EPOCH,
            letter: DeadLetter::new(DeadLetterReason::Schema, position, None, "why", b"raw"),
        };
        let all = LetterSelection::default();
        assert!(all.accepts(&kept));
        let cases = [
            (
                vec![7, 8],
                Some("log"),
                Some(DeadLetterReason::Schema),
                true,
            ),
            (vec![8], None, None, false),
            (vec![], Some("lo"), None, false),
            (vec![7], None, Some(DeadLetterReason::Render), false),
        ];
        for (ids, source, reason, expected) in cases {
            let selection = LetterSelection {
                ids,
                source: source.map(str::to_owned),
                reason,
            };
            assert_eq!(selection.accepts(&kept), expected, "{selection:?}");
        }
    }
}
