//! Looks at the store's journals before they are opened.
//!
//! A journal that breaks off is what a crash leaves, so fjall cuts it where it can't be read any further,
//! and goes on. It does so as well where the disk failed to read it, or a bit in the middle of it flipped,
//! and cuts off commits that are still there. And where the power failed in the middle of a batch whose
//! end was written already, it refuses the whole store.
//!
//! Invariant: a journal that can't be read, or that has whole batches after one that is not, there or in a
//! later journal, is refused, and nothing is changed. A last batch that is not whole goes: nobody was told
//! of it, or else the note of the last commit (`witness.rs`) says so. That a later journal is there says
//! nothing alone: after a write that failed fjall may still go on to one, and nothing comes into it. And
//! what fjall cuts off a journal that was whole, for want of a read, is put back.

use super::failure::{DAMAGED_HINT, explain};
use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use vectide_model::StoreError;
use xxhash_rust::xxh3::xxh3_64;

/// What ends each batch after its checksum, as fjall 3 writes it.
const TRAILER: &[u8] = b"FJL\x03";

/// The journals of a store while it is opened.
pub(super) struct Journals {
    /// What each holds: 64 MiB and a little, for some moments.
    whole: Vec<(PathBuf, Vec<u8>)>,
}

/// Refuses a store with a journal that fjall would cut without need, and cuts the last batch where that is
/// torn.
pub(super) fn prepare(store: &Path) -> Result<Journals, StoreError> {
    let mut whole = Vec::new();
    let mut torn = Vec::new();
    let mut is_followed = false;
    for path in newest_first(store).map_err(failed)? {
        let mut bytes = fs::read(&path).map_err(failed)?;
        bytes.truncate(used(&bytes));
        match look(&bytes) {
            Found::Whole => {}
            Found::Torn(at) if !is_followed => {
                torn.push((path.clone(), at));
                bytes.truncate(at);
            }
            Found::Torn(at) | Found::Damaged(at) => {
                return Err(StoreError::Refused(format!(
                    "`{}` is damaged at byte {at}, and commits that came later stand behind \
                     it\nhint: {DAMAGED_HINT}",
                    path.display()
                )));
            }
        }
        // What is left of it begins with a whole batch, if there is one.
        is_followed |= !bytes.is_empty();
        whole.push((path, bytes));
    }
    // Only when all have been looked at is anything changed.
    for (path, at) in torn {
        cut(&path, at).map_err(failed)?;
    }
    Ok(Journals { whole })
}

/// The journals of a store, of which fjall numbers each higher than the one before.
fn newest_first(store: &Path) -> io::Result<Vec<PathBuf>> {
    let mut journals = Vec::new();
    for entry in fs::read_dir(store)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "jnl") {
            journals.push(path);
        }
    }
    // One without a number is refused by fjall.
    let number = |path: &PathBuf| path.file_stem()?.to_str()?.parse::<u64>().ok();
    journals.sort_by_key(|path| std::cmp::Reverse(number(path)));
    Ok(journals)
}

/// A journal that was whole and no longer is.
pub(super) struct CutOff {
    path: PathBuf,
    bytes: Vec<u8>,
    at: usize,
}

impl Journals {
    /// What opening the store cut off, if anything.
    pub(super) fn cut_off(self) -> Option<CutOff> {
        self.whole.into_iter().find_map(|(path, bytes)| {
            // One that is gone had nothing that is not in tables.
            let at = fs::metadata(&path).ok()?.len() as usize;
            (at < bytes.len()).then_some(CutOff { path, bytes, at })
        })
    }
}

impl CutOff {
    /// Puts it back, and says why the store can't be used as it was opened: it is to be closed before.
    pub(super) fn put_back(self) -> StoreError {
        let put_back = || {
            let file = OpenOptions::new().write(true).open(&self.path)?;
            file.write_all_at(&self.bytes[self.at..], self.at as u64)?;
            file.sync_all()
        };
        match put_back() {
            Ok(()) => StoreError::Refused(format!(
                "`{}` could not be read to its end\nhint: check the health of the state's disk, then \
                 start again: what was committed is intact",
                self.path.display()
            )),
            Err(error) => failed(error),
        }
    }
}

fn failed(error: io::Error) -> StoreError {
    StoreError::Refused(explain(&error))
}

