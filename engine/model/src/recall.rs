//! How many of the true hits a search has found, and what is known of the mean over many searches.
//!
//! Invariant: one way of counting for everything that tells recall.

use std::collections::HashSet;
use std::hash::Hash;

/// The share of the true hits that a search found, each hit with its score, best first; one that ties with the
/// last true one is as good. `None` where there is nothing to find.
pub fn recall<C: Eq + Hash>(found: &[(C, f32)], truth: &[(C, f32)]) -> Option<f64> {
    let (_, last) = truth.last()?;
    let chunks: HashSet<&C> = found.iter().map(|(chunk, _)| chunk).collect();
    let same = truth.iter().filter(|(chunk, _)| chunks.contains(chunk));
    let ties = found.iter().filter(|(_, score)| score >= last).count();
    Some(same.count().max(ties).min(truth.len()) as f64 / truth.len() as f64)
}

/// Recalls of many searches.
#[derive(Clone, Copy, Debug, Default)]
pub struct Recalls {
    count: f64,
    sum: f64,
    squares: f64,
}

impl Recalls {
    /// Adds that of a search.
    pub fn add(&mut self, recall: f64) {
        self.count += 1.0;
        self.sum += recall;
        self.squares += recall * recall;
    }

    /// Lets those so far count half.
    pub fn halve(&mut self) {
        for part in [&mut self.count, &mut self.sum, &mut self.squares] {
            *part /= 2.0;
        }
    }

    /// How many there are.
    pub fn count(&self) -> f64 {
        self.count
    }

    /// Mean, and half the width of the interval that holds it with 95 %.
    pub fn interval(&self) -> (f64, f64) {
        let count = self.count.max(1.0);
        let mean = self.sum / count;
        let variance = (self.squares / count - mean * mean).max(0.0);
        (mean, 1.96 * (variance / count).sqrt())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ties_count_and_strangers_do_not() {
        let truth = [("a", 0.9), ("b", 0.5), ("c", 0.5), ("d", 0.5)];
        assert_eq!(recall(&truth, &truth), Some(1.0));
        let tied = [("a", 0.9), ("e", 0.5), ("f", 0.5), ("g", 0.5)];
        assert_eq!(recall(&tied, &truth), Some(1.0));
        let worse = [("a", 0.9), ("e", 0.4), ("f", 0.3)];
        assert_eq!(recall(&worse, &truth), Some(0.25));
        assert_eq!(recall(&[], &truth), Some(0.0));
        assert_eq!(recall(&truth, &[]), None);
    }

    #[test]
    fn the_interval_is_that_of_a_mean() {
        let mut recalls = Recalls::default();
        assert_eq!(recalls.interval(), (0.0, 0.0));
        for recall in [1.0, 0.5, 1.0, 0.5] {
            recalls.add(recall);
        }
        let (mean, doubt) = recalls.interval();
        assert!((mean - 0.75).abs() < 1e-9 && (doubt - 1.96 * 0.125).abs() < 1e-9);
        recalls.halve();
        assert_eq!((recalls.count(), recalls.interval().0), (2.0, mean));
    }
}
