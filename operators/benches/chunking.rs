//! What edits cost: replays a real history of document changes and prints, for several chunkers, how
//! much of the updated documents would be embedded again.
//!
//! `cargo bench -p vectide-operators --bench chunking`. The history is the set `otel-docs-changes` in
//! the folder named by VECTIDE_TEST_DATA; tokens are those of all-MiniLM-L6-v2, whose tokenizer.json
//! VECTIDE_TOKENIZER names (else the model cache is asked). What is missing is told and replaced or
//! skipped.
//!
//! Invariant: a chunk counts as embedded again unless the document's previous version had the same
//! chunk id, exactly as the engine decides it.

use rustc_hash::{FxHashMap, FxHashSet};
use serde::Deserialize;
use std::io::BufRead;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use vectide_model::{
    ChunkError, ChunkId, Chunker, ChunkerConfig, Document, Position, TokenCounter, chunk_document,
};
use vectide_operators::chunk::{StructuredConfig, WholeConfig};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let Some(data) = data_folder() else {
        println!("skipped: chunking: no otel-docs-changes (set VECTIDE_TEST_DATA to its parent)");
        return Ok(());
    };
    let events = read_events(&data)?;
    let (counter, counter_name) = counter();
    println!("{} changes; tokens: {counter_name}", events.len());
    let known: Arc<dyn TokenCounter> = Arc::new(Remembering::new(counter.clone()));
    println!(
        "{:<34} {:>9} {:>10} {:>9} {:>9} {:>7} {:>7}",
        "chunker", "chunks", "mean chars", "updated", "embedded", "chunks", "chars"
    );
    let mut rows: Vec<(String, Arc<dyn Chunker>)> = vec![
        (
            "whole documents".into(),
            WholeConfig {}.open(known.clone())?,
        ),
        ("fixed windows, 630 chars".into(), Arc::new(Windows(630))),
        ("fixed windows, 900 chars".into(), Arc::new(Windows(900))),
        ("lines packed to 254 tokens".into(), packed(&known, 254)),
        ("lines packed to 370 tokens".into(), packed(&known, 370)),
    ];
    for (target_tokens, max_tokens) in [(200, 256), (290, 512)] {
        let config = StructuredConfig {
            target_tokens,
            max_tokens,
            ..StructuredConfig::default()
        };
        let name = format!("structured, target {target_tokens}, max {max_tokens}");
        rows.push((name, config.open(known.clone())?));
    }
    for (name, chunker) in &rows {
        println!("{name:<34} {}", replay(&events, chunker.as_ref()));
    }
    print_speeds(&events, &counter, counter_name)
}

#[derive(Deserialize)]
struct Event {
    op: String,
    path: String,
    content: Option<String>,
}

fn data_folder() -> Option<PathBuf> {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data");
    let root = std::env::var_os("VECTIDE_TEST_DATA").map_or(beside, PathBuf::from);
    Some(root.join("otel-docs-changes")).filter(|folder| folder.is_dir())
}

fn read_events(folder: &Path) -> Result<Vec<Event>, Box<dyn std::error::Error>> {
    let file = std::fs::File::open(folder.join("events.jsonl.zst"))?;
    let reader = std::io::BufReader::new(zstd::Decoder::new(file)?);
    reader
        .lines()
        .map(|line| Ok(serde_json::from_str(&line?)?))
        .collect()
}

// --- Token counters -----------------------------------------------------------------------------

struct MiniLm(tokenizers::Tokenizer);

impl TokenCounter for MiniLm {
    fn count(&self, text: &str) -> usize {
        // It fails only where truncation or padding is wrong, and both are off.
        self.0
            .encode_fast(text, false)
            .map_or(0, |tokens| tokens.len())
    }
}

struct FourCharacters;

impl TokenCounter for FourCharacters {
    fn count(&self, text: &str) -> usize {
        characters(text).div_ceil(4)
    }
}

/// Characters, by the bytes that begin one.
fn characters(text: &str) -> usize {
    text.bytes().filter(|byte| byte & 0xC0 != 0x80).count()
}

