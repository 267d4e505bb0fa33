//! Equal texts of a call are encoded once.
//!
//! Invariant: there is a vector for each text, in order; whoever encodes never sees a text twice.

use rustc_hash::FxHashMap;
use vectide_model::EmbedError;

/// The vectors of texts, of which `encode` makes one for each that differs from those before it, in order.
///
/// # Errors
/// Those of `encode`.
pub fn encode_distinct(
    texts: &[&str],
    encode: impl FnOnce(&[&str]) -> Result<Vec<Vec<f32>>, EmbedError>,
) -> Result<Vec<Vec<f32>>, EmbedError> {
    let mut distinct: Vec<&str> = Vec::with_capacity(texts.len());
    let mut places: FxHashMap<&str, usize> = FxHashMap::default();
    let places: Vec<usize> = texts
        .iter()
        .map(|text| {
            *places.entry(text).or_insert_with(|| {
                distinct.push(text);
                distinct.len() - 1
            })
        })
        .collect();
    let vectors = encode(&distinct)?;
    if vectors.len() == texts.len() {
        return Ok(vectors);
    }
    Ok(places.iter().map(|place| vectors[*place].clone()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_texts_share_a_vector_and_keep_their_places() {
        let encode = |texts: &[&str]| {
            assert_eq!(texts, ["b", "a"]);
            Ok(vec![vec![2.0], vec![1.0]])
        };
        let vectors = encode_distinct(&["b", "a", "b"], encode).unwrap();
        assert_eq!(vectors, [[2.0], [1.0], [2.0]]);
        assert_eq!(encode_distinct(&[], |_| Ok(Vec::new())), Ok(Vec::new()));
        let fault = EmbedError::Texts("on purpose".into());
        let failed = encode_distinct(&["a"], |_| Err(fault.clone()));
        assert_eq!(failed, Err(fault));
    }
}
