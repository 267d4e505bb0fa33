//! The ingest thread with nothing behind it: the test says what is committed, and when.

use super::*;
use crate::room::RoomLimits;
use crossbeam_channel::{RecvTimeoutError, SendTimeoutError, bounded, unbounded};
use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::atomic::AtomicBool;
use std::thread::JoinHandle;
use timely::scheduling::Activations;
use vectide_model::{ByteSize, DeadLetterReason, Position};

const MIB: usize = 1024 * 1024;

/// Longest wait for what has to come.
const PATIENCE: Duration = Duration::from_secs(20);

/// Wait for what must not come.
const QUIET: Duration = Duration::from_millis(300);

/// A source `pages` with one partition, in a state that may take up a mebibyte.
struct Bench {
    directory: tempfile::TempDir,
    room: Arc<Room>,
    has_news: Arc<AtomicBool>,
    stop: StopSignal,
    committed_epoch: Arc<AtomicU64>,
    commit: CommitConfig,
    mode: ReadMode,
}

/// A thread under test.
struct Started {
    bench: Bench,
    events: Sender<SourceEvent>,
    metas: Receiver<EpochMeta>,
    committed: Sender<()>,
    ingest: JoinHandle<Result<Epoch, IngestEnd>>,
    _epochs: Receiver<ClosedEpoch>,
}

impl Bench {
    fn new(mode: ReadMode) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let limits = RoomLimits {
            max_bytes: Some(ByteSize::mebibytes(1)),
            min_free: ByteSize::from_bytes(1),
        };
        Self {
            room: Arc::new(Room::new(directory.path(), limits)),
            directory,
            has_news: Arc::default(),
            stop: StopSignal::new(),
            committed_epoch: Arc::default(),
            commit: CommitConfig::default(),
            mode,
        }
    }

    /// Lets the state's folder take up so much.
    fn take_up(&self, bytes: usize) {
        let file = self.directory.path().join("segment");
        std::fs::write(file, vec![1; bytes]).unwrap();
        self.room.measure();
    }

    fn start(self) -> Started {
        let (events, received) = bounded(SOURCE_QUEUE_BATCHES);
        let (epoch_sender, epochs) = unbounded();
        let (wake_sender, wake) = bounded(1);
        let (meta_sender, metas) = unbounded();
        let (committed_sender, committed) = bounded(1);
        let activations = Activations::new(None).sync();
        let activator = SyncActivator::new(Vec::new(), activations);
        wake_sender.send(activator).unwrap();
        let (committed_epoch, has_news) = (self.committed_epoch.clone(), self.has_news.clone());
        let ports = IngestPorts {
            sources: vec![("pages".into(), received)],
            epochs: epoch_sender,
            wake,
            metas: meta_sender,
            committed,
            committed_epoch: Arc::new(move || committed_epoch.load(Ordering::Acquire)),
            budget: Arc::new(EpochBudget::new(self.commit.bytes)),
            commit: self.commit,
            room: self.room.clone(),
            caught_up_at: Arc::new(AtomicU64::new(Epoch::MAX)),
            steering: Arc::new(Steering::idle()),
            have_shards_news: Arc::new(move || has_news.load(Ordering::Acquire)),
            have_batchers_room: Arc::new(|| true),
            mode: self.mode,
            stop: self.stop.clone(),
        };
        let resumed = Resumed::of(&CommitRecord::default());
        Started {
            bench: self,
            events,
            metas,
            committed: committed_sender,
            ingest: std::thread::spawn(move || run(ports, 1, resumed)),
            _epochs: epochs,
        }
    }
}

impl Started {
    fn send(&self, batch: SourceBatch) {
        let event = SourceEvent::Batch(batch.into());
        self.events.send_timeout(event, PATIENCE).unwrap();
    }

