//! The metrics of a Kafka source.

use metrics::{counter, describe_counter, describe_gauge, gauge};
use vectide_model::Partition;

/// Says what the metrics mean.
pub(crate) fn describe() {
    describe_gauge!(
        "vectide_source_lag_records",
        "Records that are there and were not handed on yet, by source and partition"
    );
    describe_gauge!(
        "vectide_source_position",
        "The next offset to be read, by source and partition"
    );
    describe_counter!(
        "vectide_source_errors_total",
        "What a source had to try again, by source and kind"
    );
}

/// Tells where a partition stands.
pub(crate) fn set_position(source: &str, partition: &Partition, next: u64) {
    // A gauge is a float: exact up to 2^53.
    labelled("vectide_source_position", source, partition).set(next as f64);
}

/// Tells how much of a partition is still to be read.
pub(crate) fn set_lag(source: &str, partition: &Partition, records: u64) {
    labelled("vectide_source_lag_records", source, partition).set(records as f64);
}

fn labelled(name: &'static str, source: &str, partition: &Partition) -> metrics::Gauge {
    gauge!(name, "source" => source.to_owned(), "partition" => partition.to_string())
}

/// Counts an error that did not end the source.
pub(crate) fn count_error(source: &str, kind: &'static str) {
    counter!("vectide_source_errors_total", "source" => source.to_owned(), "kind" => kind)
        .increment(1);
}
