//! How fast texts become token ids on one core: tokens and bytes a second, beside the library's.
//!
//! `cargo bench -p vectide-encoder --bench tokenizer`. Times are the thread's own, which other
//! programs do not disturb. The texts are the real corpora; one that is not there is left out and told.
//! With VECTIDE_TEST_TOKENIZER, a folder with a `tokenizer.json` of another kind, that is measured too.

#[path = "../tests/support/corpora.rs"]
mod corpora;

use corpora::Corpus;
use std::hint::black_box;
use std::path::Path;
use vectide_encoder::measure::thread_time;
use vectide_encoder::{Tokenizer, model_files};
use vectide_model::TokenCounter;

/// Text of a corpus that is measured: enough for a tenth of a second.
const BYTES_MAX: usize = 8 << 20;
/// The library is slow: it gets this part of the texts.
const LIBRARY_SHARE: usize = 8;
/// The best round is what the code does when the machine lets it.
const ROUNDS: usize = 5;

fn main() {
    let files = model_files::fetch("all-MiniLM-L6-v2");
    let files = files.unwrap_or_else(|error| panic!("{error}; {}", error.hint));
    measure_file("all-MiniLM-L6-v2", &files.tokenizer);
    match std::env::var_os("VECTIDE_TEST_TOKENIZER") {
        Some(folder) => {
            let path = Path::new(&folder).join("tokenizer.json");
            measure_file(&path.display().to_string(), &path);
        }
        None => println!("skipped: another tokenizer: VECTIDE_TEST_TOKENIZER is not set"),
    }
}

fn measure_file(name: &str, path: &Path) {
    println!("{name}:");
    let json = std::fs::read(path).unwrap_or_else(|error| panic!("{error}"));
    let tokenizer = |tokens_max| {
        Tokenizer::from_json(&json, tokens_max).unwrap_or_else(|error| panic!("{error}"))
    };
    let (whole, cut) = (tokenizer(usize::MAX), tokenizer(256));
    for (name, corpus) in [
        ("scifact, English", corpora::SCIFACT),
        ("squad, English", corpora::SQUAD),
        ("otel documents, mostly English", corpora::OTEL),
        ("jaquad, Japanese", corpora::JAQUAD),
    ] {
        measure(name, &corpus, &whole, &cut);
    }
}

fn measure(name: &str, corpus: &Corpus, whole: &Tokenizer, cut: &Tokenizer) {
    let Some(mut texts) = corpus.texts(name) else {
        return;
    };
    // A history's neighbours are versions of few documents: texts are taken from all over it.
    let total: usize = texts.iter().map(String::len).sum();
    let step = total.div_ceil(BYTES_MAX).max(1);
    let mut number = 0;
    texts.retain(|_| {
        number += 1;
        number % step == 0
    });
    let bytes: usize = texts.iter().map(String::len).sum();
    let tokens: usize = texts.iter().map(|text| whole.encode(text).len()).sum();
    let best = |work: &dyn Fn(&String)| {
        let round = |_| thread_time(|| texts.iter().for_each(work));
        (0..ROUNDS).map(round).fold(f64::INFINITY, f64::min)
    };
    let encode = best(&|text| drop(black_box(whole.encode(text))));
    let count = best(&|text| {
        black_box(whole.count(text));
    });
    let cut_seconds = best(&|text| drop(black_box(cut.encode(text))));
    let cut_tokens: usize = texts.iter().map(|text| cut.encode(text).len()).sum();
    let few: Vec<&String> = texts.iter().step_by(LIBRARY_SHARE).collect();
    let few_tokens: usize = few.iter().map(|text| whole.encode(text).len()).sum();
    let library = thread_time(|| {
        for text in &few {
            black_box(whole.encode_by_library(text)).ok();
        }
    });
    let millions = |tokens: usize, seconds: f64| tokens as f64 / seconds / 1e6;
    println!(
        "{name}: {} texts, {:.1} MB, {:.2} bytes a token\n  ids {:.1} Mtok/s ({:.0} MB/s), counted {:.1} Mtok/s, \
         cut to 256 {:.1} Mtok/s; the library {:.2} Mtok/s",
        texts.len(),
        bytes as f64 / 1e6,
        bytes as f64 / tokens as f64,
        millions(tokens, encode),
        bytes as f64 / encode / 1e6,
        millions(tokens, count),
        millions(cut_tokens, cut_seconds),
        millions(few_tokens, library),
    );
}
