//! What is sent to the service and what it answers, as bytes.
//!
//! Invariant: an answer that becomes vectors has one for each text, in the order of the texts, all of the
//! dimension and of length 1; nothing of an answer is believed before it was checked.

use serde::{Deserialize, Serialize};

/// What is wrong with an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum AnswerFault {
    /// It is none of the interface, or not of this model: whatever the texts are.
    Service(String),
    /// A text has no vector that can be used.
    Texts(String),
}

#[derive(Serialize)]
struct Question<'a> {
    model: &'a str,
    input: &'a [String],
    encoding_format: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    dimensions: Option<usize>,
}

#[derive(Deserialize)]
struct Answer {
    data: Vec<Entry>,
}

#[derive(Deserialize)]
struct Entry {
    index: usize,
    embedding: Vec<f64>,
}

/// The body of a request.
pub(super) fn question(
    model: &str,
    dimensions: Option<usize>,
    texts: &[String],
) -> Result<Vec<u8>, AnswerFault> {
    let question = Question {
        model,
        input: texts,
        encoding_format: "float",
        dimensions,
    };
    serde_json::to_vec(&question).map_err(|error| AnswerFault::Texts(error.to_string()))
}

/// The unit vectors of an answer to so many texts, of `dimension` where that is known.
pub(super) fn vectors(
    body: &[u8],
    texts: usize,
    dimension: Option<usize>,
) -> Result<Vec<Vec<f32>>, AnswerFault> {
    let answer: Answer = serde_json::from_slice(body).map_err(|error| unreadable(body, &error))?;
    if answer.data.len() != texts {
        return Err(AnswerFault::Service(format!(
            "it gave {} vectors for {texts} texts",
            answer.data.len()
        )));
    }
    let mut vectors: Vec<Option<Vec<f32>>> = vec![None; texts];
    for entry in answer.data {
        let found = entry.embedding.len();
        if found == 0 || dimension.is_some_and(|dimension| dimension != found) {
            let expected =
                dimension.map_or_else(String::new, |it| format!(" where {it} are meant"));
            return Err(AnswerFault::Service(format!(
                "it gave a vector of {found} dimensions{expected}"
            )));
        }
        match vectors.get_mut(entry.index) {
            Some(place @ None) => *place = Some(unit(&entry.embedding)?),
            Some(Some(_)) | None => {
                return Err(AnswerFault::Service(format!(
                    "its vectors for {texts} texts have the index {} twice or beyond the last",
                    entry.index
                )));
            }
        }
    }
    // As many as texts, each at another place: none is missing.
    Ok(vectors.into_iter().flatten().collect())
}

/// Python's services write what JSON does not have, and numbers that no float holds: then the model made no
/// vector of a text. Everything else that can't be read is no answer.
fn unreadable(body: &[u8], error: &serde_json::Error) -> AnswerFault {
    let names = |name: &[u8]| body.windows(name.len()).any(|part| part == name);
    let is_number = error.to_string().contains("number out of range");
    let is_null = error.is_data() && error.to_string().contains("null, expected f64");
    let is_json = body.trim_ascii_start().starts_with(b"{");
    let is_named = error.is_syntax() && is_json && (names(b"NaN") || names(b"Infinity"));
    if is_number || is_null || is_named {
        return AnswerFault::Texts("it gave a vector that is not finite".into());
    }
    AnswerFault::Service(format!("its answer can't be read: {error}"))
}

fn unit(vector: &[f64]) -> Result<Vec<f32>, AnswerFault> {
    let norm = vector.iter().map(|x| x * x).sum::<f64>().sqrt();
    if !norm.is_finite() {
        return Err(AnswerFault::Texts(
            "it gave a vector that is not finite".into(),
        ));
    }
    if norm < f64::from(f32::MIN_POSITIVE) {
        return Err(AnswerFault::Texts("it gave a vector of zeros".into()));
    }
    Ok(vector.iter().map(|x| (x / norm) as f32).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(body: &str, texts: usize) -> Result<Vec<Vec<f32>>, AnswerFault> {
        vectors(body.as_bytes(), texts, Some(2))
    }

    #[test]
    fn vectors_come_in_the_order_of_texts_with_length_1() {
        let body = r#"{"object":"list","data":[{"index":1,"embedding":[0,2]},
            {"object":"embedding","index":0,"embedding":[3,4]}],"usage":{}}"#;
        assert_eq!(check(body, 2), Ok(vec![vec![0.6, 0.8], vec![0.0, 1.0]]));
    }

    #[test]
    fn faults_of_the_service_are_told_from_those_of_texts() {
        for body in [
            "",
            "<html>busy</html>",
            r#"{"data":[{"index":0,"embedding":[1,0"#,
            "<p>NaN</p>",
            r#"{"data":null}"#,
            r#"{"data":[]}"#,
            r#"{"data":[{"index":0,"embedding":[1,0,0]}]}"#,
            r#"{"data":[{"index":0,"embedding":[]}]}"#,
            r#"{"data":[{"index":1,"embedding":[1,0]}]}"#,
            r#"{"data":[{"index":-1,"embedding":[1,0]}]}"#,
            r#"{"data":[{"index":0,"embedding":"AAAA"}]}"#,
            r#"{"error":{"message":"no"}}"#,
        ] {
            let fault = check(body, 1).unwrap_err();
            assert!(
                matches!(fault, AnswerFault::Service(_)),
                "{body}: {fault:?}"
            );
        }
        let twice = r#"{"data":[{"index":0,"embedding":[1,0]},{"index":0,"embedding":[1,0]}]}"#;
        assert!(matches!(check(twice, 2), Err(AnswerFault::Service(_))));
        for body in [
            r#"{"data":[{"index":0,"embedding":[0,0]}]}"#,
            r#"{"data":[{"index":0,"embedding":[NaN,0]}]}"#,
            r#"{"data":[{"index":0,"embedding":[null,0]}]}"#,
            r#"{"data":[{"index":0,"embedding":[-Infinity,0]}]}"#,
            r#"{"data":[{"index":0,"embedding":[1e999,0]}]}"#,
            r#"{"data":[{"index":0,"embedding":[1e200,1e200]}]}"#,
        ] {
            let fault = check(body, 1).unwrap_err();
            assert!(matches!(fault, AnswerFault::Texts(_)), "{body}: {fault:?}");
        }
    }
}