fn cut(journal: &Path, at: usize) -> io::Result<()> {
    tracing::info!(journal = %journal.display(), at, "the last batch was not written whole: it goes");
    let file = OpenOptions::new().write(true).open(journal)?;
    file.set_len(at as u64)?;
    file.sync_all()
}

/// How a journal is.
#[derive(Debug, PartialEq, Eq)]
enum Found {
    Whole,
    /// The batch that begins here is not whole, and nothing follows.
    Torn(usize),
    /// The batch that begins here is not whole, and whole ones follow.
    Damaged(usize),
}

/// Bytes before the zeros with which it is laid out ahead.
fn used(bytes: &[u8]) -> usize {
    let last = bytes.iter().rposition(|byte| *byte != 0);
    last.map_or(0, |last| last + 1)
}

fn look(bytes: &[u8]) -> Found {
    let bytes = &bytes[..used(bytes)];
    let (mut at, mut last) = (0, 0);
    while at < bytes.len() {
        match batch_end(bytes, at) {
            // No checksum covers the numbers that order the batches; they only rise.
            Some(end) => match number::<8>(bytes, at + 5) {
                Some(order) if order >= last => (at, last) = (end, order),
                _ => return Found::Damaged(at),
            },
            None if has_batch_after(bytes, at) => return Found::Damaged(at),
            None => return Found::Torn(at),
        }
    }
    Found::Whole
}

/// Where the batch ends that begins at `at`, if it is whole: a start, items, their checksum.
fn batch_end(bytes: &[u8], at: usize) -> Option<usize> {
    let (1, items) = (*bytes.get(at)?, number::<4>(bytes, at + 1)?) else {
        return None;
    };
    let begin = at + 1 + 4 + 8;
    let mut end = begin;
    for _ in 0..items {
        end = item_end(bytes, end)?;
    }
    let checksum = xxh3_64(bytes.get(begin..end)?).to_le_bytes();
    let expected = [&[3], &checksum[..], TRAILER].concat();
    let found = bytes.get(end..end + expected.len())?;
    (found == expected).then_some(end + expected.len())
}

/// A value with its key, or that a table is cleared.
fn item_end(bytes: &[u8], at: usize) -> Option<usize> {
    match bytes.get(at)? {
        // The tag, the kind of value, the compression, the table; the lengths of the key, the value, and
        // the value as it is stored.
        2 => {
            let key = number::<2>(bytes, at + 11)?;
            let stored = number::<4>(bytes, at + 17)?;
            let end = at + 21 + key + stored;
            (end <= bytes.len()).then_some(end)
        }
        4 => Some(at + 9),
        _ => None,
    }
}

/// Whether a whole batch begins where another one ends after `at`.
fn has_batch_after(bytes: &[u8], at: usize) -> bool {
    let rest = &bytes[at..];
    let ends = rest.windows(TRAILER.len()).enumerate();
    ends.filter(|(_, window)| *window == TRAILER)
        .any(|(found, _)| batch_end(rest, found + TRAILER.len()).is_some())
}

fn number<const BYTES: usize>(bytes: &[u8], at: usize) -> Option<usize> {
    let found: [u8; BYTES] = bytes.get(at..at + BYTES)?.try_into().ok()?;
    let digits = found.iter().rev();
    Some(digits.fold(0, |number, digit| number << 8 | usize::from(*digit)))
}

#[cfg(test)]
mod tests {
    use super::super::FjallStore;
    use super::*;
    use vectide_model::{Batch, Store, Table};

    const COMMITS: u8 = 20;

    /// Commits to a new store, and gives the bytes of its journal and where its batches end.
    fn commits(store: &Path) -> (Vec<u8>, Vec<usize>) {
        let opened = FjallStore::open(store).unwrap();
        for number in 0..COMMITS {
            let mut batch = Batch::default();
            batch.put(Table::Rows, vec![number], vec![7; 40]);
            // As large as what is compressed.
            batch.put(Table::Texts, vec![number], vec![number; 10_000]);
            batch.delete(Table::Chunks, vec![number]);
            opened.commit(batch).unwrap();
        }
        drop(opened);
        let journal = fs::read(store.join("0.jnl")).unwrap();
        assert_eq!(look(&journal), Found::Whole);
        let mut ends = vec![0];
        while let Some(end) = batch_end(&journal, ends[ends.len() - 1]) {
            ends.push(end);
        }
        (journal, ends)
    }

