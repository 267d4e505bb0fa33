//! The structure of Markdown, reStructuredText and plain text, line by line.
//!
//! The chunker needs to know where blocks begin, not how they are rendered, and it must stay fast
//! and calm on text that is no markup at all. So this is a scanner with a few words of state, not a
//! parser: headings (`#`, underlined, overlined), front matter, fenced code, lists, tables, HTML and
//! template lines, paragraphs.
//!
//! Invariant: every line that is not white space comes out once, in order, with the mark of the place
//! where it begins; the scan is linear, and the marks depend on the lines near by only (but for
//! fences and front matter, whose ends may be far from their beginnings).

use super::marks::Mark;
use std::ops::Range;

/// Front matter that goes on for longer is taken for text between two rulers.
const FRONT_MATTER_LINES_MAX: usize = 200;

/// A line with something on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Line {
    /// Bytes of the text, the line end included.
    pub(super) range: Range<usize>,
    /// What begins here.
    pub(super) mark: Mark,
}

/// Finds the lines of a text.
pub(super) fn scan(text: &str) -> Vec<Line> {
    let lines: Vec<&str> = text.split_inclusive('\n').collect();
    let body = front_matter_end(&lines);
    let mut scanner = Scanner::default();
    let mut out = Vec::with_capacity(lines.len());
    let mut start = 0;
    for (number, line) in lines.iter().enumerate() {
        let range = start..start + line.len();
        start = range.end;
        let content = line.trim();
        if number < body {
            scanner.before = Before::FrontMatter;
            if !content.is_empty() {
                let mark = Mark::FrontMatterLine;
                out.push(Line { range, mark });
            }
            continue;
        }
        let below = lines.get(number + 1).map_or("", |line| line.trim());
        if let Some(mark) = scanner.next(line, content, below) {
            out.push(Line { range, mark });
        }
    }
    out
}

/// How many lines of the text are front matter (YAML between `---`, TOML between `+++`).
fn front_matter_end(lines: &[&str]) -> usize {
    let Some(ruler) = lines
        .first()
        .map(|line| line.trim())
        .filter(|line| matches!(*line, "---" | "+++"))
    else {
        return 0;
    };
    let inner = lines.iter().take(FRONT_MATTER_LINES_MAX).skip(1);
    inner
        .clone()
        .position(|line| line.trim() == ruler)
        .map_or(0, |end| end + 2)
}

/// What stands above the line that is looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Before {
    #[default]
    Blank,
    FrontMatter,
    Heading,
    Overline,
    FenceEnd,
    TableRow,
    /// Text; whether it ends a sentence.
    Text(SentenceEnd),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SentenceEnd {
    Yes,
    No,
}

#[derive(Clone, Copy, Debug)]
struct Fence {
    byte: u8,
    length: usize,
}

#[derive(Debug, Default)]
struct Scanner {
    before: Before,
    /// Empty lines were seen since the last line: they don't hide a heading or a fence's end.
    blank: bool,
    fence: Option<Fence>,
}

impl Scanner {
    /// The mark of the next line; `None` for an empty one. `below` is the line after it, trimmed.
    fn next(&mut self, line: &str, content: &str, below: &str) -> Option<Mark> {
        if content.is_empty() {
            self.blank = true;
            return None;
        }
        let blank = std::mem::take(&mut self.blank) || self.before == Before::Blank;
        if let Some(fence) = self.fence {
            return Some(self.code_line(fence, content, blank));
        }
        let mark = self.underlined(content, below, blank);
        let (mark, after) = match mark {
            Some(found) => found,
            None => self.block(line, content, blank),
        };
        let mark = match (mark, self.before) {
            (Mark::Heading(_) | Mark::Underline, _) => mark,
            (_, Before::Heading) => Mark::UnderHeading,
            (_, Before::FrontMatter) => Mark::Body,
            (_, Before::FenceEnd) => Mark::Fence,
            _ => mark,
        };
        self.before = after;
        Some(mark)
    }

