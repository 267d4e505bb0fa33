//! The options of `model: openai`.
//!
//! Invariant: the key is never shown, not by `Debug` either.

use super::client::{Client, DIMENSIONS_MAX};
use super::embedder::RemoteEmbedder;
use super::tokenizer::Tokens;
use super::tokens::EstimatedTokens;
use schemars::JsonSchema;
use serde::Deserialize;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use vectide_model::{
    ByteSize, ComponentError, Embedder, EmbedderConfig, HumanDuration, OpenContext, TokenCounter,
};

/// A service that speaks OpenAI's embeddings interface.
#[derive(Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OpenAiConfig {
    /// Its address, before `/embeddings`: `https://api.openai.com/v1`, `http://localhost:8080/v1`.
    pub url: String,
    /// The name that the service knows the model by.
    pub name: String,
    /// What the service knows us by (`Authorization: Bearer`); best as `${VARIABLE}`.
    #[serde(default)]
    pub api_key: Option<String>,
    /// File of certificates (PEM) to trust instead of the public ones, relative to the configuration.
    #[serde(default)]
    pub ca: Option<PathBuf>,
    /// Dimensions of the vectors. Sent where it is set, to models that can be cut; and without it the
    /// service is asked at the start, so that it has to be there.
    #[serde(default)]
    #[schemars(range(min = 1, max = 8192))]
    pub dimensions: Option<usize>,
    /// Tokens of a text, the prefix included, by an estimate that is a little too high where no `tokenizer` is
    /// named: longer ones are cut before they are sent.
    #[serde(default = "default_max_tokens")]
    #[schemars(range(min = 16, max = 131_072))]
    pub max_tokens: usize,
    /// File of the service's tokenizer (`tokenizer.json`), relative to the configuration: tokens are counted by
    /// it, special ones included.
    #[serde(default)]
    pub tokenizer: Option<PathBuf>,
    /// What stands before a query.
    #[serde(default)]
    pub query_prefix: Option<String>,
    /// What stands before a chunk of a document.
    #[serde(default)]
    pub passage_prefix: Option<String>,
    /// Texts of a request, at most.
    #[serde(default = "default_batch_texts")]
    #[schemars(range(min = 1, max = 2048))]
    pub batch_texts: usize,
    /// Bytes of the texts of a request, at most; a longer text goes alone.
    #[serde(default = "default_batch_bytes")]
    pub batch_bytes: ByteSize,
    /// Requests with chunks that are under way at the same time.
    #[serde(default = "default_concurrency")]
    #[schemars(range(min = 1, max = 64))]
    pub concurrency: usize,
    /// The longest that a request may take.
    #[serde(default = "default_timeout")]
    pub timeout: HumanDuration,
    /// How often a request that failed is sent again before the service is taken for away; chunks wait
    /// for its return, however long that takes.
    #[serde(default = "default_retries")]
    #[schemars(range(max = 10))]
    pub retries: u32,
}

/// What most models that are run at home look at.
fn default_max_tokens() -> usize {
    512
}

fn default_batch_texts() -> usize {
    32
}

/// Half of what the strictest services in use take.
fn default_batch_bytes() -> ByteSize {
    ByteSize::mebibytes(1)
}

fn default_concurrency() -> usize {
    4
}

fn default_timeout() -> HumanDuration {
    HumanDuration::from_seconds(30)
}

fn default_retries() -> u32 {
    3
}

impl fmt::Debug for OpenAiConfig {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = self.api_key.as_ref().map(|_| "(hidden)");
        formatter
            .debug_struct("OpenAiConfig")
            .field("url", &self.url)
            .field("name", &self.name)
            .field("api_key", &key)
            .field("dimensions", &self.dimensions)
            .field("max_tokens", &self.max_tokens)
            .finish_non_exhaustive()
    }
}

impl OpenAiConfig {
    /// What stands before a query.
    pub(super) fn query(&self) -> &str {
        self.query_prefix.as_deref().unwrap_or_default()
    }

