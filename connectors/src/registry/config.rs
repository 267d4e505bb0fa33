//! The `registry:` section.
//!
//! Invariant: what is secret is never shown, not by `Debug` either.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::PathBuf;
use vectide_model::ComponentError;

/// A schema registry that speaks Confluent's REST interface.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RegistryConfig {
    /// Its address: `http://host:8081` or `https://host/path`.
    pub url: String,
    /// User of basic authentication.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub username: Option<String>,
    /// Password of basic authentication; best as `${VARIABLE}`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password: Option<String>,
    /// Token of bearer authentication, instead of user and password; best as `${VARIABLE}`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// File of certificates (PEM) to trust instead of the public ones; where it is relative, to the
    /// folder that the process runs in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
}

impl fmt::Debug for RegistryConfig {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hidden = |secret: &Option<String>| secret.as_ref().map(|_| "(hidden)");
        formatter
            .debug_struct("RegistryConfig")
            .field("url", &self.url)
            .field("username", &self.username)
            .field("password", &hidden(&self.password))
            .field("token", &hidden(&self.token))
            .field("ca", &self.ca)
            .finish()
    }
}

impl RegistryConfig {
    /// Faults that can be seen in the configuration alone; `field` is where it stands.
    pub(crate) fn check(&self, field: &str) -> Vec<ComponentError> {
        let mut errors = Vec::new();
        let mut fault = |name: &str, fact: String, hint: &str| {
            errors.push(ComponentError::new(format!("{field}.{name}"), fact, hint));
        };
        let host = ["http://", "https://"]
            .iter()
            .find_map(|scheme| self.url.strip_prefix(scheme))
            .map(|rest| rest.split(['/', '?', '#']).next().unwrap_or_default());
        if host.is_none_or(str::is_empty) || self.url.contains(char::is_whitespace) {
            fault(
                "url",
                format!("`{}` is not the address of a registry", self.url),
                "write it as http://host:8081 or https://host",
            );
        } else if host.is_some_and(|host| host.contains('@')) {
            fault(
                "url",
                "the address holds a user or password".to_owned(),
                "write them as `username` and `password`, where they are kept secret",
            );
        } else if self.url.contains(['?', '#']) {
            fault(
                "url",
                "the address has a query".to_owned(),
                "leave out what stands behind the path",
            );
        }
        if self.username.is_some() != self.password.is_some() {
            fault(
                "password",
                "`username` and `password` go together".to_owned(),
                "write both, or `token` alone",
            );
        }
        if self.username.is_some() && self.token.is_some() {
            fault(
                "token",
                "both a user and a token are given".to_owned(),
                "write `username` and `password`, or `token`",
            );
        }
        if self.ca.is_some() && !self.url.starts_with("https://") {
            fault(
                "ca",
                "certificates without TLS".to_owned(),
                "write the address with https://",
            );
        }
        errors
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(json: serde_json::Value) -> RegistryConfig {
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn faults() {
        for (json, expected) in [
            (serde_json::json!({"url": "http://a:8081"}), &[][..]),
            (
                serde_json::json!({"url": "https://a/x", "username": "u", "password": "p", "ca": "ca.pem"}),
                &[],
            ),
            (serde_json::json!({"url": "a:8081"}), &["registry.url"]),
            (serde_json::json!({"url": "http://"}), &["registry.url"]),
            (
                serde_json::json!({"url": "http://u:p@a"}),
                &["registry.url"],
            ),
            (serde_json::json!({"url": "http://a/?x"}), &["registry.url"]),
            (
                serde_json::json!({"url": "http://a", "username": "u", "token": "t", "ca": "c"}),
                &["registry.password", "registry.token", "registry.ca"],
            ),
        ] {
            let errors = config(json.clone()).check("registry");
            let fields: Vec<_> = errors.iter().map(|error| &*error.field).collect();
            assert_eq!(fields, expected, "{json}");
        }
    }

    #[test]
    fn secrets_are_not_shown() {
        let shown = format!(
            "{:?}",
            config(
                serde_json::json!({"url": "http://a", "username": "u", "password": "geheim", "token": "geheim"})
            )
        );
        assert!(!shown.contains("geheim"), "{shown}");
    }
}