    fn code_line(&mut self, fence: Fence, content: &str, blank: bool) -> Mark {
        let run = leading_run(content, fence.byte);
        if run >= fence.length && run == content.len() {
            self.fence = None;
            self.before = Before::FenceEnd;
            return Mark::CodeLine;
        }
        if blank {
            Mark::CodeParagraph
        } else {
            Mark::CodeLine
        }
    }

    /// Titles with a line of punctuation under them, or above and under them.
    fn underlined(&self, content: &str, below: &str, blank: bool) -> Option<(Mark, Before)> {
        let own = ruler(content);
        if self.before == Before::Heading && !blank && own.is_some() {
            return Some((Mark::Underline, Before::Heading));
        }
        let overlined = self.before == Before::Overline && !blank;
        if overlined {
            return Some((Mark::Underline, Before::Heading));
        }
        if !blank && matches!(self.before, Before::Text(_)) {
            return None;
        }
        if let Some(byte) = own {
            let opens =
                matches!(byte, b'=' | b'#' | b'~' | b'^' | b'"' | b'*') && content.len() > 3;
            let titled = !below.is_empty() && ruler(below).is_none();
            return (opens && titled).then_some((Mark::Heading(rank(byte)), Before::Overline));
        }
        let byte = ruler(below)?;
        let long = matches!(byte, b'=' | b'-') || below.len() >= content.chars().count();
        let plain = item(content).is_none() && !content.starts_with(['|', '#', '`', '~']);
        (long && plain).then_some((Mark::Heading(rank(byte)), Before::Heading))
    }

    fn block(&mut self, line: &str, content: &str, blank: bool) -> (Mark, Before) {
        let indent = line.len() - line.trim_start_matches([' ', '\t']).len();
        let first = content.as_bytes()[0];
        let after = Before::Text(sentence_end(content));
        let hashes = leading_run(content, b'#');
        if indent < 4 && (1..=6).contains(&hashes) && space_at(content, hashes) {
            return (Mark::Heading(hashes as u8), Before::Heading);
        }
        if matches!(first, b'`' | b'~') && leading_run(content, first) >= 3 {
            self.fence = Some(Fence {
                byte: first,
                length: leading_run(content, first),
            });
            let mark = if blank { Mark::Fence } else { Mark::Line };
            return (mark, after);
        }
        if item(content).is_some() {
            let mark = match (indent >= 2, blank) {
                (true, _) => Mark::InnerItem,
                (false, true) => Mark::LooseItem,
                (false, false) => Mark::Item,
            };
            return (mark, after);
        }
        if first == b'|' {
            let mark = if self.before == Before::TableRow && !blank {
                Mark::TableRow
            } else {
                Mark::TableEdge
            };
            return (mark, Before::TableRow);
        }
        let mark = match (blank, self.before) {
            (true, _) if indent >= 2 => Mark::ItemBlock,
            (true, _) => Mark::Block,
            (false, Before::TableRow) => Mark::TableEdge,
            _ if first == b'<' || content.starts_with("{{") => Mark::Markup,
            (false, Before::Text(SentenceEnd::Yes)) => Mark::Sentence,
            _ => Mark::Line,
        };
        (mark, after)
    }
}

fn leading_run(content: &str, byte: u8) -> usize {
    content.bytes().take_while(|b| *b == byte).count()
}

fn space_at(content: &str, at: usize) -> bool {
    matches!(content.as_bytes().get(at), None | Some(b' ' | b'\t'))
}

/// The punctuation byte of which the line consists, if it does and has three or more.
fn ruler(content: &str) -> Option<u8> {
    let byte = content.bytes().next()?;
    let drawn = content.len() >= 3
        && matches!(
            byte,
            b'=' | b'-' | b'~' | b'^' | b'"' | b'*' | b'+' | b'#' | b'\'' | b'_'
        )
        && leading_run(content, byte) == content.len();
    drawn.then_some(byte)
}

