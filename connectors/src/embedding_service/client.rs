//! One request to the service, and what its answer means.
//!
//! Invariant: a request ends within the time it is given, no answer grows beyond what the vectors need, and
//! the key is in no message.

use super::config::OpenAiConfig;
use super::retry_after::wait_asked;
use super::wire::{self, AnswerFault};
use crate::registry::trusted;
use std::time::{Duration, SystemTime};
use ureq::http::Response;
use ureq::tls::TlsConfig;
use ureq::{Agent, Body};
use vectide_model::{ComponentError, OpenContext};

/// Bytes of a component in an answer: 17 digits with sign, exponent and comma, indented, have less.
const COMPONENT_BYTES_MAX: usize = 48;
/// Bytes of an answer besides its components.
const FRAME_BYTES_MAX: usize = 64 * 1024;
/// Bytes for each text besides its components.
const ENTRY_BYTES_MAX: usize = 1024;
/// Dimensions that an answer may have before the model's are known: no model in use has more.
pub(super) const DIMENSIONS_MAX: usize = 8192;
/// What is read of an answer that tells what is wrong.
const REFUSAL_BYTES_MAX: u64 = 64 * 1024;
/// Letters of it that a person is shown.
const REFUSAL_LETTERS_MAX: usize = 300;

/// What became of a request.
#[derive(Debug)]
pub(super) enum Outcome {
    /// The texts' vectors.
    Vectors(Vec<Vec<f32>>),
    /// The service works, and has no vectors for these texts.
    Texts(String),
    /// It says nothing of the texts.
    Away(Away),
}

/// Why the service can't be used now.
#[derive(Clone, Debug)]
pub(super) struct Away {
    /// For a person.
    pub(super) why: String,
    /// Whether it passes by itself: not when the key, the name of the model or a certificate is wrong.
    pub(super) passes: bool,
    /// The field of the configuration that may be wrong.
    pub(super) field: &'static str,
    /// The wait that the service asks for.
    pub(super) wait: Option<Duration>,
    /// There was no answer in the time that there was for it.
    pub(super) is_late: bool,
    /// It may be these texts that the service fails with: it has a fault of its own, or takes too long.
    pub(super) may_be_texts: bool,
}

impl Away {
    fn passing(why: String) -> Self {
        Self {
            passes: true,
            ..Self::lasting(why, "url")
        }
    }

    /// Until somebody changes the field, or the service.
    pub(super) fn lasting(why: String, field: &'static str) -> Self {
        Self {
            why,
            passes: false,
            field,
            wait: None,
            is_late: false,
            may_be_texts: false,
        }
    }
}

/// The way to the service.
pub(super) struct Client {
    agent: Agent,
    url: String,
    model: String,
    api_key: Option<String>,
    dimensions: Option<usize>,
}

impl Client {
    /// # Errors
    /// When its certificates can't be read.
    pub(super) fn new(
        config: &OpenAiConfig,
        context: &OpenContext,
    ) -> Result<Self, ComponentError> {
        // A redirected request would be sent as another, and the key to another host.
        let mut builder = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_idle_connections_per_host(config.concurrency + 1)
            .user_agent(concat!("vectide/", env!("CARGO_PKG_VERSION")));
        if let Some(path) = &config.ca {
            let roots = trusted(&context.config_dir.join(path), "ca")?;
            builder = builder.tls_config(TlsConfig::builder().root_certs(roots).build());
        }
        Ok(Self {
            agent: builder.build().new_agent(),
            url: format!("{}/embeddings", config.url.trim_end_matches('/')),
            model: config.name.clone(),
            api_key: config.api_key.clone(),
            dimensions: config.dimensions,
        })
    }

    /// Asks for the vectors of texts, of which `dimension` components are expected.
    pub(super) fn post(
        &self,
        texts: &[String],
        dimension: Option<usize>,
        timeout: Duration,
    ) -> Outcome {
        let body = match wire::question(&self.model, self.dimensions, texts) {
            Ok(body) => body,
            Err(fault) => return self.faulty(fault),
        };
        let request = self.agent.post(&self.url);
        let request = request.config().timeout_global(Some(timeout)).build();
        let mut request = request
            .header("Content-Type", "application/json")
            .header("Accept", "application/json");
        if let Some(key) = &self.api_key {
            request = request.header("Authorization", format!("Bearer {key}"));
        }
        let mut response = match request.send(&body[..]) {
            Ok(response) => response,
            Err(error) => return self.away(&error),
        };
        if response.status().as_u16() != 200 {
            return self.refused(&mut response);
        }
        let each = dimension.unwrap_or(DIMENSIONS_MAX) * COMPONENT_BYTES_MAX + ENTRY_BYTES_MAX;
        let limit = FRAME_BYTES_MAX + texts.len() * each;
        let read = response.body_mut().with_config().limit(limit as u64);
        match read.read_to_vec() {
            Ok(body) => match wire::vectors(&body, texts.len(), dimension) {
                Ok(vectors) => Outcome::Vectors(vectors),
                Err(fault) => self.faulty(fault),
            },
            Err(error) => self.away(&error),
        }
    }

