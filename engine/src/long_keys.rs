//! Keys that the store can't hold are dead letters, whatever source they are from.
//!
//! The store takes keys of 65,535 bytes, with the name of a source or an index in front, and panics over longer
//! ones: one record would end the process at each start.
//!
//! Invariant: no change goes on whose key is longer than [`KEY_BYTES_MAX`].

use crate::ingest::Delivery;
use vectide_model::{Change, DeadLetter, DeadLetterReason};

/// Bytes of a key: half of what the store takes, for names in front of it; no real key comes near.
const KEY_BYTES_MAX: usize = 32 * 1024;

/// Characters of the key that a letter's text shows.
const SHOWN: usize = 60;

/// Turns the changes with longer keys into letters.
pub(crate) fn refuse_long_keys(delivery: &mut Delivery) {
    let is_long = |change: &Change| change.key.len() > KEY_BYTES_MAX;
    if !delivery.batch.changes.iter().any(is_long) {
        return;
    }
    let mut restates = std::mem::take(&mut delivery.restates).into_iter();
    for change in std::mem::take(&mut delivery.batch.changes) {
        let restated = restates.next();
        if is_long(&change) {
            delivery.batch.dead_letters.push(letter(change));
        } else {
            delivery.batch.changes.push(change);
            delivery.restates.extend(restated);
        }
    }
}

/// Its row is not its record, so it can't be replayed.
fn letter(change: Change) -> DeadLetter {
    let Change {
        key, row, position, ..
    } = change;
    let shown: String = key.chars().take(SHOWN).collect();
    let detail = format!(
        "the key has {} bytes, where {KEY_BYTES_MAX} are the most: {shown}…",
        key.len()
    );
    let raw = row.as_ref().map(|row| row.as_bytes());
    let raw = (Some(key.as_bytes()), raw);
    let mut letter = DeadLetter::of_record(DeadLetterReason::TooLarge, position, None, detail, raw);
    letter.is_cut = true;
    letter
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::SystemTime;
    use vectide_model::{Position, SourceBatch};

    fn change(key: String, offset: u64) -> Change {
        Change {
            key: key.into(),
            row: Some("{}".into()),
            unchanged_fields: Vec::new(),
            position: Position {
                source: "pages".into(),
                partition: "log".into(),
                offset,
            },
            changed_at: SystemTime::now(),
        }
    }

    #[test]
    fn long_keys_are_letters_and_the_others_keep_their_order() {
        let keys = [
            "a",
            &"é".repeat(KEY_BYTES_MAX / 2),
            &"x".repeat(70_000),
            "b",
        ];
        let changes = (keys.iter().zip(0..)).map(|(key, offset)| change(key.to_string(), offset));
        let mut delivery = Delivery {
            batch: SourceBatch {
                changes: changes.collect(),
                ..SourceBatch::default()
            },
            restates: vec![true, false, true, true],
            ..Delivery::default()
        };
        refuse_long_keys(&mut delivery);
        let offsets: Vec<u64> = (delivery.batch.changes.iter())
            .map(|it| it.position.offset)
            .collect();
        assert_eq!(offsets, [0, 1, 3]);
        assert_eq!(delivery.restates, [true, false, true]);
        let [letter] = &delivery.batch.dead_letters[..] else {
            panic!("{:?}", delivery.batch.dead_letters);
        };
        assert_eq!((letter.position.offset, letter.is_cut), (2, true));
        assert!(letter.detail.contains("70000 bytes"), "{}", letter.detail);
        assert!(letter.detail.len() < 200, "{}", letter.detail);
    }
}
