//! The bytes of a file as text, or why they are none.
//!
//! Invariant: what is larger than a configuration can be is refused before it is looked at.

use crate::path::Path;
use crate::problem::{Position, Problem};

/// A configuration is written by people; what is larger is some other file.
pub(crate) const FILE_BYTES_MAX: usize = 1024 * 1024;

/// Checks size and encoding; a byte order mark is dropped.
pub(crate) fn decode(bytes: &[u8]) -> Result<&str, Problem> {
    let refuse = |position, fact: &str, hint: &str| {
        Err(Problem::new(Path::root(), position, fact).hint(hint))
    };
    if bytes.len() > FILE_BYTES_MAX {
        return refuse(
            Position::START,
            "the file is larger than 1 MiB",
            "is this the configuration?",
        );
    }
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    match std::str::from_utf8(bytes) {
        Ok(text) => Ok(text),
        Err(error) => {
            let valid = String::from_utf8_lossy(&bytes[..error.valid_up_to()]);
            let position = Position {
                line: valid.matches('\n').count() + 1,
                column: valid.chars().rev().take_while(|c| *c != '\n').count() + 1,
            };
            refuse(position, "the file is not UTF-8 text", "save it as UTF-8")
        }
    }
}
