//! What is written is read, whatever its form; what is no postings file is refused.

use super::*;
use crate::files::tests::map;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;

type Model = BTreeMap<Vec<u8>, BTreeMap<u32, u32>>;

fn write(path: &Path, rows: usize, has_counts: bool, model: &Model) {
    let mut writer = PostingsWriter::create(path, rows, has_counts).unwrap();
    for (key, of_key) in model {
        let postings: Vec<Posting> = of_key
            .iter()
            .map(|(row, count)| Posting {
                row: *row,
                count: *count,
            })
            .collect();
        writer.push(key, &postings).unwrap();
    }
    writer.finish().unwrap();
}

fn read(postings: &Postings) -> Model {
    let mut model = Model::new();
    for at in 0..postings.keys() {
        let of_key = model.entry(postings.key(at).to_vec()).or_default();
        postings.each_of(at, &mut |rows, counts| {
            let counts = counts.iter().copied().chain(std::iter::repeat(1));
            of_key.extend(rows.iter().copied().zip(counts));
        });
    }
    model
}

/// Keys of some rows, of a few rows and of most.
fn models(rows: u32, has_counts: bool) -> impl Strategy<Value = Model> {
    let count = if has_counts { 1..300_u32 } else { 1..2 };
    let of_key = prop_oneof![
        prop::collection::btree_map(0..rows, count.clone(), 1..4),
        prop::collection::btree_map(0..rows, count, 1..900),
    ];
    let key = prop::collection::vec(prop_oneof![Just(0_u8), Just(255), any::<u8>()], 0..4);
    prop::collection::btree_map(key, of_key, 0..12)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    #[test]
    fn rows_come_back(
        (has_counts, rows, model) in (any::<bool>(), prop_oneof![Just(1_000), Just(100_000)])
            .prop_flat_map(|(has_counts, rows)| (Just(has_counts), Just(rows), models(rows, has_counts))),
        bounds in prop::array::uniform2(prop::collection::vec(any::<u8>(), 0..3)),
    ) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("postings");
        write(&path, rows as usize, has_counts, &model);
        let postings = Postings::new(map(&path), &path, rows as usize).unwrap();
        prop_assert_eq!(read(&postings), model.clone());
        let between = postings.between(&bounds[0], &bounds[1]);
        let mut set = vec![0; words_of(rows as usize)];
        between.clone().for_each(|at| postings.add_to(at, &mut set));
        let is_between = |key: &&Vec<u8>| **key >= bounds[0] && **key < bounds[1];
        prop_assert_eq!(between.len(), model.keys().filter(is_between).count());
        let expected: BTreeSet<u32> = model
            .iter()
            .filter(|(key, _)| is_between(key))
            .flat_map(|(_, of_key)| of_key.keys().copied())
            .collect();
        prop_assert_eq!(rows_of(&set).collect::<BTreeSet<u32>>(), expected);
    }

    #[test]
    fn origins_become_one(
        first in models(500, true),
        second in models(700, true),
        memory in models(300, true),
        dropped in prop::collection::btree_set(0..1500_u32, 0..700),
    ) {
        // New numbers: those of the first, of the second and of the rows in memory in turns.
        let number = |origin: u32, row: u32| {
            let row = row * 3 + origin;
            if dropped.contains(&row) { merge::NO_ROW } else { row }
        };
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str, model: &Model, rows: usize| {
            let path = directory.path().join(name);
            write(&path, rows, true, model);
            Postings::new(map(&path), &path, rows).unwrap()
        };
        let files = [file("first", &first, 500), file("second", &second, 700)];
        let numbers: [Vec<u32>; 2] = [
            (0..500).map(|row| number(0, row)).collect(),
            (0..700).map(|row| number(1, row)).collect(),
        ];
        let mut expected = Model::new();
        for (origin, model) in (0..).zip([&first, &second, &memory]) {
            for (key, of_key) in model {
                let taken = of_key.iter().map(|(row, count)| (number(origin, *row), *count));
                let taken: Vec<_> = taken.filter(|(row, _)| *row != merge::NO_ROW).collect();
                if !taken.is_empty() {
                    expected.entry(key.clone()).or_default().extend(taken);
                }
            }
        }
        let rows = memory.iter().flat_map(|(key, of_key)| {
            of_key.iter().map(move |(row, count)| (&key[..], Posting { row: number(2, *row), count: *count }))
        });
        let rows = rows.filter(|(_, posting)| posting.row != merge::NO_ROW).collect();
        let [a, b] = &files;
        let origins = [
            Keyed::File(a, &numbers[0]),
            Keyed::File(b, &numbers[1]),
            Keyed::Memory(rows),
        ];
        let mut merged = Model::new();
        let mut last: Option<Vec<u8>> = None;
        merge::<Infallible>(&origins, &mut |key, postings| {
            assert!(last.as_deref().is_none_or(|last| last < key));
            last = Some(key.to_vec());
            assert!(postings.windows(2).all(|pair| pair[0].row < pair[1].row));
            let of_key = postings.iter().map(|posting| (posting.row, posting.count));
            merged.insert(key.to_vec(), of_key.collect());
            Ok(())
        }).unwrap();
        prop_assert_eq!(merged, expected);
    }
}

#[test]
fn what_is_not_a_postings_file_is_refused_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("postings");
    let row = |row: u32| (row, 1);
    let model = Model::from([
        (b"a".to_vec(), BTreeMap::from([row(1)])),
        (b"b".to_vec(), BTreeMap::from([row(1), row(2)])),
    ]);
    write(&path, 100, true, &model);
    let good = std::fs::read(&path).unwrap();
    let fact = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = good.clone();
        change(&mut bytes);
        std::fs::write(&path, bytes).unwrap();
        Postings::new(map(&path), &path, 100).unwrap_err().fact
    };
    assert!(fact(&|bytes| bytes.truncate(9)).contains("no header"));
    assert!(fact(&|bytes| bytes[0] = 0).contains("is not a postings file"));
    assert!(fact(&|bytes| bytes[8] = 2).contains("format version 2"));
    assert!(fact(&|bytes| bytes[16] = 9).contains("is of 9 rows, not 100"));
    assert!(fact(&|bytes| bytes[31] = 255).contains("sizes that no file has"));
    assert!(fact(&|bytes| bytes.push(0)).contains("another length"));
    let entries = good.len() - 2 - 2 * ENTRY_BYTES;
    assert!(fact(&|bytes| bytes[entries + 8] = 100).contains("a key that can't be"));
    assert!(fact(&|bytes| bytes[entries + 4] = 0).contains("a key that can't be"));
    let last = good.len() - 1;
    assert!(fact(&|bytes| bytes[last] = b'a').contains("out of order"));
}
