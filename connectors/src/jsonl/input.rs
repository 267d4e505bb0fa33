//! Opens a line log at a recorded position and makes sure that it is still the same log.
//!
//! A plain file is sought; a compressed one is read up to the position. Two things tell another
//! file: what stands at the position, and the file's first line, whose fingerprint is kept with
//! the positions.
//!
//! Invariant: reading goes on at a recorded position only where a line begins.

use super::lines::LineReader;
use flate2::read::MultiGzDecoder;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use vectide_model::StopSignal;

/// zstd's window: 2^27 bytes (128 MiB) is what decoders accept at least; more would let a file ask
/// for any amount of memory.
const ZSTD_WINDOW_LOG_MAX: u32 = 27;

/// Bytes of the first line that are fingerprinted.
const FINGERPRINT_BYTES_MAX: u64 = 64 * 1024;

/// Fingerprints travel with the positions through JSON, whose readers keep 53 bits of a number.
const FINGERPRINT_MASK: u64 = (1 << 53) - 1;

/// How a log is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compression {
    Plain,
    Gzip,
    Zstandard,
}

impl Compression {
    pub(crate) fn of(path: &Path) -> Self {
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("gz") => Self::Gzip,
            Some("zst" | "zstd") => Self::Zstandard,
            _ => Self::Plain,
        }
    }
}

/// A file with lines.
#[derive(Clone, Debug)]
pub(crate) struct LogFile {
    pub(crate) path: PathBuf,
    pub(crate) compression: Compression,
}

/// A file as the file system knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StoredFile {
    /// Bytes as they are stored.
    pub(crate) bytes: u64,
    /// What stays the same when a file grows, and differs when another takes its place.
    pub(crate) identity: (u64, u64),
}

impl StoredFile {
    #[cfg(unix)]
    fn of(metadata: &std::fs::Metadata) -> Self {
        use std::os::unix::fs::MetadataExt;
        Self {
            bytes: metadata.len(),
            identity: (metadata.dev(), metadata.ino()),
        }
    }

    /// Without inode numbers only length and first line tell another file.
    #[cfg(not(unix))]
    fn of(metadata: &std::fs::Metadata) -> Self {
        Self {
            bytes: metadata.len(),
            identity: (0, 0),
        }
    }
}

/// Bytes of a log, uncompressed.
pub(crate) type LogBytes = Box<dyn Read + Send>;

/// Why a log can't be read on.
#[derive(Debug)]
pub(crate) enum OpenError {
    /// The position is not in it any more; says what is there.
    PositionLost(String),
    /// The process is ending.
    Stopped,
    Io(io::Error),
}

impl From<io::Error> for OpenError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl LogFile {
    /// The uncompressed stream from its start.
    fn stream(&self) -> io::Result<LogBytes> {
        let file = File::open(&self.path)?;
        if file.metadata()?.is_dir() {
            return Err(io::Error::new(
                io::ErrorKind::IsADirectory,
                "is a directory",
            ));
        }
        Ok(match self.compression {
            Compression::Plain => Box::new(file),
            Compression::Gzip => Box::new(MultiGzDecoder::new(BufReader::new(file))),
            Compression::Zstandard => {
                let mut decoder = zstd::stream::read::Decoder::new(file)?;
                decoder.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
                Box::new(decoder)
            }
        })
    }

    /// What the path leads to now.
    pub(crate) fn stored(&self) -> io::Result<StoredFile> {
        std::fs::metadata(&self.path).map(|metadata| StoredFile::of(&metadata))
    }

    /// A hash of the first line without its line end; `None` while the file has no whole line.
    /// With `at_end` a last line without a line end counts as whole.
    pub(crate) fn fingerprint(&self, at_end: bool) -> io::Result<Option<u64>> {
        let mut start = Vec::new();
        let mut stream = self.stream()?.take(FINGERPRINT_BYTES_MAX);
        let mut piece = [0; 4096];
        let line_end = loop {
            let count = match stream.read(&mut piece) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            let before = start.len();
            start.extend_from_slice(&piece[..count]);
            if let Some(found) = memchr::memchr(b'\n', &start[before..]) {
                break before + found;
            }
            if count == 0 {
                let whole = at_end && !start.is_empty();
                if !whole && (start.len() as u64) < FINGERPRINT_BYTES_MAX {
                    return Ok(None);
                }
                break start.len();
            }
        };
        let line = start[..line_end].trim_ascii_end();
        Ok(Some(xxhash_rust::xxh3::xxh3_64(line) & FINGERPRINT_MASK))
    }

