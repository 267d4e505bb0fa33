//! Cuts a stream of bytes into lines and knows where each stands.
//!
//! Invariant: memory is bounded by the line limit whatever the input. A longer line is counted to
//! its end while only its start is kept.

use std::io::{self, Read};
use vectide_model::DeadLetter;

/// Bytes asked of the input at once: large enough that the cost of a system call disappears.
const READ_BYTES: usize = 256 * 1024;

/// What comes next in the stream.
#[derive(Debug, PartialEq)]
pub(crate) enum Line<'a> {
    /// A line without its line feed.
    Whole {
        bytes: &'a [u8],
        offset: u64,
        next_offset: u64,
    },
    /// A line above the limit: its start, and its length without the line feed.
    TooLong {
        start: &'a [u8],
        length: u64,
        offset: u64,
        next_offset: u64,
    },
    /// The input has no whole line at hand. A growing file may have more later.
    Pending,
}

/// Reads lines; offsets count the bytes of the (uncompressed) stream.
pub(crate) struct LineReader<R> {
    input: R,
    line_bytes_max: usize,
    buffer: Vec<u8>,
    /// The unread part of the buffer is `start..end`; `start..scanned` holds no line feed.
    start: usize,
    end: usize,
    scanned: usize,
    /// Offset in the stream of `buffer[start]`.
    offset: u64,
    /// Offset of the line that is being skipped because it is too long.
    skipped_from: Option<u64>,
    /// The start of the last line that was skipped.
    skipped_start: Vec<u8>,
}

impl<R: Read> LineReader<R> {
    /// Reads from `input`, whose first byte stands at `offset`.
    pub(crate) fn new(input: R, offset: u64, line_bytes_max: usize) -> Self {
        Self {
            input,
            line_bytes_max,
            buffer: vec![0; READ_BYTES],
            start: 0,
            end: 0,
            scanned: 0,
            offset,
            skipped_from: None,
            skipped_start: Vec::new(),
        }
    }

    /// Offset of the first byte that no line has covered yet.
    pub(crate) fn offset(&self) -> u64 {
        self.skipped_from.unwrap_or(self.offset)
    }

