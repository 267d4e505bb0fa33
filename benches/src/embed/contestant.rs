//! Who embeds texts in the benchmark, and what is known of it afterwards.

use super::texts::TextSet;

/// What a contestant is.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Entry {
    pub(crate) library: String,
    /// `f32` or `bf16`.
    pub(crate) precision: &'static str,
    pub(crate) threads: usize,
}

/// What embedding all texts once took.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Round {
    pub(crate) seconds: f64,
    /// Of all threads, computing: what other programs do not disturb.
    pub(crate) processor_seconds: f64,
    /// Of the measured peak; only Vectide says it.
    pub(crate) share_of_peak: Option<f64>,
}

/// Embeds texts.
pub(crate) trait Contestant {
    fn entry(&self) -> &Entry;

    /// Embeds all texts once.
    fn embed(&mut self, set: &TextSet) -> Round;

    /// The vectors of all texts, one after the other.
    fn vectors(&mut self, set: &TextSet) -> Vec<f32>;
}

/// A contestant's rounds over one set of texts.
pub(crate) struct Measured {
    pub(crate) entry: Entry,
    pub(crate) vectors: Vec<f32>,
    pub(crate) rounds: Vec<Round>,
}

impl Measured {
    pub(crate) fn new(entry: Entry, vectors: Vec<f32>) -> Self {
        Self {
            entry,
            vectors,
            rounds: Vec::new(),
        }
    }

    pub(crate) fn median(&self, value: impl Fn(&Round) -> f64) -> f64 {
        median(self.rounds.iter().map(value).collect())
    }

    /// How many times as long as another it takes: the median over the rounds.
    pub(crate) fn times(&self, other: &Self, value: impl Fn(&Round) -> f64) -> f64 {
        let pairs = self.rounds.iter().zip(&other.rounds);
        median(pairs.map(|(mine, its)| value(mine) / value(its)).collect())
    }
}

/// The middle one; not a number where there is none.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
