//! Asks a registry for schemas by HTTP.
//!
//! Invariant: a call ends within [`CALL_TIMEOUT`], and no answer grows beyond [`BODY_BYTES_MAX`].

use super::{FetchError, RegisteredSchema, RegistryConfig, SchemaLanguage, SchemaName};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use std::collections::HashSet;
use std::time::Duration;
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig};
use vectide_model::ComponentError;

/// For one request, with connecting: a registry answers from memory.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// Registries refuse schemas of more than a few megabytes.
const BODY_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// Schemas that one schema may use, directly or not: no real one comes near.
const REFERENCES_MAX: usize = 200;

/// Nesting of references, each of which is a step of recursion.
const REFERENCE_DEPTH_MAX: usize = 32;

/// The registry's number for "no such schema".
const SCHEMA_NOT_FOUND: u32 = 40403;
/// The same for a subject or a version, which a reference may name.
const SUBJECT_OR_VERSION_NOT_FOUND: [u32; 2] = [40401, 40402];

/// A connection to a registry.
pub(crate) struct RegistryClient {
    agent: ureq::Agent,
    url: String,
    authorization: Option<String>,
}

#[derive(Deserialize)]
struct SchemaAnswer {
    schema: String,
    #[serde(rename = "schemaType")]
    language: Option<String>,
    references: Option<Vec<Reference>>,
}

#[derive(Clone, Deserialize)]
struct Reference {
    name: String,
    subject: String,
    version: i64,
}

#[derive(Deserialize)]
struct ErrorAnswer {
    error_code: u32,
    #[serde(default)]
    message: String,
}

impl RegistryClient {
    /// Makes a client; nothing is asked yet.
    ///
    /// # Errors
    /// When its certificates can't be read.
    pub(crate) fn new(config: &RegistryConfig) -> Result<Self, ComponentError> {
        let mut builder = ureq::Agent::config_builder()
            .timeout_global(Some(CALL_TIMEOUT))
            .http_status_as_error(false)
            .max_redirects(3)
            .user_agent(concat!("vectide/", env!("CARGO_PKG_VERSION")));
        if let Some(path) = &config.ca {
            let tls = TlsConfig::builder()
                .root_certs(trusted(path, "format.registry.ca")?)
                .build();
            builder = builder.tls_config(tls);
        }
        let authorization = match (&config.username, &config.password, &config.token) {
            (Some(user), Some(password), _) => Some(format!(
                "Basic {}",
                STANDARD.encode(format!("{user}:{password}"))
            )),
            (_, _, Some(token)) => Some(format!("Bearer {token}")),
            _ => None,
        };
        Ok(Self {
            agent: builder.build().new_agent(),
            url: config.url.trim_end_matches('/').to_owned(),
            authorization,
        })
    }

    /// Asks for a schema with all that it uses.
    pub(crate) fn fetch(&self, name: SchemaName) -> Result<RegisteredSchema, FetchError> {
        let path = match name {
            SchemaName::Id(id) => format!("/schemas/ids/{id}"),
            SchemaName::Guid(_) => format!("/schemas/guids/{name}"),
        };
        let answer = self.get(&path)?;
        let language = match answer.language.as_deref() {
            None | Some("AVRO") => SchemaLanguage::Avro,
            Some("PROTOBUF") => SchemaLanguage::Protobuf,
            Some("JSON") => SchemaLanguage::Json,
            Some(other) => {
                return Err(FetchError::Missing(format!(
                    "schema {name} is of the type {other}; known are AVRO, PROTOBUF, JSON"
                )));
            }
        };
        let mut collector = Collector {
            client: self,
            seen: HashSet::new(),
            references: Vec::new(),
        };
        collector.add(answer.references.unwrap_or_default(), 0)?;
        Ok(RegisteredSchema {
            language,
            text: answer.schema,
            references: collector.references,
        })
    }

    fn get(&self, path: &str) -> Result<SchemaAnswer, FetchError> {
        let url = format!("{}{path}", self.url);
        let away = |why: String| FetchError::Unavailable(format!("the registry, {url}: {why}"));
        let mut request = self.agent.get(&url).header(
            "Accept",
            "application/vnd.schemaregistry.v1+json, application/json",
        );
        if let Some(authorization) = &self.authorization {
            request = request.header("Authorization", authorization);
        }
        let mut response = request.call().map_err(|error| away(error.to_string()))?;
        let status = response.status().as_u16();
        let body = response
            .body_mut()
            .with_config()
            .limit(BODY_BYTES_MAX)
            .read_to_vec()
            .map_err(|error| away(error.to_string()))?;
        if status == 200 {
            return serde_json::from_slice(&body)
                .map_err(|error| away(format!("an answer that is no schema: {error}")));
        }
        let error = serde_json::from_slice::<ErrorAnswer>(&body).ok();
        let code = error.as_ref().map_or(0, |error| error.error_code);
        if code == SCHEMA_NOT_FOUND || SUBJECT_OR_VERSION_NOT_FOUND.contains(&code) {
            let message = error.map(|error| error.message).unwrap_or_default();
            return Err(FetchError::Missing(format!(
                "the registry has no such schema ({path}): {message}"
            )));
        }
        Err(away(match status {
            401 | 403 => format!("it refuses us (status {status}); check user, password or token"),
            404 => "status 404, which is not about a schema; check `url`".to_owned(),
            _ => format!("status {status}"),
        }))
    }
}

/// Follows references, so that each schema comes after those that it uses.
struct Collector<'a> {
    client: &'a RegistryClient,
    seen: HashSet<String>,
    references: Vec<(String, String)>,
}

impl Collector<'_> {
    fn add(&mut self, references: Vec<Reference>, depth: usize) -> Result<(), FetchError> {
        if depth > REFERENCE_DEPTH_MAX {
            return Err(FetchError::Missing(
                "the schema's references are nested too deeply".to_owned(),
            ));
        }
        for reference in references {
            if !self.seen.insert(reference.name.clone()) {
                continue;
            }
            if self.seen.len() > REFERENCES_MAX {
                return Err(FetchError::Missing(format!(
                    "the schema uses more than {REFERENCES_MAX} others"
                )));
            }
            let subject = percent_encoded(&reference.subject);
            let path = format!("/subjects/{subject}/versions/{}", reference.version);
            let answer = self.client.get(&path)?;
            self.add(answer.references.unwrap_or_default(), depth + 1)?;
            self.references.push((reference.name, answer.schema));
        }
        Ok(())
    }
}

/// A subject as a part of a path: subjects may hold slashes.
fn percent_encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~') {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

/// The certificates of a PEM file, which `field` of the configuration names.
///
/// # Errors
/// When there are none in it.
pub(crate) fn trusted(path: &std::path::Path, field: &str) -> Result<RootCerts, ComponentError> {
    let refused = |why: String| {
        ComponentError::new(
            field,
            format!("{}: {why}", path.display()),
            "name a PEM file of certificates",
        )
    };
    let pem = std::fs::read(path).map_err(|error| refused(error.to_string()))?;
    let mut certificates: Vec<Certificate<'static>> = Vec::new();
    for item in ureq::tls::parse_pem(&pem) {
        if let PemItem::Certificate(certificate) =
            item.map_err(|error| refused(error.to_string()))?
        {
            certificates.push(certificate);
        }
    }
    if certificates.is_empty() {
        return Err(refused("no certificate in it".to_owned()));
    }
    Ok(certificates.into())
}
