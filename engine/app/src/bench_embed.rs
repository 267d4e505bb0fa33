//! `vectide bench embed`: how fast texts become vectors here, how much of the processor's arithmetic that uses,
//! and on which stages the time goes.
//!
//! Each thread embeds calls of texts until its time is over, so none waits for another's end. The peak is measured
//! on the same threads right before, in each of several rounds, and shares are of the threads' own time: other
//! programs slow the tokens a second, not the shares.
//!
//! A model that another library, a GPU or a service computes has only tokens a second: what the calling threads
//! spend says nothing of it.
//!
//! Invariant: what is measured is what a pipeline does with the same texts; tokens are counted as computed.

use crate::bench_texts::made_up_text;
use crate::embed::{TEXTS_PER_CALL, computed_tokens, open};
use crate::embed_arguments::ModelOptions;
use crate::failure::Failure;
use crate::lines;
use serde::{Deserialize, Serialize};
use std::ops::AddAssign;
use std::path::{Path, PathBuf};
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use vectide_encoder::measure::{Stage, StageTimes, measure_stages, peak_flops, thread_time};
use vectide_encoder::minilm;
use vectide_model::{Embedder, Lane};

/// Texts that are made up, and read of a file at most: more would only take memory.
const MADE_UP_TEXTS: u64 = 2_000;
const TEXTS_MAX: usize = 100_000;
/// Each with a peak of its own, so that one disturbed moment decides nothing.
const ROUNDS: u32 = 5;
const SECONDS_MAX: f64 = 3_600.0;
/// More than any machine has cores.
const THREADS_MAX: i64 = 1_024;

/// What is measured, and how long.
#[derive(Clone, Debug, clap::Args)]
pub struct BenchEmbedArguments {
    /// The model, as `embed.model` of a configuration names it.
    #[arg(long, default_value = minilm::MODEL_NAME)]
    model: String,
    #[command(flatten)]
    options: ModelOptions,
    /// Threads that embed; without it as many as a pipeline would use.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=THREADS_MAX))]
    threads: Option<u32>,
    /// A JSON object with `text` a line, plain or .zst; without it texts are made up.
    #[arg(long)]
    texts: Option<PathBuf>,
    /// How long to embed.
    #[arg(long, default_value = "10", value_parser = seconds)]
    seconds: f64,
    /// Print what was measured as one JSON object.
    #[arg(long)]
    json: bool,
}

fn seconds(text: &str) -> Result<f64, String> {
    let seconds = text.parse().ok();
    let seconds = seconds.filter(|it: &f64| *it > 0.0 && *it <= SECONDS_MAX);
    seconds.ok_or_else(|| format!("give a number above 0, at most {SECONDS_MAX}"))
}

#[derive(Deserialize)]
struct Line {
    text: String,
}

/// What the threads of one round did.
#[derive(Default)]
struct Round {
    texts: usize,
    /// As the model computed them, or as it counts them where it does not say.
    tokens: usize,
    /// The sum of the threads' rates by the clock on the wall.
    tokens_per_second: f64,
    /// Of all threads, computing.
    thread_seconds: f64,
    times: StageTimes,
    /// Operations a second that the threads could do at most, each; 0 where that is not known.
    peaks: Vec<f64>,
}

impl AddAssign for Round {
    fn add_assign(&mut self, other: Self) {
        self.texts += other.texts;
        self.tokens += other.tokens;
        self.tokens_per_second += other.tokens_per_second;
        self.thread_seconds += other.thread_seconds;
        self.times.add(&other.times);
        self.peaks.extend(other.peaks);
    }
}

impl Round {
    fn peak(&self) -> f64 {
        self.peaks.iter().sum::<f64>() / self.peaks.len().max(1) as f64
    }

    /// Of the peak, in the products of all stages; nothing where either is not known.
    fn share_of_peak(&self) -> Option<f64> {
        let share = self.times.total().flops / self.thread_seconds / self.peak();
        (share.is_finite() && share > 0.0).then_some(share)
    }
}

/// What one stage took.
#[derive(Serialize)]
struct StageReport {
    stage: &'static str,
    share_of_time: f64,
    /// Operations a second of a thread; nothing for a stage without products.
    gflops: Option<f64>,
}