    /// Waits until what was sent is in the open epoch.
    fn wait_until_taken(&self) {
        while !self.events.is_empty() {
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(QUIET);
    }

    fn next(&self) -> EpochMeta {
        self.metas.recv_timeout(PATIENCE).expect("an epoch")
    }

    fn expect_quiet(&self) {
        let none = self.metas.recv_timeout(QUIET);
        assert!(matches!(none, Err(RecvTimeoutError::Timeout)));
    }

    fn commit(&self, epoch: Epoch) {
        self.bench.committed_epoch.store(epoch, Ordering::Release);
        let _ = self.committed.try_send(());
    }

    fn end(self) -> Result<Epoch, IngestEnd> {
        self.ingest.join().unwrap()
    }
}

fn position(partition: &str, offset: u64) -> Position {
    Position {
        source: "pages".into(),
        partition: partition.into(),
        offset,
    }
}

fn change(offset: u64) -> Change {
    Change {
        key: offset.to_string().into(),
        row: Some("{}".to_owned().into()),
        unchanged_fields: Vec::new(),
        position: position("log", offset),
        changed_at: SystemTime::now(),
    }
}

fn letter(partition: &str, offset: u64, bytes: usize) -> DeadLetter {
    let (reason, raw) = (DeadLetterReason::Undecodable, vec![b'x'; bytes]);
    DeadLetter::new(reason, position(partition, offset), None, "bad", &raw)
}

/// Changes at these offsets.
fn changes(offsets: Range<u64>) -> SourceBatch {
    SourceBatch {
        positions: BTreeMap::from([("log".into(), offsets.end)]),
        changes: offsets.map(change).collect(),
        divisible: true,
        ..SourceBatch::default()
    }
}

/// A merge writes its output beside its inputs, so it may be a merge that room is short for. Only an epoch takes
/// the output in and lets the inputs go, and none was closed while room was short: that never ended.
#[test]
fn a_shortage_of_a_shards_making_is_ended_by_an_epoch() {
    let bench = Bench::new(ReadMode::Follow);
    bench.take_up(2 * MIB);
    let started = bench.start();
    started.send(changes(0..1));
    started.expect_quiet();
    started.bench.has_news.store(true, Ordering::Release);
    let meta = started.next();
    assert!(meta.changed_at.is_empty(), "changes are taken");
    started.bench.has_news.store(false, Ordering::Release);
    started.bench.take_up(0);
    started.commit(meta.epoch);
    assert_eq!(started.next().changed_at.len(), 1);
    started.bench.stop.stop();
    started.end().unwrap();
}

/// They stayed in the open epoch for as long as room was short.
#[test]
fn changes_that_were_taken_are_committed_while_room_is_short() {
    for mode in [ReadMode::Follow, ReadMode::UntilCaughtUp] {
        let started = Bench::new(mode).start();
        started.send(changes(0..1));
        assert_eq!(started.next().epoch, 1);
        started.send(changes(1..2));
        started.wait_until_taken();
        started.bench.take_up(2 * MIB);
        started.expect_quiet();
        started.commit(1);
        let meta = started.next();
        assert_eq!((meta.epoch, meta.changed_at.len()), (2, 1));
        started.commit(2);
        started.send(changes(2..3));
        if mode == ReadMode::Follow {
            started.expect_quiet();
            started.bench.stop.stop();
            started.end().unwrap();
        } else {
            assert!(matches!(started.end(), Err(IngestEnd::NoRoom(_))));
        }
    }
}

/// Letters did not fill an epoch, so with one in flight all of a source's letters went into the next one.
#[test]
fn letters_fill_an_epoch_by_number_and_bytes() {
    let commit = |rows: usize, bytes: u64| CommitConfig {
        rows: NonZeroUsize::new(rows).unwrap(),
        bytes: ByteSize::from_bytes(bytes),
        ..CommitConfig::default()
    };
    for commit in [commit(10, 1 << 30), commit(5_000, 10_000)] {
        let mut bench = Bench::new(ReadMode::Follow);
        bench.commit = commit;
        let started = bench.start();
        let mut sent = 0;
        while sent < 100 {
            let letters = SourceBatch {
                dead_letters: (0..5)
                    .map(|at| letter("log", sent * 5 + at, 1_000))
                    .collect(),
                positions: BTreeMap::from([("log".into(), sent * 5 + 5)]),
                divisible: true,
                ..SourceBatch::default()
            };
            let event = SourceEvent::Batch(letters.into());
            match started.events.send_timeout(event, QUIET) {
                Ok(()) => sent += 1,
                Err(SendTimeoutError::Timeout(_)) => break,
                Err(error) => panic!("{error}"),
            }
        }
        // Two batches in each epoch in flight and in the open one, and what waits.
        let sent_max = (EPOCHS_IN_FLIGHT_MAX + 1) * 2 + SOURCE_QUEUE_BATCHES as u64;
        assert!(sent <= sent_max, "{sent} batches with {commit:?}");
        // What letters cost says nothing of what changes do.
        assert!(started.metas.try_iter().all(|meta| meta.input_bytes == 0));
        started.bench.stop.stop();
        started.end().unwrap();
    }
}

/// All letters of a batch went into the epoch that it began in. Where that was full within the batch, reading
/// resumed at the first change left, and the letters behind it were read again.
#[test]
fn letters_of_a_cut_batch_go_with_the_changes_around_them() {
    let mut bench = Bench::new(ReadMode::Follow);
    bench.commit.rows = NonZeroUsize::new(10).unwrap();
    let started = bench.start();
    let (odd, even) = ((0..60).filter(|at| at % 2 == 1), (0..60).step_by(2));
    let elsewhere = [letter("other", 7, 10)];
    started.send(SourceBatch {
        changes: even.map(change).collect(),
        dead_letters: odd
            .map(|at| letter("log", at, 10))
            .chain(elsewhere)
            .collect(),
        positions: BTreeMap::from([("log".into(), 60), ("other".into(), 8)]),
        divisible: true,
        ..SourceBatch::default()
    });
    let (mut seen, mut epochs) = (BTreeSet::new(), 0);
    loop {
        let meta = started.next();
        started.commit(meta.epoch);
        epochs += 1;
        for DeadLetter { position, .. } in meta.dead_letters {
            let place = (position.partition, position.offset);
            assert!(seen.insert(place.clone()), "{place:?} twice");
        }
        let after = &meta.positions["pages"];
        let before = |at: &u64| at % 2 == 1 && *at < after["log"];
        let mut expected: BTreeSet<(Arc<str>, u64)> = (0..60)
            .filter(before)
            .map(|at| ("log".into(), at))
            .collect();
        expected.insert(("other".into(), 7));
        assert_eq!(seen, expected, "before {after:?}");
        if after["log"] == 60 {
            break;
        }
    }
    assert!(epochs > 2, "the batch was not cut");
    started.bench.stop.stop();
    started.end().unwrap();
}

/// It ended like one that had read everything.
#[test]
fn a_run_that_is_stopped_is_not_caught_up() {
    for says_that_it_ends in [false, true] {
        let started = Bench::new(ReadMode::UntilCaughtUp).start();
        started.send(changes(0..1));
        started.commit(started.next().epoch);
        started.bench.stop.stop();
        if says_that_it_ends {
            // As a source does that is stopped; the thread may have ended before.
            let _ = started.events.send(SourceEvent::Ended(Ok(())));
        }
        assert!(matches!(started.end(), Err(IngestEnd::Stopped)));
    }
    let started = Bench::new(ReadMode::UntilCaughtUp).start();
    started.send(changes(0..1));
    started.events.send(SourceEvent::CaughtUp).unwrap();
    started.events.send(SourceEvent::Ended(Ok(()))).unwrap();
    started.commit(started.next().epoch);
    while !started.ingest.is_finished() {
        std::thread::sleep(Duration::from_millis(1));
    }
    started.bench.stop.stop();
    started.end().unwrap();
}
