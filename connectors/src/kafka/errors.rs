//! Which of the Kafka client's errors end a source, and which it gets over by itself.
//!
//! Invariant: an error that is not known to be passing ends the source. Going on after an unknown
//! one could skip records.

use super::End;
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};

/// What an error means for the source.
#[derive(Debug)]
pub(crate) enum Verdict {
    /// The client tries again by itself.
    Passing,
    /// The topic or partition is not known to the cluster: for good, or while a broker starts.
    Unknown,
    /// The source can't go on.
    Final(End),
}

/// Judges an error; `place` is the topic and partition it was about, as far as known, and the
/// position there.
pub(crate) fn judge(error: &KafkaError, place: &str) -> Verdict {
    if let KafkaError::MessageConsumptionFatal(code) = error {
        return failed(
            place,
            *code,
            "see the log of the client for its cause, then start again",
        );
    }
    match error.rdkafka_error_code() {
        Some(code) => judge_code(code, place),
        None => Verdict::Final(End::failed(
            format!("{place}: {error}"),
            "check the brokers and the client's properties",
        )),
    }
}

fn judge_code(code: Code, place: &str) -> Verdict {
    match code {
        Code::AutoOffsetReset | Code::OffsetOutOfRange | Code::LogTruncation => {
            Verdict::Final(End::PositionLost(format!("{place}: {code}")))
        }
        Code::UnknownTopic | Code::UnknownPartition | Code::UnknownTopicOrPartition => {
            Verdict::Unknown
        }
        Code::BrokerTransportFailure
        | Code::AllBrokersDown
        | Code::Resolve
        | Code::OperationTimedOut
        | Code::MessageTimedOut
        | Code::NodeUpdate
        | Code::WaitingForCoordinator
        | Code::WaitCache
        | Code::Retry
        | Code::LeaderNotAvailable
        | Code::NotLeaderForPartition
        | Code::RequestTimedOut
        | Code::BrokerNotAvailable
        | Code::ReplicaNotAvailable
        | Code::NetworkException
        | Code::CoordinatorLoadInProgress
        | Code::CoordinatorNotAvailable
        | Code::NotCoordinator
        | Code::KafkaStorageError
        | Code::FencedLeaderEpoch
        | Code::UnknownLeaderEpoch
        | Code::OffsetNotAvailable
        | Code::PreferredLeaderNotAvailable
        | Code::FetchSessionIdNotFound
        | Code::InvalidFetchSessionEpoch
        | Code::ReassignmentInProgress
        // No group is joined, so none has to be allowed.
        | Code::GroupAuthorizationFailed => Verdict::Passing,
        // The place where tokens come from may be away: how long is watched by the client's context.
        Code::Authentication | Code::SaslAuthenticationFailed | Code::SSL => Verdict::Passing,
        Code::TopicAuthorizationFailed
        | Code::ClusterAuthorizationFailed => failed(
            place,
            code,
            "the user needs the rights to read and describe the topic",
        ),
        _ => failed(place, code, "look for this error in the broker's log"),
    }
}

fn failed(place: &str, code: Code, hint: &str) -> Verdict {
    Verdict::Final(End::failed(format!("{place}: {code}"), hint))
}

/// The brokers do not let this client in.
pub(super) fn refused(reason: &str) -> End {
    End::failed(
        format!("the brokers refuse the connection: {reason}"),
        "check `security.protocol`, `sasl.*` and `ssl.*` under `properties`",
    )
}
