//! Who may call: bearer tokens, compared in constant time.
//!
//! Invariant: how long the comparison takes tells nothing of the keys. Tokens are hashed first, so
//! that their lengths do not matter either, and every key is compared whatever the others gave.

use crate::config::ApiKey;
use crate::endpoint::Endpoint;
use crate::problem::Refusal;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header::AUTHORIZATION};
use axum::middleware::Next;
use axum::response::Response;

/// The configured keys, as hashes; empty admits everybody.
pub(crate) struct Keys(Vec<blake3::Hash>);

impl Keys {
    pub(crate) fn new(keys: &[ApiKey]) -> Self {
        Self(
            keys.iter()
                .map(|key| blake3::hash(key.reveal().as_bytes()))
                .collect(),
        )
    }

    fn admit(&self, headers: &HeaderMap) -> Result<(), Refusal> {
        if self.0.is_empty() {
            return Ok(());
        }
        let Some(token) = headers
            .get(AUTHORIZATION)
            .and_then(|value| bearer(value.as_bytes()))
        else {
            let fact = "the request carries no API key";
            return Err(refusal("missing_api_key", fact));
        };
        let presented = blake3::hash(token);
        // `Hash` compares in constant time; `|` does not stop at the first match.
        let known = self
            .0
            .iter()
            .fold(false, |found, key| found | (*key == presented));
        known
            .then_some(())
            .ok_or_else(|| refusal("invalid_api_key", "the API key is not known"))
    }
}

fn refusal(code: &'static str, fact: &str) -> Refusal {
    Refusal::new(StatusCode::UNAUTHORIZED, code, fact)
        .hint("send the header `Authorization: Bearer KEY` with a key of the server's api_keys")
}

/// The token of `Bearer TOKEN`; the scheme's case does not matter (RFC 9110).
fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = value.split_at_checked("Bearer ".len())?;
    let token = token.trim_ascii();
    (scheme.eq_ignore_ascii_case(b"Bearer ") && !token.is_empty()).then_some(token)
}

/// Lets a request pass when its key is known.
pub(crate) async fn require_key(
    State(endpoint): State<Endpoint>,
    request: Request,
    next: Next,
) -> Result<Response, Refusal> {
    endpoint.keys.admit(request.headers())?;
    Ok(next.run(request).await)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(header: Option<&str>, expect: Result<(), &str>) {
        let keys = Keys::new(&[
            ApiKey::new("first-key-of-two"),
            ApiKey::new("second-key-of-two"),
        ]);
        let mut headers = HeaderMap::new();
        if let Some(value) = header {
            headers.insert(AUTHORIZATION, value.parse().unwrap());
        }
        let got = keys.admit(&headers).map_err(|refusal| refusal.code);
        assert_eq!(got, expect, "{header:?}");
    }

    #[test]
    fn only_known_keys_pass() {
        check(None, Err("missing_api_key"));
        check(Some("Basic Zm9vOmJhcg=="), Err("missing_api_key"));
        check(Some("Bearer"), Err("missing_api_key"));
        check(Some("Bearer  "), Err("missing_api_key"));
        check(Some("Bearer first-key-of-tw"), Err("invalid_api_key"));
        check(Some("Bearer first-key-of-two2"), Err("invalid_api_key"));
        check(Some("Bearer first-key-of-two"), Ok(()));
        check(Some("bearer second-key-of-two"), Ok(()));
        assert!(Keys::new(&[]).admit(&HeaderMap::new()).is_ok());
    }
}
