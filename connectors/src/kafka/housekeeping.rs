//! What has to be done beside reading, on a thread of its own: looking for new partitions, checking
//! that topics are still the ones that were read, telling Kafka what is durable, and metrics.
//!
//! None of it can hold up the reading, and a pipeline that takes nothing does not hold up any of it.
//!
//! Invariant: offsets are committed to Kafka for tools that watch lag, after our own commit, and never
//! read; only a topic that is proven to be another one ends the source from here.

use super::connection::Connection;
use super::fingerprint::RecordPrint;
use super::progress::{PartitionProgress, Progress};
use super::telemetry;
use super::verify::{Sameness, Verifier, made_anew};
use super::{End, KafkaConfig, PartitionStart};
use rdkafka::consumer::{CommitMode, Consumer};
use rdkafka::error::KafkaResult;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};
use vectide_model::{HeldRows, Partition, StopSignal};

/// Tools that watch lag look every few seconds; more commits are only work for the brokers.
const COMMIT_INTERVAL: Duration = Duration::from_secs(5);

/// How often the ends of partitions are asked for: metrics are fetched about as often.
const LAG_INTERVAL: Duration = Duration::from_secs(10);

/// How often this thread looks whether something is to be done.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// How long the answer to a commit is waited for.
const COMMIT_TIMEOUT: Duration = Duration::from_secs(3);

/// At the end: how long nothing may become durable before the rest is not waited for, and how long
/// it is waited for at all.
const LAST_COMMIT_QUIET: Duration = Duration::from_millis(300);
const LAST_COMMIT_TIMEOUT: Duration = Duration::from_secs(10);

/// What the reader is told.
pub(crate) enum News {
    /// Partitions that are to be read from now on; none when nothing was found on demand.
    Partitions(Vec<PartitionStart>),
    /// Reading has to end.
    End(End),
}

/// What the reader and this thread share.
#[derive(Default)]
pub(crate) struct Shared {
    pub(crate) progress: Progress,
    /// The reader wants to know now whether there are new partitions.
    pub(crate) is_discovery_wanted: AtomicBool,
    /// The reader has handed on everything, and waits for it to become durable.
    pub(crate) is_finished: AtomicBool,
    /// The reader is gone.
    pub(crate) done: StopSignal,
}

/// The work beside reading.
pub(crate) struct Housekeeping<'a> {
    pub(crate) config: &'a KafkaConfig,
    pub(crate) source: Arc<str>,
    pub(crate) connection: &'a Connection,
    pub(crate) held: Arc<dyn HeldRows>,
    pub(crate) is_trial: bool,
    pub(crate) shared: &'a Shared,
    pub(crate) news: Sender<News>,
}

/// What was done last.
struct Memory {
    committed: BTreeMap<Partition, u64>,
    is_commit_refused: bool,
    /// One record of each topic, to be read again.
    prints: BTreeMap<String, (Partition, RecordPrint)>,
    verifier: Option<Verifier>,
}

