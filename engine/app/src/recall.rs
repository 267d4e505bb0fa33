//! `vectide recall`: how many of the true hits an index's searches find, by asking everything twice.
//!
//! Each query is asked as clients ask it, then once more with `exact` at the epoch of the first answer, so
//! that changes which come in between count for nothing.
//!
//! Invariant: both answers that are compared are of one epoch.

use crate::evaluate::{JudgedQuery, Percentiles};
use crate::failure::Failure;
use serde::Serialize;
use std::time::Instant;
use vectide_model::{Recalls, recall};
use vectide_serve::{Client, HitView, QueryRequest};

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct RecallReport {
    /// Queries that had a true hit.
    pub queries: usize,
    /// Hits of each.
    pub k: usize,
    /// Mean share of the true hits that were found.
    pub recall: f64,
    /// Ends of the interval that holds the mean with 95 %.
    pub interval: [f64; 2],
    /// Queries that missed at least one.
    pub incomplete: usize,
    /// Latency of the first answers as the client sees it, in milliseconds.
    pub latency_ms: Percentiles,
}

/// Asks every query twice.
///
/// # Errors
/// When the endpoint refuses one.
pub fn measure(
    client: &Client,
    index: &str,
    queries: &[JudgedQuery],
    k: usize,
) -> Result<RecallReport, Failure> {
    let (mut recalls, mut incomplete, mut times) = (Recalls::default(), 0, Vec::new());
    for query in queries {
        let request = QueryRequest {
            include: Vec::new(),
            ..QueryRequest::text(&*query.text, k)
        };
        let start = Instant::now();
        let answer = client.search(index, &request)?;
        times.push(start.elapsed().as_secs_f64() * 1e3);
        let exact = QueryRequest {
            exact: true,
            as_of: Some(answer.as_of.epoch),
            ..request
        };
        let truth = client.search(index, &exact)?;
        if let Some(recall) = recall(&scored(answer.hits), &scored(truth.hits)) {
            recalls.add(recall);
            incomplete += usize::from(recall < 1.0);
        }
    }
    let (mean, doubt) = recalls.interval();
    Ok(RecallReport {
        queries: recalls.count() as usize,
        k,
        recall: mean,
        interval: [(mean - doubt).max(0.0), (mean + doubt).min(1.0)],
        incomplete,
        latency_ms: Percentiles::of(times),
    })
}

fn scored(hits: Vec<HitView>) -> Vec<(String, f32)> {
    hits.into_iter().map(|hit| (hit.chunk, hit.score)).collect()
}

/// Prints it as one JSON object.
///
/// # Errors
/// As [`measure`].
pub fn print(
    client: &Client,
    index: &str,
    queries: &[JudgedQuery],
    k: usize,
) -> Result<(), Failure> {
    let report = measure(client, index, queries, k)?;
    println!("{}", serde_json::to_string(&report)?);
    Ok(())
}
