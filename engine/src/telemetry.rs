//! The names of all metrics, and where they are counted.
//!
//! Invariant: metric names and label names stand in this file alone (the endpoint's own in `serve`);
//! units are base units and stand last in the name.

use crate::state::State;
use metrics::{
    Counter, Gauge, Histogram, counter, describe_counter, describe_gauge, describe_histogram,
    gauge, histogram,
};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};
use vectide_model::{DeadLetterReason, Effort, Lane, VectorIndexRead};
use vectide_operators::{BatchObserver, BatchReport, PlanIndex};

/// From half a millisecond (an idle system on a fast disk) to minutes (a backfill).
const FRESHNESS_BUCKETS_SECONDS: [f64; 15] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0, 600.0,
];
/// From the search of a small index to a request that timed out.
const QUERY_BUCKETS_SECONDS: [f64; 15] = [
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
    10.0,
];
/// From a query alone to what a GPU computes at once.
const BATCH_TEXTS_BUCKETS: [f64; 8] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 256.0];
/// From a short query to what a GPU computes at once.
const BATCH_TOKENS_BUCKETS: [f64; 9] = [
    8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 2_048.0, 16_384.0,
];

/// The histograms, with what they are counted in.
const BUCKETS: [(&str, &[f64]); 7] = [
    ("vectide_freshness_seconds", &FRESHNESS_BUCKETS_SECONDS),
    ("vectide_query_duration_seconds", &QUERY_BUCKETS_SECONDS),
    ("vectide_shard_pause_seconds", &QUERY_BUCKETS_SECONDS),
    ("vectide_embed_wait_seconds", &QUERY_BUCKETS_SECONDS),
    ("vectide_embed_duration_seconds", &QUERY_BUCKETS_SECONDS),
    ("vectide_embed_batch_texts", &BATCH_TEXTS_BUCKETS),
    ("vectide_embed_batch_tokens", &BATCH_TOKENS_BUCKETS),
];

static HANDLE: OnceLock<Option<PrometheusHandle>> = OnceLock::new();

/// Installs the recorder, once a process; later calls return the same handle. `None` when the
/// process has another recorder.
pub(crate) fn install() -> Option<&'static PrometheusHandle> {
    let handle = HANDLE.get_or_init(|| {
        let builder =
            BUCKETS
                .iter()
                .try_fold(PrometheusBuilder::new(), |builder, (name, buckets)| {
                    builder.set_buckets_for_metric(Matcher::Full((*name).into()), buckets)
                });
        let handle = builder.and_then(PrometheusBuilder::install_recorder).ok();
        describe();
        handle
    });
    handle.as_ref()
}

fn describe() {
    describe_counter!("vectide_source_records_total", "Changes read, by source");
    describe_gauge!("vectide_documents", "Documents in an index");
    describe_gauge!("vectide_chunks", "Chunks in an index");
    describe_counter!("vectide_embedded_chunks_total", "Chunks that were embedded");
    describe_counter!(
        "vectide_reused_chunks_total",
        "Chunks of written documents that needed no embedding"
    );
    describe_counter!(
        "vectide_dead_letters_total",
        "Records that could not be used, by reason"
    );
    describe_counter!(
        "vectide_dead_letters_dropped_total",
        "Dead letters that left the state because there were too many"
    );
    describe_gauge!("vectide_dead_letters_held", "Dead letters in the state");
    describe_histogram!(
        "vectide_freshness_seconds",
        "From a change to its being queryable"
    );
    describe_gauge!("vectide_state_bytes", "Bytes that the state takes up");
    describe_gauge!("vectide_state_free_bytes", "Bytes free on the state's disk");
    describe_gauge!(
        "vectide_state_short",
        "1 while no changes are taken because the disk is short of room"
    );
    describe_gauge!("vectide_index_vectors", "Live vectors of an index");
    describe_gauge!("vectide_index_segments", "Sealed segments of an index");
    describe_gauge!(
        "vectide_index_segment_bytes",
        "Bytes of the files of an index's segments"
    );
    describe_histogram!(
        "vectide_shard_pause_seconds",
        "How long closing an epoch of a shard kept its worker, by index"
    );
    describe_counter!(
        "vectide_segments_built_total",
        "Segments that were sealed or merged"
    );
    describe_counter!(
        "vectide_segment_rows_built_total",
        "Rows of segments that were sealed or merged"
    );
    describe_counter!(
        "vectide_merges_postponed_total",
        "Merges of segments that failed or found no room and are tried again later"
    );
    describe_gauge!(
        "vectide_recall",
        "Share of the true ten hits that searches find, by queries asked again"
    );
    describe_gauge!(
        "vectide_recall_low",
        "Lower end of the 95 % interval of vectide_recall"
    );
    describe_gauge!(
        "vectide_recall_high",
        "Upper end of the 95 % interval of vectide_recall"
    );
    describe_gauge!(
        "vectide_search_effort",
        "Step of how much searches look at; 8 is nominal, 4 more are twice as much"
    );
    describe_counter!(
        "vectide_shadow_queries_total",
        "Queries that were asked again to measure recall"
    );
    describe_embedding();
    describe_gauge!("vectide_epoch", "The last committed and published epoch");
    describe_histogram!(
        "vectide_query_duration_seconds",
        "Time of queries, by stage"
    );
}

