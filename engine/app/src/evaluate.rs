//! `vectide eval`: how well an index answers queries whose right documents are known.
//!
//! A hit counts for its document; a document counts once, at its best hit. Measures as TREC's:
//! nDCG@10 with the gain `2^relevance - 1` and the discount `log2(rank + 1)`, recall@10, recall@100,
//! MRR@10; averages over the queries that have a judgement.

use crate::failure::Failure;
use crate::lines;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::time::Instant;
use vectide_serve::{Client, QueryRequest};

/// Hits asked for: several chunks may belong to one document, so more than the 100 that count.
const HITS: usize = 300;

/// A query with its id.
#[derive(Clone, Debug, Deserialize)]
pub struct JudgedQuery {
    /// Its id in the judgements.
    pub id: String,
    /// What to ask.
    pub text: String,
}

/// Query id -> document id -> relevance.
pub type Judgements = BTreeMap<String, BTreeMap<String, u32>>;

/// The measures over all judged queries.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Evaluation {
    /// Queries with a judgement.
    pub queries: usize,
    /// Normalised discounted cumulative gain of the first ten documents.
    #[serde(rename = "ndcg@10")]
    pub ndcg_10: f64,
    /// Share of the relevant documents among the first ten.
    #[serde(rename = "recall@10")]
    pub recall_10: f64,
    /// Share of the relevant documents among the first hundred.
    #[serde(rename = "recall@100")]
    pub recall_100: f64,
    /// Mean of 1/rank of the first relevant document among ten.
    #[serde(rename = "mrr@10")]
    pub mrr_10: f64,
    /// Latency as the client sees it, in milliseconds.
    pub latency_ms: Percentiles,
}

/// Percentiles of a latency in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Percentiles {
    /// Half of the queries took no longer.
    pub p50: f64,
    /// 95 % took no longer.
    pub p95: f64,
    /// 99 % took no longer.
    pub p99: f64,
}

impl Percentiles {
    /// The percentiles of a set of values; zeros of an empty one.
    pub fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let at = |share: f64| match values.len() {
            0 => 0.0,
            count => values[(((count - 1) as f64) * share).round() as usize],
        };
        Self {
            p50: at(0.5),
            p95: at(0.95),
            p99: at(0.99),
        }
    }
}

/// Reads queries, one JSON object a line, plain or `.zst`.
///
/// # Errors
/// When the file can't be read or a line is not a query.
pub fn read_queries(path: &Path) -> Result<Vec<JudgedQuery>, Failure> {
    lines::read(path)?.collect()
}

/// Reads judgements: query id, document id, relevance, tab-separated.
///
/// # Errors
/// When the file can't be read or a line has another form.
pub fn read_judgements(path: &Path) -> Result<Judgements, Failure> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| Failure::new(format!("{}: {error}", path.display())))?;
    let mut judgements = Judgements::new();
    for (number, line) in text.lines().enumerate() {
        let mut fields = line.split('\t');
        let parsed = (|| {
            let (query, document) = (fields.next()?, fields.next()?);
            Some((query, document, fields.next()?.trim().parse().ok()?))
        })();
        let Some((query, document, relevance)) = parsed else {
            return Err(Failure::new(format!(
                "{}:{}: not `query<TAB>document<TAB>relevance`",
                path.display(),
                number + 1
            )));
        };
        judgements
            .entry(query.into())
            .or_default()
            .insert(document.into(), relevance);
    }
    Ok(judgements)
}

