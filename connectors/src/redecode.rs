//! Decoding dead letters again.
//!
//! Invariant: a letter that was cut is never decoded from its stump, and one that still can't be
//! decoded keeps its position.

use crate::envelope::{RawRecord, Rejected};
use vectide_model::{Change, DeadLetter, DeadLetterReason, Redecoder};

/// Decodes letters by a function of their record.
pub(crate) struct RecordRedecoder<F>(pub(crate) F);

impl<F> Redecoder for RecordRedecoder<F>
where
    F: FnMut(&RawRecord<'_>, &DeadLetter) -> Result<Vec<Change>, Rejected> + Send,
{
    fn decode_again(&mut self, letter: &DeadLetter) -> Result<Vec<Change>, Box<DeadLetter>> {
        if letter.is_cut {
            let mut refused = letter.clone();
            refused.reason = DeadLetterReason::TooLarge;
            refused.detail = format!(
                "only the first {} bytes of the record were kept, so it can't be replayed; first it \
                 was: {}",
                DeadLetter::RAW_BYTES_MAX,
                letter.detail
            );
            return Err(Box::new(refused));
        }
        let record = RawRecord {
            topic: topic_of(letter),
            key: letter.raw_key.as_deref(),
            value: (!letter.is_tombstone).then_some(&*letter.raw),
            headers: &[],
        };
        (self.0)(&record, letter).map_err(|rejected| {
            let mut refused = letter.clone();
            refused.reason = rejected.reason;
            refused.detail = rejected.detail;
            refused.key = rejected.key.or(refused.key);
            Box::new(refused)
        })
    }
}

/// A partition of a topic is named `topic/3`; one of a log has no such end.
fn topic_of(letter: &DeadLetter) -> &str {
    let partition = &*letter.position.partition;
    match partition.rsplit_once('/') {
        Some((topic, number)) if number.bytes().all(|byte| byte.is_ascii_digit()) => topic,
        _ => partition,
    }
}