fn describe_embedding() {
    describe_histogram!(
        "vectide_embed_batch_texts",
        "Texts of an embedder's calls, by lane"
    );
    describe_histogram!(
        "vectide_embed_batch_tokens",
        "Tokens of an embedder's calls, by lane"
    );
    describe_histogram!(
        "vectide_embed_wait_seconds",
        "How long the oldest text of a call had waited, by lane"
    );
    describe_histogram!(
        "vectide_embed_duration_seconds",
        "Time of an embedder's calls, by lane"
    );
    describe_counter!(
        "vectide_embed_failed_batches_total",
        "Calls of an embedder that gave no vectors, by lane"
    );
    describe_counter!(
        "vectide_embed_padding_tokens_total",
        "Tokens computed in bulk only to make the texts of a call equally long"
    );
    describe_gauge!(
        "vectide_embed_waiting_tokens",
        "Tokens of chunks that wait for an embedder or are in it"
    );
    describe_counter!(
        "vectide_embed_shared_texts_total",
        "Chunks whose text was being embedded for another already"
    );
    describe_counter!(
        "vectide_embed_abandoned_queries_total",
        "Queries whose caller left before they were embedded"
    );
}

/// Sets the gauges and counters of the indexes after a commit.
pub(crate) fn committed(
    state: &State,
    embedded: &BTreeMap<PlanIndex, u64>,
    reused: &BTreeMap<PlanIndex, u64>,
) {
    let record = state.record();
    gauge!("vectide_epoch").set(record.epoch as f64);
    gauge!("vectide_dead_letters_held").set(record.letters.held as f64);
    for (name, counts) in &record.indexes {
        gauge!("vectide_documents", "index" => name.clone()).set(counts.documents as f64);
        gauge!("vectide_chunks", "index" => name.clone()).set(counts.chunks as f64);
    }
    let name = |index: &PlanIndex| state.names().indexes[usize::from(*index)].to_string();
    for (index, count) in embedded {
        counter!("vectide_embedded_chunks_total", "index" => name(index)).increment(*count);
    }
    for (index, count) in reused {
        counter!("vectide_reused_chunks_total", "index" => name(index)).increment(*count);
    }
}

/// Sets what an index holds, and counts the segments that were built for it.
pub(crate) fn index(name: &str, shards: &[Arc<dyn VectorIndexRead>], built: &[u32]) {
    let name = || name.to_owned();
    let vectors: usize = shards.iter().map(|shard| shard.rows()).sum();
    let segments: usize = shards.iter().map(|shard| shard.segments()).sum();
    let bytes: u64 = shards.iter().map(|shard| shard.segment_bytes()).sum();
    gauge!("vectide_index_vectors", "index" => name()).set(vectors as f64);
    gauge!("vectide_index_segments", "index" => name()).set(segments as f64);
    gauge!("vectide_index_segment_bytes", "index" => name()).set(bytes as f64);
    let postponed: u64 = shards.iter().map(|shard| shard.merges_postponed()).sum();
    counter!("vectide_merges_postponed_total", "index" => name()).absolute(postponed);
    let rows = built.iter().copied().map(u64::from).sum();
    counter!("vectide_segments_built_total", "index" => name()).increment(built.len() as u64);
    counter!("vectide_segment_rows_built_total", "index" => name()).increment(rows);
}

/// Notes how long closing shards kept the workers.
pub(crate) fn shard_pauses(state: &State, pauses: &[(PlanIndex, Duration)]) {
    for (index, pause) in pauses {
        let name = state.names().indexes[usize::from(*index)].to_string();
        histogram!("vectide_shard_pause_seconds", "index" => name).record(pause.as_secs_f64());
    }
}

