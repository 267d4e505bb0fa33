//! A real model against the vectors that another implementation has given for real texts.
//!
//! The folder has `golden.jsonl`, whose lines end with the `ids` of a text, and `golden.f32`, the
//! vectors in the same order; `scripts/golden_vectors.py` makes both.
//!
//! Invariant: a text without a vector of its own is an error.

use super::checks::Outcome;
use super::worst::{inner_product, worst_of_pairs};
use crate::encoder::Encoder;
use crate::machine::Machine;
use std::path::Path;
use vectide_model::Lane;

/// A text's tokens and its vector.
pub struct Golden {
    /// With the special ones.
    pub ids: Vec<u32>,
    /// Of length 1.
    pub vector: Vec<f32>,
}

/// What equality of a backend with the reference means: see [`check_golden`].
const TOLERANCE: f64 = 1e-4;

/// Reads a folder of golden vectors.
///
/// # Errors
/// When it is not one.
pub fn read_golden(folder: &Path, dimensions: usize) -> Result<Vec<Golden>, String> {
    let read = |name: &str| {
        let path = folder.join(name);
        std::fs::read(&path).map_err(|error| format!("{}: {error}", path.display()))
    };
    let lines = String::from_utf8(read("golden.jsonl")?).map_err(|error| error.to_string())?;
    let vectors = read("golden.f32")?;
    let (words, rest) = vectors.as_chunks::<4>();
    let (lines, vectors): (Vec<&str>, _) =
        (lines.lines().collect(), words.chunks_exact(dimensions));
    if lines.len() != vectors.len() || !rest.is_empty() || !vectors.remainder().is_empty() {
        return Err(format!(
            "{} texts and {} vectors",
            lines.len(),
            vectors.len()
        ));
    }
    lines
        .into_iter()
        .zip(vectors)
        .map(|(line, vector)| {
            Ok(Golden {
                ids: ids_of(line).ok_or_else(|| format!("no ids in `{line}`"))?,
                vector: vector
                    .iter()
                    .map(|word| f32::from_le_bytes(*word))
                    .collect(),
            })
        })
        .collect()
}

fn ids_of(line: &str) -> Option<Vec<u32>> {
    let (_, ids) = line.rsplit_once("\"ids\": [")?;
    let (ids, _) = ids.split_once(']')?;
    ids.split(", ").map(|id| id.parse().ok()).collect()
}

/// Encodes the texts on the bulk lane; the error is 1 - cosine at worst.
///
/// # Errors
/// When the encoder fails.
pub fn check_golden<M: Machine>(
    encoder: &Encoder<M>,
    golden: &[Golden],
) -> Result<Outcome, String> {
    let texts: Vec<&[u32]> = golden.iter().map(|text| text.ids.as_slice()).collect();
    let vectors = encoder
        .encode(Lane::Bulk, &texts)
        .map_err(|error| error.to_string())?;
    let dot = |a: &[f32], b: &[f32]| inner_product(a, b.iter().map(|x| f64::from(*x)));
    let error = worst_of_pairs(&vectors, golden, |vector, golden| {
        let lengths = dot(vector, vector) * dot(&golden.vector, &golden.vector);
        1.0 - dot(vector, &golden.vector) / lengths.sqrt()
    });
    Ok(Outcome {
        name: format!("{} golden texts: 1 - cosine", golden.len()),
        error,
        tolerance: TOLERANCE,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shape::BertShape;
    use crate::testing::EmulatedMachine;
    use crate::weights::WeightLayout;
    use std::path::PathBuf;

    fn golden() -> Vec<Golden> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../encoder/tests/data");
        read_golden(&folder, 384).unwrap()
    }

    /// Where the application keeps the model once it was fetched.
    fn weights() -> Option<PathBuf> {
        let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
        let cache =
            cache.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")))?;
        let path = cache.join("vectide/models/all-MiniLM-L6-v2/model.safetensors");
        path.is_file().then_some(path)
    }

    #[test]
    fn every_golden_text_has_its_tokens_and_vector() {
        let golden = golden();
        assert!(golden.len() >= 200);
        for text in golden {
            assert!(text.ids.first() == Some(&101) && text.ids.last() == Some(&102));
            let length: f32 = text.vector.iter().map(|x| x * x).sum();
            assert!((length - 1.0).abs() < 1e-3);
        }
    }

    fn differs_by(golden: &[Golden]) -> Option<Outcome> {
        let path = weights()?;
        let shape = BertShape::MINILM_L6;
        let image = WeightLayout::of(&shape)
            .read(&std::fs::read(path).unwrap())
            .unwrap();
        let encoder = Encoder::open(EmulatedMachine::new(), shape, &image, None).unwrap();
        Some(check_golden(&encoder, golden).unwrap())
    }

    fn equals_the_reference(golden: &[Golden]) {
        match differs_by(golden) {
            Some(outcome) => {
                println!("{outcome:?}");
                assert!(outcome.passes(), "{outcome:?}");
            }
            None => println!("skipped: the model's weights are not in this machine's cache"),
        }
    }

    /// Every 40th text of up to 40 tokens: six layers take the emulator a second for 64 rows.
    #[test]
    fn a_real_model_s_vectors_equal_the_reference() {
        let mut short = golden();
        short.retain(|text| text.ids.len() <= 40);
        let few: Vec<Golden> = short.into_iter().step_by(40).collect();
        equals_the_reference(&few);
    }

    #[test]
    #[ignore = "takes minutes"]
    fn all_golden_texts_equal_the_reference() {
        equals_the_reference(&golden());
    }
}
