//! `POST /v1/embeddings`, as OpenAI's API has it.
//!
//! A batch goes to the embedder in pieces of [`PIECE_TEXTS`] texts. Invariants: a batch whose caller
//! left stops at the next piece; batches hold at most half of the query threads.

use crate::body::JsonRequest;
use crate::endpoint::Endpoint;
use crate::problem::{Problem, Refusal, listed, nearest};
use axum::extract::{Request, State};
use axum::response::Response;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;
use vectide_model::{Caller, EmbeddingsAnswer, QueryService};

/// Texts to embed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct EmbeddingsRequest {
    /// Name of a model of `/v1/models`.
    pub model: String,
    /// One text or up to 2048 of them, none empty.
    pub input: EmbeddingsInput,
    /// How vectors are written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub encoding_format: Option<EncodingFormat>,
    /// Dimensions of the vectors; only the model's own number is possible.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, minimum = 1)]
    pub dimensions: Option<usize>,
    /// Taken for compatibility and not used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub user: Option<String>,
}

/// One text or several.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum EmbeddingsInput {
    /// One.
    One(String),
    /// Several.
    Many(Vec<String>),
}

/// How vectors are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum EncodingFormat {
    /// An array of numbers.
    #[default]
    Float,
    /// Base64 of little-endian 32-bit floats.
    Base64,
}

const FORMAT_NAMES: [&str; 2] = ["float", "base64"];

/// A list of vectors in the shape of OpenAI's API.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct EmbeddingsResponse {
    /// `list`.
    pub object: String,
    /// One entry a text, in order.
    pub data: Vec<EmbeddingObject>,
    /// The model that made them.
    pub model: String,
    /// What it cost.
    pub usage: Usage,
}

/// One vector.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = Embedding)]
pub struct EmbeddingObject {
    /// `embedding`.
    pub object: String,
    /// Which text of the request.
    pub index: usize,
    /// The vector.
    pub embedding: EmbeddingData,
}

/// A vector as numbers or as base64 of little-endian 32-bit floats.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum EmbeddingData {
    /// Numbers.
    Float(Vec<f32>),
    /// Base64.
    Base64(String),
}

/// Tokens of a request, special ones not counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Usage {
    /// Tokens of all texts.
    pub prompt_tokens: usize,
    /// The same.
    pub total_tokens: usize,
}

/// Most texts of a request: what OpenAI's API allows.
const TEXTS_MAX: usize = 2048;

/// Texts handed to the embedder at once: enough to fill its batches, few enough that a batch whose
/// caller left ends soon.
const PIECE_TEXTS: usize = 32;

impl EmbeddingsRequest {
    fn texts(input: EmbeddingsInput) -> Result<Vec<String>, Refusal> {
        let texts = match input {
            EmbeddingsInput::One(text) => vec![text],
            EmbeddingsInput::Many(texts) => texts,
        };
        if texts.is_empty() || texts.len() > TEXTS_MAX {
            let fact = format!("`input` has {} texts", texts.len());
            return Err(Refusal::invalid(
                "input",
                fact,
                format!("send 1 to {TEXTS_MAX} texts"),
            ));
        }
        if let Some(at) = texts.iter().position(|text| text.trim().is_empty()) {
            let fact = format!("text {at} of `input` is empty or only white space");
            return Err(Refusal::invalid("input", fact, "leave it out"));
        }
        Ok(texts)
    }
}

impl JsonRequest for EmbeddingsRequest {
    const FIELDS: &'static [&'static str] =
        &["model", "input", "encoding_format", "dimensions", "user"];
    const REQUIRED: &'static [&'static str] = &["model", "input"];

    fn fault(field: &str, value: &Value) -> Option<(String, String)> {
        match field {
            "model" | "user" if !value.is_string() => {
                Some((format!("`{field}` is not a string"), "send a string".into()))
            }
            "input" => input_fault(value),
            "encoding_format" => format_fault(value),
            "dimensions" if value.as_u64().is_none() => {
                let hint = "leave it out, or send the model's own number";
                Some((format!("`dimensions` is {value}"), hint.into()))
            }
            _ => None,
        }
    }
}