    fn rows(store: &FjallStore) -> usize {
        store.snapshot().scan(Table::Rows, &[]).count()
    }

    #[test]
    fn a_flipped_bit_before_whole_batches_is_refused_and_nothing_is_cut() {
        let directory = tempfile::tempdir().unwrap();
        let store = directory.path().join("store");
        let (journal, ends) = commits(&store);
        let path = store.join("0.jnl");
        let from = ends[ends.len() - 4];
        for at in from..ends[ends.len() - 3] {
            let mut damaged = journal.clone();
            damaged[at] ^= 64;
            // One in the number that orders the batches is seen when the next one is lower.
            let in_number = (from + 5..from + 13).contains(&at);
            let place = ends[ends.len() - if in_number { 3 } else { 4 }];
            let byte = at - from;
            assert_eq!(look(&damaged), Found::Damaged(place), "byte {byte}");
        }
        let mut damaged = journal;
        damaged[from + 30] ^= 64;
        fs::write(&path, &damaged).unwrap();
        let error = FjallStore::open(&store).err().unwrap().to_string();
        assert!(error.contains("is damaged at byte"), "{error}");
        assert_eq!(fs::read(&path).unwrap(), damaged, "nothing is changed");
    }

    #[test]
    fn what_opening_cut_off_is_put_back() {
        let directory = tempfile::tempdir().unwrap();
        let store = directory.path().join("store");
        let (journal, ends) = commits(&store);
        let path = store.join("0.jnl");
        let journals = prepare(&store).unwrap();
        cut(&path, ends[ends.len() - 6]).unwrap();
        let error = journals.cut_off().unwrap().put_back().to_string();
        assert!(error.contains("could not be read to its end"), "{error}");
        assert_eq!(look(&journal), Found::Whole);
        let put_back = fs::read(&path).unwrap();
        assert_eq!(put_back[..], journal[..used(&journal)]);
        assert!(prepare(&store).unwrap().cut_off().is_none());
    }

    /// The last batch of a journal that another one follows is not the last commit: it was cut without a word,
    /// and the batches of the next journal went on without it.
    #[test]
    fn a_last_batch_with_a_later_journal_of_batches_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let (journal, ends) = commits(&directory.path().join("store"));
        let middle = ends[ends.len() / 2];
        let mut damaged = journal[..middle].to_vec();
        damaged[middle - 30] ^= 64;
        let later = &journal[middle..];
        let store = directory.path().join("rotated");
        fs::create_dir(&store).unwrap();
        let (first, second) = (store.join("9.jnl"), store.join("10.jnl"));
        let prepare_both = |later: &[u8]| {
            fs::write(&first, &damaged).unwrap();
            fs::write(&second, later).unwrap();
            prepare(&store).map(drop)
        };
        let torn = later[..used(later) - 3].to_vec();
        for later in [later, &torn] {
            let error = prepare_both(later).unwrap_err().to_string();
            assert!(error.contains("9.jnl` is damaged at byte"), "{error}");
            assert_eq!(fs::read(&first).unwrap(), damaged, "nothing is cut");
            assert_eq!(fs::read(&second).unwrap(), later, "nothing is cut");
        }
        // After a write that failed the store may go on to an empty journal.
        prepare_both(&[0; 100]).unwrap();
        let place = ends[ends.len() / 2 - 1];
        assert_eq!(fs::read(&first).unwrap(), damaged[..place]);
        fs::write(&first, &journal[..middle]).unwrap();
        fs::write(&second, &torn).unwrap();
        prepare(&store).unwrap();
        assert_eq!(fs::read(&first).unwrap(), journal[..middle]);
        assert!(fs::read(&second).unwrap().len() < torn.len());
    }

    #[test]
    fn a_last_batch_that_is_not_whole_goes() {
        let directory = tempfile::tempdir().unwrap();
        let store = directory.path().join("store");
        let (journal, ends) = commits(&store);
        let path = store.join("0.jnl");
        let (last, used) = (ends[ends.len() - 2], ends[ends.len() - 1]);
        // Broken off, and with a hole where a part was not written.
        for lost in [used - 3..used, last + 20..last + 60, last..last + 5] {
            let mut torn = journal.clone();
            torn[lost].fill(0);
            fs::write(&path, &torn).unwrap();
            let opened = FjallStore::open(&store).unwrap();
            assert_eq!(rows(&opened), usize::from(COMMITS) - 1);
        }
    }
}