    fn away(&self, error: &ureq::Error) -> Outcome {
        if let Some(doubt) = certificate_doubt(error) {
            let why = format!("the certificate of {} is not trusted: {doubt}", self.url);
            return Outcome::Away(Away::lasting(self.without_key(why), "ca"));
        }
        let why = format!("{} does not answer: {error}", self.url);
        let is_late = is_late(error);
        Outcome::Away(Away {
            is_late,
            may_be_texts: is_late,
            ..Away::passing(self.without_key(why))
        })
    }

    fn faulty(&self, fault: AnswerFault) -> Outcome {
        match fault {
            AnswerFault::Texts(why) => Outcome::Texts(format!("{}: {why}", self.url)),
            AnswerFault::Service(why) => {
                let why = format!("{}: {why}", self.url);
                Outcome::Away(Away::passing(self.without_key(why)))
            }
        }
    }

    /// An answer with another status than 200.
    fn refused(&self, response: &mut Response<Body>) -> Outcome {
        let status = response.status().as_u16();
        let wait = wait_asked(response.headers(), SystemTime::now());
        let body = response.body_mut().with_config().limit(REFUSAL_BYTES_MAX);
        let said = said(&body.read_to_vec().unwrap_or_default());
        // Before it is cut: the beginning of a key is not found.
        let said: String = self
            .without_key(said)
            .chars()
            .take(REFUSAL_LETTERS_MAX)
            .collect();
        let why = self.without_key(format!("{} answers {status}: {said}", self.url));
        let wrong = |field: &'static str| {
            Outcome::Away(Away {
                wait,
                ..Away::lasting(why.clone(), field)
            })
        };
        match status {
            400 | 413 | 422 => Outcome::Texts(why),
            401 | 403 => wrong("api_key"),
            404 => wrong("name"),
            408 | 425 | 429 | 500..=599 => Outcome::Away(Away {
                wait,
                may_be_texts: status >= 500 && wait.is_none(),
                ..Away::passing(why)
            }),
            _ => wrong("url"),
        }
    }

    /// Services quote keys that they refuse.
    fn without_key(&self, text: String) -> String {
        match &self.api_key {
            Some(key) if !key.is_empty() => hidden(text, key),
            _ => text,
        }
    }
}

/// A text without a key, as it is and as JSON writes it, with and without the slash that may be escaped.
fn hidden(text: String, key: &str) -> String {
    let quoted = serde_json::Value::from(key).to_string();
    let inner = quoted
        .strip_prefix('"')
        .and_then(|rest| rest.strip_suffix('"'));
    let quoted = inner.unwrap_or(key);
    let forms = [key, quoted, &quoted.replace('/', "\\/")];
    forms
        .iter()
        .fold(text, |text, form| text.replace(*form, "(hidden)"))
}

/// What is wrong with the service's certificate, where that is why there is no answer.
fn certificate_doubt(error: &ureq::Error) -> Option<&rustls::CertificateError> {
    let error = match error {
        ureq::Error::Rustls(error) => error,
        ureq::Error::Io(error) => error.get_ref()?.downcast_ref()?,
        _ => return None,
    };
    match error {
        rustls::Error::InvalidCertificate(doubt) => Some(doubt),
        _ => None,
    }
}

/// Whether the time was up.
fn is_late(error: &ureq::Error) -> bool {
    match error {
        ureq::Error::Timeout(_) => true,
        ureq::Error::Io(error) => error.kind() == std::io::ErrorKind::TimedOut,
        _ => false,
    }
}

/// What a refusal says, in one line. JSON is written anew, so that letters stand there in one way only.
fn said(body: &[u8]) -> String {
    let json: Option<serde_json::Value> = serde_json::from_slice(body).ok();
    let texts = ["/error/message", "/error", "/message", "/detail"];
    let told = json.as_ref().and_then(|json| {
        let mut told = texts.iter().filter_map(|at| json.pointer(at)?.as_str());
        told.next()
    });
    let text = match (told, &json) {
        (Some(told), _) => told.into(),
        (None, Some(json)) => json.to_string().into(),
        (None, None) => String::from_utf8_lossy(body),
    };
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_told_in_one_line() {
        for (body, expected) in [
            (r#"{"error":{"message":"too\nlong"}}"#, "too long"),
            (r#"{"error":"busy"}"#, "busy"),
            (r#"{"detail":"no model"}"#, "no model"),
            ("<p>502</p>", "<p>502</p>"),
            (r#"{"why": "a\u002fb\/c"}"#, r#"{"why":"a/b/c"}"#),
            ("", ""),
        ] {
            assert_eq!(said(body.as_bytes()), expected);
        }
    }

    #[test]
    fn a_key_is_hidden_in_every_form() {
        for (text, expected) in [
            ("key sk/a\"b!", "key (hidden)!"),
            (r#"key sk/a\"b!"#, "key (hidden)!"),
            (r#"key sk\/a\"b!"#, "key (hidden)!"),
            ("no key", "no key"),
        ] {
            assert_eq!(hidden(text.into(), "sk/a\"b"), expected);
        }
    }
}
