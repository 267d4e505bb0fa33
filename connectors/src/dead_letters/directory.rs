//! A folder of dead letters: one JSON object a line, in files that only grow.
//!
//! A file is named by its first letter's number, or by the next number where letters that come again
//! after a crash begin it: names sort by age, always. One that is large enough is never touched
//! again: move it away whenever you like. Above a total the oldest files are removed, which is
//! logged.
//!
//! Invariant: `write` returns after its lines are synced; half a line that a crash left at the end
//! of the newest file is cut off before anything is added, and its letter comes again.

use super::letter_json;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use vectide_model::{
    ByteSize, ComponentError, ConnectionCheck, DeadLetterSink, DeadLetterSinkConfig,
    DeadLetterSinkError, KeptLetter, OpenContext,
};

/// A folder that dead letters are written to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DirectoryConfig {
    /// The folder, relative to the configuration's folder: every dead letter becomes one JSON object
    /// a line there, in files `dead-letters-NUMBER.jsonl`.
    pub dir: PathBuf,
    /// A file that has become so large is finished, and the next one is begun.
    #[serde(default = "default_max_file")]
    pub max_file: ByteSize,
    /// Above so much the oldest files of the folder are removed, which is logged.
    #[serde(default = "default_max_total")]
    pub max_total: ByteSize,
}

/// Opens in any editor, and holds tens of thousands of letters.
fn default_max_file() -> ByteSize {
    ByteSize::mebibytes(64)
}

/// Millions of letters of an ordinary size, and no disk is full of them.
fn default_max_total() -> ByteSize {
    ByteSize::mebibytes(10 * 1024)
}

impl DeadLetterSinkConfig for DirectoryConfig {
    const FIELD: &'static str = "dir";

    fn check(&self) -> Vec<ComponentError> {
        let mut errors = Vec::new();
        if self.dir.as_os_str().is_empty() {
            let hint = "name a folder: ./dead-letters";
            errors.push(ComponentError::new("dir", "the path is empty", hint));
        }
        if self.max_file.as_bytes() == 0 || self.max_total < self.max_file {
            errors.push(ComponentError::new(
                "max_total",
                format!(
                    "{} of all files is less than {} of one",
                    self.max_total, self.max_file
                ),
                "let max_total hold several files of max_file",
            ));
        }
        errors
    }

    fn open(self, context: &OpenContext) -> Result<Box<dyn DeadLetterSink>, ComponentError> {
        let folder = context.config_dir.join(&self.dir);
        fs::create_dir_all(&folder).map_err(|error| unwritable(&folder, &error))?;
        Ok(Box::new(Directory {
            folder,
            file_bytes_max: self.max_file.as_bytes(),
            total_bytes_max: self.max_total.as_bytes(),
            open: None,
        }))
    }

    fn check_connection(&self, context: &OpenContext) -> Vec<ConnectionCheck> {
        let folder = context.config_dir.join(&self.dir);
        let mut ancestors = folder
            .ancestors()
            .map(|it| match it.as_os_str().is_empty() {
                true => Path::new("."),
                false => it,
            });
        let existing = ancestors.find(|it| it.exists()).unwrap_or(Path::new("."));
        // A name of its own: other checks look at the same folder at the same time.
        let probe = existing.join(format!(".vectide-check-letters-{}", std::process::id()));
        let made = OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(&probe)
            .and_then(|_| fs::remove_file(&probe));
        vec![ConnectionCheck {
            what: format!("folder {}", folder.display()),
            result: match made {
                Ok(()) => Ok("it can be written".into()),
                Err(error) => Err(unwritable(existing, &error)),
            },
        }]
    }
}

fn unwritable(folder: &Path, error: &io::Error) -> ComponentError {
    ComponentError::new(
        "dir",
        format!("{} can't be written: {error}", folder.display()),
        "name a folder that this user may write",
    )
}

/// The folder while letters are written.
struct Directory {
    folder: PathBuf,
    file_bytes_max: u64,
    total_bytes_max: u64,
    /// The newest file and its length; `None` before the first letter and after a failure.
    open: Option<(File, u64)>,
}

impl DeadLetterSink for Directory {
    fn write(&mut self, letters: &[KeptLetter]) -> Result<(), DeadLetterSinkError> {
        self.append(letters).map_err(|error| {
            // What stands in the file is not known: it is opened and looked at again.
            self.open = None;
            DeadLetterSinkError {
                place: self.folder.display().to_string(),
                detail: error.to_string(),
                hint: "check the disk, and that this user may write the folder".into(),
            }
        })
    }
}

