//! What questions on the command line are found by, and which documents they are about.
//!
//! Invariant: what is said here is what the request says; the endpoint decides whether it can be answered.

use clap::ValueEnum;
use serde_json::Value;
use vectide_serve::{FusionField, ModeField, QueryRequest};

/// How questions are asked.
#[derive(Clone, Debug, clap::Args)]
pub struct SearchArguments {
    /// What hits are found by.
    #[arg(long, value_enum, default_value_t = By::Vector)]
    mode: By,
    /// With `--mode hybrid`: fuse by scores, those of vectors weighted by this share, instead of by ranks.
    #[arg(long, value_name = "SHARE")]
    vector_weight: Option<f32>,
    /// With `--mode hybrid`: how little the first places count for more than the next (60).
    #[arg(long, value_name = "K", conflicts_with = "vector_weight")]
    rrf_k: Option<f32>,
    /// Conditions on the documents' metadata, JSON: '{"lang": "en", "year": {"$gte": 2020}}'.
    #[arg(long, value_name = "JSON", value_parser = json)]
    filter: Option<Value>,
}

/// What hits are found by.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum By {
    /// Vectors.
    Vector,
    /// Words.
    Keyword,
    /// Both.
    Hybrid,
}

fn json(text: &str) -> Result<Value, String> {
    serde_json::from_str(text).map_err(|error| format!("it is not JSON: {error}"))
}

impl SearchArguments {
    /// A request for a text and `k` hits.
    pub fn request(&self, text: impl Into<String>, k: usize) -> QueryRequest {
        QueryRequest {
            mode: match self.mode {
                By::Vector => ModeField::Vector,
                By::Keyword => ModeField::Keyword,
                By::Hybrid => ModeField::Hybrid,
            },
            fusion: self.vector_weight.map(|_| FusionField::Weighted),
            vector_weight: self.vector_weight,
            rrf_k: self.rrf_k,
            filter: self.filter.clone(),
            ..QueryRequest::text(text, k)
        }
    }
}