    /// The next line that ends in a line feed.
    ///
    /// # Errors
    /// When the input can't be read.
    pub(crate) fn next_line(&mut self) -> io::Result<Line<'_>> {
        loop {
            let fresh = &self.buffer[self.scanned..self.end];
            if let Some(found) = memchr::memchr(b'\n', fresh) {
                let line_end = self.scanned + found;
                return Ok(self.cut(line_end, line_end + 1));
            }
            self.scanned = self.end;
            if self.end - self.start > self.line_bytes_max || self.skipped_from.is_some() {
                self.skip();
            }
            if self.fill()? == 0 {
                return Ok(Line::Pending);
            }
        }
    }

    /// What stands after the last line feed, as a line: for an input that has ended.
    pub(crate) fn last_line(&mut self) -> Option<Line<'_>> {
        if self.start == self.end && self.skipped_from.is_none() {
            return None;
        }
        Some(self.cut(self.end, self.end))
    }

    /// Hands out `start..line_end` and goes on at `next`.
    fn cut(&mut self, line_end: usize, next: usize) -> Line<'_> {
        let line = self.start..line_end;
        let line_end_offset = self.offset + line.len() as u64;
        let offset = self.offset();
        let was_skipped = self.skipped_from.take().is_some();
        self.offset += (next - self.start) as u64;
        self.start = next;
        self.scanned = next;
        let bytes = if was_skipped {
            &self.skipped_start
        } else {
            &self.buffer[line]
        };
        let length = line_end_offset - offset;
        if length > self.line_bytes_max as u64 {
            return Line::TooLong {
                start: &bytes[..bytes.len().min(DeadLetter::RAW_BYTES_MAX)],
                length,
                offset,
                next_offset: self.offset,
            };
        }
        Line::Whole {
            bytes,
            offset,
            next_offset: self.offset,
        }
    }

    /// Lets go of what is buffered of a line that is too long.
    fn skip(&mut self) {
        if self.skipped_from.is_none() {
            let kept = (self.end - self.start).min(DeadLetter::RAW_BYTES_MAX);
            self.skipped_start.clear();
            self.skipped_start
                .extend_from_slice(&self.buffer[self.start..self.start + kept]);
            self.skipped_from = Some(self.offset);
        }
        self.offset += (self.end - self.start) as u64;
        (self.start, self.scanned, self.end) = (0, 0, 0);
    }

    /// Reads more behind what is buffered; 0 when there is none.
    fn fill(&mut self) -> io::Result<usize> {
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            self.scanned -= self.start;
            self.end -= self.start;
            self.start = 0;
        }
        if self.end == self.buffer.len() {
            // At most one doubling beyond the limit: longer lines are skipped before.
            self.buffer.resize(self.buffer.len() * 2, 0);
        }
        loop {
            match self.input.read(&mut self.buffer[self.end..]) {
                Ok(count) => {
                    self.end += count;
                    return Ok(count);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Gives its bytes in pieces of the given sizes, and says "no more for now" between them.
    struct Pieces {
        bytes: Vec<u8>,
        sizes: Vec<usize>,
        at: usize,
    }

    impl Read for Pieces {
        fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
            let size = self.sizes.pop().unwrap_or(usize::MAX);
            let count = size.min(out.len()).min(self.bytes.len() - self.at);
            out[..count].copy_from_slice(&self.bytes[self.at..self.at + count]);
            self.at += count;
            Ok(count)
        }
    }

    type Seen = (u64, u64, Result<Vec<u8>, u64>);

    fn read_all(bytes: &[u8], sizes: Vec<usize>, from: u64, line_bytes_max: usize) -> Vec<Seen> {
        let mut pending_left = sizes.len() + 1;
        let input = Pieces {
            bytes: bytes[usize::try_from(from).unwrap()..].to_vec(),
            sizes,
            at: 0,
        };
        let mut lines = LineReader::new(input, from, line_bytes_max);
        let mut seen = Vec::new();
        let mut note = |line: Line<'_>| match line {
            Line::Whole {
                bytes,
                offset,
                next_offset,
            } => {
                seen.push((offset, next_offset, Ok(bytes.to_vec())));
                true
            }
            Line::TooLong {
                start,
                length,
                offset,
                next_offset,
            } => {
                assert!(start.len() as u64 <= length);
                seen.push((offset, next_offset, Err(length)));
                true
            }
            Line::Pending => false,
        };
        loop {
            if !note(lines.next_line().unwrap()) {
                pending_left -= 1;
                if pending_left == 0 {
                    break;
                }
            }
        }
        if let Some(line) = lines.last_line() {
            note(line);
        }
        assert_eq!(lines.offset(), bytes.len() as u64);
        assert!(lines.last_line().is_none());
        seen
    }

    /// The oracle: the standard library's split.
    fn expected(bytes: &[u8], line_bytes_max: usize) -> Vec<Seen> {
        let mut offset = 0;
        let mut lines = Vec::new();
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let line = piece.strip_suffix(b"\n").unwrap_or(piece);
            let next = offset + piece.len() as u64;
            let seen = match line.len() > line_bytes_max {
                true => Err(line.len() as u64),
                false => Ok(line.to_vec()),
            };
            lines.push((offset, next, seen));
            offset = next;
        }
        lines
    }

    proptest! {
        #[test]
        fn lines_equal_the_oracle_from_every_start(
            bytes in prop::collection::vec(prop_oneof![Just(b'\n'), any::<u8>()], 0..400),
            sizes in prop::collection::vec(0usize..60, 0..40),
            line_bytes_max in 1usize..60,
        ) {
            let all = expected(&bytes, line_bytes_max);
            prop_assert_eq!(&read_all(&bytes, sizes.clone(), 0, line_bytes_max), &all);
            for (index, (_, next, _)) in all.iter().enumerate() {
                let rest = read_all(&bytes, sizes.clone(), *next, line_bytes_max);
                prop_assert_eq!(&rest[..], &all[index + 1..]);
            }
        }
    }

    #[test]
    fn a_long_line_is_not_buffered() {
        let mut bytes = vec![b'x'; 40 << 20];
        bytes.extend_from_slice(b"\nshort\n");
        let mut lines = LineReader::new(&bytes[..], 0, 1 << 20);
        assert!(matches!(
            lines.next_line().unwrap(),
            Line::TooLong { start, length, .. }
                if length == 40 << 20 && start.len() == DeadLetter::RAW_BYTES_MAX
        ));
        assert!(lines.buffer.len() <= 4 << 20, "{}", lines.buffer.len());
        assert!(matches!(
            lines.next_line().unwrap(),
            Line::Whole {
                bytes: b"short",
                ..
            }
        ));
    }
}