    /// What stands before a chunk.
    pub(super) fn passage(&self) -> &str {
        self.passage_prefix.as_deref().unwrap_or_default()
    }

    /// The part of the address that names the machine.
    pub(super) fn host(&self) -> &str {
        let rest = self.url.split_once("://").map_or("", |(_, rest)| rest);
        rest.split(['/', '?', '#']).next().unwrap_or_default()
    }

    /// Whether others on the way to the service can read the key.
    pub(super) fn is_key_readable(&self) -> bool {
        let own = ["localhost", "127.", "[::1]"];
        let is_here = own.iter().any(|own| self.host().starts_with(own));
        self.api_key.is_some() && self.url.starts_with("http://") && !is_here
    }

    fn url_fault(&self) -> Option<(&'static str, String, &'static str)> {
        let is_http = self.url.starts_with("http://") || self.url.starts_with("https://");
        let host = self.host();
        if host.contains('@') {
            let fact = "the address holds a user or password".to_owned();
            return Some(("url", fact, "write what is secret as `api_key`"));
        }
        if !is_http || host.is_empty() || self.url.contains(char::is_whitespace) {
            let fact = format!("`{}` is not the address of a service", self.url);
            let hint = "write it as http://host:8080/v1 or https://host/v1";
            return Some(("url", fact, hint));
        }
        if self.url.contains(['?', '#']) {
            let fact = "the address has a query".to_owned();
            return Some(("url", fact, "leave out what stands behind the path"));
        }
        let path = self.url.trim_end_matches('/');
        path.ends_with("/embeddings").then(|| {
            let fact = "the address ends with /embeddings, which is added to it".to_owned();
            ("url", fact, "leave /embeddings out")
        })
    }

    fn key_fault(&self) -> Option<(&'static str, String, &'static str)> {
        let key = self.api_key.as_ref()?;
        if key.is_empty() {
            let fact = "the key is empty".to_owned();
            return Some((
                "api_key",
                fact,
                "set the variable that it comes from, or remove it",
            ));
        }
        let is_sendable = key.bytes().all(|byte| byte.is_ascii_graphic());
        (!is_sendable).then(|| {
            let fact = "the key has a space, a line end or a letter outside of ASCII".to_owned();
            (
                "api_key",
                fact,
                "copy it again, without what stands around it",
            )
        })
    }

    /// Prefixes that leave texts too few tokens of their own.
    pub(super) fn prefix_faults(
        &self,
        count: impl Fn(&str) -> usize,
    ) -> Vec<(&'static str, String, &'static str)> {
        let prefixes = [
            ("query_prefix", self.query()),
            ("passage_prefix", self.passage()),
        ];
        let long = prefixes.into_iter().filter_map(|(field, prefix)| {
            let tokens = count(prefix);
            // Half of a text's tokens are its own.
            (tokens * 2 > self.max_tokens).then(|| {
                let fact = format!(
                    "the prefix has about {tokens} tokens of {}",
                    self.max_tokens
                );
                (field, fact, "use a shorter prefix or more `max_tokens`")
            })
        });
        long.collect()
    }
}

impl EmbedderConfig for OpenAiConfig {
    const MODEL: &'static str = "openai";

    fn check(&self) -> Vec<ComponentError> {
        // With a tokenizer they are counted when that is read.
        let mut faults = match self.tokenizer {
            Some(_) => Vec::new(),
            None => self.prefix_faults(|prefix| EstimatedTokens.count(prefix)),
        };
        faults.extend(self.url_fault());
        faults.extend(self.key_fault());
        if self.name.trim().is_empty() {
            let hint = "write the name that the service knows the model by";
            faults.push(("name", "the model has no name".to_owned(), hint));
        }
        if self.timeout.as_milliseconds() == 0 {
            let hint = "use 30s";
            faults.push(("timeout", "no request ends at once".to_owned(), hint));
        }
        if self.ca.is_some() && !self.url.starts_with("https://") {
            let hint = "write the address with https://";
            faults.push(("ca", "certificates without TLS".to_owned(), hint));
        }
        if self
            .dimensions
            .is_some_and(|it| !(1..=DIMENSIONS_MAX).contains(&it))
        {
            let fact = format!("a vector can't have {:?} dimensions", self.dimensions);
            faults.push(("dimensions", fact, "use as many as the model has"));
        }
        let faults = faults.into_iter();
        faults
            .map(|(field, fact, hint)| ComponentError::new(field, fact, hint))
            .collect()
    }