/// Asks every judged query, by the request that is made of its text and a number of hits, and measures the
/// answers.
///
/// # Errors
/// When the endpoint can't be reached or refuses a query.
pub fn evaluate(
    client: &Client,
    index: &str,
    (queries, judgements): (&[JudgedQuery], &Judgements),
    request: &dyn Fn(&str, usize) -> QueryRequest,
) -> Result<Evaluation, Failure> {
    let mut sum = Evaluation::default();
    let mut latencies = Vec::new();
    for query in queries {
        let Some(relevant) = judgements.get(&query.id) else {
            continue;
        };
        let start = Instant::now();
        let answer = client.search(index, &request(&query.text, HITS))?;
        latencies.push(start.elapsed().as_secs_f64() * 1e3);
        let mut seen = HashSet::new();
        let ranked: Vec<&str> = answer
            .hits
            .iter()
            .map(|hit| &*hit.document)
            .filter(|document| seen.insert(*document))
            .collect();
        let one = measure(&ranked, relevant);
        sum.queries += 1;
        sum.ndcg_10 += one.ndcg_10;
        sum.recall_10 += one.recall_10;
        sum.recall_100 += one.recall_100;
        sum.mrr_10 += one.mrr_10;
    }
    let count = sum.queries.max(1) as f64;
    sum.ndcg_10 /= count;
    sum.recall_10 /= count;
    sum.recall_100 /= count;
    sum.mrr_10 /= count;
    sum.latency_ms = Percentiles::of(latencies);
    Ok(sum)
}

/// Measures the answers to the queries of a file by the judgements of another and prints the measures as JSON.
///
/// # Errors
/// When a file can't be read, or as [`evaluate`].
pub fn print(
    client: &Client,
    index: &str,
    (queries, judgements): (&Path, &Path),
    request: &dyn Fn(&str, usize) -> QueryRequest,
) -> Result<(), Failure> {
    let (queries, judgements) = (read_queries(queries)?, read_judgements(judgements)?);
    let result = evaluate(client, index, (&queries, &judgements), request)?;
    println!("{}", serde_json::to_string(&result)?);
    Ok(())
}

/// The measures of one ranking.
pub fn measure(ranked: &[&str], relevant: &BTreeMap<String, u32>) -> Evaluation {
    let gain = |relevance: u32| f64::from(relevance.min(30)).exp2() - 1.0;
    let discount = |rank: usize| ((rank + 2) as f64).log2();
    let relevance = |document: &&str| relevant.get(*document).copied().unwrap_or(0);
    let dcg: f64 = ranked
        .iter()
        .take(10)
        .enumerate()
        .map(|(rank, document)| gain(relevance(document)) / discount(rank))
        .sum();
    let mut ideal: Vec<u32> = relevant.values().copied().collect();
    ideal.sort_unstable_by(|a, b| b.cmp(a));
    let best: f64 = ideal
        .iter()
        .take(10)
        .enumerate()
        .map(|(rank, it)| gain(*it) / discount(rank))
        .sum();
    let wanted = ideal.iter().filter(|it| **it > 0).count().max(1) as f64;
    let found = |k: usize| {
        ranked
            .iter()
            .take(k)
            .filter(|document| relevance(document) > 0)
            .count() as f64
            / wanted
    };
    let first = ranked
        .iter()
        .take(10)
        .position(|document| relevance(document) > 0);
    Evaluation {
        queries: 1,
        ndcg_10: if best > 0.0 { dcg / best } else { 0.0 },
        recall_10: found(10),
        recall_100: found(100),
        mrr_10: first.map_or(0.0, |rank| 1.0 / (rank + 1) as f64),
        latency_ms: Percentiles::default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn measures_agree_with_hand_computed_values() {
        let relevant = BTreeMap::from([("a".to_owned(), 1), ("b".to_owned(), 1)]);
        let one = measure(&["x", "a", "y", "b"], &relevant);
        let (dcg, best) = (
            1.0 / 3f64.log2() + 1.0 / 5f64.log2(),
            1.0 + 1.0 / 3f64.log2(),
        );
        assert!((one.ndcg_10 - dcg / best).abs() < 1e-12);
        assert_eq!((one.recall_10, one.mrr_10), (1.0, 0.5));
        assert_eq!(measure(&[], &relevant).ndcg_10, 0.0);
        assert_eq!(measure(&["a", "b"], &relevant).ndcg_10, 1.0);
    }
}
