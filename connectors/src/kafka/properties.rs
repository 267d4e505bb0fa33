//! Which settings of the Kafka client a configuration may pass through, and those that are ours.
//!
//! Client properties can read files, run programs and send requests wherever they point to, so they
//! are passed through by a list of what is allowed, not of what is forbidden.
//!
//! Invariant: what decides over correctness (commits, resets, isolation, end-of-partition events)
//! can't be set from outside.

use super::KafkaConfig;
use rdkafka::ClientConfig;
use std::collections::BTreeMap;
use vectide_model::ComponentError;

/// Properties that a configuration may set: identity, encryption, authentication, and the limits
/// of connections.
pub(crate) const ALLOWED: [&str; 34] = [
    "broker.address.family",
    "client.dns.lookup",
    "client.id",
    "client.rack",
    "connections.max.idle.ms",
    "enable.ssl.certificate.verification",
    "fetch.wait.max.ms",
    "group.id",
    "metadata.max.age.ms",
    "reconnect.backoff.max.ms",
    "reconnect.backoff.ms",
    "sasl.mechanism",
    "sasl.mechanisms",
    "sasl.oauthbearer.client.id",
    "sasl.oauthbearer.client.secret",
    "sasl.oauthbearer.extensions",
    "sasl.oauthbearer.method",
    "sasl.oauthbearer.scope",
    "sasl.oauthbearer.token.endpoint.url",
    "sasl.password",
    "sasl.username",
    "security.protocol",
    "socket.connection.setup.timeout.ms",
    "socket.keepalive.enable",
    "socket.receive.buffer.bytes",
    "socket.timeout.ms",
    "ssl.ca.location",
    "ssl.ca.pem",
    "ssl.certificate.location",
    "ssl.certificate.pem",
    "ssl.endpoint.identification.algorithm",
    "ssl.key.location",
    "ssl.key.password",
    "ssl.key.pem",
];

/// Bytes that the client fetches ahead, over all partitions: about a second of a fast link.
const QUEUED_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// Least that one partition may fetch ahead, or many partitions would fetch a record at a time.
const QUEUED_BYTES_OF_PARTITION_MIN: u64 = 256 * 1024;

/// Bytes of one answer of a broker.
const FETCH_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// Bytes that one partition adds to an answer.
const FETCH_BYTES_OF_PARTITION_MAX: u64 = 1024 * 1024;

/// Largest answer that is accepted. A broker sends a batch above the other limits all the same
/// when it is the first, so this bounds the memory of one; 100 MB is the client's own default.
const RECEIVE_BYTES_MAX: u64 = 100_000_000;

/// Faults of OAuth's settings: without its method the client waits for a token without end, and
/// tokens that anybody can make are no protection.
pub(crate) fn oauth_faults(properties: &BTreeMap<String, String>) -> Vec<ComponentError> {
    let get = |name: &str| properties.get(name).map(String::as_str);
    let mechanism = get("sasl.mechanisms").or_else(|| get("sasl.mechanism"));
    if !mechanism.is_some_and(|name| name.eq_ignore_ascii_case("OAUTHBEARER")) {
        return Vec::new();
    }
    let mut faults = Vec::new();
    let method = get("sasl.oauthbearer.method");
    if !method.is_some_and(|method| method.eq_ignore_ascii_case("oidc")) {
        faults.push(ComponentError::new(
            "properties.sasl.oauthbearer.method",
            "tokens are had by the method `oidc` alone",
            "set `sasl.oauthbearer.method: oidc`",
        ));
    }
    for name in [
        "sasl.oauthbearer.client.id",
        "sasl.oauthbearer.client.secret",
        "sasl.oauthbearer.token.endpoint.url",
    ] {
        if get(name).is_none() {
            faults.push(ComponentError::new(
                format!("properties.{name}"),
                format!("`{name}` is missing"),
                "OAuth's client credentials need an id, a secret and the address of tokens",
            ));
        }
    }
    faults
}

/// The client's settings for reading `partitions` partitions.
pub(crate) fn client_config(config: &KafkaConfig, source: &str, partitions: usize) -> ClientConfig {
    let mut client = ClientConfig::new();
    client
        .set("client.id", "vectide")
        // A broker that is back is found within two seconds; the client's default is ten.
        .set("reconnect.backoff.max.ms", "2000")
        // No group is joined, partitions are assigned by us: it names who commits offsets.
        .set("group.id", format!("vectide-{source}"));
    for (name, value) in &config.properties {
        if ALLOWED.contains(&name.as_str()) {
            client.set(name, value);
        }
    }
    let queued = (QUEUED_BYTES_MAX / partitions.max(1) as u64).max(QUEUED_BYTES_OF_PARTITION_MIN);
    let receive = RECEIVE_BYTES_MAX.max(config.max_message.as_bytes() * 2);
    client
        .set("bootstrap.servers", &config.brokers)
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("auto.offset.reset", "error")
        .set("isolation.level", "read_committed")
        .set("enable.partition.eof", "true")
        .set("check.crcs", "true")
        // No group is joined, so nobody waits for polls; should the client count them all the same,
        // a pipeline that takes nothing for a day is no reason to stop it.
        .set("max.poll.interval.ms", "86400000")
        .set("allow.auto.create.topics", "false")
        .set("fetch.max.bytes", FETCH_BYTES_MAX.to_string())
        .set(
            "max.partition.fetch.bytes",
            FETCH_BYTES_OF_PARTITION_MAX.to_string(),
        )
        .set(
            "receive.message.max.bytes",
            receive.min(2_000_000_000).to_string(),
        )
        .set("queued.max.messages.kbytes", (queued / 1024).to_string())
        // With its queue full the client waits a second before it fetches again, unless told less.
        .set("fetch.queue.backoff.ms", "20")
        // A deleted topic is told after this time; the default of 30 s is for slow creations.
        .set("topic.metadata.propagation.max.ms", "10000")
        // An error on one fetch is tried again soon: the default of 500 ms is felt.
        .set("fetch.error.backoff.ms", "100");
    client
}

/// The settings of a client that asks, commits offsets and reads single records: it holds little.
pub(crate) fn asking_config(config: &KafkaConfig, source: &str) -> ClientConfig {
    let mut client = client_config(config, source, 1);
    client
        .set("max.partition.fetch.bytes", "65536")
        .set("queued.max.messages.kbytes", "1024");
    client
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn oauth_needs_its_settings() {
        let properties = |of: &[(&str, &str)]| -> BTreeMap<String, String> {
            of.iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect()
        };
        assert_eq!(
            oauth_faults(&properties(&[("sasl.mechanism", "PLAIN")])),
            []
        );
        let bare = oauth_faults(&properties(&[("sasl.mechanisms", "OAUTHBEARER")]));
        assert_eq!(bare.len(), 4);
        let whole = properties(&[
            ("sasl.mechanisms", "OAUTHBEARER"),
            ("sasl.oauthbearer.method", "oidc"),
            ("sasl.oauthbearer.client.id", "a"),
            ("sasl.oauthbearer.client.secret", "b"),
            ("sasl.oauthbearer.token.endpoint.url", "https://c"),
        ]);
        assert_eq!(oauth_faults(&whole), []);
    }
}
