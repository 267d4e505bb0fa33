//! Vectide's own encoder in the benchmark: the registry's embedder, called as a pipeline calls it.

use super::contestant::{Contestant, Entry, Round};
use super::texts::TextSet;
use crate::model::open;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::time::Instant;
use vectide_encoder::measure::{StageTimes, measure_stages, peak_flops, thread_time};
use vectide_encoder::{Backend, Products};
use vectide_model::{Embedder, Lane, Precision};

pub(crate) const NAME: &str = "Vectide";
/// Texts of a call: as many as fill the embedder's batches.
const TEXTS_PER_CALL: usize = 32;

struct Vectide {
    entry: Entry,
    embedder: Arc<dyn Embedder>,
    arithmetic: (Backend, Products),
}

/// In each precision that the processor has, on one thread and on two.
pub(crate) fn contestants() -> Vec<Box<dyn Contestant>> {
    let mut contestants: Vec<Box<dyn Contestant>> = Vec::new();
    let backend = Backend::best();
    for (precision, name, products) in [
        (Precision::F32, "f32", Products::F32),
        (Precision::Bf16, "bf16", Products::Bf16),
    ] {
        if !products.are_available(backend) {
            println!("skipped: {NAME} in {name}: this processor has no such products");
            continue;
        }
        let embedder = open(precision);
        println!("{NAME}: {}", embedder.identity().device);
        for threads in [1, 2] {
            contestants.push(Box::new(Vectide {
                entry: Entry {
                    library: NAME.to_owned(),
                    precision: name,
                    threads,
                },
                embedder: embedder.clone(),
                arithmetic: (backend, products),
            }));
        }
    }
    contestants
}

/// Tokens of all texts, as the model computes them: the special ones included, cut to its limit.
pub(crate) fn tokens(texts: &[String]) -> usize {
    let embedder = open(Precision::Auto);
    let (counter, tokens_max) = (embedder.token_counter(), embedder.identity().tokens_max);
    let counts = texts
        .iter()
        .map(|it| (counter.count(it) + 2).min(tokens_max));
    counts.sum()
}

/// What one thread has made.
struct Part {
    /// The call's number, and its vectors.
    calls: Vec<(usize, Vec<Vec<f32>>)>,
    seconds: f64,
    flops: f64,
    peak: f64,
}

impl Vectide {
    /// Embeds all texts on the threads, which take turns at them; the peak is measured on all of them right before.
    fn all(&self, set: &TextSet) -> (f64, Vec<Part>) {
        let calls: Vec<&[String]> = set.texts.chunks(TEXTS_PER_CALL).collect();
        let next = AtomicUsize::new(0);
        let together = Barrier::new(self.entry.threads + 1);
        let one = || {
            let peak = peak_flops(self.arithmetic.0, self.arithmetic.1).unwrap_or(f64::NAN);
            together.wait();
            self.part(&calls, &next, peak)
        };
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..self.entry.threads).map(|_| scope.spawn(one)).collect();
            together.wait();
            let start = Instant::now();
            let parts = threads.into_iter().map(|thread| thread.join());
            let parts = parts.map(|it| it.unwrap_or_else(|it| std::panic::resume_unwind(it)));
            let parts: Vec<Part> = parts.collect();
            (start.elapsed().as_secs_f64(), parts)
        })
    }

    fn part(&self, calls: &[&[String]], next: &AtomicUsize, peak: f64) -> Part {
        let (mut made, mut stages) = (Vec::new(), StageTimes::default());
        let seconds = thread_time(|| {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                let Some(call) = calls.get(number) else {
                    break;
                };
                let texts: Vec<&str> = call.iter().map(String::as_str).collect();
                // At normal priority: bulk threads would give way to whatever else this machine does.
                let (vectors, times) = measure_stages(|| self.embedder.embed(Lane::Query, &texts));
                made.push((number, vectors.unwrap_or_else(|error| panic!("{error}"))));
                stages.add(&times);
            }
        });
        Part {
            calls: made,
            seconds,
            flops: stages.total().flops,
            peak,
        }
    }
}

impl Contestant for Vectide {
    fn entry(&self) -> &Entry {
        &self.entry
    }

    fn embed(&mut self, set: &TextSet) -> Round {
        let (seconds, parts) = self.all(set);
        let sum = |value: fn(&Part) -> f64| parts.iter().map(value).sum::<f64>();
        let processor_seconds = sum(|it| it.seconds);
        let peak = sum(|it| it.peak) / parts.len() as f64;
        let share = sum(|it| it.flops) / processor_seconds / peak;
        Round {
            seconds,
            processor_seconds,
            share_of_peak: share.is_finite().then_some(share),
        }
    }

    fn vectors(&mut self, set: &TextSet) -> Vec<f32> {
        let (_, parts) = self.all(set);
        let mut calls: Vec<_> = parts.into_iter().flat_map(|it| it.calls).collect();
        calls.sort_by_key(|(number, _)| *number);
        calls.into_iter().flat_map(|(_, it)| it).flatten().collect()
    }
}
