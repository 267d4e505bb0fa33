//! The metrics of what computes in the processor's place.
//!
//! Said anew with each count: models are opened before the recorder is there, and what is told to nobody is lost.
//! Both are rare.

use metrics::{counter, describe_counter, describe_gauge, gauge};

/// Counts a call that an accelerator had no vectors for.
pub(crate) fn count_failed_call() {
    describe_counter!(
        "vectide_accelerator_failed_calls_total",
        "Calls that failed on an accelerator and were made by the CPU instead"
    );
    counter!("vectide_accelerator_failed_calls_total").increment(1);
}

/// Counts an accelerator that is asked no more.
pub(crate) fn count_given_up() {
    describe_gauge!(
        "vectide_accelerators_given_up",
        "Models whose accelerator was given up: the CPU computes them until the process ends"
    );
    gauge!("vectide_accelerators_given_up").increment(1.0);
}

#[cfg(test)]
mod tests {
    use super::*;
    use metrics_util::debugging::DebuggingRecorder;

    #[test]
    fn whoever_reads_them_is_told_what_they_mean() {
        let recorder = DebuggingRecorder::new();
        metrics::with_local_recorder(&recorder, || {
            count_failed_call();
            count_given_up();
        });
        let told = recorder.snapshotter().snapshot().into_vec();
        assert_eq!(told.len(), 2);
        for (key, _, description, _) in told {
            assert!(description.is_some(), "{key:?}");
        }
    }
}
