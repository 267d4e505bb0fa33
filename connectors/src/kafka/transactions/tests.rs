//! A model of a connector that writes transactions to partitions, crashes and writes again, and of a
//! reader that meets them in every order.

use super::*;
use proptest::prelude::*;

const TIMEOUT: Duration = Duration::from_secs(30);

/// What a connector wrote.
#[derive(Clone, Debug, Default)]
struct Written {
    partitions: Vec<Vec<Option<TransactionPlace>>>,
    markers: Vec<Option<TransactionEnd>>,
}

/// One transaction: the partition of each of its records.
type Transaction = Vec<usize>;

impl Written {
    fn new(partitions: usize) -> Self {
        Self {
            partitions: vec![Vec::new(); partitions],
            markers: Vec::new(),
        }
    }

    fn begin(&mut self) {
        self.markers.push(None);
    }

    fn records(&mut self, number: usize, transaction: &[usize]) {
        for (index, partition) in transaction.iter().enumerate() {
            self.partitions[*partition].push(Some(TransactionPlace {
                id: name(number),
                total_order: index as u64 + 1,
            }));
        }
    }

    fn end(&mut self, number: usize, transaction: &[usize]) {
        self.markers.push(Some(TransactionEnd {
            id: name(number),
            expected: transaction.len() as u64,
            partitions: (0..self.partitions.len()).collect(),
        }));
    }

    fn all(partitions: usize, transactions: &[Transaction]) -> Self {
        let mut written = Self::new(partitions);
        for (number, transaction) in transactions.iter().enumerate() {
            written.begin();
            written.records(number, transaction);
            written.end(number, transaction);
        }
        written
    }
}

fn name(number: usize) -> Arc<str> {
    format!("t{number}").into()
}

struct Reading {
    cuts: Vec<Cut<()>>,
    waiting_max: usize,
    timeouts: usize,
}

/// Reads everything; `choices` decide which partition comes next.
fn read(written: &Written, choices: &[usize], changes_max: usize) -> Reading {
    let mut buffer = TransactionBuffer::new(Limits {
        changes_max,
        bytes_max: usize::MAX,
        timeout: TIMEOUT,
    });
    let partitions = written.partitions.len();
    (0..partitions).for_each(|_| buffer.add_partition());
    let mut next = vec![0; partitions + 1];
    let mut reading = Reading {
        cuts: Vec::new(),
        waiting_max: 0,
        timeouts: 0,
    };
    let mut now = Instant::now();
    for step in 0.. {
        while let Some(cut) = buffer.release(now) {
            reading.cuts.push(cut);
            assert!(reading.cuts.len() < 100_000, "cuts without end");
        }
        reading.waiting_max = reading.waiting_max.max(buffer.changes);
        let length = |source: usize| match written.partitions.get(source) {
            Some(records) => records.len(),
            None => written.markers.len(),
        };
        let is_wanted = |buffer: &TransactionBuffer<()>, source: usize| match source < partitions {
            true => buffer.wants(source),
            false => buffer.wants_markers(),
        };
        let ready: Vec<usize> = (0..=partitions)
            .filter(|source| next[*source] < length(*source) && is_wanted(&buffer, *source))
            .collect();
        // An end is polled too: of what is not to be read none is told.
        for (source, read) in next.iter().enumerate() {
            let is_at_end = *read == length(source) && is_wanted(&buffer, source);
            if is_at_end && source < partitions {
                buffer.set_at_end(source);
                buffer.found_empty(source, now);
            } else if is_at_end {
                buffer.set_markers_at_end();
                buffer.found_no_marker(now);
            }
        }
        if ready.is_empty() {
            if let Some(cut) = buffer.release(now) {
                reading.cuts.push(cut);
                continue;
            }
            let is_done = (0..=partitions).all(|source| next[source] == length(source));
            if is_done && buffer.is_empty() {
                return reading;
            }
            reading.timeouts += 1;
            assert!(reading.timeouts < 10_000, "stuck");
            now += TIMEOUT;
            continue;
        }
        let source = ready[choices[step % choices.len()] % ready.len()];
        let offset = next[source];
        next[source] += 1;
        match written.partitions.get(source) {
            Some(records) => buffer.push(
                source,
                Buffered {
                    offset: offset as u64,
                    payload: (),
                    changes: 1,
                    bytes: 1,
                    place: records[offset].clone(),
                },
                now,
            ),
            None => match &written.markers[offset] {
                Some(end) => buffer.end(offset as u64, end.clone(), now),
                None => buffer.pass_marker(offset as u64),
            },
        }
    }
    unreachable!()
}

impl Reading {
    /// Every record comes out once, in order, and so do the markers' positions.
    fn check_complete(&self, written: &Written) {
        let mut next = vec![0; written.partitions.len()];
        for (partition, record) in self.cuts.iter().flat_map(|cut| &cut.records) {
            assert_eq!(record.offset, next[*partition]);
            next[*partition] += 1;
        }
        let lengths: Vec<u64> = written
            .partitions
            .iter()
            .map(|it| it.len() as u64)
            .collect();
        assert_eq!(next, lengths);
        let markers: Vec<u64> = self
            .cuts
            .iter()
            .filter_map(|cut| cut.markers_next)
            .collect();
        assert!(markers.is_sorted());
        assert_eq!(
            markers.last().copied().unwrap_or(0),
            written.markers.len() as u64
        );
    }

