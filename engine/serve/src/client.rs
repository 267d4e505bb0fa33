//! A blocking client of the endpoint, for the command line and for tests: the same wire types, one
//! kept-alive connection.
//!
//! Invariant: every failure says whether the server was reached, and passes on what it said.

use crate::config::ApiKey;
use crate::documents::DocumentResponse;
use crate::health::ReadinessResponse;
use crate::indexes::{IndexResponse, IndexesResponse};
use crate::problem::Problem;
use crate::query::{QueryRequest, QueryResponse};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::time::Duration;
use ureq::http::Response;
use ureq::{Agent, Body};

/// A client of one endpoint. Cloning shares the connections.
#[derive(Clone, Debug)]
pub struct Client {
    agent: Agent,
    base: String,
    key: Option<ApiKey>,
}

/// Why a call has no result.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The URL is not one of an endpoint.
    #[error("`{url}` is not a URL of a query endpoint\nhint: write it like http://127.0.0.1:7700")]
    BadUrl {
        /// What was given.
        url: String,
    },
    /// There was no answer.
    #[error("{url} gave no answer: {detail}\nhint: is `vectide run` serving there?")]
    Unreachable {
        /// What was called.
        url: String,
        /// What happened.
        detail: String,
    },
    /// The server refused.
    #[error("{} (status {}, {})\nhint: {}", .0.detail, .0.status, .0.code, .0.hint)]
    Refused(Box<Problem>),
    /// The answer is not what an endpoint of this version gives.
    #[error("{url} answered with status {status} and something else than expected: {detail}")]
    BadAnswer {
        /// What was called.
        url: String,
        /// The HTTP status.
        status: u16,
        /// What is wrong with the answer.
        detail: String,
    },
}

/// Longest wait for an answer: above the server's own limit for any configuration people use.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Longest wait for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Largest answer: ten thousand hits with text and metadata are some 20 MiB.
const ANSWER_BYTES_MAX: u64 = 256 << 20;

impl Client {
    /// A client of the endpoint at `url`, `http://127.0.0.1:7700`; nothing is called yet.
    ///
    /// # Errors
    /// [`ClientError::BadUrl`].
    pub fn new(url: &str) -> Result<Self, ClientError> {
        let base = url.trim_end_matches('/');
        let bad = || ClientError::BadUrl { url: url.into() };
        let uri: ureq::http::Uri = base.parse().map_err(|_| bad())?;
        let is_http = matches!(uri.scheme_str(), Some("http" | "https"));
        if !is_http || uri.host().is_none_or(str::is_empty) || uri.query().is_some() {
            return Err(bad());
        }
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(TIMEOUT))
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .build();
        Ok(Self {
            agent: config.into(),
            base: base.into(),
            key: None,
        })
    }

    /// The same client, sending a key.
    #[must_use]
    pub fn with_api_key(self, key: ApiKey) -> Self {
        Self {
            key: Some(key),
            ..self
        }
    }

    /// Searches an index for a text; hits carry text and metadata.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub fn query(&self, index: &str, text: &str, k: usize) -> Result<QueryResponse, ClientError> {
        self.search(index, &QueryRequest::text(text, k))
    }

    /// Searches an index.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub fn search(
        &self,
        index: &str,
        request: &QueryRequest,
    ) -> Result<QueryResponse, ClientError> {
        self.post(
            &format!("/v1/indexes/{}/query", percent_encode(index)),
            request,
        )
    }

    /// All indexes.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub fn indexes(&self) -> Result<IndexesResponse, ClientError> {
        self.get("/v1/indexes")
    }

    /// One index.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub fn index(&self, index: &str) -> Result<IndexResponse, ClientError> {
        self.get(&format!("/v1/indexes/{}", percent_encode(index)))
    }

    /// One document of an index.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub fn document(&self, index: &str, id: &str) -> Result<DocumentResponse, ClientError> {
        let (index, id) = (percent_encode(index), percent_encode(id));
        self.get(&format!("/v1/indexes/{index}/documents/{id}"))
    }

    /// Whether queries are answered.
    ///
    /// # Errors
    /// Any [`ClientError`]; an endpoint that is not serving yet is no error.
    pub fn readiness(&self) -> Result<ReadinessResponse, ClientError> {
        let url = format!("{}/readyz", self.base);
        let (status, body) = read(&url, self.agent.get(&url).call())?;
        decode(&url, status, &body)
    }

    fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        let url = format!("{}{path}", self.base);
        let mut request = self.agent.get(&url);
        if let Some(value) = self.authorization() {
            request = request.header("authorization", value);
        }
        let (status, body) = read(&url, request.call())?;
        accept(&url, status, &body)
    }

    fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        value: &impl Serialize,
    ) -> Result<T, ClientError> {
        let url = format!("{}{path}", self.base);
        let body = serde_json::to_vec(value).map_err(|error| ClientError::Unreachable {
            url: url.clone(),
            detail: error.to_string(),
        })?;
        let mut request = self
            .agent
            .post(&url)
            .header("content-type", "application/json");
        if let Some(value) = self.authorization() {
            request = request.header("authorization", value);
        }
        let (status, body) = read(&url, request.send(&body[..]))?;
        accept(&url, status, &body)
    }

    fn authorization(&self) -> Option<String> {
        self.key
            .as_ref()
            .map(|key| format!("Bearer {}", key.reveal()))
    }
}

fn read(
    url: &str,
    outcome: Result<Response<Body>, ureq::Error>,
) -> Result<(u16, Vec<u8>), ClientError> {
    let unreachable = |error: ureq::Error| ClientError::Unreachable {
        url: url.into(),
        detail: error.to_string(),
    };
    let mut response = outcome.map_err(unreachable)?;
    let reader = response.body_mut().with_config().limit(ANSWER_BYTES_MAX);
    let body = reader.read_to_vec().map_err(unreachable)?;
    Ok((response.status().as_u16(), body))
}

fn accept<T: DeserializeOwned>(url: &str, status: u16, body: &[u8]) -> Result<T, ClientError> {
    if status >= 400 {
        return Err(ClientError::Refused(Box::new(decode(url, status, body)?)));
    }
    decode(url, status, body)
}

fn decode<T: DeserializeOwned>(url: &str, status: u16, body: &[u8]) -> Result<T, ClientError> {
    serde_json::from_slice(body).map_err(|error| ClientError::BadAnswer {
        url: url.into(),
        status,
        detail: error.to_string(),
    })
}

/// Encodes a name as one segment of a path: all but RFC 3986's unreserved characters.
fn percent_encode(name: &str) -> String {
    name.bytes()
        .fold(String::with_capacity(name.len()), |mut out, byte| {
            if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
                out.push(byte as char);
            } else {
                out.push_str(&format!("%{byte:02X}"));
            }
            out
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_checked_before_anything_is_called() {
        for good in [
            "http://127.0.0.1:7700",
            "http://[::1]:7700/",
            "https://example.org/vectide",
        ] {
            assert!(Client::new(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "127.0.0.1:7700",
            "ftp://example.org",
            "http://",
            "http://a b",
            "http://x/?q",
        ] {
            assert!(
                matches!(Client::new(bad), Err(ClientError::BadUrl { .. })),
                "{bad}"
            );
        }
    }

    #[test]
    fn names_become_one_segment() {
        assert_eq!(percent_encode("docs/a b%.md"), "docs%2Fa%20b%25.md");
        assert_eq!(percent_encode("ü-._~"), "%C3%BC-._~");
    }
}
