//! The data sets, which users of the project do not have: a test that needs one says what it skips.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};

/// The folder of a data set: under `VECTIDE_TEST_DATA`, or beside the project. Prints what is
/// skipped and gives `None` when it is absent.
pub fn data_directory(set: &str, test: &str) -> Option<PathBuf> {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data");
    let root = std::env::var_os("VECTIDE_TEST_DATA").map_or(beside, PathBuf::from);
    let directory = root.join(set);
    if directory.is_dir() {
        return Some(directory);
    }
    eprintln!(
        "skipped: {test}: the data set `{set}` is not there (VECTIDE_TEST_DATA names its root)"
    );
    None
}

/// Writes text to the end of a log, which is made where it is missing.
pub fn append(log: &Path, text: &str) {
    let file = File::options().create(true).append(true).open(log);
    let written = file.and_then(|mut file| file.write_all(text.as_bytes()));
    written.unwrap_or_else(|error| panic!("{log:?}: {error}"));
}

/// The files of a folder and of those in it, sorted.
pub fn files_under(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let entries = std::fs::read_dir(folder).unwrap_or_else(|error| panic!("{folder:?}: {error}"));
    for entry in entries {
        let path = entry
            .unwrap_or_else(|error| panic!("{folder:?}: {error}"))
            .path();
        if path.is_dir() {
            files.extend(files_under(&path));
        } else if path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    files
}

/// The lines of a plain or `.zst` file.
pub fn read_lines(path: &Path) -> impl Iterator<Item = String> + use<> {
    let file = File::open(path).unwrap_or_else(|error| panic!("{path:?}: {error}"));
    let reader: Box<dyn Read> = if path.extension().is_some_and(|it| it == "zst") {
        Box::new(zstd::Decoder::new(file).unwrap_or_else(|error| panic!("{path:?}: {error}")))
    } else {
        Box::new(file)
    };
    BufReader::new(reader)
        .lines()
        .map(|line| line.unwrap_or_else(|error| panic!("{error}")))
}