/// What was measured, as it is printed.
#[derive(Serialize)]
struct Report {
    model: String,
    device: String,
    threads: usize,
    texts: usize,
    tokens: usize,
    tokens_per_second: f64,
    /// Nothing for a model that is computed elsewhere.
    tokens_per_thread_second: Option<f64>,
    peak_gflops: Option<f64>,
    share_of_peak: Option<f64>,
    /// Empty for a model that is computed elsewhere.
    stages: Vec<StageReport>,
}

/// Measures and prints.
///
/// # Errors
/// When the model can't be opened or does not embed, or the texts can't be read.
pub fn bench_embed(arguments: &BenchEmbedArguments) -> Result<(), Failure> {
    let texts = match &arguments.texts {
        Some(path) => read(path)?,
        None => (0..MADE_UP_TEXTS).map(made_up_text).collect(),
    };
    let options = arguments.options.clone().as_configured();
    let embedder = open(&arguments.model, options)?;
    let threads = match arguments.threads {
        Some(threads) => threads as usize,
        None => embedder.bulk_threads().max(1),
    };
    let calls: Vec<Vec<&str>> = texts
        .chunks(TEXTS_PER_CALL)
        .map(|call| call.iter().map(String::as_str).collect())
        .collect();
    let work = Work {
        embedder: &*embedder,
        calls,
        next: AtomicUsize::new(0),
    };
    let time = Duration::from_secs_f64(arguments.seconds) / ROUNDS;
    // The first call makes memory and reads weights for the first time.
    let first = work.round(threads, Duration::ZERO)?;
    let rounds: Result<Vec<Round>, Failure> = (0..ROUNDS)
        .map(|_| work.round_beside_peak(threads, time, &first))
        .collect();
    let report = report(&*embedder, threads, rounds?);
    if arguments.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        print(&report);
    }
    Ok(())
}

/// # Errors
/// When a line is none, or there is none.
fn read(path: &Path) -> Result<Vec<String>, Failure> {
    let lines = lines::read::<Line>(path)?.take(TEXTS_MAX);
    let texts: Result<Vec<String>, Failure> = lines.map(|line| Ok(line?.text)).collect();
    let texts = texts?;
    if texts.is_empty() {
        let fact = format!("{} has no texts", path.display());
        return Err(Failure::new(format!(
            "{fact}\nhint: give a JSON object with `text` a line"
        )));
    }
    Ok(texts)
}

/// Texts that threads take turns at.
struct Work<'a> {
    embedder: &'a dyn Embedder,
    calls: Vec<Vec<&'a str>>,
    next: AtomicUsize,
}

impl Work<'_> {
    fn round(&self, threads: usize, time: Duration) -> Result<Round, Failure> {
        self.on_threads(threads, || self.embed_for(time))
    }

    /// A round whose threads measure, all at once, what they could do at most.
    fn round_beside_peak(
        &self,
        threads: usize,
        time: Duration,
        first: &Round,
    ) -> Result<Round, Failure> {
        let together = Barrier::new(threads);
        self.on_threads(threads, || {
            together.wait();
            let arithmetic = first.times.arithmetic;
            let peak = arithmetic.and_then(|(backend, products)| peak_flops(backend, products));
            together.wait();
            let mut round = self.embed_for(time)?;
            round.peaks.push(peak.unwrap_or(0.0));
            Ok(round)
        })
    }

    fn on_threads(
        &self,
        threads: usize,
        one: impl Fn() -> Result<Round, Failure> + Sync,
    ) -> Result<Round, Failure> {
        std::thread::scope(|scope| {
            let running: Vec<_> = (0..threads).map(|_| scope.spawn(&one)).collect();
            let mut all = Round::default();
            for thread in running {
                let round = thread.join();
                all += round.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            }
            Ok(all)
        })
    }

    /// Embeds calls on this thread until the time is over, at least one.
    fn embed_for(&self, time: Duration) -> Result<Round, Failure> {
        let counter = self.embedder.token_counter();
        let mut round = Round::default();
        let (mut counted, mut elapsed) = (0, Duration::ZERO);
        while round.texts == 0 || elapsed < time {
            let call = self.next.fetch_add(1, Ordering::Relaxed) % self.calls.len();
            let texts = &self.calls[call];
            let start = Instant::now();
            let mut result = Ok(Vec::new());
            let mut times = StageTimes::default();
            round.thread_seconds += thread_time(|| {
                (result, times) = measure_stages(|| self.embedder.embed(Lane::Bulk, texts));
            });
            elapsed += start.elapsed();
            result?;
            round.texts += texts.len();
            round.times.add(&times);
            if times.tokens == 0 {
                counted += computed_tokens(self.embedder, &*counter, texts);
            }
        }
        round.tokens = round.times.tokens + counted;
        round.tokens_per_second = round.tokens as f64 / elapsed.as_secs_f64();
        Ok(round)
    }
}