    fn open(&self, context: &OpenContext) -> Result<Arc<dyn Embedder>, ComponentError> {
        let client = Client::new(self, context)?;
        let tokens = Tokens::open(self, context)?;
        Ok(Arc::new(RemoteEmbedder::open(self, client, tokens)?))
    }

    fn locate(&self, context: &OpenContext) -> Result<String, ComponentError> {
        let client = Client::new(self, context)?;
        Tokens::open(self, context)?;
        let dimension =
            super::embedder::ask_dimension(self, &client).map_err(|away| away.error())?;
        Ok(format!(
            "`{}` answers at {} with {dimension} dimensions",
            self.name, self.url
        ))
    }

    fn query_prefix(&self) -> Option<&str> {
        self.query_prefix.as_deref()
    }

    fn name_field(&self) -> &'static str {
        "name"
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn config(more: Value) -> OpenAiConfig {
        let mut json = json!({"url": "http://a:8080/v1", "name": "m"});
        if let (Some(all), Value::Object(more)) = (json.as_object_mut(), more) {
            all.extend(more);
        }
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn faults() {
        for (more, field) in [
            (json!({}), None),
            (
                json!({"url": "https://api.openai.com/v1/", "api_key": "sk-1"}),
                None,
            ),
            (json!({"url": "a:80"}), Some("url")),
            (json!({"url": "http://"}), Some("url")),
            (json!({"url": "http://u:p@a/v1"}), Some("url")),
            (json!({"url": "http://a/v1?key=x"}), Some("url")),
            (json!({"url": "http://a/v1/embeddings"}), Some("url")),
            (json!({"name": " "}), Some("name")),
            (json!({"api_key": ""}), Some("api_key")),
            (json!({"api_key": "geheim\n"}), Some("api_key")),
            (
                json!({"passage_prefix": "word ".repeat(300)}),
                Some("passage_prefix"),
            ),
            // What that counts is known when the file is read.
            (
                json!({"passage_prefix": "word ".repeat(300), "tokenizer": "tokenizer.json"}),
                None,
            ),
            (json!({"timeout": "0s"}), Some("timeout")),
            (json!({"ca": "ca.pem"}), Some("ca")),
            (json!({"dimensions": 0}), Some("dimensions")),
        ] {
            let faults = config(more.clone()).check();
            let fields: Vec<&str> = faults.iter().map(|it| it.field.as_str()).collect();
            assert_eq!(fields, field.into_iter().collect::<Vec<_>>(), "{more}");
            assert!(
                faults
                    .iter()
                    .all(|it| !it.hint.is_empty() && !it.fact.contains("geheim"))
            );
        }
    }

    #[test]
    fn a_key_is_readable_on_the_way_without_tls() {
        for (url, is_readable) in [
            ("http://gpu.example/v1", true),
            ("https://gpu.example/v1", false),
            ("http://localhost:8080/v1", false),
            ("http://127.0.0.1:8080/v1", false),
            ("http://[::1]:8080/v1", false),
        ] {
            let config = config(json!({"url": url, "api_key": "k"}));
            assert_eq!(config.is_key_readable(), is_readable, "{url}");
        }
        assert!(!config(json!({"url": "http://gpu.example/v1"})).is_key_readable());
    }

    #[test]
    fn the_key_is_not_shown() {
        let shown = format!("{:?}", config(json!({"api_key": "geheim"})));
        assert!(
            shown.contains("(hidden)") && !shown.contains("geheim"),
            "{shown}"
        );
    }
}
