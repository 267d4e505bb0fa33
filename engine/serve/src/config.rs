//! The `server:` section of a configuration: where the endpoint listens, who may call, its limits.
//!
//! Invariant: an endpoint that others than this machine can reach has keys, and no key is ever
//! printed.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize, Serializer};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use vectide_model::{ByteSize, ComponentError, HumanDuration};

/// Where the query endpoint listens, who may call it, and its limits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ServerConfig {
    /// Address and port, `127.0.0.1:7700` or `[::1]:7700` or `localhost:7700`; port 0 takes a free
    /// one. Any address that is not this machine's loopback needs `api_keys`.
    pub listen: String,
    /// Keys that callers send as `Authorization: Bearer KEY`; with none, everybody who reaches the
    /// address may call. Take them from the environment: `api_keys: ["${VECTIDE_API_KEY}"]`.
    pub api_keys: Vec<ApiKey>,
    /// Largest body of a request; beyond it the answer is 413.
    pub body_max: ByteSize,
    /// How long a request may take, its wait for a thread included; beyond it the answer is 504.
    pub request_timeout: HumanDuration,
    /// Open connections; more of them wait until one closes.
    pub connections_max: usize,
    /// Threads that answer queries; without it twice the machine's cores, at least four.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub query_threads: Option<usize>,
    /// Requests that may wait for one of these threads; beyond it the answer is 503.
    pub queue_max: usize,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            listen: "127.0.0.1:7700".into(),
            api_keys: Vec::new(),
            // A vector of 4096 dimensions in JSON is 50 KiB, the longest query text 64 KiB; the
            // rest is room for batches of embeddings.
            body_max: ByteSize::mebibytes(1),
            // Callers give up at about this; work that nobody waits for only delays the others.
            request_timeout: HumanDuration::from_seconds(10),
            // Half of the 1024 files that a process may open by default.
            connections_max: 512,
            query_threads: None,
            // At 5 ms a query on four threads a full queue is 0.3 s long: who would wait longer is
            // better told to come again.
            queue_max: 256,
        }
    }
}

/// A bearer token. It prints and serializes as `"***"`.
#[derive(Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct ApiKey(String);

impl ApiKey {
    /// Shortest key: 16 characters of `[0-9a-f]` are 64 bits, beyond guessing over a network.
    pub const LENGTH_MIN: usize = 16;

    /// Takes a token; [`ServerConfig::check`] judges it.
    pub fn new(token: impl Into<String>) -> Self {
        Self(token.into())
    }

    /// The token itself, to compare with or to send.
    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }

    fn is_usable(&self) -> bool {
        self.0.len() >= Self::LENGTH_MIN && self.0.bytes().all(|byte| byte.is_ascii_graphic())
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl Serialize for ApiKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str("***")
    }
}

impl ServerConfig {
    /// All faults that can be seen in the configuration alone.
    pub fn check(&self) -> Vec<ComponentError> {
        let mut faults = self.check_limits();
        match self.address() {
            Ok(address) if self.api_keys.is_empty() && !is_loopback(address.ip()) => {
                faults.push(ComponentError::new(
                    "api_keys",
                    format!(
                        "`{}` can be reached from other machines and no key is set",
                        self.listen
                    ),
                    "set api_keys: [\"${VECTIDE_API_KEY}\"], or listen on 127.0.0.1",
                ));
            }
            Ok(_) => {}
            Err(fault) => faults.push(fault),
        }
        faults.extend(self.check_keys());
        faults
    }

