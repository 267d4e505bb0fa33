//! `vectide embed`: the vectors of many texts in a file, as numpy reads it.
//!
//! Invariant: the output has one row for each line of the input, in order, and stands under its name only when it
//! is whole; memory does not grow with the input.

use crate::failure::Failure;
use crate::lines;
use crate::registry::registry;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;
use vectide_model::{Embedder, Lane, TokenCounter};

/// Texts of a call: as many as fill the embedder's batches.
pub(crate) const TEXTS_PER_CALL: usize = 32;
/// Calls for each thread between two writes, so that threads seldom wait for the slowest.
const CALLS_PER_THREAD: usize = 16;

/// What to embed.
pub struct Job {
    /// The model, as `embed.model` of a configuration names it.
    pub model: String,
    /// The rest of what `embed` of a configuration would say.
    pub options: serde_json::Value,
    /// A JSON object with `text` a line, plain or `.zst`.
    pub input: PathBuf,
    /// Where the vectors go: `.npy`, 32-bit floats.
    pub output: PathBuf,
    /// Whether the texts are passages or queries.
    pub lane: Lane,
}

#[derive(Deserialize)]
struct Line {
    text: String,
}

/// What was done, as it is printed.
#[derive(Debug, Default, Serialize)]
struct Report {
    model: String,
    device: String,
    texts: usize,
    dimensions: usize,
    tokens: usize,
    seconds: f64,
    tokens_per_second: f64,
}

/// Embeds the texts and prints what that took as JSON.
///
/// # Errors
/// When the model can't be opened, a line is none, or the output can't be written.
pub fn embed(job: &Job) -> Result<(), Failure> {
    let embedder = open(&job.model, job.options.clone())?;
    let identity = embedder.identity().clone();
    let start = Instant::now();
    let mut report = Report {
        model: identity.name,
        device: identity.device,
        dimensions: identity.dimension,
        ..Report::default()
    };
    let bar = progress();
    let mut lines = lines::read::<Line>(&job.input)?;
    let mut vectors = Vectors::create(&job.output, identity.dimension)?;
    let counter = embedder.token_counter();
    let wave = embedder.bulk_threads() * CALLS_PER_THREAD * TEXTS_PER_CALL;
    let mut texts: Vec<String> = Vec::with_capacity(wave);
    loop {
        texts.clear();
        for line in lines.by_ref().take(wave) {
            texts.push(line?.text);
        }
        if texts.is_empty() {
            break;
        }
        let (made, tokens) = embed_all(&*embedder, &*counter, job.lane, &texts)?;
        for vector in made {
            vectors.push(&vector)?;
        }
        report.texts += texts.len();
        report.tokens += tokens;
        report.seconds = start.elapsed().as_secs_f64();
        report.tokens_per_second = report.tokens as f64 / report.seconds;
        bar.set_position(report.texts as u64);
        bar.set_message(format!("{:.0} tokens/s", report.tokens_per_second));
    }
    vectors.finish()?;
    bar.finish_and_clear();
    println!("{}", serde_json::to_string(&report)?);
    Ok(())
}

/// Opens the model of that name with the rest of what `embed` of a configuration would say.
pub(crate) fn open(model: &str, options: serde_json::Value) -> Result<Arc<dyn Embedder>, Failure> {
    let registry = registry();
    let context = registry.context(".");
    let config = registry.embedder(model, options);
    let opened = config.and_then(|config| config.open(&context));
    opened.map_err(|error| {
        let hint = match error.hint.as_str() {
            "" => String::new(),
            hint => format!("\nhint: {hint}"),
        };
        Failure::new(format!("{}{hint}", error.fact))
    })
}

fn progress() -> ProgressBar {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    if let Ok(style) = ProgressStyle::with_template("{spinner} {pos} texts, {per_sec}, {msg}") {
        bar.set_style(style);
    }
    bar
}