    /// The transactions of each cut that has any.
    fn transactions(&self) -> Vec<BTreeSet<Arc<str>>> {
        let cuts = self.cuts.iter();
        let of_cut = |cut: &Cut<()>| {
            let places = cut
                .records
                .iter()
                .filter_map(|(_, record)| record.place.clone());
            places.map(|place| place.id).collect::<BTreeSet<_>>()
        };
        cuts.map(of_cut).filter(|ids| !ids.is_empty()).collect()
    }

    fn incomplete(&self) -> usize {
        self.cuts.iter().map(|cut| cut.incomplete.len()).sum()
    }

    fn split(&self) -> u64 {
        self.cuts.iter().map(|cut| cut.split).sum()
    }
}

fn transactions(records_max: usize) -> impl Strategy<Value = (usize, Vec<Transaction>)> {
    (1_usize..5).prop_flat_map(move |partitions| {
        let transaction = prop::collection::vec(0..partitions, 0..records_max);
        (Just(partitions), prop::collection::vec(transaction, 1..25))
    })
}

fn choices() -> impl Strategy<Value = Vec<usize>> {
    prop::collection::vec(0_usize..1000, 1..300)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    /// With everything written once, each transaction comes out alone, whole, in order, without a
    /// timeout, whatever is read first.
    #[test]
    fn each_alone_and_whole((partitions, transactions) in transactions(8), choices in choices()) {
        let written = Written::all(partitions, &transactions);
        let reading = read(&written, &choices, 10);
        reading.check_complete(&written);
        let expected: Vec<BTreeSet<Arc<str>>> = transactions
            .iter()
            .enumerate()
            .filter(|(_, records)| !records.is_empty())
            .map(|(number, _)| BTreeSet::from([name(number)]))
            .collect();
        prop_assert_eq!(reading.transactions(), expected);
        prop_assert_eq!((reading.incomplete(), reading.split(), reading.timeouts), (0, 0, 0));
        prop_assert!(reading.waiting_max <= 20, "{} wait", reading.waiting_max);
    }

    /// Records without a transaction in between, ENDs that are lost, stretches that are written again
    /// from any place, whole or begun only: all comes out, within bounds.
    #[test]
    fn nothing_is_lost_or_stuck(
        (partitions, transactions) in transactions(8),
        crashes in prop::collection::vec((0_usize..25, 0_usize..6, 0_usize..9), 0..4),
        lost in prop::collection::btree_set(0_usize..60, 0..6),
        alone in prop::collection::vec((0_usize..25, 0_usize..5), 0..10),
        choices in choices(),
        changes_max in 1_usize..20,
    ) {
        let mut written = Written::new(partitions);
        let mut number = 0;
        let mut crashes = crashes.into_iter();
        let mut crash = crashes.next();
        while let Some(transaction) = transactions.get(number) {
            for (at, partition) in &alone {
                if *at == number {
                    written.partitions[partition % partitions].push(None);
                }
            }
            written.begin();
            match crash {
                // It got as far as some records, and begins again some transactions before.
                Some((at, back, records)) if at == number => {
                    written.records(number, &transaction[..records.min(transaction.len())]);
                    number = number.saturating_sub(back);
                    crash = crashes.next();
                    continue;
                }
                _ => {}
            }
            written.records(number, transaction);
            written.end(number, transaction);
            number += 1;
        }
        let mut index = 0;
        written.markers.retain(|_| {
            index += 1;
            !lost.contains(&index)
        });
        let reading = read(&written, &choices, changes_max);
        reading.check_complete(&written);
        prop_assert!(reading.waiting_max <= 2 * changes_max + 1, "{} wait", reading.waiting_max);
    }

    /// One crash: what is written again comes out whole again.
    #[test]
    fn a_stretch_written_again_is_whole_again(
        (partitions, transactions) in transactions(6),
        back in 0_usize..6,
        choices in choices(),
    ) {
        let mut written = Written::all(partitions, &transactions);
        let from = transactions.len().saturating_sub(back);
        for (number, transaction) in transactions.iter().enumerate().skip(from) {
            written.begin();
            written.records(number, transaction);
            written.end(number, transaction);
        }
        let reading = read(&written, &choices, 50);
        reading.check_complete(&written);
        let again = transactions.iter().enumerate().skip(from);
        let expected: Vec<BTreeSet<Arc<str>>> = transactions
            .iter()
            .enumerate()
            .chain(again)
            .filter(|(_, records)| !records.is_empty())
            .map(|(number, _)| BTreeSet::from([name(number)]))
            .collect();
        prop_assert_eq!(reading.transactions(), expected);
        prop_assert_eq!((reading.incomplete(), reading.timeouts), (0, 0));
    }
}

