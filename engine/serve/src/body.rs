//! Reads a request's JSON body, and says exactly what is wrong with one that can't be used.
//!
//! The way of a good request is one pass of serde over the bytes. Only when that fails is the body
//! read again, as a tree, to find the field at fault. A body without content type is taken as JSON;
//! one that says it is something else is refused.
//!
//! Invariant: at most `body_bytes_max` of a body are in memory.

use crate::endpoint::Endpoint;
use crate::problem::{Refusal, listed, nearest};
use axum::body::{Body, BodyDataStream};
use axum::extract::Request;
use axum::http::{HeaderMap, StatusCode, header};
use futures_util::StreamExt;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// A JSON request whose faults can be told field by field.
pub(crate) trait JsonRequest: DeserializeOwned {
    /// Names of all fields.
    const FIELDS: &'static [&'static str];
    /// Names of those that must be there.
    const REQUIRED: &'static [&'static str];

    /// What is wrong with the value of a known field: fact and hint.
    fn fault(field: &str, value: &Value) -> Option<(String, String)>;
}

/// Bodies that are too large are read to their end and thrown away up to this size, so that a
/// client which writes all before it reads gets the answer instead of a broken connection.
const DISCARD_BYTES_MAX: usize = 16 << 20;

impl Endpoint {
    /// Reads the body of a request.
    pub(crate) async fn read_json<T: JsonRequest>(&self, request: Request) -> Result<T, Refusal> {
        check_content_type(request.headers())?;
        let declared = declared_bytes(request.headers());
        let read = collect(request.into_body(), declared, self.body_bytes_max);
        let bytes = match tokio::time::timeout(self.timeout, read).await {
            Ok(outcome) => outcome?,
            Err(_) => return Err(body_timed_out(self.timeout.as_millis())),
        };
        // serde would take an array too, as the fields in their order.
        if bytes.trim_ascii_start().first() != Some(&b'{') {
            return Err(not_an_object::<T>(&bytes));
        }
        serde_json::from_slice(&bytes).map_err(|error| explain::<T>(&bytes, &error))
    }
}

fn body_timed_out(limit_ms: u128) -> Refusal {
    let fact = format!("the body did not arrive within {limit_ms} ms");
    Refusal::new(StatusCode::REQUEST_TIMEOUT, "body_timeout", fact).hint("send the body at once")
}

fn check_content_type(headers: &HeaderMap) -> Result<(), Refusal> {
    let Some(value) = headers.get(header::CONTENT_TYPE) else {
        return Ok(());
    };
    let text = value.to_str().unwrap_or_default();
    let media = text
        .split(';')
        .next()
        .unwrap_or_default()
        .trim()
        .to_ascii_lowercase();
    if media == "application/json" || media.ends_with("+json") {
        return Ok(());
    }
    let fact = format!("the content type `{media}` is not JSON");
    Err(Refusal::new(
        StatusCode::UNSUPPORTED_MEDIA_TYPE,
        "unsupported_media_type",
        fact,
    )
    .hint("send the header `Content-Type: application/json`"))
}

fn declared_bytes(headers: &HeaderMap) -> usize {
    let value = headers
        .get(header::CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok());
    value.and_then(|text| text.parse().ok()).unwrap_or(0)
}

async fn collect(body: Body, declared: usize, bytes_max: usize) -> Result<Vec<u8>, Refusal> {
    let mut stream = body.into_data_stream();
    if declared > bytes_max {
        if declared <= DISCARD_BYTES_MAX {
            discard(&mut stream).await;
        }
        return Err(too_large(bytes_max));
    }
    let mut bytes = Vec::with_capacity(declared);
    while let Some(piece) = stream.next().await {
        let piece = piece.map_err(|_| {
            let fact = "the body ended before its declared length or is badly framed";
            Refusal::new(StatusCode::BAD_REQUEST, "incomplete_body", fact)
                .hint("send the whole body")
        })?;
        if bytes.len() + piece.len() > bytes_max {
            discard(&mut stream).await;
            return Err(too_large(bytes_max));
        }
        bytes.extend_from_slice(&piece);
    }
    Ok(bytes)
}

async fn discard(stream: &mut BodyDataStream) {
    let mut discarded = 0;
    while let Some(Ok(piece)) = stream.next().await {
        discarded += piece.len();
        if discarded > DISCARD_BYTES_MAX {
            return;
        }
    }
}

fn too_large(bytes_max: usize) -> Refusal {
    let fact = format!("the body is longer than {bytes_max} bytes");
    Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", fact)
        .hint("send less at once, or raise `body_max` of the server")
}

/// Finds out why serde refused a body that begins like an object.
fn explain<T: JsonRequest>(bytes: &[u8], error: &serde_json::Error) -> Refusal {
    let fields = match serde_json::from_slice::<Map<String, Value>>(bytes) {
        Ok(fields) => fields,
        Err(error) => return malformed(bytes, &error),
    };
    explain_fields::<T>(&fields).unwrap_or_else(|| {
        refused("invalid_request", error.to_string()).hint("/openapi.json has the request's schema")
    })
}

fn not_an_object<T: JsonRequest>(bytes: &[u8]) -> Refusal {
    match serde_json::from_slice::<Value>(bytes) {
        Err(error) => malformed(bytes, &error),
        Ok(_) => refused("invalid_request", "the body is not a JSON object".into()).hint(format!(
            "send an object with the fields {}",
            listed(T::FIELDS)
        )),
    }
}

fn refused(code: &'static str, fact: String) -> Refusal {
    Refusal::new(StatusCode::BAD_REQUEST, code, fact)
}

fn malformed(bytes: &[u8], error: &serde_json::Error) -> Refusal {
    if bytes.trim_ascii().is_empty() {
        return refused("malformed_json", "the body is empty".into()).hint("send a JSON object");
    }
    let contains = |word: &[u8]| bytes.windows(word.len()).any(|window| window == word);
    let hint = if error.to_string().contains("out of range") {
        "numbers must fit into a 64-bit float"
    } else if contains(b"NaN") || contains(b"Infinity") {
        "JSON has no NaN and no Infinity: send finite numbers"
    } else {
        "send a JSON object in UTF-8"
    };
    refused("malformed_json", format!("the body is not JSON: {error}")).hint(hint)
}

fn explain_fields<T: JsonRequest>(fields: &Map<String, Value>) -> Option<Refusal> {
    for (name, value) in fields {
        if !T::FIELDS.contains(&name.as_str()) {
            return Some(unknown_field::<T>(name));
        }
        if let Some((fact, hint)) = T::fault(name, value) {
            return Some(Refusal::invalid(name, fact, hint));
        }
    }
    let missing = T::REQUIRED
        .iter()
        .find(|name| !fields.contains_key(**name))?;
    let fact = format!("`{missing}` is missing");
    Some(
        refused("missing_field", fact)
            .hint(format!("add `{missing}`"))
            .field(*missing),
    )
}

fn unknown_field<T: JsonRequest>(name: &str) -> Refusal {
    let hint = match nearest(name, T::FIELDS) {
        Some(known) => format!("did you mean `{known}`?"),
        None => format!("the fields are {}", listed(T::FIELDS)),
    };
    refused("unknown_field", format!("there is no field `{name}`"))
        .hint(hint)
        .field(name)
}