const FILE_PREFIX: &str = "dead-letters-";
const FILE_SUFFIX: &str = ".jsonl";

/// A file of letters as the folder shows it.
struct LetterFile {
    number: u64,
    path: PathBuf,
    length: u64,
}

impl Directory {
    fn append(&mut self, letters: &[KeptLetter]) -> io::Result<()> {
        let mut at = 0;
        while at < letters.len() {
            let (mut file, mut length) = self.file_for(letters[at].id)?;
            let mut lines = String::new();
            // At least one: letters that are written again may begin at a file that is full.
            loop {
                lines += &letter_json(&letters[at])?;
                lines.push('\n');
                at += 1;
                if at == letters.len() || length + lines.len() as u64 >= self.file_bytes_max {
                    break;
                }
            }
            file.write_all(lines.as_bytes())?;
            file.sync_data()?;
            length += lines.len() as u64;
            self.open = Some((file, length));
        }
        Ok(())
    }

    /// The file that takes the next line, and its length.
    fn file_for(&mut self, id: u64) -> io::Result<(File, u64)> {
        let newest = match self.open.take() {
            Some(open) => Some(open),
            None => match self.files()?.pop() {
                Some(newest) => Some(open_whole(&newest.path)?),
                None => None,
            },
        };
        match newest {
            Some((file, length)) if length < self.file_bytes_max => Ok((file, length)),
            _ => self.begin_file(id),
        }
    }

    /// A new file, whose name sorts behind all others: only the newest may end in half a line.
    fn begin_file(&self, id: u64) -> io::Result<(File, u64)> {
        let files = self.files()?;
        let next = files
            .last()
            .map_or(0, |newest| newest.number.saturating_add(1));
        self.remove_oldest(files)?;
        let number = id.max(next);
        let name = format!("{FILE_PREFIX}{number:020}{FILE_SUFFIX}");
        let file = OpenOptions::new()
            .create_new(true)
            .append(true)
            .open(self.folder.join(name))?;
        File::open(&self.folder)?.sync_all()?;
        Ok((file, 0))
    }

    /// The files, oldest first.
    fn files(&self) -> io::Result<Vec<LetterFile>> {
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            if let Some(number) = file_number(&entry.file_name().to_string_lossy()) {
                files.push(LetterFile {
                    number,
                    path: entry.path(),
                    length: entry.metadata()?.len(),
                });
            }
        }
        files.sort_by_key(|file| file.number);
        Ok(files)
    }

    /// Makes room for one more file.
    fn remove_oldest(&self, files: Vec<LetterFile>) -> io::Result<()> {
        let mut total: u64 = files.iter().map(|file| file.length).sum();
        for LetterFile { path, length, .. } in files {
            if total + self.file_bytes_max <= self.total_bytes_max {
                break;
            }
            fs::remove_file(&path)?;
            total -= length;
            tracing::warn!(
                file = %path.display(),
                "the folder of dead letters is full: its oldest file was removed (max_total)"
            );
        }
        Ok(())
    }
}

/// The number in the name of a file of letters; `None` for other files.
fn file_number(name: &str) -> Option<u64> {
    let number = name.strip_prefix(FILE_PREFIX)?.strip_suffix(FILE_SUFFIX)?;
    let is_number = number.len() == 20 && number.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| number.parse().ok()).flatten()
}

/// Opens a file for appending behind its last whole line.
fn open_whole(path: &Path) -> io::Result<(File, u64)> {
    const PIECE_BYTES: u64 = 64 * 1024;
    let mut file = OpenOptions::new().read(true).append(true).open(path)?;
    let mut end = file.seek(SeekFrom::End(0))?;
    let length = end;
    let whole = loop {
        let start = end.saturating_sub(PIECE_BYTES);
        let mut piece = vec![0; (end - start) as usize];
        file.seek(SeekFrom::Start(start))?;
        file.read_exact(&mut piece)?;
        match memchr::memrchr(b'\n', &piece) {
            Some(at) => break start + at as u64 + 1,
            None if start == 0 => break 0,
            None => end = start,
        }
    };
    if whole < length {
        file.set_len(whole)?;
    }
    Ok((file, whole))
}

#[cfg(test)]
mod tests {
    use super::super::tests::letter;
    use super::*;

    fn open(folder: &Path, max_file: u64, max_total: u64) -> Box<dyn DeadLetterSink> {
        let config: DirectoryConfig = serde_json::from_value(serde_json::json!({
            "dir": folder, "max_file": format!("{max_file}B"), "max_total": format!("{max_total}B"),
        }))
        .unwrap();
        assert_eq!(config.check(), []);
        config.open(&OpenContext::in_folder(".")).unwrap()
    }

