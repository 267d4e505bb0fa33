//! The rows of a segment that pass a filter.
//!
//! Invariant: they are those whose attributes pass it, computed from posting lists, a bit a row, and kept for the
//! next query with the same filter.

use crate::bitmap::Bitmap;
use crate::budget::Budget;
use crate::postings::{Postings, words_of};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use vectide_model::Filter;

/// Filters of which a segment remembers the rows: an eighth of a byte a row each.
const KEPT: usize = 8;

/// The rows that passed the last filters. A segment's rows and attributes never change, so neither do they.
#[derive(Debug, Default)]
pub(crate) struct PassingCache(Mutex<VecDeque<(Filter, Arc<[u64]>)>>);

impl PassingCache {
    /// The rows of `live` that pass; none when the time is up before they are known. Without postings no row
    /// of the segment has an attribute.
    pub(crate) fn passing(
        &self,
        filter: &Filter,
        attributes: Option<&Postings>,
        live: &Bitmap,
        budget: &mut Budget,
    ) -> Bitmap {
        let words = words_of(live.rows());
        let set = self.known(filter).unwrap_or_else(|| {
            let mut rows = Rows {
                attributes,
                words,
                budget,
                is_cut: false,
            };
            let set: Arc<[u64]> = rows.of(filter).into();
            if rows.is_cut {
                return vec![0; words].into();
            }
            self.keep(filter, &set);
            set
        });
        live.intersection(&set)
    }

    /// Queries wait for nobody: where another one looks just now, nothing is known.
    fn known(&self, filter: &Filter) -> Option<Arc<[u64]>> {
        let mut kept = self.0.try_lock().ok()?;
        let at = kept.iter().position(|(known, _)| known == filter)?;
        let newest = kept.remove(at)?;
        let set = newest.1.clone();
        kept.push_front(newest);
        Some(set)
    }

    fn keep(&self, filter: &Filter, set: &Arc<[u64]>) {
        if let Ok(mut kept) = self.0.try_lock() {
            kept.truncate(KEPT - 1);
            kept.push_front((filter.clone(), set.clone()));
        }
    }
}

/// Keys looked up between two looks at the clock.
const KEYS_BETWEEN_LOOKS: usize = 4_096;

struct Rows<'a, 'b> {
    attributes: Option<&'a Postings>,
    words: usize,
    budget: &'b mut Budget,
    /// Whether time was up before all was known.
    is_cut: bool,
}

impl Rows<'_, '_> {
    fn none(&self) -> Vec<u64> {
        vec![0; self.words]
    }

    /// The rows that pass, and perhaps bits behind the last row.
    fn of(&mut self, filter: &Filter) -> Vec<u64> {
        match filter {
            Filter::Within(_) | Filter::Any(_) => {
                let mut set = self.none();
                self.add(filter, &mut set);
                set
            }
            Filter::All(filters) => {
                let mut all = vec![u64::MAX; self.words];
                for filter in filters {
                    let of = self.of(filter);
                    all.iter_mut().zip(of).for_each(|(word, of)| *word &= of);
                }
                all
            }
            Filter::Not(filter) => {
                let mut set = self.of(filter);
                set.iter_mut().for_each(|word| *word = !*word);
                set
            }
        }
    }

    /// Adds the rows that pass.
    fn add(&mut self, filter: &Filter, set: &mut [u64]) {
        match filter {
            Filter::Within(range) => {
                let Some(attributes) = self.attributes else {
                    return;
                };
                let keys = attributes.between(&range.from, &range.to);
                for (count, key) in keys.enumerate() {
                    if count.is_multiple_of(KEYS_BETWEEN_LOOKS) && self.budget.is_over() {
                        self.is_cut = true;
                        return;
                    }
                    attributes.add_to(key, set);
                }
            }
            Filter::Any(filters) => filters.iter().for_each(|it| self.add(it, set)),
            Filter::All(_) | Filter::Not(_) => {
                let of = self.of(filter);
                set.iter_mut().zip(of).for_each(|(word, of)| *word |= of);
            }
        }
    }
}
