//! Which texts are computed together: those of near lengths, since rows are filled up to the longest.
//!
//! Invariant: every text is in exactly one batch; a batch of more than one text keeps to the budget, filling
//! included, and no row of it is filled by more than a quarter and a few tokens.

/// Tokens of a micro-batch, filling included: enough rows to keep the weights' traffic small beside the
/// arithmetic, few enough that a small model takes a tenth of a second. A text of more tokens is a micro-batch of
/// its own.
pub(crate) const MICRO_BATCH_TOKENS: usize = 512;
/// What a row may be filled by beside a quarter of its length.
const FILLING_TOKENS: usize = 4;

/// Puts texts of these lengths into batches, by their places.
pub(crate) fn batches(lengths: &[usize], texts_max: usize) -> Vec<Vec<usize>> {
    let mut places: Vec<usize> = (0..lengths.len()).collect();
    places.sort_by_key(|place| lengths[*place]);
    let mut batches: Vec<Vec<usize>> = Vec::new();
    for place in places {
        let length = lengths[place];
        let fits = |batch: &Vec<usize>| {
            let shortest = lengths[batch[0]];
            batch.len() < texts_max
                && (batch.len() + 1) * length <= MICRO_BATCH_TOKENS
                && length <= shortest + shortest / 4 + FILLING_TOKENS
        };
        match batches.last_mut().filter(|batch| fits(batch)) {
            Some(batch) => batch.push(place),
            None => batches.push(vec![place]),
        }
    }
    batches
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_text_is_in_one_batch_within_the_budget(
            lengths in proptest::collection::vec(1..700_usize, 0..200),
            texts_max in prop_oneof![Just(1), Just(usize::MAX)],
        ) {
            let batches = batches(&lengths, texts_max);
            let mut places: Vec<usize> = batches.iter().flatten().copied().collect();
            places.sort_unstable();
            prop_assert_eq!(places, (0..lengths.len()).collect::<Vec<_>>());
            for batch in batches.iter().filter(|batch| batch.len() > 1) {
                let batch: Vec<usize> = batch.iter().map(|place| lengths[*place]).collect();
                let longest = *batch.iter().max().unwrap();
                let shortest = *batch.iter().min().unwrap();
                prop_assert!(texts_max > 1 && batch.len() * longest <= MICRO_BATCH_TOKENS);
                prop_assert!(longest <= shortest + shortest / 4 + FILLING_TOKENS);
            }
        }
    }
}
