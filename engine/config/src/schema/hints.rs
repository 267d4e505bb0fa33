//! Guesses what was meant by a value that is wrong.
//!
//! Invariant: a guess is shown only if it would be right, and never shows a secret.

use crate::node::Node;
use crate::scalar::{Plain, read_plain};
use serde_json::Value;

/// What people usually mean by a value of the wrong type.
pub(super) fn type_hint(node: &Node, types: &[&str]) -> String {
    let wants = |name: &str| types.contains(&name);
    if let Some(secret) = node.secret() {
        let is_plain_text = matches!(read_plain(&secret.text), Plain::Value(Value::String(_)));
        return match node.as_str().is_some() && !is_plain_text && !wants("string") {
            true => "a variable in quotes is always a text".to_owned(),
            false => String::new(),
        };
    }
    let Some(scalar) = node.scalar() else {
        return String::new();
    };
    match &scalar.value {
        Value::String(text) if wants("boolean") => match text.to_lowercase().as_str() {
            "yes" | "on" | "y" | "true" => "write `true`".to_owned(),
            "no" | "off" | "n" | "false" => "write `false`".to_owned(),
            _ => String::new(),
        },
        Value::String(text) if wants("integer") || wants("number") => {
            let digits: String = text
                .chars()
                .filter(|c| !matches!(c, '_' | ',' | ' '))
                .collect();
            match digits.parse::<i64>() {
                Ok(number) => format!("write `{number}`"),
                Err(_) => String::new(),
            }
        }
        Value::Number(_) | Value::Bool(_) if wants("string") => {
            "quote it if it is meant as a text".to_owned()
        }
        Value::String(text) if wants("array") && is_simple(text) => {
            format!("a list of one entry is `[{text}]`")
        }
        Value::Null => "write the value after the `:`, or indented below it".to_owned(),
        _ => String::new(),
    }
}

/// Whether a text can stand in `[…]` as it is.
fn is_simple(text: &str) -> bool {
    const TEXT_BYTES_MAX: usize = 60;
    let is_simple = |byte: u8| byte.is_ascii_alphanumeric() || b"_-./*".contains(&byte);
    text.len() <= TEXT_BYTES_MAX && text.bytes().all(is_simple)
}

/// The text with a usual slip undone, if it `fits` then: spaces, letter case, a forbidden
/// character.
pub(super) fn repaired(text: &str, fits: impl Fn(&str) -> bool) -> Option<String> {
    const TEXT_BYTES_MAX: usize = 200;
    if text.len() > TEXT_BYTES_MAX {
        return None;
    }
    let no_spaces: String = text.split_whitespace().collect();
    let dashed: String = text
        .trim()
        .chars()
        .map(|character| {
            if character.is_ascii_alphanumeric() {
                character
            } else {
                '-'
            }
        })
        .collect();
    let dashed = dashed.trim_matches('-').to_owned();
    let candidates = [
        dashed.clone(),
        dashed.to_lowercase(),
        no_spaces.clone(),
        no_spaces.to_lowercase(),
        no_spaces.to_uppercase(),
        no_spaces
            .to_lowercase()
            .replace('k', "K")
            .replace("ib", "iB"),
        no_spaces.to_uppercase().replace("IB", "iB"),
        dashed
            .to_lowercase()
            .trim_start_matches(|first: char| !first.is_ascii_alphabetic())
            .to_owned(),
    ];
    candidates
        .into_iter()
        .find(|candidate| candidate != text && !candidate.is_empty() && fits(candidate))
}
