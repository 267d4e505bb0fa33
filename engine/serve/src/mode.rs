//! What a query is found by, and which rows it is about: the fields `mode`, `filter` and what goes with them.
//!
//! Invariant: what says how rankings become one stands only in queries that have two.

use crate::problem::{Refusal, listed, nearest};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::sync::Arc;
use utoipa::ToSchema;
use vectide_model::{Filter, Fusion, Mode, Scores};

/// What hits are found and ranked by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ModeField {
    /// Vectors.
    #[default]
    Vector,
    /// Words, by BM25.
    Keyword,
    /// Both rankings as one.
    Hybrid,
}

impl ModeField {
    pub(crate) fn is_vector(&self) -> bool {
        *self == Self::Vector
    }
}

/// How two rankings become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum FusionField {
    /// By the sum of 1 / (`rrf_k` + rank).
    Rrf,
    /// By the sum of the scores, those by words as shares of the greatest, weighted by `vector_weight`.
    Weighted,
}

/// The scores that a hit of several is ranked by.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = HitScores)]
pub struct ScoresView {
    /// Inner product of the vectors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub vector: Option<f32>,
    /// BM25 of the words; missing where the chunk has none of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub keyword: Option<f32>,
}

impl From<Scores> for ScoresView {
    fn from(Scores { vector, keyword }: Scores) -> Self {
        Self { vector, keyword }
    }
}

const MODES: [&str; 3] = ["vector", "keyword", "hybrid"];
const FUSIONS: [&str; 2] = ["rrf", "weighted"];
/// The greatest `rrf_k`: with it places hardly count any more.
const RRF_K_MAX: f32 = 10_000.0;
/// How much vectors count where nothing is said.
const VECTOR_WEIGHT: f32 = 0.5;

/// The mode of a query with these fields.
pub(crate) fn mode(
    mode: ModeField,
    fusion: Option<FusionField>,
    rrf_k: Option<f32>,
    vector_weight: Option<f32>,
) -> Result<Mode, Refusal> {
    if mode != ModeField::Hybrid {
        let stray = [
            ("fusion", fusion.is_some()),
            ("rrf_k", rrf_k.is_some()),
            ("vector_weight", vector_weight.is_some()),
        ];
        if let Some((field, _)) = stray.into_iter().find(|(_, is_given)| *is_given) {
            let fact = format!("`{field}` stands in a query that has one ranking");
            let hint = "send `\"mode\": \"hybrid\"` with it, or leave it out";
            return Err(Refusal::invalid(field, fact, hint));
        }
    }
    check_range("rrf_k", rrf_k, RRF_K_MAX)?;
    check_range("vector_weight", vector_weight, 1.0)?;
    let by_rank = fusion.unwrap_or(FusionField::Rrf) == FusionField::Rrf;
    let stray = match (by_rank, rrf_k, vector_weight) {
        (true, _, Some(_)) => Some(("vector_weight", "weighted")),
        (false, Some(_), _) => Some(("rrf_k", "rrf")),
        _ => None,
    };
    if let Some((field, fusion)) = stray {
        let fact = format!("`{field}` says nothing of this fusion");
        let hint = format!("send `\"fusion\": \"{fusion}\"` with it, or leave it out");
        return Err(Refusal::invalid(field, fact, hint));
    }
    Ok(match mode {
        ModeField::Vector => Mode::Vector,
        ModeField::Keyword => Mode::Keyword,
        ModeField::Hybrid if by_rank => Mode::Hybrid(Fusion::ReciprocalRank {
            k: rrf_k.unwrap_or(Fusion::RANK_K),
        }),
        ModeField::Hybrid => Mode::Hybrid(Fusion::Weighted {
            vector: vector_weight.unwrap_or(VECTOR_WEIGHT),
        }),
    })
}

fn check_range(field: &'static str, number: Option<f32>, max: f32) -> Result<(), Refusal> {
    match number {
        Some(number) if !(0.0..=max).contains(&number) => {
            let (fact, hint) = range_fault(field, &number, max);
            Err(Refusal::invalid(field, fact, hint))
        }
        _ => Ok(()),
    }
}

/// The filter of a query.
pub(crate) fn filter(value: Option<&Value>) -> Result<Option<Arc<Filter>>, Refusal> {
    let filter = value.map(Filter::parse).transpose();
    let filter = filter.map_err(|error| Refusal::invalid("filter", error.fact, error.hint))?;
    Ok(filter.map(Arc::new))
}

/// What is wrong with one of these fields.
pub(crate) fn fault(field: &str, value: &Value) -> Option<(String, String)> {
    match field {
        "mode" => name_fault(field, value, &MODES),
        "fusion" => name_fault(field, value, &FUSIONS),
        "rrf_k" => number_fault(field, value, RRF_K_MAX),
        "vector_weight" => number_fault(field, value, 1.0),
        "filter" if !value.is_object() => {
            let hint = "send an object such as {\"lang\": \"en\"}";
            Some(("`filter` is not an object".into(), hint.into()))
        }
        _ => None,
    }
}

fn name_fault(field: &str, value: &Value, names: &[&str]) -> Option<(String, String)> {
    let name = value.as_str();
    if name.is_some_and(|name| names.contains(&name)) {
        return None;
    }
    let near = name.and_then(|name| nearest(name, names));
    let hint = near.map_or_else(
        || format!("send one of {}", listed(names)),
        |name| format!("did you mean `{name}`?"),
    );
    Some((format!("`{field}` can't be {value}"), hint))
}

fn number_fault(field: &str, value: &Value, max: f32) -> Option<(String, String)> {
    let is_good = value
        .as_f64()
        .is_some_and(|number| (0.0..=f64::from(max)).contains(&number));
    (!is_good).then(|| range_fault(field, value, max))
}

fn range_fault(field: &str, value: &dyn std::fmt::Display, max: f32) -> (String, String) {
    let hint = format!("send a number from 0 to {max}");
    (format!("`{field}` is {value}"), hint)
}
