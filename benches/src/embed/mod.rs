//! How fast texts become vectors on the processor, beside others with the same weights on the same texts, in the
//! same run: sentence-transformers, onnxruntime and OpenVINO, each as its library is best used
//! (`benches/peers/embed.py`), on one thread and on two.
//!
//! The peers run where `scripts/embed_peers.sh` has installed them; otherwise they are said to be skipped.
//! `VECTIDE_EMBED_ROUNDS` sets the number of rounds.
//!
//! Invariant: all contestants take turns within each round, tokenization included, and ratios are of the same
//! round, so that a machine that is busy for a while slows both sides of them.

mod contestant;
mod peer;
mod report;
mod texts;
mod vectide;

use contestant::{Contestant, Measured};
use texts::TextSet;

const ROUNDS: usize = 5;

pub(crate) fn run() {
    println!("machine: {}", crate::index::machine());
    let mut contestants = vectide::contestants();
    contestants.extend(peer::contestants());
    for set in texts::sets() {
        let measured = measure(&set, &mut contestants);
        report::print(&set, &measured);
    }
}

fn rounds_wanted() -> usize {
    let rounds = std::env::var("VECTIDE_EMBED_ROUNDS").ok();
    let rounds = rounds.and_then(|rounds| rounds.parse().ok());
    rounds.filter(|rounds| *rounds > 0).unwrap_or(ROUNDS)
}

fn measure(set: &TextSet, contestants: &mut [Box<dyn Contestant>]) -> Vec<Measured> {
    let mut measured: Vec<Measured> = contestants
        .iter_mut()
        // The first time warms up, and shows whether the vectors are the same.
        .map(|it| Measured::new(it.entry().clone(), it.vectors(set)))
        .collect();
    for round in 0..rounds_wanted() {
        for at in 0..contestants.len() {
            // Nobody always comes after the same one.
            let at = (at + round) % contestants.len();
            measured[at].rounds.push(contestants[at].embed(set));
        }
    }
    measured
}
