//! The first bytes of the files of a segment: what each is, in which version, and the sizes that follow.
//!
//! Layout, little-endian: 8 bytes that name the kind, 4 of version, numbers as the kind has them, zero up to 64.
//!
//! Invariant: whoever holds a [`Header`] reads a file of its kind, in the one version that this program knows.

use crate::files::damaged;
use std::path::Path;
use vectide_model::IndexError;

/// Bytes of a header.
pub(crate) const HEADER_BYTES: usize = 64;

/// A kind of file.
pub(crate) struct Kind {
    /// Its first bytes.
    pub(crate) magic: &'static [u8; 8],
    /// Its version.
    pub(crate) version: u32,
    /// How it is called in messages: `a rows file`.
    pub(crate) name: &'static str,
}

/// A header that was checked.
#[derive(Clone, Copy)]
pub(crate) struct Header([u8; HEADER_BYTES]);

impl Header {
    /// Of the bytes of a file whose checksum has been verified; `path` is for messages.
    pub(crate) fn read(kind: &Kind, bytes: &[u8], path: &Path) -> Result<Self, IndexError> {
        let header = bytes
            .first_chunk::<HEADER_BYTES>()
            .ok_or_else(|| damaged(path, "has no header"))?;
        let header = Self(*header);
        if header.0[..8] != kind.magic[..] {
            return Err(damaged(path, format_args!("is not {}", kind.name)));
        }
        let version = header.u32(8);
        if version != kind.version {
            let detail = format!("has format version {version}, not {}", kind.version);
            return Err(damaged(path, detail));
        }
        Ok(header)
    }

    /// The four bytes from `at` on.
    pub(crate) fn u32(&self, at: usize) -> u32 {
        self.number(at, 4) as u32
    }

    /// The eight bytes from `at` on.
    pub(crate) fn u64(&self, at: usize) -> u64 {
        self.number(at, 8)
    }

    fn number(&self, at: usize, bytes: usize) -> u64 {
        let bytes = self.0[at..at + bytes].iter().rev();
        bytes.fold(0, |all, byte| all << 8 | u64::from(*byte))
    }
}
