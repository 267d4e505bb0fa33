//! The metrics of GPUs.
//!
//! Said anew with each count: models are opened before the recorder is there, and what is told to nobody is lost.
//! Both are rare.

use metrics::{counter, describe_counter, describe_gauge, gauge};

/// Counts a device that is given up.
pub(crate) fn count_lost() {
    describe_gauge!(
        "vectide_gpu_lost",
        "GPUs that were given up: embedding goes on without them"
    );
    gauge!("vectide_gpu_lost").increment(1.0);
}

/// Counts a context that is made anew.
pub(crate) fn count_rebuild() {
    describe_counter!(
        "vectide_gpu_rebuilds_total",
        "Contexts of GPUs that were lost and made anew"
    );
    counter!("vectide_gpu_rebuilds_total").increment(1);
}

#[cfg(test)]
mod tests {
    use super::*;
    use metrics_util::debugging::DebuggingRecorder;

    #[test]
    fn whoever_reads_them_is_told_what_they_mean() {
        let recorder = DebuggingRecorder::new();
        metrics::with_local_recorder(&recorder, || {
            count_lost();
            count_rebuild();
        });
        let told = recorder.snapshotter().snapshot().into_vec();
        assert_eq!(told.len(), 2);
        for (key, _, description, _) in told {
            assert!(description.is_some(), "{key:?}");
        }
    }
}