fn input_fault(value: &Value) -> Option<(String, String)> {
    let hint = || "send a string or an array of strings".to_owned();
    match value {
        Value::String(_) => None,
        Value::Array(items) => {
            let at = items.iter().position(|item| !item.is_string())?;
            let tokens = items[at].is_number() || items[at].is_array();
            let fact = if tokens {
                "holds tokens instead of text"
            } else {
                "is not a string"
            };
            Some((format!("entry {at} of `input` {fact}"), hint()))
        }
        _ => Some(("`input` is neither a string nor an array".into(), hint())),
    }
}

fn format_fault(value: &Value) -> Option<(String, String)> {
    let name = value.as_str().unwrap_or_default();
    if value.is_null() || FORMAT_NAMES.contains(&name) {
        return None;
    }
    let hint = nearest(name, &FORMAT_NAMES).map_or_else(
        || format!("send one of {}", listed(&FORMAT_NAMES)),
        |near| format!("did you mean `{near}`?"),
    );
    Some((format!("`encoding_format` can't be {value}"), hint))
}

/// Embeds texts piece by piece.
fn embed(
    service: &dyn QueryService,
    caller: &Caller<'_>,
    model: &str,
    texts: &[String],
) -> Result<EmbeddingsAnswer, Refusal> {
    let mut whole = EmbeddingsAnswer {
        vectors: Vec::with_capacity(texts.len()),
        tokens: 0,
    };
    for piece in texts.chunks(PIECE_TEXTS) {
        if caller.has_left() {
            // Nobody reads this.
            return Err(Refusal::unavailable("cancelled", "the caller left"));
        }
        let part = service.embed(model, piece, caller)?;
        if part.vectors.len() != piece.len() {
            return Err(Refusal::internal(
                "the service gave another number of vectors than texts",
            ));
        }
        whole.vectors.extend(part.vectors);
        whole.tokens += part.tokens;
    }
    Ok(whole)
}

fn check_dimensions(
    service: &dyn QueryService,
    model: &str,
    asked: Option<usize>,
) -> Result<(), Refusal> {
    let Some(asked) = asked else {
        return Ok(());
    };
    match service
        .models()
        .into_iter()
        .find(|known| known.name == model)
    {
        Some(known) if known.dimension != asked => {
            let fact = format!("`dimensions` is {asked}, the model has {}", known.dimension);
            Err(Refusal::invalid("dimensions", fact, "leave it out"))
        }
        // An unknown model is told by the call that embeds.
        _ => Ok(()),
    }
}

fn encode(vector: Vec<f32>, format: EncodingFormat) -> EmbeddingData {
    match format {
        EncodingFormat::Float => EmbeddingData::Float(vector),
        EncodingFormat::Base64 => {
            let bytes: Vec<u8> = vector.iter().flat_map(|x| x.to_le_bytes()).collect();
            EmbeddingData::Base64(STANDARD.encode(bytes))
        }
    }
}

fn respond(answer: EmbeddingsAnswer, model: String, format: EncodingFormat) -> EmbeddingsResponse {
    let object = |(index, vector)| EmbeddingObject {
        object: "embedding".into(),
        index,
        embedding: encode(vector, format),
    };
    EmbeddingsResponse {
        object: "list".into(),
        data: answer.vectors.into_iter().enumerate().map(object).collect(),
        model,
        usage: Usage {
            prompt_tokens: answer.tokens,
            total_tokens: answer.tokens,
        },
    }
}

/// Embeds texts, as OpenAI's API does.
#[utoipa::path(
    post,
    path = "/v1/embeddings",
    operation_id = "create_embeddings",
    tag = "embeddings",
    request_body = EmbeddingsRequest,
    responses(
        (status = 200, description = "One vector a text", body = EmbeddingsResponse),
        (status = "default", description = "Why there is no answer", body = Problem,
            content_type = "application/problem+json"),
    ),
)]
pub(crate) async fn create(
    State(endpoint): State<Endpoint>,
    request: Request,
) -> Result<Response, Refusal> {
    let request: EmbeddingsRequest = endpoint.read_json(request).await?;
    let texts = EmbeddingsRequest::texts(request.input)?;
    let (model, asked) = (request.model, request.dimensions);
    let format = request.encoding_format.unwrap_or_default();
    let _turn = endpoint.turn(&endpoint.embedding_turns).await?;
    endpoint
        .answer(move |service, caller| {
            check_dimensions(service, &model, asked)?;
            let answer = embed(service, caller, &model, &texts)?;
            Ok(respond(answer, model, format))
        })
        .await
}
