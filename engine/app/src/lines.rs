//! Files of one JSON object a line, plain or compressed.
//!
//! Invariant: a fault is told with the file's name and the line's number.

use crate::failure::Failure;
use serde::de::DeserializeOwned;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

/// The lines of a file, `.zst` or plain, as they are read.
///
/// # Errors
/// When the file can't be opened; each line, when it can't be read or is none.
pub fn read<T: DeserializeOwned>(
    path: &Path,
) -> Result<impl Iterator<Item = Result<T, Failure>>, Failure> {
    let name = path.display().to_string();
    let file = File::open(path).map_err(|error| Failure::new(format!("{name}: {error}")))?;
    let reader: Box<dyn Read> = if path.extension().is_some_and(|it| it == "zst") {
        let decoder = zstd::Decoder::new(file);
        Box::new(decoder.map_err(|error| Failure::new(format!("{name}: {error}")))?)
    } else {
        Box::new(file)
    };
    let lines = BufReader::new(reader).lines().zip(1..);
    Ok(lines.map(move |(line, number)| {
        let named =
            |error: &dyn std::fmt::Display| Failure::new(format!("{name}:{number}: {error}"));
        let line = line.map_err(|error| named(&error))?;
        serde_json::from_str(&line).map_err(|error| named(&error))
    }))
}
