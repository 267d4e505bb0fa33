//! A pipeline's configuration in small: every shape of type that serde and schemars produce.

use schemars::{JsonSchema, schema_for};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use vectide_config::{ConfigSchema, Name, TagTable};
use vectide_model::{ByteSize, HumanDuration};

#[derive(Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct Pipeline {
    pub(crate) api_version: ApiVersion,
    #[serde(default)]
    pub(crate) state: Option<State>,
    /// Where changes come from.
    pub(crate) sources: BTreeMap<Name, serde_json::Value>,
    #[serde(default)]
    pub(crate) documents: BTreeMap<Name, Documents>,
    pub(crate) indexes: BTreeMap<Name, Index>,
    #[serde(default)]
    pub(crate) server: Option<Server>,
}

#[derive(Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub(crate) enum ApiVersion {
    #[serde(rename = "vectide/v1")]
    V1,
}

#[derive(Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct State {
    #[schemars(length(min = 1))]
    pub(crate) dir: String,
    #[serde(default)]
    pub(crate) cache: Option<ByteSize>,
}

#[derive(Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Documents {
    pub(crate) from: OneOrMany,
    pub(crate) text: String,
    #[serde(default)]
    pub(crate) metadata: BTreeMap<String, String>,
}

#[derive(Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub(crate) enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

#[derive(Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Index {
    pub(crate) from: String,
    pub(crate) chunk: serde_json::Value,
    pub(crate) embed: Embed,
    /// How many workers share it.
    #[serde(default)]
    #[schemars(range(min = 1, max = 64))]
    pub(crate) shards: Option<u32>,
    #[serde(default)]
    pub(crate) metric: Metric,
}

#[derive(Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Embed {
    pub(crate) model: String,
    #[serde(default)]
    pub(crate) device: Device,
    #[serde(default)]
    #[schemars(extend("exclusiveMinimum" = 0, "maximum" = 1))]
    pub(crate) share: Option<f64>,
}

#[derive(Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Device {
    /// The fastest there is.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// CUDA.
    Cuda,
}

/// Externally tagged: a word, or a map of one key.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Metric {
    #[default]
    Cosine,
    InnerProduct,
    Minkowski {
        power: u8,
    },
    Weighted(Vec<f32>),
}

#[derive(Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Server {
    pub(crate) listen: String,
    #[serde(default)]
    pub(crate) timeout: Option<HumanDuration>,
    #[serde(default)]
    pub(crate) tls: bool,
    #[serde(default)]
    pub(crate) token: Option<String>,
    #[serde(default)]
    pub(crate) allow: Vec<String>,
}

#[derive(Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Jsonl {
    #[schemars(length(min = 1))]
    pub(crate) path: String,
    pub(crate) format: Format,
    #[serde(default)]
    pub(crate) follow: bool,
}

#[derive(Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Format {
    /// One change a line.
    Change {
        /// The field with the key.
        key: String,
        op: Option<String>,
        transaction: Option<String>,
    },
    /// A Debezium envelope.
    Debezium { schema: Option<bool> },
}

/// serde can't deny unknown keys beside a flattened field: the schema does.
#[derive(Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub(crate) struct Kafka {
    pub(crate) brokers: Vec<String>,
    pub(crate) topic: String,
    #[serde(default)]
    pub(crate) password: Option<String>,
    #[serde(default)]
    pub(crate) poll: Option<HumanDuration>,
    #[serde(flatten)]
    pub(crate) format: FlatFormat,
}

/// Flattened into its section, so that unknown keys are told by `unevaluatedProperties`.
#[derive(Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "format", rename_all = "snake_case")]
pub(crate) enum FlatFormat {
    Json { key: String },
    Debezium { schema: Option<bool> },
}

#[derive(Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Structured {
    #[schemars(range(min = 16))]
    pub(crate) target_tokens: u16,
    #[schemars(range(min = 16))]
    pub(crate) max_tokens: u16,
}

pub(crate) fn schema() -> ConfigSchema {
    let sources = TagTable::new("source")
        .with("jsonl", schema_for!(Jsonl))
        .unwrap()
        .with("kafka", schema_for!(Kafka))
        .unwrap();
    let chunkers = TagTable::new("chunker")
        .with("structured", schema_for!(Structured))
        .unwrap();
    ConfigSchema::new(schema_for!(Pipeline))
        .unwrap()
        .tagged("sources.*", sources)
        .unwrap()
        .tagged("indexes.*.chunk", chunkers)
        .unwrap()
}

/// Variables of the tests.
pub(crate) fn lookup(name: &str) -> Option<String> {
    let text = match name {
        "PORT" => "7700",
        "SHARDS" => "2",
        "MANY" => "900",
        "PASSWORD" => "hunter2-hunter2",
        "DIGITS" => "1234567890",
        "INJECT" => "x\nserver: {listen: evil}",
        "EMPTY" => "",
        "FLAG" => "true",
        _ => return None,
    };
    Some(text.to_owned())
}

pub(crate) const GOOD: &str = r#"
apiVersion: vectide/v1
state: {dir: ./state, cache: 64MiB}
sources:
  history:
    type: jsonl
    path: events.jsonl.zst
    format: {type: change, key: path, op: op, transaction: commit}
  orders:
    type: kafka
    brokers: ["a:9092", "b:9092"]
    topic: orders
    password: ${PASSWORD}
    poll: 200ms
    format: debezium
documents:
  pages:
    from: history
    text: "{{ content }}"
    metadata: {path: "{{ key }}"}
  both:
    from: [history, orders]
    text: "{{ body }}"
indexes:
  pages:
    from: pages
    chunk: {type: structured, target_tokens: 200, max_tokens: 256}
    embed: {model: all-MiniLM-L6-v2, device: auto, share: 0.5}
    shards: ${SHARDS}
    metric: {minkowski: {power: 3}}
server: {listen: "127.0.0.1:${PORT}", timeout: 10s, tls: false, token: "${DIGITS}", allow: []}
"#;
