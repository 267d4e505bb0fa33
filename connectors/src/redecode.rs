//! Decoding dead letters again.
//!
//! Invariant: a letter that was cut is never decoded from its stump; one that still can't be decoded,
//! or means what a replay can't do, keeps its position.

use crate::envelope::{RawRecord, Rejected};
use vectide_model::{Change, DeadLetter, DeadLetterReason, Redecoder, RefusedLetter};

/// Why a letter's record gives no changes now.
pub(crate) struct Refused {
    rejected: Rejected,
    hint: String,
}

impl Refused {
    /// With a way out.
    pub(crate) fn new(rejected: Rejected, hint: String) -> Self {
        Self { rejected, hint }
    }
}

impl From<Rejected> for Refused {
    /// What a decoder says against a record is told as it is: the way out is to correct that.
    fn from(rejected: Rejected) -> Self {
        Self::new(rejected, String::new())
    }
}

/// Decodes letters by a function of their record.
pub(crate) struct RecordRedecoder<F>(pub(crate) F);

impl<F> Redecoder for RecordRedecoder<F>
where
    F: FnMut(&RawRecord<'_>, &DeadLetter) -> Result<Vec<Change>, Refused> + Send,
{
    fn decode_again(&mut self, letter: &DeadLetter) -> Result<Vec<Change>, Box<RefusedLetter>> {
        if letter.is_cut {
            let mut refused = letter.clone();
            refused.reason = DeadLetterReason::TooLarge;
            refused.detail = format!(
                "only the first {} bytes of the record were kept, so it can't be replayed; first it \
                 was: {}",
                DeadLetter::RAW_BYTES_MAX,
                letter.detail
            );
            let hint = String::new();
            return Err(Box::new(RefusedLetter {
                letter: refused,
                hint,
            }));
        }
        let record = RawRecord {
            topic: topic_of(letter),
            key: letter.raw_key.as_deref(),
            value: (!letter.is_tombstone).then_some(&*letter.raw),
            headers: &[],
        };
        (self.0)(&record, letter).map_err(|Refused { rejected, hint }| {
            let mut letter = letter.clone();
            letter.reason = rejected.reason;
            letter.detail = rejected.detail;
            letter.key = rejected.key.or(letter.key);
            Box::new(RefusedLetter { letter, hint })
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
