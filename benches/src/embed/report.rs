//! What the benchmark of embedding says: a table of each set of texts, and what is aimed at.

use super::contestant::{Measured, Round};
use super::peer::REFERENCE;
use super::texts::TextSet;
use super::vectide;

pub(crate) fn print(set: &TextSet, measured: &[Measured]) {
    let tokens = vectide::tokens(&set.texts);
    println!(
        "\n{}: {} texts of {:.0} tokens, {} rounds, medians. Ratios of Vectide to the row, by the clock and by \
         processor time:\n",
        set.name,
        set.texts.len(),
        tokens as f64 / set.texts.len().max(1) as f64,
        measured.first().map_or(0, |it| it.rounds.len()),
    );
    println!(
        "| library | threads | precision | tokens/s | tokens a processor's second | Vectide f32 | Vectide bf16 | \
         of the peak | least cosine |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- | --- | --- |");
    let reference = measured.iter().find(|it| is_of(it, REFERENCE));
    for row in measured {
        let share = row.median(|it| it.share_of_peak.unwrap_or(f64::NAN));
        let cosine = reference.map_or(f64::NAN, |it| least_cosine(&row.vectors, &it.vectors));
        println!(
            "| {} | {} | {} | {:.0} | {:.0} | {} | {} | {} | {} |",
            row.entry.library,
            row.entry.threads,
            row.entry.precision,
            tokens as f64 / row.median(|it| it.seconds),
            tokens as f64 / row.median(|it| it.processor_seconds),
            ratio(row, ours(measured, "f32", row.entry.threads)),
            ratio(row, ours(measured, "bf16", row.entry.threads)),
            known(share * 100.0, |it| format!("{it:.0} %")),
            known(cosine, |it| format!("{it:.6}")),
        );
    }
    println!();
    scaling(measured);
}

fn is_of(measured: &Measured, library: &str) -> bool {
    let name = &measured.entry.library;
    name.split(' ').next() == Some(library)
}

fn ours<'a>(measured: &'a [Measured], precision: &str, threads: usize) -> Option<&'a Measured> {
    measured.iter().find(|it| {
        is_of(it, vectide::NAME) && it.entry.precision == precision && it.entry.threads == threads
    })
}

/// How many times as fast ours is, by the clock and by processor time.
fn ratio(row: &Measured, ours: Option<&Measured>) -> String {
    let Some(ours) = ours.filter(|_| !is_of(row, vectide::NAME)) else {
        return String::new();
    };
    let times = |value: fn(&Round) -> f64| row.times(ours, value);
    format!(
        "{:.2} x, {:.2} x",
        times(|it| it.seconds),
        times(|it| it.processor_seconds)
    )
}

fn known(value: f64, shown: impl Fn(f64) -> String) -> String {
    match value.is_finite() {
        true => shown(value),
        false => String::new(),
    }
}

/// What the second thread brings.
fn scaling(measured: &[Measured]) {
    for precision in ["f32", "bf16"] {
        let (one, two) = (ours(measured, precision, 1), ours(measured, precision, 2));
        if let (Some(one), Some(two)) = (one, two) {
            let gain = one.times(two, |it| it.seconds);
            println!("two threads of Vectide in {precision}: {gain:.2} x one");
        }
    }
    println!(
        "aims: f32 1.3 x onnxruntime, 1.0 x OpenVINO; with AMX bf16 2 x OpenVINO's and 8 x {REFERENCE}; two \
         threads 1.9 x one"
    );
}

/// The least cosine of two vectors of the same text; not a number where they do not belong together.
fn least_cosine(vectors: &[f32], others: &[f32]) -> f64 {
    if vectors.len() != others.len() {
        return f64::NAN;
    }
    let pairs = vectors.chunks_exact(384).zip(others.chunks_exact(384));
    let cosines = pairs.map(|(a, b)| {
        let dot = |a: &[f32], b: &[f32]| -> f64 {
            let products = a.iter().zip(b).map(|(x, y)| f64::from(*x) * f64::from(*y));
            products.sum()
        };
        dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
    });
    // A cosine that is none must not vanish behind the others.
    cosines.fold(1.0, |least: f64, it| match least > it || it.is_nan() {
        true => it,
        false => least,
    })
}