#[test]
fn a_transaction_above_the_limit_is_split_and_counted_once() {
    let written = Written::all(2, &[vec![0], [0, 1].repeat(20), vec![1]]);
    let reading = read(&written, &[0, 1, 2], 10);
    reading.check_complete(&written);
    assert_eq!((reading.split(), reading.incomplete()), (1, 0));
    let sizes: Vec<usize> = reading.cuts.iter().map(|cut| cut.records.len()).collect();
    assert!(sizes.iter().all(|size| *size <= 20), "{sizes:?}");
}

#[test]
fn a_record_that_never_comes_is_given_up() {
    let mut written = Written::all(2, &[vec![0], vec![0, 1], vec![0]]);
    written.partitions[1].clear();
    let reading = read(&written, &[0, 1, 2], 10);
    reading.check_complete(&written);
    assert_eq!(reading.incomplete(), 1);
    assert_eq!(reading.timeouts, 1, "once the timeout is over");
}

#[test]
fn markers_from_before_the_first_record_cost_one_timeout_together() {
    let transactions = vec![vec![0, 1]; 500];
    let mut written = Written::all(2, &transactions);
    for partition in &mut written.partitions {
        partition.drain(..490);
    }
    let reading = read(&written, &[0, 1, 2], 50);
    reading.check_complete(&written);
    assert!(reading.timeouts <= 1, "{} timeouts", reading.timeouts);
    assert_eq!(reading.transactions().len(), 10);
}

#[test]
fn records_from_before_the_first_marker_do_not_wait_one_by_one() {
    let mut written = Written::all(2, &vec![vec![0, 1]; 500]);
    written.markers.drain(..980);
    let reading = read(&written, &[0, 1, 2], 50);
    reading.check_complete(&written);
    assert!(reading.timeouts <= 2, "{} timeouts", reading.timeouts);
    assert_eq!(
        reading.transactions().last(),
        Some(&BTreeSet::from([name(499)]))
    );
}

/// A transaction of two records in two partitions, of which the second was not taken yet.
fn half_read(now: Instant) -> TransactionBuffer<()> {
    let mut buffer = TransactionBuffer::new(Limits {
        changes_max: 10,
        bytes_max: usize::MAX,
        timeout: TIMEOUT,
    });
    (0..2).for_each(|_| buffer.add_partition());
    (0..2).for_each(|partition| buffer.set_at_end(partition));
    take_record(&mut buffer, 0, now);
    buffer.set_at_end(0);
    let end = TransactionEnd {
        id: name(0),
        expected: 2,
        partitions: (0..2).collect(),
    };
    buffer.end(0, end, now);
    buffer.set_markers_at_end();
    find_nothing(&mut buffer, now);
    buffer
}

fn take_record(buffer: &mut TransactionBuffer<()>, partition: usize, now: Instant) {
    let place = TransactionPlace {
        id: name(0),
        total_order: partition as u64 + 1,
    };
    let record = Buffered {
        offset: 0,
        payload: (),
        changes: 1,
        bytes: 1,
        place: Some(place),
    };
    buffer.push(partition, record, now);
}

fn find_nothing(buffer: &mut TransactionBuffer<()>, now: Instant) {
    (0..2).for_each(|partition| buffer.found_empty(partition, now));
    buffer.found_no_marker(now);
}

/// A reader that hands on what it has may be blocked for longer than the timeout. Then an end from
/// before was taken for one of now, while the missing record lay in the client's queue.
#[test]
fn an_end_from_before_the_timeout_gives_nothing_up() {
    let start = Instant::now();
    let mut buffer = half_read(start);
    let late = start + TIMEOUT;
    assert_eq!(buffer.release(late), None);
    take_record(&mut buffer, 1, late);
    let cut = buffer.release(late).unwrap();
    assert_eq!((cut.records.len(), cut.incomplete.len()), (2, 0));

    let mut buffer = half_read(start);
    find_nothing(&mut buffer, late);
    let cut = buffer.release(late).unwrap();
    assert_eq!((cut.records.len(), cut.incomplete.len()), (1, 1));
}

/// A record may take longer to decode than the timeout, while the registry is away.
#[test]
fn what_was_polled_is_waited_for() {
    let start = Instant::now();
    let mut buffer = half_read(start);
    let late = start + TIMEOUT;
    buffer.polled(1);
    find_nothing(&mut buffer, late);
    assert_eq!(buffer.release(late), None);
    take_record(&mut buffer, 1, late);
    assert_eq!(buffer.release(late).unwrap().incomplete.len(), 0);

    // The END of a transaction whose records all came.
    let mut buffer = TransactionBuffer::new(buffer.limits);
    buffer.add_partition();
    buffer.set_markers_at_end();
    take_record(&mut buffer, 0, start);
    buffer.polled_marker();
    buffer.found_no_marker(late);
    assert_eq!(buffer.release(late), None);
    buffer.set_markers_at_end();
    assert_eq!(
        buffer.release(late),
        None,
        "it was not found empty behind its end"
    );
    buffer.found_no_marker(late);
    assert_eq!(buffer.release(late).unwrap().incomplete.len(), 1);

    // Another client tells all ends anew.
    let mut buffer = half_read(start);
    buffer.forget_ends();
    find_nothing(&mut buffer, late);
    assert_eq!(buffer.release(late), None);
}
