//! `vectide query`: one question to a running endpoint.

use crate::failure::Failure;
use vectide_serve::{ApiKey, Client, QueryRequest, QueryResponse};

/// Where and what to ask.
pub struct Question<'a> {
    /// The endpoint.
    pub url: &'a str,
    /// The index.
    pub index: &'a str,
    /// What is asked.
    pub request: QueryRequest,
    /// The key, if the endpoint wants one.
    pub api_key: Option<String>,
}

/// A client of an endpoint.
///
/// # Errors
/// When the URL is none.
pub fn client(url: &str, api_key: Option<String>) -> Result<Client, Failure> {
    let client = Client::new(url)?;
    Ok(match api_key {
        Some(key) => client.with_api_key(ApiKey::new(key)),
        None => client,
    })
}

/// Asks and prints the answer as JSON.
///
/// # Errors
/// When the endpoint can't be reached or refuses the question.
pub fn print_json(question: &Question<'_>) -> Result<(), Failure> {
    println!("{}", serde_json::to_string(&ask(question)?)?);
    Ok(())
}

/// Asks and prints the answer for a person.
///
/// # Errors
/// When the endpoint can't be reached or refuses the question.
pub fn print_text(question: &Question<'_>) -> Result<(), Failure> {
    print!("{}", describe(&ask(question)?));
    Ok(())
}

fn ask(question: &Question<'_>) -> Result<QueryResponse, Failure> {
    let client = client(question.url, question.api_key.clone())?;
    Ok(client.search(question.index, &question.request)?)
}

/// Longest piece of a hit's text that is printed, in characters.
const SNIPPET_CHARACTERS: usize = 240;

/// An answer for a person: text, source, score and latency.
pub fn describe(answer: &QueryResponse) -> String {
    let mut out = String::new();
    for (rank, hit) in answer.hits.iter().enumerate() {
        let position = &hit.position;
        out.push_str(&format!(
            "{:>2}. {:.3}  {}  ({}, {} at {})\n",
            rank + 1,
            hit.score,
            hit.document,
            position.source,
            if position.partition.is_empty() {
                "position"
            } else {
                &*position.partition
            },
            position.offset
        ));
        let text = hit.text.as_deref().unwrap_or_default();
        let flat: Vec<&str> = text.split_whitespace().collect();
        let snippet: String = flat.join(" ").chars().take(SNIPPET_CHARACTERS).collect();
        out.push_str(&format!("     {snippet}\n"));
    }
    let took = &answer.took_ms;
    out.push_str(&format!(
        "{} hits as of epoch {} in {:.2} ms (embed {:.2}, search {:.2})\n",
        answer.hits.len(),
        answer.as_of.epoch,
        took.total,
        took.embed,
        took.search
    ));
    out
}
