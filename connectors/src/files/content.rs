//! Reads one file into its row.
//!
//! Invariant: a row holds one version of a file: the file looked the same before and after it was
//! read.

use super::html::visible_text;
use super::tree::{FileStamp, Tree, is_absence};
use crate::envelope::Rejected;
use serde::Serialize;
use std::fs::File;
use std::io::{self, Read};
use std::time::{Duration, SystemTime};
use vectide_model::ByteSize;
use vectide_model::{DeadLetterReason, Row};

/// The row of a file. Its JSON text is compared between starts: the order of fields is part of it.
#[derive(Serialize)]
struct FileRow<'a> {
    path: &'a str,
    content: &'a str,
    format: &'static str,
    bytes: u64,
    modified_at: String,
}

/// What reading a file gave.
#[derive(Debug)]
pub(crate) enum Reading {
    Row(Row),
    /// It can't be a row: a dead letter, and the start of its bytes.
    Rejected(Rejected, Vec<u8>),
    /// It is gone.
    Absent,
    /// It changed while it was read.
    Unsettled,
}

/// Reads the file under a key, which looked like `expected` before.
pub(crate) fn read(tree: &Tree, key: &str, expected: FileStamp, bytes_max: ByteSize) -> Reading {
    if expected.bytes > bytes_max.as_bytes() {
        return Reading::Rejected(too_large(expected.bytes, bytes_max), Vec::new());
    }
    let bytes = match read_whole(tree, key, expected, bytes_max) {
        Ok(Some(bytes)) => bytes,
        Ok(None) => return Reading::Unsettled,
        Err(error) if is_absence(&error) => return Reading::Absent,
        Err(error) => {
            let rejected = Rejected::undecodable(format!("the file can't be read: {error}"));
            return Reading::Rejected(rejected, Vec::new());
        }
    };
    match row_of(key, expected, &bytes) {
        Ok(row) => Reading::Row(row),
        Err(rejected) => Reading::Rejected(rejected, bytes),
    }
}

fn too_large(bytes: u64, bytes_max: ByteSize) -> Rejected {
    Rejected::new(
        DeadLetterReason::TooLarge,
        format!("the file has {bytes} bytes, `max_file` is {bytes_max}"),
    )
}

/// `None` when the file is not what it was.
fn read_whole(
    tree: &Tree,
    key: &str,
    expected: FileStamp,
    bytes_max: ByteSize,
) -> io::Result<Option<Vec<u8>>> {
    // A link that was changed to lead outside since it was looked at must not be followed.
    let path = tree.path_of(key).canonicalize()?;
    if !path.starts_with(tree.root()) {
        return Err(io::ErrorKind::NotFound.into());
    }
    let file = File::open(path)?;
    if FileStamp::of(&file.metadata()?) != expected {
        return Ok(None);
    }
    let mut bytes = Vec::with_capacity(usize::try_from(expected.bytes).unwrap_or(0));
    (&file)
        .take(bytes_max.as_bytes() + 1)
        .read_to_end(&mut bytes)?;
    let is_same =
        FileStamp::of(&file.metadata()?) == expected && bytes.len() as u64 == expected.bytes;
    Ok(is_same.then_some(bytes))
}

fn row_of(key: &str, stamp: FileStamp, bytes: &[u8]) -> Result<Row, Rejected> {
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let at = error.valid_up_to();
        Rejected::undecodable(format!("the file is not UTF-8 text at byte {at}"))
    })?;
    let text = text.trim_start_matches('\u{feff}');
    let format = format_of(key);
    let visible = (format == "html").then(|| visible_text(text));
    let row = FileRow {
        path: key,
        content: visible.as_deref().unwrap_or(text),
        format,
        bytes: stamp.bytes,
        modified_at: date_and_time(stamp.modified_at),
    };
    serde_json::to_string(&row)
        .map(Row::from)
        .map_err(|error| Rejected::undecodable(error.to_string()))
}

/// The format of a document by the ending of its name.
fn format_of(key: &str) -> &'static str {
    let ending = key
        .rsplit_once('.')
        .map(|(_, ending)| ending.to_ascii_lowercase());
    match ending.as_deref() {
        Some("md" | "markdown" | "mdx") => "markdown",
        Some("rst") => "rst",
        Some("html" | "htm" | "xhtml") => "html",
        _ => "text",
    }
}

/// RFC 3339 in UTC. Times that it can't hold become the nearest that it can.
fn date_and_time(at: SystemTime) -> String {
    /// 9999-12-31T23:59:59Z.
    const LAST: Duration = Duration::from_secs(253_402_300_799);
    let at = at
        .max(SystemTime::UNIX_EPOCH)
        .min(SystemTime::UNIX_EPOCH + LAST);
    humantime::format_rfc3339(at).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_say_format_and_time() {
        let stamp = FileStamp {
            bytes: 9,
            modified_at: SystemTime::UNIX_EPOCH + Duration::from_millis(1_500),
            inode: None,
        };
        let row = row_of("a/b.MD", stamp, "\u{feff}# é\n".as_bytes()).unwrap();
        assert_eq!(
            &*row,
            r##"{"path":"a/b.MD","content":"# é\n","format":"markdown","bytes":9,"modified_at":"1970-01-01T00:00:01.500000000Z"}"##
        );
        for (key, format) in [
            ("a.rst", "rst"),
            ("a.htm", "html"),
            ("a", "text"),
            ("a.txt", "text"),
        ] {
            assert_eq!(format_of(key), format);
        }
        assert_eq!(
            row_of("a.txt", stamp, b"\xff").unwrap_err().reason,
            DeadLetterReason::Undecodable
        );
    }

    #[test]
    fn times_outside_of_the_calendar_do_not_panic() {
        assert_eq!(
            date_and_time(SystemTime::UNIX_EPOCH - Duration::from_secs(5)),
            "1970-01-01T00:00:00Z"
        );
        let far = SystemTime::UNIX_EPOCH + Duration::from_secs(1 << 40);
        assert_eq!(date_and_time(far), "9999-12-31T23:59:59Z");
    }
}
