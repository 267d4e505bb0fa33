//! Answers that were paid for in a call that failed later on.
//!
//! A call whose texts take several requests gives the vectors of all of them or none. Where a later request
//! fails, what the ones before it brought waits here until somebody asks for the same text again, as whoever has
//! chunks does: for the same texts together, or for half of them.
//!
//! Invariant: at most [`BYTES_MAX`] of vectors are held, the newest; each is given out once.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};
use vectide_model::ContentHash;

/// What a single call can have at most: 2,048 texts of 8,192 dimensions. With the defaults and 1,536 dimensions
/// that is three hundred calls, and only as many fail at a time as there are requests at the same time.
const BYTES_MAX: usize = 64 << 20;

/// The answers.
pub(super) struct Kept {
    held: Mutex<Held>,
    bytes_max: usize,
}

#[derive(Default)]
struct Held {
    /// By the text as it was sent, with the number under which it stands in `oldest`.
    vectors: HashMap<ContentHash, (u64, Vec<f32>)>,
    oldest: BTreeMap<u64, ContentHash>,
    next: u64,
    bytes: usize,
}

impl Kept {
    pub(super) fn new() -> Self {
        Self::of_bytes(BYTES_MAX)
    }

    fn of_bytes(bytes_max: usize) -> Self {
        Self {
            held: Mutex::default(),
            bytes_max,
        }
    }

    /// Keeps the vector of a text until it is taken, or newer ones need its place.
    pub(super) fn keep(&self, text: &str, vector: Vec<f32>) {
        let mut held = self.held();
        let content = ContentHash::of(text);
        held.take(content);
        let number = held.next;
        held.next += 1;
        held.bytes += bytes_of(&vector);
        held.oldest.insert(number, content);
        held.vectors.insert(content, (number, vector));
        while held.bytes > self.bytes_max {
            let Some((_, oldest)) = held.oldest.first_key_value() else {
                break;
            };
            let oldest = *oldest;
            held.take(oldest);
        }
    }

    /// The vector of a text, if it was kept.
    pub(super) fn take(&self, text: &str) -> Option<Vec<f32>> {
        let mut held = self.held();
        // Nearly always: no text is hashed in vain.
        if held.vectors.is_empty() {
            return None;
        }
        held.take(ContentHash::of(text))
    }

    /// Nothing here calls anything that panics half-way.
    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held {
    fn take(&mut self, content: ContentHash) -> Option<Vec<f32>> {
        let (number, vector) = self.vectors.remove(&content)?;
        self.oldest.remove(&number);
        self.bytes -= bytes_of(&vector);
        Some(vector)
    }
}

fn bytes_of(vector: &[f32]) -> usize {
    size_of_val(vector)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_given_out_once() {
        let kept = Kept::new();
        assert_eq!(kept.take("a"), None);
        kept.keep("a", vec![1.0]);
        kept.keep("b", vec![2.0]);
        kept.keep("a", vec![3.0]);
        assert_eq!(kept.take("a"), Some(vec![3.0]));
        assert_eq!(kept.take("a"), None);
        assert_eq!(kept.take("b"), Some(vec![2.0]));
        let held = kept.held();
        assert_eq!((held.bytes, held.oldest.len()), (0, 0));
    }

    #[test]
    fn the_oldest_go_where_there_is_no_room() {
        let kept = Kept::of_bytes(3 * 8);
        for number in 0..1000 {
            kept.keep(&number.to_string(), vec![0.0; 2]);
        }
        for (number, is_held) in [(996, false), (997, true), (999, true)] {
            assert_eq!(kept.take(&number.to_string()).is_some(), is_held);
        }
        let held = kept.held();
        assert_eq!(
            (held.bytes, held.vectors.len(), held.oldest.len()),
            (8, 1, 1)
        );
    }
}