/// Sets what is known of an index's recall: its mean and half the width of its interval.
pub(crate) fn recall(index: &str, (mean, doubt): (f64, f64), effort: Effort) {
    let name = || index.to_owned();
    gauge!("vectide_recall", "index" => name()).set(mean);
    gauge!("vectide_recall_low", "index" => name()).set((mean - doubt).max(0.0));
    gauge!("vectide_recall_high", "index" => name()).set((mean + doubt).min(1.0));
    gauge!("vectide_search_effort", "index" => name()).set(effort.step());
    counter!("vectide_shadow_queries_total", "index" => name()).increment(1);
}

/// Sets what the state takes up, and what is free.
pub(crate) fn state_room(used: u64, free: Option<u64>) {
    gauge!("vectide_state_bytes").set(used as f64);
    if let Some(free) = free {
        gauge!("vectide_state_free_bytes").set(free as f64);
    }
}

/// Sets whether changes are held back for want of room.
pub(crate) fn state_short(is_short: bool) {
    gauge!("vectide_state_short").set(u8::from(is_short));
}

/// Counts an epoch's records and how old they are now that they can be found.
pub(crate) fn sourced(state: &State, records: &[u64], changed_at: &[SystemTime]) {
    for (name, count) in state.names().sources.iter().zip(records) {
        counter!("vectide_source_records_total", "source" => name.to_string()).increment(*count);
    }
    let now = SystemTime::now();
    let freshness = histogram!("vectide_freshness_seconds");
    for at in changed_at {
        // A source whose clock is ahead of ours gives no negative ages.
        freshness.record(now.duration_since(*at).unwrap_or_default().as_secs_f64());
    }
}

/// Counts dead letters, and those that had to leave the state.
pub(crate) fn dead_letters(reasons: &[DeadLetterReason], dropped: u64) {
    counter!("vectide_dead_letters_dropped_total").increment(dropped);
    for reason in reasons {
        counter!("vectide_dead_letters_total", "reason" => reason.as_str()).increment(1);
    }
}

/// Counts the calls of one embedder.
pub(crate) struct Batches {
    lanes: [LaneMetrics; 2],
    padding_tokens: Counter,
    waiting_tokens: Gauge,
    shared_texts: Counter,
    abandoned_queries: Counter,
}

/// What is counted of a lane.
struct LaneMetrics {
    texts: Histogram,
    tokens: Histogram,
    waited: Histogram,
    took: Histogram,
    failed: Counter,
}

impl LaneMetrics {
    fn of(model: &str, lane: &'static str) -> Self {
        let model = || model.to_owned();
        Self {
            texts: histogram!("vectide_embed_batch_texts", "model" => model(), "lane" => lane),
            tokens: histogram!("vectide_embed_batch_tokens", "model" => model(), "lane" => lane),
            waited: histogram!("vectide_embed_wait_seconds", "model" => model(), "lane" => lane),
            took: histogram!("vectide_embed_duration_seconds", "model" => model(), "lane" => lane),
            failed: counter!("vectide_embed_failed_batches_total", "model" => model(), "lane" => lane),
        }
    }
}

impl Batches {
    /// Of the embedder with that model.
    pub(crate) fn of(model: &str) -> Self {
        let name = || model.to_owned();
        Self {
            lanes: [
                LaneMetrics::of(model, "bulk"),
                LaneMetrics::of(model, "query"),
            ],
            padding_tokens: counter!("vectide_embed_padding_tokens_total", "model" => name()),
            waiting_tokens: gauge!("vectide_embed_waiting_tokens", "model" => name()),
            shared_texts: counter!("vectide_embed_shared_texts_total", "model" => name()),
            abandoned_queries: counter!("vectide_embed_abandoned_queries_total", "model" => name()),
        }
    }
}

impl BatchObserver for Batches {
    fn batch(&self, batch: &BatchReport) {
        let [bulk, query] = &self.lanes;
        let lane = match batch.lane {
            Lane::Bulk => bulk,
            Lane::Query => query,
        };
        lane.texts.record(batch.texts as f64);
        lane.tokens.record(batch.tokens as f64);
        lane.waited.record(batch.waited.as_secs_f64());
        lane.took.record(batch.took.as_secs_f64());
        lane.failed.increment(u64::from(batch.has_failed));
        self.padding_tokens.increment(batch.padding_tokens as u64);
    }

    fn waiting(&self, tokens: usize) {
        self.waiting_tokens.set(tokens as f64);
    }

    fn shared(&self) {
        self.shared_texts.increment(1);
    }

    fn abandoned(&self) {
        self.abandoned_queries.increment(1);
    }
}
