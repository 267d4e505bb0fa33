//! Texts of a request to vectors, and what whoever asks is told when there are none.
//!
//! A model refuses a call as a whole, so the text that it will not have is looked for by halves: in a batch the
//! others are not at fault, and whoever asks has to know which one to change.
//!
//! Invariant: where the model runs and what it answered is for the log alone, and a text is only said to be at
//! fault after the model refused it by itself.

use crate::service::invalid;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use vectide_model::{EmbedError, QueryError};

/// Letters that a text is shown by: enough to know it again.
const SHOWN_LETTERS: usize = 60;

type Vectors = Result<Vec<Vec<f32>>, EmbedError>;

/// The vectors of texts that stand in `field` of a request.
pub(crate) fn embedded(
    texts: &[&str],
    field: &'static str,
    embed: impl Fn(&[&str]) -> Vectors,
) -> Result<Vec<Vec<f32>>, QueryError> {
    let why = match embed(texts) {
        Ok(vectors) => return Ok(vectors),
        Err(EmbedError::Unavailable(why)) => return Err(away(&why)),
        Err(EmbedError::Texts(why)) => why,
    };
    let (text, why) = first_refused(texts, why, embed)?;
    if is_time_to_tell(&REFUSAL_TOLD, Instant::now()) {
        tracing::warn!(why, "the model refuses a text of a query");
    }
    let shown: String = text.chars().take(SHOWN_LETTERS).collect();
    let bytes = text.len();
    Err(invalid(
        field,
        format!("the model refuses the text of {bytes} bytes that begins with {shown:?}"),
        "shorten or change it; the server's log has what the model said",
    ))
}

/// The first of the texts that is refused alone, and why; `why` is what the model said of all of them. Takes
/// as many calls as the number of texts can be halved, and one.
fn first_refused<'a>(
    texts: &[&'a str],
    mut why: String,
    embed: impl Fn(&[&str]) -> Vectors,
) -> Result<(&'a str, String), QueryError> {
    let mut refused = texts;
    let mut is_tried = true;
    while refused.len() > 1 {
        let (former, latter) = refused.split_at(refused.len() / 2);
        (refused, is_tried) = match embed(former) {
            Ok(_) => (latter, false),
            Err(EmbedError::Unavailable(why)) => return Err(away(&why)),
            Err(EmbedError::Texts(told)) => {
                why = told;
                (former, true)
            }
        };
    }
    if !is_tried {
        match embed(refused) {
            Ok(_) => return Err(away("texts are refused together and taken alone")),
            Err(EmbedError::Unavailable(why)) => return Err(away(&why)),
            Err(EmbedError::Texts(told)) => why = told,
        }
    }
    match refused.first() {
        Some(text) => Ok((*text, why)),
        None => Err(away("the model refuses a call without texts")),
    }
}

fn away(why: &str) -> QueryError {
    if is_time_to_tell(&AWAY_TOLD, Instant::now()) {
        tracing::warn!(why, "texts of queries can't be embedded");
    }
    QueryError::Unavailable("the embedding model can't be had now".into())
}

/// When the log was told last of a query without a vector.
type Told = Mutex<Option<Instant>>;
static AWAY_TOLD: Told = Told::new(None);
static REFUSAL_TOLD: Told = Told::new(None);

/// Whether the log may be told of another: in an outage every query is one.
fn is_time_to_tell(told: &Told, now: Instant) -> bool {
    const PAUSE: Duration = Duration::from_secs(10);
    let mut told = told.lock().unwrap_or_else(PoisonError::into_inner);
    let is_time = told.is_none_or(|told| now.saturating_duration_since(told) >= PAUSE);
    if is_time {
        *told = Some(now);
    }
    is_time
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    const INSIDE: &str = "http://10.0.0.7/v1 answers 400: inside";

    /// A model that refuses whatever holds a bad text.
    fn picky(texts: &[&str]) -> Vectors {
        match texts.iter().any(|text| text.starts_with("bad")) {
            true => Err(EmbedError::Texts(INSIDE.into())),
            false => Ok(vec![vec![1.0]; texts.len()]),
        }
    }

    #[test]
    fn the_first_text_that_is_refused_is_told_and_nothing_of_the_inside() {
        for (texts, told) in [
            (&["bad"][..], "\"bad\""),
            (&["a", "bad 1"], "\"bad 1\""),
            (&["bad 2", "a", "b"], "\"bad 2\""),
            (&["a", "b", "c", "bad 3", "d", "bad 4", "e"], "\"bad 3\""),
        ] {
            let error = embedded(texts, "text", picky).unwrap_err();
            let QueryError::Invalid { field, fact, hint } = error else {
                panic!("{texts:?}: {error:?}");
            };
            assert_eq!(field, "text");
            assert!(fact.contains(told) && !hint.is_empty(), "{fact}");
            assert!(!fact.contains("10.0.0.7") && !hint.contains("10.0.0.7"));
        }
        let long = format!("bad {}", "日本".repeat(1000));
        let error = embedded(&[&long], "input", picky).unwrap_err().to_string();
        assert!(error.contains("6004 bytes") && error.len() < 400, "{error}");
    }

    #[test]
    fn looking_for_it_takes_few_calls() {
        let calls = Cell::new(0);
        let counted = |texts: &[&str]| {
            calls.set(calls.get() + 1);
            picky(texts)
        };
        let mut texts = vec!["a"; 256];
        texts[255] = "bad";
        embedded(&texts, "text", counted).unwrap_err();
        assert!(calls.get() <= 10, "{}", calls.get());
    }

    /// Also where the model goes away, or thinks better of it, while it is asked which text it refuses.
    #[test]
    fn an_outage_is_no_fault_of_texts_and_is_told_without_the_inside() {
        let away = |_: &[&str]| Err(EmbedError::Unavailable(INSIDE.into()));
        let goes_away = |texts: &[&str]| match texts.len() {
            4 => picky(texts),
            _ => Err(EmbedError::Unavailable(INSIDE.into())),
        };
        let takes_alone = |texts: &[&str]| match texts.len() {
            1 => Ok(vec![vec![1.0]]),
            _ => picky(texts),
        };
        let texts = ["a", "b", "bad", "c"];
        for error in [
            embedded(&texts, "text", away),
            embedded(&texts, "text", goes_away),
            embedded(&texts, "text", takes_alone),
        ] {
            let told = "the embedding model can't be had now".to_owned();
            assert_eq!(error, Err(QueryError::Unavailable(told)));
        }
    }

    #[test]
    fn the_log_is_told_seldom() {
        let (told, now) = (Told::new(None), Instant::now());
        assert!(is_time_to_tell(&told, now));
        assert!(!is_time_to_tell(&told, now + Duration::from_secs(9)));
        assert!(is_time_to_tell(&told, now + Duration::from_secs(10)));
    }
}