impl Housekeeping<'_> {
    /// Works until the reader is gone.
    pub(crate) fn run(self) {
        let mut memory = Memory {
            committed: BTreeMap::new(),
            is_commit_refused: false,
            prints: BTreeMap::new(),
            verifier: None,
        };
        let interval = self.config.discover_interval.as_duration();
        let (mut discovered_at, mut committed_at) = (Instant::now(), Instant::now());
        let mut lag_due_at = Instant::now() + Duration::from_secs(1);
        while !self.shared.done.wait(LOOK_INTERVAL) {
            let is_wanted = self
                .shared
                .is_discovery_wanted
                .swap(false, Ordering::AcqRel);
            if is_wanted || discovered_at.elapsed() >= interval {
                self.discover(is_wanted);
                self.check_sameness(&mut memory);
                discovered_at = Instant::now();
            }
            if committed_at.elapsed() >= COMMIT_INTERVAL {
                self.commit(&mut memory);
                committed_at = Instant::now();
            }
            if Instant::now() >= lag_due_at {
                self.measure();
                lag_due_at = Instant::now() + LAG_INTERVAL;
            }
        }
        if self.shared.is_finished.load(Ordering::Acquire) && !self.is_trial {
            self.await_durable();
        }
        self.commit(&mut memory);
        self.set_positions();
    }

    fn discover(&self, is_wanted: bool) {
        let progress = self.shared.progress.lock();
        let known: Vec<Partition> = progress.keys().cloned().collect();
        drop(progress);
        let is_known = |name: &Partition| known.binary_search(name).is_ok();
        match self.connection.new_partitions(&self.shared.done, &is_known) {
            Ok(found) => {
                if !found.is_empty() || is_wanted {
                    // When nobody listens any more, nothing is to be told.
                    drop(self.news.send(News::Partitions(found)));
                }
            }
            Err(End::Stopped) => {}
            Err(error) => {
                if is_wanted {
                    drop(self.news.send(News::Partitions(Vec::new())));
                }
                telemetry::count_error(&self.source, "metadata");
                tracing::warn!(
                    source = &*self.source,
                    "no look for new partitions: {error}"
                );
            }
        }
    }

    /// Reads again one record of each topic: one deleted and made anew within a moment goes on with
    /// offsets that look right.
    fn check_sameness(&self, memory: &mut Memory) {
        if memory.verifier.is_none() {
            memory.verifier = Verifier::open(self.config, &self.source).ok();
        }
        let Some(verifier) = &memory.verifier else {
            return;
        };
        for (partition, print) in memory.prints.values() {
            match verifier.verify(&self.shared.done, partition, *print) {
                Ok(Sameness::Different) => {
                    drop(self.news.send(News::End(made_anew(partition, *print))));
                    return;
                }
                Ok(_) => {}
                Err(End::Stopped) => return,
                Err(error) => {
                    telemetry::count_error(&self.source, "metadata");
                    tracing::warn!(
                        source = &*self.source,
                        "{partition} was not compared: {error}"
                    );
                }
            }
        }
        for (partition, of) in self.shared.progress.lock().iter() {
            if let (Some((topic, _)), Some(print)) = (PartitionStart::parse(partition), of.print) {
                memory
                    .prints
                    .insert(topic.to_owned(), (partition.clone(), print));
            }
        }
    }

    fn await_durable(&self) {
        let handed: Vec<(Partition, u64)> = {
            let progress = self.shared.progress.lock();
            progress
                .iter()
                .map(|(name, of)| (name.clone(), of.next))
                .collect()
        };
        let began_at = Instant::now();
        let mut changed_at = Instant::now();
        let mut before = BTreeMap::new();
        while began_at.elapsed() < LAST_COMMIT_TIMEOUT && changed_at.elapsed() < LAST_COMMIT_QUIET {
            let durable = self.held.durable_positions();
            if handed
                .iter()
                .all(|(name, next)| durable.get(name) >= Some(next))
            {
                return;
            }
            if durable != before {
                before = durable;
                changed_at = Instant::now();
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn commit(&self, memory: &mut Memory) {
        if self.is_trial {
            return;
        }
        let durable = self.held.durable_positions();
        let mut list = TopicPartitionList::new();
        for (name, next) in self.known(&durable) {
            if memory.committed.get(name) == Some(next) {
                continue;
            }
            if let Some((topic, id)) = PartitionStart::parse(name) {
                let offset = Offset::Offset(i64::try_from(*next).unwrap_or(i64::MAX));
                // Refused is only an offset that is none.
                drop(list.add_partition_offset(topic, id, offset));
            }
        }
        if list.count() == 0 {
            return;
        }
        match self.commit_list(&list) {
            Ok(()) => {
                memory.is_commit_refused = false;
                memory.committed = durable;
            }
            Err(error) => {
                telemetry::count_error(&self.source, "offset_commit");
                if !std::mem::replace(&mut memory.is_commit_refused, true) {
                    tracing::warn!(
                        source = &*self.source,
                        "offsets can't be committed to Kafka, so tools do not see how far this \
                         source is; its own positions are safe: {error}"
                    );
                }
            }
        }
    }

    /// Durable positions of partitions that are read.
    fn known<'b>(&self, durable: &'b BTreeMap<Partition, u64>) -> Vec<(&'b Partition, &'b u64)> {
        let progress = self.shared.progress.lock();
        durable
            .iter()
            .filter(|(name, _)| progress.contains_key(*name))
            .collect()
    }

    fn commit_list(&self, list: &TopicPartitionList) -> KafkaResult<()> {
        let client = self.connection.client();
        drop(client.context().take_commit());
        client.commit(list, CommitMode::Async)?;
        let began_at = Instant::now();
        while began_at.elapsed() < COMMIT_TIMEOUT {
            drop(client.poll(Duration::from_millis(20)));
            if let Some(result) = client.context().take_commit() {
                return result;
            }
        }
        Err(rdkafka::error::KafkaError::ConsumerCommit(
            rdkafka::error::RDKafkaErrorCode::OperationTimedOut,
        ))
    }

    fn set_positions(&self) -> BTreeMap<Partition, PartitionProgress> {
        let progress = self.shared.progress.lock().clone();
        for (name, of) in &progress {
            telemetry::set_position(&self.source, name, of.next);
            if of.is_at_end {
                telemetry::set_lag(&self.source, name, 0);
            }
        }
        progress
    }

    fn measure(&self) {
        for (name, of) in self.set_positions() {
            let Some((topic, id)) = PartitionStart::parse(&name) else {
                continue;
            };
            if of.is_at_end || self.shared.done.is_stopped() {
                continue;
            }
            match self.connection.end_of(topic, id) {
                Ok(end) => telemetry::set_lag(&self.source, &name, end.saturating_sub(of.next)),
                // The client tells about lost connections; the rest of the round would only wait.
                Err(_) => return telemetry::count_error(&self.source, "metadata"),
            }
        }
    }
}