    /// Opens the log for reading on at `offset`.
    pub(crate) fn open(
        &self,
        offset: u64,
        line_bytes_max: usize,
        stop: &StopSignal,
    ) -> Result<LineReader<LogBytes>, OpenError> {
        let stream = match (self.compression, offset) {
            (_, 0) => self.stream()?,
            (Compression::Plain, _) => Box::new(self.seek(offset)?),
            _ => self.skip(offset, stop)?,
        };
        Ok(LineReader::new(stream, offset, line_bytes_max))
    }

    fn seek(&self, offset: u64) -> Result<File, OpenError> {
        let mut file = File::open(&self.path)?;
        let length = file.metadata()?.len();
        if length < offset {
            return Err(OpenError::PositionLost(format!(
                "byte {offset} was recorded, the file ends at byte {length}"
            )));
        }
        file.seek(SeekFrom::Start(offset - 1))?;
        let (mut before, mut after) = ([0; 1], [0; 1]);
        file.read_exact(&mut before)?;
        let count = file.read(&mut after)?;
        begins_a_line(offset, before[0], (count == 1).then_some(after[0]))?;
        file.seek(SeekFrom::Start(offset))?;
        Ok(file)
    }

    /// Decompresses up to `offset`.
    fn skip(&self, offset: u64, stop: &StopSignal) -> Result<LogBytes, OpenError> {
        const PIECE_BYTES: u64 = 1024 * 1024;
        let mut stream = self.stream()?;
        let mut last = LastByte::default();
        let mut left = offset;
        while left > 0 {
            if stop.is_stopped() {
                return Err(OpenError::Stopped);
            }
            let count = io::copy(&mut stream.by_ref().take(left.min(PIECE_BYTES)), &mut last)?;
            left -= count;
            if count == 0 {
                let length = offset - left;
                return Err(OpenError::PositionLost(format!(
                    "byte {offset} was recorded, the uncompressed log ends at byte {length}"
                )));
            }
        }
        let mut next = [0; 1];
        let count = stream.read(&mut next)?;
        begins_a_line(offset, last.0, (count == 1).then_some(next[0]))?;
        Ok(Box::new(
            io::Cursor::new(next).take(count as u64).chain(stream),
        ))
    }
}

/// A line begins behind a line feed; and where the log ended without one, its line end comes next.
fn begins_a_line(offset: u64, before: u8, after: Option<u8>) -> Result<(), OpenError> {
    if before == b'\n' || matches!(after, None | Some(b'\n' | b'\r')) {
        return Ok(());
    }
    Err(OpenError::PositionLost(format!(
        "byte {offset} was recorded, where a line began; now it lies within one"
    )))
}

/// Keeps the last byte written to it.
#[derive(Default)]
struct LastByte(u8);

impl io::Write for LastByte {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Some(last) = bytes.last() {
            self.0 = *last;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The byte behind the last whole line of a plain log.
pub(crate) fn end_of_lines(path: &Path) -> io::Result<u64> {
    const BLOCK_BYTES: u64 = 64 * 1024;
    let mut file = File::open(path)?;
    let mut end = file.metadata()?.len();
    let mut block = Vec::new();
    while end > 0 {
        let start = end.saturating_sub(BLOCK_BYTES);
        file.seek(SeekFrom::Start(start))?;
        block.clear();
        (&file).take(end - start).read_to_end(&mut block)?;
        if let Some(at) = memchr::memrchr(b'\n', &block) {
            return Ok(start + at as u64 + 1);
        }
        end = start;
    }
    Ok(0)
}