    fn check_keys(&self) -> impl Iterator<Item = ComponentError> + '_ {
        let unusable = self
            .api_keys
            .iter()
            .enumerate()
            .filter(|(_, key)| !key.is_usable());
        unusable.map(|(number, _)| {
            ComponentError::new(
                format!("api_keys[{number}]"),
                format!(
                    "the key is not {} or more visible ASCII characters",
                    ApiKey::LENGTH_MIN
                ),
                "make one with `openssl rand -hex 32`",
            )
        })
    }

    fn check_limits(&self) -> Vec<ComponentError> {
        let mut faults = Vec::new();
        let mut within = |field: &str, holds: bool, allowed: &str| {
            if !holds {
                let fact = format!("`{field}` is out of its range");
                faults.push(ComponentError::new(field, fact, format!("use {allowed}")));
            }
        };
        let body_max = self.body_max.as_bytes();
        within(
            "body_max",
            (1 << 10..=64 << 20).contains(&body_max),
            "1KiB to 64MiB",
        );
        let timeout_ms = self.request_timeout.as_milliseconds();
        within(
            "request_timeout",
            (100..=600_000).contains(&timeout_ms),
            "100ms to 10min",
        );
        within(
            "connections_max",
            (1..=65_536).contains(&self.connections_max),
            "1 to 65536",
        );
        let threads = self.query_threads.unwrap_or(1);
        within("query_threads", (1..=1024).contains(&threads), "1 to 1024");
        within(
            "queue_max",
            (1..=65_536).contains(&self.queue_max),
            "1 to 65536",
        );
        faults
    }

    /// The address to listen on.
    ///
    /// # Errors
    /// When `listen` is neither an address with a port nor `localhost:PORT`.
    pub fn address(&self) -> Result<SocketAddr, ComponentError> {
        let by_name = self
            .listen
            .strip_prefix("localhost:")
            .and_then(|port| port.parse().ok());
        let by_name = by_name.map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
        by_name.or_else(|| self.listen.parse().ok()).ok_or_else(|| {
            ComponentError::new(
                "listen",
                format!("`{}` is not an address with a port", self.listen),
                "write it like 127.0.0.1:7700, [::1]:7700 or localhost:7700",
            )
        })
    }

    /// Opens the listening socket, for [`crate::serve`].
    ///
    /// # Errors
    /// When the address is taken or not this machine's.
    pub async fn bind(&self) -> Result<tokio::net::TcpListener, ComponentError> {
        let address = self.address()?;
        tokio::net::TcpListener::bind(address)
            .await
            .map_err(|error| {
                let hint = match error.kind() {
                    std::io::ErrorKind::AddrInUse => {
                        "stop the other process or choose another port"
                    }
                    std::io::ErrorKind::PermissionDenied => "choose a port above 1023",
                    _ => "choose an address of this machine",
                };
                ComponentError::new(
                    "listen",
                    format!("can't listen on {address}: {error}"),
                    hint,
                )
            })
    }

    /// Threads that answer queries: as configured, or twice the cores (some wait for the embedder
    /// while others search), at least four.
    pub(crate) fn threads(&self) -> usize {
        self.query_threads.unwrap_or_else(|| {
            let cores = std::thread::available_parallelism().map_or(1, usize::from);
            cores.max(2) * 2
        })
    }
}

/// Whether only this machine can reach an address.
pub(crate) fn is_loopback(address: IpAddr) -> bool {
    address.to_canonical().is_loopback()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(json: &str, expect: &[&str]) {
        let config: ServerConfig = serde_json::from_str(json).unwrap();
        let fields: Vec<String> = config
            .check()
            .into_iter()
            .map(|fault| fault.field)
            .collect();
        assert_eq!(fields, expect, "{json}");
    }

    #[test]
    fn faults_are_all_told() {
        check("{}", &[]);
        check(r#"{"listen":"[::1]:0"}"#, &[]);
        check(r#"{"listen":"[::ffff:127.0.0.1]:1"}"#, &[]);
        check(r#"{"listen":"localhost:7700"}"#, &[]);
        check(r#"{"listen":"0.0.0.0:7700"}"#, &["api_keys"]);
        check(r#"{"listen":"[::]:7700"}"#, &["api_keys"]);
        check(
            r#"{"listen":"0.0.0.0:7700","api_keys":["0123456789abcdef"]}"#,
            &[],
        );
        check(
            r#"{"listen":"0.0.0.0:7700","api_keys":["short", "0123456789abcdef", ""]}"#,
            &["api_keys[0]", "api_keys[2]"],
        );
        check(r#"{"listen":"7700"}"#, &["listen"]);
        check(r#"{"listen":"localhost:70000"}"#, &["listen"]);
        check(
            r#"{"body_max": "1B","request_timeout":"1ms","connections_max":0,"query_threads":0,"queue_max":0}"#,
            &[
                "body_max",
                "request_timeout",
                "connections_max",
                "query_threads",
                "queue_max",
            ],
        );
    }

    #[test]
    fn unknown_fields_are_denied() {
        let error = serde_json::from_str::<ServerConfig>(r#"{"listn":"x"}"#).unwrap_err();
        assert!(error.to_string().contains("listn"), "{error}");
    }

    #[test]
    fn keys_are_never_printed() {
        let secret = "sesame-sesame-sesame";
        let config = ServerConfig {
            api_keys: vec![ApiKey::new(secret)],
            ..Default::default()
        };
        let printed = format!("{config:?} {}", serde_json::to_string(&config).unwrap());
        assert!(
            !printed.contains("sesame") && printed.contains("***"),
            "{printed}"
        );
        let short = ServerConfig {
            api_keys: vec![ApiKey::new("sesame")],
            ..Default::default()
        };
        assert!(!format!("{:?}", short.check()).contains("sesame"));
    }

    #[test]
    fn the_schema_has_defaults_for_all_fields() {
        let schema = schemars::schema_for!(ServerConfig);
        assert!(schema.get("required").is_none(), "{schema:?}");
        assert_eq!(schema.get("additionalProperties"), Some(&false.into()));
        let fields = schema
            .get("properties")
            .and_then(|fields| fields.as_object())
            .unwrap();
        assert_eq!(fields["listen"]["default"], "127.0.0.1:7700");
        assert_eq!(fields["body_max"]["default"], "1MiB");
        assert_eq!(fields["request_timeout"]["default"], "10s");
    }
}
