//! What a client is told when there is no answer: RFC 9457 problem details with a code, the fact and
//! a hint, and the same in the shape that OpenAI's clients read.
//!
//! Invariant: nothing of the inside (paths, messages of libraries, keys) goes out; faults of our own
//! are logged and answered with a fixed sentence.

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use utoipa::ToSchema;
use vectide_model::{Epoch, Positions, QueryError};

/// Why a request has no answer: RFC 9457 problem details.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// `urn:vectide:problem:CODE`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The status in words.
    pub title: String,
    /// The HTTP status.
    #[schema(minimum = 400, maximum = 599)]
    pub status: u16,
    /// The fact: what is wrong with this request.
    pub detail: String,
    /// A name for programs; it does not change between versions.
    pub code: String,
    /// What to do; may be empty.
    pub hint: String,
    /// The field of the request that is at fault, when it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub field: Option<String>,
    /// The positions of the published state, where the request asked for later ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, value_type = BTreeMap<String, BTreeMap<String, u64>>, required = false)]
    pub positions: Option<Arc<Positions>>,
    /// The same for clients of OpenAI's API.
    pub error: OpenAiError,
}

/// An error in the shape of OpenAI's API.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct OpenAiError {
    /// Fact and hint.
    pub message: String,
    /// `invalid_request_error` for faults of the request, else `server_error`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The field of the request that is at fault.
    pub param: Option<String>,
    /// The problem's code.
    pub code: Option<String>,
}

/// A problem in the making: what handlers return. Only its rendering knows the wire's form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    status: StatusCode,
    pub(crate) code: &'static str,
    fact: String,
    hint: String,
    field: Option<String>,
    positions: Option<Arc<Positions>>,
}

impl Refusal {
    /// Seconds after which a client that was told 503 may try again: queues drain in less.
    const RETRY_AFTER_S: &'static str = "1";

    pub(crate) fn new(status: StatusCode, code: &'static str, fact: impl Into<String>) -> Self {
        let (fact, hint, field) = (fact.into(), String::new(), None);
        Self {
            status,
            code,
            fact,
            hint,
            field,
            positions: None,
        }
    }

    /// Says which positions are published.
    pub(crate) fn positions(mut self, positions: Arc<Positions>) -> Self {
        self.positions = Some(positions);
        self
    }

    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = hint.into();
        self
    }

    pub(crate) fn field(mut self, field: impl Into<String>) -> Self {
        self.field = Some(field.into());
        self
    }

    /// Says which part of a request it is about.
    pub(crate) fn of(mut self, part: &str) -> Self {
        self.fact = format!("{part}: {}", self.fact);
        self
    }

    /// A field has a value that is not allowed.
    pub(crate) fn invalid(field: &str, fact: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_field", fact)
            .hint(hint)
            .field(field)
    }

    /// Our own fault: the log has the cause.
    pub(crate) fn internal(cause: &str) -> Self {
        tracing::error!(cause, "a request failed inside the server");
        let fact = "the request failed inside the server";
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", fact)
            .hint("the server's log has the cause beside this answer's x-request-id")
    }

    pub(crate) fn unavailable(code: &'static str, fact: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, code, fact)
            .hint("try again after the seconds in the Retry-After header")
    }
}

/// An epoch that was never there, is not yet there, or is forgotten.
fn not_held(asked: Epoch, newest: Epoch) -> Refusal {
    let fact = format!("epoch {asked} is not held: the newest is {newest}");
    let (status, hint) = if asked > newest {
        let hint = "ask with `at_least` to wait for what is not yet visible";
        (StatusCode::BAD_REQUEST, hint)
    } else {
        let hint = "an epoch is held for `state.history` after an answer came from it: ask again without \
                    `as_of`";
        (StatusCode::GONE, hint)
    };
    Refusal::new(status, "epoch_not_held", fact)
        .hint(hint)
        .field("as_of")
}

impl From<QueryError> for Refusal {
    fn from(error: QueryError) -> Self {
        match error {
            QueryError::NotFound { kind, name, known } => not_found(kind, &name, &known),
            QueryError::Invalid { field, fact, hint } => Self::invalid(field, fact, hint),
            QueryError::NotHeld { asked, newest } => not_held(asked, newest),
            QueryError::Unavailable(fact) => Self::unavailable("unavailable", fact),
            QueryError::Internal(cause) => Self::internal(&cause),
        }
    }
}

fn not_found(kind: &'static str, name: &str, known: &[String]) -> Refusal {
    let code = match kind {
        "index" => "index_not_found",
        "document" => "document_not_found",
        "model" => "model_not_found",
        "source" => "source_not_found",
        _ => "not_found",
    };
    let hint = match nearest(name, known) {
        Some(name) => format!("did you mean `{name}`?"),
        None if known.is_empty() => String::new(),
        None => format!("there is {}", listed(known)),
    };
    let fact = format!("there is no {kind} `{name}`");
    Refusal::new(StatusCode::NOT_FOUND, code, fact)
        .hint(hint)
        .field(kind)
}

/// The known name that was probably meant.
pub(crate) fn nearest<'a>(name: &str, known: &'a [impl AsRef<str>]) -> Option<&'a str> {
    // Below 0.75 (Jaro-Winkler) names share little more than a few letters.
    const LIKENESS_MIN: f64 = 0.75;
    let like = |known: &'a str| (strsim::jaro_winkler(name, known), known);
    let best = known
        .iter()
        .map(|known| like(known.as_ref()))
        .max_by(|a, b| a.0.total_cmp(&b.0))?;
    (best.0 >= LIKENESS_MIN).then_some(best.1)
}

/// Names for a person: a, b and so on, cut where it would become a page.
pub(crate) fn listed(names: &[impl AsRef<str>]) -> String {
    const NAMES_MAX: usize = 20;
    let shown: Vec<String> = names
        .iter()
        .take(NAMES_MAX)
        .map(|name| format!("`{}`", name.as_ref()))
        .collect();
    let more = if names.len() > NAMES_MAX { ", …" } else { "" };
    format!("{}{more}", shown.join(", "))
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        let Refusal {
            status,
            code,
            fact,
            hint,
            field,
            positions,
        } = refusal;
        let message = if hint.is_empty() {
            fact.clone()
        } else {
            format!("{fact}; {hint}")
        };
        let is_theirs = status.is_client_error();
        let kind = if is_theirs {
            "invalid_request_error"
        } else {
            "server_error"
        };
        let (param, openai_code) = (field.clone(), Some(code.into()));
        Self {
            kind: format!("urn:vectide:problem:{code}"),
            title: status.canonical_reason().unwrap_or("Error").into(),
            status: status.as_u16(),
            detail: fact,
            code: code.into(),
            hint,
            field,
            positions,
            error: OpenAiError {
                message,
                kind: kind.into(),
                param,
                code: openai_code,
            },
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status = self.status;
        // Strings and numbers only: this can't fail, and an empty body would still have its status.
        let body = serde_json::to_vec(&Problem::from(self)).unwrap_or_default();
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = status;
        let mut set = |name, value| {
            response
                .headers_mut()
                .insert(name, HeaderValue::from_static(value));
        };
        set(header::CONTENT_TYPE, "application/problem+json");
        match status {
            StatusCode::UNAUTHORIZED => {
                set(header::WWW_AUTHENTICATE, "Bearer realm=\"vectide\"");
            }
            StatusCode::SERVICE_UNAVAILABLE => set(header::RETRY_AFTER, Self::RETRY_AFTER_S),
            _ => {}
        }
        response
    }
}
