//! Whether an accelerator computes what the processor does, asked when a model is opened.
//!
//! Kernels are tested without this machine's device, driver and model. So each start embeds a few texts
//! on both, in both lanes, before anything depends on it: a kernel that a driver compiles wrongly, a
//! device that is broken, and a model that fp16 is too narrow for are seen before a vector is kept.
//!
//! Invariant: an accelerator that passes gave a vector of length 1, and of a cosine of at least
//! [`COSINE_MIN`], for every text in both lanes; what is not a number passes nothing.

use crate::tokenize::Tokenizer;
use vectide_model::{AcceleratedEncoder, AcceleratorFault, Lane, NoAccelerator};

/// What a fingerprint promises (`ModelIdentity::fingerprint`). Arithmetic in fp16 keeps 0.99999.
const COSINE_MIN: f64 = 0.9999;
/// How far from 1 a vector's length may be: fp16 has an epsilon of 1e-3.
const LENGTH_TOLERANCE: f64 = 1e-3;
const SENTENCE: &str = "An index is true to its source when every answer is one that the source gives. \
    Große Übersichten, naïve words; 日本語の文章, 3.14159 & `code_like(names)`! ";
/// How often the sentence stands in a text: one word piece to several tiles of attention, and more than a
/// model of 512 positions looks at. The longest takes a large model some seconds on one core.
const REPETITIONS: [usize; 4] = [1, 2, 4, 16];

/// Token ids of texts of various lengths.
pub(crate) fn texts(tokenizer: &Tokenizer) -> Vec<Vec<u32>> {
    let short = ["", "a", "how are vectors compared?"].map(str::to_owned);
    let long = REPETITIONS.map(|count| SENTENCE.repeat(count));
    let texts = short.iter().chain(&long);
    texts.map(|text| tokenizer.encode(text)).collect()
}

/// Whether there are so many vectors, all of finite numbers.
pub(crate) fn are_of(vectors: &[Vec<f32>], count: usize, dimensions: usize) -> bool {
    let is_whole = |vector: &Vec<f32>| {
        vector.len() == dimensions && vector.iter().all(|number| number.is_finite())
    };
    vectors.len() == count && vectors.iter().all(is_whole)
}

/// Compares the vectors of each of an accelerator's devices with those that are expected: all texts in one
/// bulk call, each alone as a query is.
///
/// # Errors
/// When one differs, or a call fails. One such device keeps the model off all: whoever has it in a machine
/// should hear of it.
pub(crate) fn compare(
    encoder: &dyn AcceleratedEncoder,
    texts: &[&[u32]],
    expected: &[Vec<f32>],
) -> Result<(), NoAccelerator> {
    judge_each(encoder, Lane::Bulk, texts, expected)?;
    for (text, expected) in texts.iter().zip(expected) {
        judge_each(
            encoder,
            Lane::Query,
            &[text],
            std::slice::from_ref(expected),
        )?;
    }
    Ok(())
}

fn judge_each(
    encoder: &dyn AcceleratedEncoder,
    lane: Lane,
    texts: &[&[u32]],
    expected: &[Vec<f32>],
) -> Result<(), NoAccelerator> {
    for (device, answer) in encoder.encode_on_each(lane, texts) {
        let told = |what: String| NoAccelerator(format!("{device}: {what}"));
        let found = answer.map_err(|fault: AcceleratorFault| {
            told(format!("the check at the start has failed: {fault}"))
        })?;
        judge(lane, texts, &found, expected).map_err(told)?;
    }
    Ok(())
}