/// The history repeats its lines thousands of times; counting each once makes the replay quick. The
/// speeds below are measured without it.
struct Remembering {
    counter: Arc<dyn TokenCounter>,
    counts: Mutex<FxHashMap<u128, usize>>,
}

impl Remembering {
    fn new(counter: Arc<dyn TokenCounter>) -> Self {
        let counts = Mutex::default();
        Self { counter, counts }
    }
}

impl TokenCounter for Remembering {
    fn count(&self, text: &str) -> usize {
        let key = xxhash_rust::xxh3::xxh3_128(text.as_bytes());
        let mut counts = self.counts.lock().expect("no panic while counting");
        *counts
            .entry(key)
            .or_insert_with(|| self.counter.count(text))
    }
}

fn counter() -> (Arc<dyn TokenCounter>, &'static str) {
    let cached = std::env::var_os("HOME").map(|home| {
        PathBuf::from(home).join(".cache/vectide/models/all-MiniLM-L6-v2/tokenizer.json")
    });
    let path = std::env::var_os("VECTIDE_TOKENIZER")
        .map(PathBuf::from)
        .or(cached);
    let loaded = path.and_then(|path| tokenizers::Tokenizer::from_file(path).ok());
    let Some(mut tokenizer) = loaded else {
        println!("skipped: real token counts: no tokenizer.json (set VECTIDE_TOKENIZER)");
        return (Arc::new(FourCharacters), "estimated, 4 characters each");
    };
    tokenizer.with_padding(None);
    let _ = tokenizer.with_truncation(None);
    (Arc::new(MiniLm(tokenizer)), "all-MiniLM-L6-v2")
}

// --- Chunkers to compare with ---------------------------------------------------------------------

/// So many characters, whatever they are.
struct Windows(usize);

impl Chunker for Windows {
    fn version(&self) -> &str {
        "windows"
    }

    fn chunk(&self, text: &str) -> Result<Vec<Range<usize>>, ChunkError> {
        let starts: Vec<usize> = text
            .char_indices()
            .step_by(self.0)
            .map(|(at, _)| at)
            .chain([text.len()])
            .collect();
        Ok(starts.windows(2).map(|pair| pair[0]..pair[1]).collect())
    }
}

/// Lines from the top, as many as fit.
struct Packed {
    tokens: Arc<dyn TokenCounter>,
    limit: usize,
}

fn packed(tokens: &Arc<dyn TokenCounter>, limit: usize) -> Arc<dyn Chunker> {
    let tokens = tokens.clone();
    Arc::new(Packed { tokens, limit })
}

impl Chunker for Packed {
    fn version(&self) -> &str {
        "packed"
    }

    fn chunk(&self, text: &str) -> Result<Vec<Range<usize>>, ChunkError> {
        let (mut spans, mut start, mut end, mut sum) = (Vec::new(), 0, 0, 0);
        for line in text.split_inclusive('\n') {
            let count = self.tokens.count(line);
            if sum + count > self.limit && end > start {
                spans.push(start..end);
                (start, sum) = (end, 0);
            }
            sum += count;
            end += line.len();
        }
        if end > start {
            spans.push(start..end);
        }
        Ok(spans)
    }
}

// --- The replay ---------------------------------------------------------------------------------

#[derive(Default)]
struct Tally {
    /// Over all versions.
    chunks: u64,
    chars: u64,
    /// Over updates.
    updated_chunks: u64,
    updated_chars: u64,
    embedded_chunks: u64,
    embedded_chars: u64,
}

impl std::fmt::Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let share = |part: u64, whole: u64| 100.0 * part as f64 / whole.max(1) as f64;
        write!(
            f,
            "{:>9} {:>10.0} {:>9} {:>9} {:>6.1}% {:>6.2}%",
            self.chunks,
            self.chars as f64 / self.chunks.max(1) as f64,
            self.updated_chunks,
            self.embedded_chunks,
            share(self.embedded_chunks, self.updated_chunks),
            share(self.embedded_chars, self.updated_chars),
        )
    }
}