/// reStructuredText lets every author choose; these are the usual choices, and Markdown's two.
fn rank(byte: u8) -> u8 {
    match byte {
        b'=' | b'#' | b'*' => 1,
        b'-' => 2,
        _ => 3,
    }
}

/// The length of a list item's bullet or number (up to 999), if the line begins with one.
fn item(content: &str) -> Option<usize> {
    let bytes = content.as_bytes();
    if matches!(bytes.first(), Some(b'-' | b'*' | b'+')) {
        return (bytes.get(1) == Some(&b' ')).then_some(1);
    }
    let digits = bytes.iter().take_while(|b| b.is_ascii_digit()).count();
    let numbered = (1..=3).contains(&digits)
        && matches!(bytes.get(digits), Some(b'.' | b')'))
        && bytes.get(digits + 1) == Some(&b' ');
    numbered.then_some(digits + 1)
}

fn sentence_end(content: &str) -> SentenceEnd {
    let closing = [
        '"', '\'', ')', ']', '”', '’', '»', '」', '』', '）', '*', '_', '`',
    ];
    let ends = [
        '.', '!', '?', ':', '。', '！', '？', '…', '।', '؟', '۔', '։', '።',
    ];
    if content.trim_end_matches(closing).ends_with(ends) {
        SentenceEnd::Yes
    } else {
        SentenceEnd::No
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Checks the marks of a text's lines.
    fn check(text: &str, expect: &[Mark]) {
        let lines = scan(text);
        let marks: Vec<Mark> = lines.iter().map(|line| line.mark).collect();
        assert_eq!(marks, expect, "{text:?}");
        let kept: String = lines
            .iter()
            .map(|line| text[line.range.clone()].trim())
            .collect();
        let all: String = text.lines().map(str::trim).collect();
        assert_eq!(kept, all, "every line that is not empty comes out once");
    }

    #[test]
    fn markdown() {
        check(
            "---\ntitle: x\n---\n\nHello there.\nGo on\nhere\n\n## Two\ntext\n\n- a\n- b\n  - c\n\n1. d\n\n   more\n",
            &[
                Mark::FrontMatterLine,
                Mark::FrontMatterLine,
                Mark::FrontMatterLine,
                Mark::Body,
                Mark::Sentence,
                Mark::Line,
                Mark::Heading(2),
                Mark::UnderHeading,
                Mark::LooseItem,
                Mark::Item,
                Mark::InnerItem,
                Mark::LooseItem,
                Mark::ItemBlock,
            ],
        );
    }

    #[test]
    fn code_and_tables() {
        check(
            "x\n\n```sh\n# no heading\n\n- no item\n```\n\ny\n| a |\n| - |\nz\n<b>\n",
            &[
                Mark::Block,
                Mark::Fence,
                Mark::CodeLine,
                Mark::CodeParagraph,
                Mark::CodeLine,
                Mark::Fence,
                Mark::TableEdge,
                Mark::TableRow,
                Mark::TableEdge,
                Mark::Markup,
            ],
        );
    }

    #[test]
    fn underlined_titles() {
        check(
            "=====\nTitle\n=====\n\nPart\n----\n\ntext\n\nSmall\n~~~~~\nx\n",
            &[
                Mark::Heading(1),
                Mark::Underline,
                Mark::Underline,
                Mark::Heading(2),
                Mark::Underline,
                Mark::UnderHeading,
                Mark::Heading(3),
                Mark::Underline,
                Mark::UnderHeading,
            ],
        );
    }

    #[test]
    fn what_is_not_closed_ends_with_the_text() {
        check("---\na\n", &[Mark::Block, Mark::Line]);
        check(
            "~~~\na\n\nb",
            &[Mark::Fence, Mark::CodeLine, Mark::CodeParagraph],
        );
        check(
            "a\r\n\r\n# b\r\nc",
            &[Mark::Block, Mark::Heading(1), Mark::UnderHeading],
        );
        check("", &[]);
        check(" \n\t\n", &[]);
    }
}