fn judge(
    lane: Lane,
    texts: &[&[u32]],
    found: &[Vec<f32>],
    expected: &[Vec<f32>],
) -> Result<(), String> {
    if found.len() != texts.len() {
        return Err(format!("{} vectors for {} texts", found.len(), texts.len()));
    }
    let how = match lane {
        Lane::Bulk => "in bulk",
        Lane::Query => "as a query",
    };
    for ((text, found), expected) in texts.iter().zip(found).zip(expected) {
        let length = product(found, found).sqrt();
        let cosine = product(found, expected) / length;
        let is_unit = (length - 1.0).abs() <= LENGTH_TOLERANCE;
        // Not `cosine < COSINE_MIN`, which NaN would pass.
        let is_same = found.len() == expected.len() && cosine >= COSINE_MIN;
        if !is_unit || !is_same {
            return Err(format!(
                "vectors differ from the CPU's: 1 - cosine is {:.1e}, at most {:.0e} is allowed, and the length \
                 {length:.4} (a text of {} tokens {how})",
                1.0 - cosine,
                1.0 - COSINE_MIN,
                text.len(),
            ));
        }
    }
    Ok(())
}

/// The processor's vectors have length 1, so this is a cosine but for the other's length.
fn product(a: &[f32], b: &[f32]) -> f64 {
    let pairs = a.iter().zip(b);
    pairs.map(|(x, y)| f64::from(*x) * f64::from(*y)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use vectide_model::DeviceAnswer;

    /// Answers each text with the vector at its first id.
    struct Answers {
        vectors: Vec<Vec<f32>>,
        fault_in: Option<Lane>,
    }

    impl AcceleratedEncoder for Answers {
        fn device(&self) -> &str {
            "a test"
        }
        fn tokens_per_call(&self) -> usize {
            1
        }
        fn calls_at_once(&self) -> usize {
            1
        }
        fn encode(&self, lane: Lane, texts: &[&[u32]]) -> Result<Vec<Vec<f32>>, AcceleratorFault> {
            if self.fault_in == Some(lane) {
                return Err(AcceleratorFault::Failed("planted".into()));
            }
            let answers = texts
                .iter()
                .filter_map(|ids| self.vectors.get(ids[0] as usize));
            Ok(answers.cloned().collect())
        }
        fn encode_on_each(&self, lane: Lane, texts: &[&[u32]]) -> Vec<DeviceAnswer> {
            vec![("a test".into(), self.encode(lane, texts))]
        }
    }

    fn check(second: &[f32], fault_in: Option<Lane>) -> Result<(), String> {
        let expected = [vec![1.0, 0.0], vec![0.0, 1.0]];
        let answers = Answers {
            vectors: vec![expected[0].clone(), second.to_vec()],
            fault_in,
        };
        compare(&answers, &[&[0], &[1, 7]], &expected).map_err(|NoAccelerator(why)| why)
    }

    #[test]
    fn what_differs_more_than_a_fingerprint_allows_is_told() {
        assert_eq!(check(&[0.0, 1.0], None), Ok(()));
        assert_eq!(check(&[0.01, 0.999_95], None), Ok(()));
        let why = check(&[0.02, 0.9998], None).unwrap_err();
        assert!(why.contains("1 - cosine is 2.0e-4, at most 1e-4"), "{why}");
        assert!(why.contains("2 tokens in bulk"), "{why}");
        for second in [
            vec![0.0, 1.1],
            vec![0.0, 0.0],
            vec![f32::NAN, 1.0],
            vec![0.0, f32::INFINITY],
            vec![0.0],
            vec![0.0, 1.0, 0.0],
        ] {
            assert!(check(&second, None).is_err(), "{second:?}");
        }
        let missing = Answers {
            vectors: Vec::new(),
            fault_in: None,
        };
        assert!(compare(&missing, &[&[0]], &[vec![1.0]]).is_err());
    }

    #[test]
    fn both_lanes_are_asked() {
        for lane in [Lane::Bulk, Lane::Query] {
            let why = check(&[0.0, 1.0], Some(lane)).unwrap_err();
            assert!(why.contains("planted"), "{why}");
        }
    }

    #[test]
    fn only_whole_vectors_are_vectors() {
        let whole = [vec![1.0, 0.0], vec![0.0, 1.0]];
        assert!(are_of(&whole, 2, 2) && !are_of(&whole, 3, 2) && !are_of(&whole, 2, 3));
        assert!(!are_of(&[vec![1.0, f32::NAN]], 1, 2) && are_of(&[], 0, 2));
    }
}