fn replay(events: &[Event], chunker: &dyn Chunker) -> Tally {
    let mut live: FxHashMap<&str, FxHashSet<ChunkId>> = FxHashMap::default();
    let mut tally = Tally::default();
    for event in events {
        let before = live.remove(event.path.as_str());
        let Some(text) = &event.content else {
            continue;
        };
        let document = document(&event.path, text);
        let chunked = match chunk_document(chunker, document) {
            Ok(chunked) => chunked,
            Err((document, error)) => {
                println!("{}: {error}", document.id);
                continue;
            }
        };
        let updated = event.op == "u";
        for chunk in chunked.chunks.iter() {
            let chars = characters(chunked.chunk_text(chunk)) as u64;
            tally.chunks += 1;
            tally.chars += chars;
            let held = before.as_ref().is_some_and(|ids| ids.contains(&chunk.id));
            if updated {
                tally.updated_chunks += 1;
                tally.updated_chars += chars;
                tally.embedded_chunks += u64::from(!held);
                tally.embedded_chars += if held { 0 } else { chars };
            }
        }
        live.insert(
            &event.path,
            chunked.chunks.iter().map(|chunk| chunk.id).collect(),
        );
    }
    tally
}

fn document(id: &str, text: &str) -> Document {
    Document {
        id: id.into(),
        text: text.into(),
        metadata: "{}".into(),
        position: Position {
            source: "history".into(),
            partition: "0".into(),
            offset: 0,
        },
    }
}

// --- Speed --------------------------------------------------------------------------------------

fn print_speeds(
    events: &[Event],
    counter: &Arc<dyn TokenCounter>,
    counter_name: &str,
) -> Result<(), Box<dyn std::error::Error>> {
    let mut live: FxHashMap<&str, &str> = FxHashMap::default();
    for event in events {
        match &event.content {
            Some(text) => live.insert(&event.path, text),
            None => live.remove(event.path.as_str()),
        };
    }
    let texts: Vec<&str> = live.into_values().collect();
    let cheap: Arc<dyn TokenCounter> = Arc::new(FourCharacters);
    for (name, tokens) in [("estimated tokens", &cheap), (counter_name, counter)] {
        let chunker = StructuredConfig::default().open(tokens.clone())?;
        println!("speed, {name}: {}", speed(chunker.as_ref(), &texts)?);
        let (chunks, mean, largest) = sizes(chunker.as_ref(), tokens.as_ref(), &texts)?;
        println!("    {chunks} chunks of {mean:.0} tokens on average, at most {largest}");
    }
    let spaceless = "0123456789abcdef".repeat(62_500);
    let chunker = StructuredConfig::default().open(counter.clone())?;
    println!(
        "speed, one word of 1,000,000 letters: {}",
        speed(chunker.as_ref(), &[&spaceless])?
    );
    Ok(())
}

/// Number of chunks, their tokens on average and at most.
fn sizes(
    chunker: &dyn Chunker,
    tokens: &dyn TokenCounter,
    texts: &[&str],
) -> Result<(usize, f64, usize), ChunkError> {
    let mut sizes = Vec::new();
    for text in texts {
        let spans = chunker.chunk(text)?;
        sizes.extend(spans.into_iter().map(|span| tokens.count(&text[span])));
    }
    let sum: usize = sizes.iter().sum();
    let mean = sum as f64 / sizes.len().max(1) as f64;
    Ok((sizes.len(), mean, sizes.iter().copied().max().unwrap_or(0)))
}

/// The best of three runs; a slow one is enough.
fn speed(chunker: &dyn Chunker, texts: &[&str]) -> Result<String, ChunkError> {
    let mut best = Duration::MAX;
    for _ in 0..3 {
        let start = Instant::now();
        for text in texts {
            std::hint::black_box(chunker.chunk(text)?);
        }
        best = best.min(start.elapsed());
        if best > Duration::from_secs(2) {
            break;
        }
    }
    let bytes: usize = texts.iter().map(|text| text.len()).sum();
    let rate = bytes as f64 / best.as_secs_f64() / 1e6;
    Ok(format!("{bytes} bytes in {best:.2?}, {rate:.1} MB/s"))
}