/// The vectors of texts, in order, and how many tokens they have, computed on as many threads as the embedder
/// wants.
fn embed_all(
    embedder: &dyn Embedder,
    counter: &dyn TokenCounter,
    lane: Lane,
    texts: &[String],
) -> Result<(Vec<Vec<f32>>, usize), Failure> {
    let calls: Vec<&[String]> = texts.chunks(TEXTS_PER_CALL).collect();
    let threads = embedder.bulk_threads().max(1);
    let share = calls.len().div_ceil(threads);
    let of_calls = |calls: &[&[String]]| {
        let (mut vectors, mut tokens) = (Vec::new(), 0);
        for call in calls {
            let texts: Vec<&str> = call.iter().map(String::as_str).collect();
            vectors.extend(embedder.embed(lane, &texts)?);
            tokens += computed_tokens(embedder, counter, &texts);
        }
        Ok::<_, vectide_model::EmbedError>((vectors, tokens))
    };
    let parts: Vec<_> = std::thread::scope(|scope| {
        let parts = calls
            .chunks(share)
            .map(|it| scope.spawn(move || of_calls(it)));
        let parts: Vec<_> = parts.collect();
        parts.into_iter().map(|part| part.join()).collect()
    });
    let (mut vectors, mut tokens) = (Vec::with_capacity(texts.len()), 0);
    for part in parts {
        let part = part.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        let (made, of_part) = part?;
        vectors.extend(made);
        tokens += of_part;
    }
    Ok((vectors, tokens))
}

/// Before and behind a text of most models.
const SPECIAL_TOKENS: usize = 2;

/// Tokens of texts as a model computes them: special ones included, and cut to what it looks at.
pub(crate) fn computed_tokens(
    embedder: &dyn Embedder,
    counter: &dyn TokenCounter,
    texts: &[&str],
) -> usize {
    let tokens_max = embedder.identity().tokens_max;
    let tokens = texts.iter().map(|text| counter.count(text));
    tokens
        .map(|tokens| (tokens + SPECIAL_TOKENS).min(tokens_max))
        .sum()
}

/// Bytes of the header, which says how many rows there are and so is written twice.
const HEADER_BYTES: usize = 128;

/// A file of 32-bit floats in numpy's format, version 1.0
/// (<https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html>): rows are counted as they come.
struct Vectors {
    out: BufWriter<File>,
    unfinished: PathBuf,
    path: PathBuf,
    dimensions: usize,
    rows: usize,
    is_finished: bool,
}

/// An output that was not finished goes.
impl Drop for Vectors {
    fn drop(&mut self) {
        if !self.is_finished {
            // Best effort: what is left has a name that says what it is.
            let _ = std::fs::remove_file(&self.unfinished);
        }
    }
}

impl Vectors {
    fn create(path: &Path, dimensions: usize) -> Result<Self, Failure> {
        let mut unfinished = path.as_os_str().to_owned();
        unfinished.push(".part");
        let unfinished = PathBuf::from(unfinished);
        let file = File::create(&unfinished).map_err(|error| failed(&unfinished, &error))?;
        let mut vectors = Self {
            out: BufWriter::new(file),
            unfinished,
            path: path.to_owned(),
            dimensions,
            rows: 0,
            is_finished: false,
        };
        vectors.write_header()?;
        Ok(vectors)
    }

    fn write_header(&mut self) -> Result<(), Failure> {
        let (rows, dimensions) = (self.rows, self.dimensions);
        let dictionary = format!(
            "{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {dimensions}), }}"
        );
        let mut header = b"\x93NUMPY\x01\x00".to_vec();
        header.extend(((HEADER_BYTES - 10) as u16).to_le_bytes());
        header.extend_from_slice(dictionary.as_bytes());
        header.resize(HEADER_BYTES - 1, b' ');
        header.push(b'\n');
        self.write(&header)
    }

    fn push(&mut self, vector: &[f32]) -> Result<(), Failure> {
        self.rows += 1;
        let bytes: Vec<u8> = vector.iter().flat_map(|x| x.to_le_bytes()).collect();
        self.write(&bytes)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        let written = self.out.write_all(bytes);
        written.map_err(|error| failed(&self.unfinished, &error))
    }

    fn finish(mut self) -> Result<(), Failure> {
        let start = self.out.seek(SeekFrom::Start(0));
        start.map_err(|error| failed(&self.unfinished, &error))?;
        self.write_header()?;
        let done = self.out.flush();
        let done = done.and_then(|()| self.out.get_ref().sync_all());
        let done = done.and_then(|()| std::fs::rename(&self.unfinished, &self.path));
        done.map_err(|error| failed(&self.path, &error))?;
        self.is_finished = true;
        Ok(())
    }
}

fn failed(path: &Path, error: &io::Error) -> Failure {
    Failure::new(format!("{} can't be written: {error}", path.display()))
}