fn report(embedder: &dyn Embedder, threads: usize, rounds: Vec<Round>) -> Report {
    let shares: Vec<f64> = rounds.iter().filter_map(Round::share_of_peak).collect();
    let rates = rounds.iter().map(|it| it.tokens_per_second).collect();
    let peaks: Vec<f64> = rounds.iter().map(Round::peak).collect();
    let tokens_per_second = median(rates).unwrap_or(0.0);
    let mut all = Round::default();
    for round in rounds {
        all += round;
    }
    let identity = embedder.identity();
    let share_of_peak = median(shares);
    let arithmetic = all.times.arithmetic;
    Report {
        model: identity.name.clone(),
        device: identity.device.clone(),
        threads,
        texts: all.texts,
        tokens: all.tokens,
        tokens_per_second,
        tokens_per_thread_second: arithmetic.map(|_| all.tokens as f64 / all.thread_seconds),
        peak_gflops: share_of_peak.and(median(peaks)).map(|it| it / 1e9),
        share_of_peak,
        stages: stages(&all),
    }
}

/// What each stage took of the threads' time, and what no stage did.
fn stages(all: &Round) -> Vec<StageReport> {
    if all.times.arithmetic.is_none() {
        return Vec::new();
    }
    let share = |seconds: f64| seconds / all.thread_seconds;
    let mut stages = Vec::from(Stage::ALL.map(|stage| {
        let time = all.times.of(stage);
        StageReport {
            stage: stage.name(),
            share_of_time: share(time.seconds),
            gflops: (time.flops > 0.0).then(|| time.flops / time.seconds / 1e9),
        }
    }));
    stages.push(StageReport {
        stage: "the rest",
        share_of_time: share(all.thread_seconds - all.times.total().seconds).max(0.0),
        gflops: None,
    });
    stages
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

fn print(report: &Report) {
    println!(
        "{} on {}, {} thread(s): {} texts of {:.0} tokens",
        report.model,
        report.device,
        report.threads,
        report.texts,
        report.tokens as f64 / report.texts.max(1) as f64
    );
    println!("{:.0} tokens/s", report.tokens_per_second);
    let Some(of_thread) = report.tokens_per_thread_second else {
        println!(
            "{} is computed elsewhere than by Vectide's encoder: threads' time and stages are not known",
            report.model
        );
        return;
    };
    println!("{of_thread:.0} tokens in a second that a thread computes");
    match (report.share_of_peak, report.peak_gflops) {
        (Some(share), Some(peak)) => println!(
            "{:.0} % of the measured peak of {peak:.0} GFLOP/s a thread",
            share * 100.0
        ),
        _ => println!("what share of the processor's peak that is, is not known"),
    }
    println!("of the threads' time:");
    for stage in &report.stages {
        let rate = stage.gflops.map(|it| format!("{it:>9.0} GFLOP/s"));
        println!(
            "  {:<30}{:>5.1} %{}",
            stage.stage,
            stage.share_of_time * 100.0,
            rate.unwrap_or_default()
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_times_are_refused() {
        assert_eq!(seconds("0.5"), Ok(0.5));
        for bad in ["0", "-1", "nan", "inf", "1e9", "ten", ""] {
            assert!(seconds(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_median_is_the_middle_one() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(Vec::new()), None);
    }
}