    /// The ids in each file.
    fn ids(folder: &Path) -> Vec<Vec<u64>> {
        let mut files: Vec<_> = fs::read_dir(folder)
            .unwrap()
            .map(|it| it.unwrap().path())
            .collect();
        files.sort();
        let of_file = |path: &PathBuf| {
            let text = fs::read_to_string(path).unwrap();
            let lines = text.lines();
            lines
                .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["id"].as_u64())
                .map(Option::unwrap)
                .collect()
        };
        files.iter().map(of_file).collect()
    }

    #[test]
    fn files_are_rotated_and_the_oldest_go() {
        let directory = tempfile::tempdir().unwrap();
        let letters: Vec<_> = (0..10).map(|id| letter(id, Some(b"raw"))).collect();
        let line = letter_json(&letters[0]).unwrap().len() as u64 + 1;
        let mut sink = open(directory.path(), line * 2, line * 6);
        sink.write(&letters[..3]).unwrap();
        assert_eq!(ids(directory.path()), [vec![0, 1], vec![2]]);
        // A new process goes on in the same file.
        let mut sink = open(directory.path(), line * 2, line * 6);
        sink.write(&letters[3..]).unwrap();
        assert_eq!(ids(directory.path()), [vec![4, 5], vec![6, 7], vec![8, 9]]);
    }

    /// A process that ended right after it had filled a file gives the same letters once more. The
    /// file of the first of them was full, and a sink that waited for room in it never came back.
    #[test]
    fn letters_of_a_full_file_come_again() {
        let directory = tempfile::tempdir().unwrap();
        let letters: Vec<_> = (0..4).map(|id| letter(id, Some(b"raw"))).collect();
        let line = letter_json(&letters[0]).unwrap().len() as u64 + 1;
        for _ in 0..2 {
            let mut sink = open(directory.path(), line * 2, line * 100);
            sink.write(&letters).unwrap();
        }
        let mut found = ids(directory.path()).concat();
        found.sort_unstable();
        assert_eq!(found, [0, 0, 1, 1, 2, 2, 3, 3]);
    }

    /// Letters that come again went to a file whose name sorted before full ones. Where a second
    /// crash left half a line there, it stayed: only the newest file by name was looked at.
    #[test]
    fn half_a_line_of_letters_that_came_again_is_cut_off() {
        let directory = tempfile::tempdir().unwrap();
        let letters: Vec<_> = (0..4).map(|id| letter(id, Some(b"raw"))).collect();
        let line = letter_json(&letters[0]).unwrap().len() as u64 + 1;
        let files = || {
            let entries = fs::read_dir(directory.path()).unwrap();
            entries.map(|it| it.unwrap().path()).collect::<Vec<_>>()
        };
        open(directory.path(), line * 2, line * 100)
            .write(&letters)
            .unwrap();
        let full = files();
        open(directory.path(), line * 2, line * 100)
            .write(&letters[..1])
            .unwrap();
        let begun = files().into_iter().find(|it| !full.contains(it)).unwrap();
        let torn = fs::read(&begun).unwrap();
        fs::write(&begun, &torn[..torn.len() / 2]).unwrap();
        open(directory.path(), line * 2, line * 100)
            .write(&letters)
            .unwrap();
        let found = ids(directory.path());
        assert_eq!(found, [[0, 1], [2, 3], [0, 1], [2, 3]].map(Vec::from));
    }

    #[test]
    fn half_a_line_is_cut_off() {
        let directory = tempfile::tempdir().unwrap();
        open(directory.path(), 1 << 20, 1 << 21)
            .write(&[letter(0, None)])
            .unwrap();
        let file = fs::read_dir(directory.path())
            .unwrap()
            .next()
            .unwrap()
            .unwrap()
            .path();
        let mut torn = fs::read(&file).unwrap();
        torn.extend_from_slice(br#"{"id":1,"time":"19"#);
        for torn in [torn, br#"{"id":0"#.to_vec()] {
            let before = usize::from(torn.contains(&b'\n'));
            fs::write(&file, torn).unwrap();
            let mut sink = open(directory.path(), 1 << 20, 1 << 21);
            sink.write(&[letter(1, None)]).unwrap();
            assert_eq!(
                ids(directory.path()),
                [[vec![0], vec![1]][1 - before..].concat()]
            );
        }
    }
}
