//! The visible text of an HTML page.
//!
//! The title comes first, then the body: block elements become paragraphs, table cells stand beside
//! each other, preformatted text keeps its lines, and what a browser does not show is left out.
//!
//! The page is read as a sequence of tags and text, without a tree: that is enough for text, and no
//! page can make it slow or deep.
//!
//! Invariant: time grows with the page's length alone, and no nesting uses the stack.

use html5ever::TokenizerResult;
use html5ever::tendril::StrTendril;
use html5ever::tokenizer::states::RawKind;
use html5ever::tokenizer::{
    BufferQueue, Tag, TagKind, Token, TokenSink, TokenSinkResult, Tokenizer,
};
use std::cell::RefCell;

/// Elements whose content is no visible text. All of them need an end tag.
const INVISIBLE: [&str; 15] = [
    "script", "style", "noscript", "noframes", "noembed", "template", "svg", "math", "iframe",
    "object", "canvas", "audio", "video", "datalist", "dialog",
];

/// Elements without an end tag, or whose end tag is mostly left out: where the hidden part of a page
/// would end could only be guessed, so `hidden` is not obeyed on them.
const OPEN_ENDED: [&str; 24] = [
    "area", "base", "body", "br", "col", "dd", "dt", "embed", "head", "hr", "html", "img", "input",
    "li", "link", "meta", "option", "p", "source", "td", "tfoot", "th", "tr", "wbr",
];

/// Elements that stand on lines of their own with space around them.
const BLOCKS: [&str; 29] = [
    "address",
    "article",
    "aside",
    "blockquote",
    "body",
    "details",
    "div",
    "dl",
    "fieldset",
    "figcaption",
    "figure",
    "footer",
    "form",
    "h1",
    "h2",
    "h3",
    "h4",
    "h5",
    "h6",
    "header",
    "hr",
    "main",
    "nav",
    "ol",
    "p",
    "pre",
    "section",
    "table",
    "ul",
];

/// Elements that stand on a line of their own.
const LINES: [&str; 11] = [
    "br", "caption", "dd", "dt", "li", "option", "summary", "tbody", "tfoot", "thead", "tr",
];

/// Elements that stand beside each other.
const CELLS: [&str; 2] = ["td", "th"];

/// The visible text of a page.
pub(crate) fn visible_text(page: &str) -> String {
    let input = BufferQueue::default();
    input.push_back(StrTendril::from(page));
    let tokenizer = Tokenizer::new(PageText::default(), tokenizer_options());
    while !matches!(tokenizer.feed(&input), TokenizerResult::Done) {}
    tokenizer.end();
    let page = tokenizer.sink.state.into_inner();
    let mut text = TextBuilder::default();
    text.push_words(&page.title);
    text.break_at_least(Break::Paragraph);
    text.push_piece_if_any(&page.text.out);
    text.out
}

fn tokenizer_options() -> html5ever::tokenizer::TokenizerOpts {
    html5ever::tokenizer::TokenizerOpts {
        // The byte order mark was taken off with the file's.
        discard_bom: false,
        ..Default::default()
    }
}

#[derive(Default)]
struct PageText {
    state: RefCell<PageState>,
}

#[derive(Default)]
struct PageState {
    title: String,
    text: TextBuilder,
    is_in_title: bool,
    has_title: bool,
    /// The element whose content is not shown, and how many of its name are open.
    invisible: Option<(String, usize)>,
    /// How many `pre` are open.
    preformatted: usize,
}

impl TokenSink for PageText {
    type Handle = ();

    fn process_token(&self, token: Token, _line: u64) -> TokenSinkResult<()> {
        let mut state = self.state.borrow_mut();
        match token {
            Token::TagToken(tag) if tag.kind == TagKind::StartTag => {
                state.open(&tag);
                return content_of(&tag.name);
            }
            Token::TagToken(tag) => state.close(&tag.name),
            Token::CharacterTokens(text) => state.push(&text),
            _ => {}
        }
        TokenSinkResult::Continue
    }
}

/// How the tokenizer is to read what follows a start tag.
fn content_of(name: &str) -> TokenSinkResult<()> {
    TokenSinkResult::RawData(match name {
        "script" => RawKind::ScriptData,
        "style" | "iframe" | "noembed" | "noframes" | "xmp" => RawKind::Rawtext,
        "title" | "textarea" => RawKind::Rcdata,
        "plaintext" => return TokenSinkResult::Plaintext,
        _ => return TokenSinkResult::Continue,
    })
}

impl PageState {
    fn open(&mut self, tag: &Tag) {
        let name: &str = &tag.name;
        if let Some((invisible, depth)) = &mut self.invisible {
            *depth += usize::from(invisible == name && !tag.self_closing);
            return;
        }
        if is_invisible(tag) {
            self.invisible = Some((name.to_owned(), 1));
            return;
        }
        if name == "title" {
            self.is_in_title = true;
            return;
        }
        self.text.break_at_least(break_of(name));
        self.preformatted += usize::from(name == "pre");
    }

    fn close(&mut self, name: &str) {
        if let Some((invisible, depth)) = &mut self.invisible {
            *depth -= usize::from(invisible == name);
            if *depth == 0 {
                self.invisible = None;
            }
            return;
        }
        if name == "title" {
            self.is_in_title = false;
            self.has_title |= !self.title.is_empty();
            return;
        }
        self.text.break_at_least(break_of(name));
        if name == "pre" {
            self.preformatted = self.preformatted.saturating_sub(1);
        }
    }

    fn push(&mut self, text: &str) {
        if self.invisible.is_some() {
            return;
        }
        if self.is_in_title {
            // A page has one title; what else is called so is none.
            if !self.has_title {
                self.title.push_str(text);
            }
        } else if self.preformatted > 0 {
            self.text.push_lines(text);
        } else {
            self.text.push_words(text);
        }
    }
}

fn is_invisible(tag: &Tag) -> bool {
    let name: &str = &tag.name;
    let is_hidden = || {
        tag.attrs
            .iter()
            .any(|attribute| &*attribute.name.local == "hidden")
    };
    if INVISIBLE.contains(&name) {
        // In HTML a `/` in a start tag means nothing, except in drawings and formulas.
        return !(tag.self_closing && matches!(name, "svg" | "math"));
    }
    !OPEN_ENDED.contains(&name) && is_hidden()
}

fn break_of(name: &str) -> Break {
    if BLOCKS.contains(&name) {
        Break::Paragraph
    } else if LINES.contains(&name) {
        Break::Line
    } else if CELLS.contains(&name) {
        Break::Cell
    } else {
        Break::None
    }
}

/// What stands between two pieces of text; the greatest of several counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Break {
    #[default]
    None,
    Space,
    Cell,
    Line,
    Paragraph,
}

/// Text with white space collapsed as a browser does.
#[derive(Default)]
struct TextBuilder {
    out: String,
    pending: Break,
}

impl TextBuilder {
    fn break_at_least(&mut self, wanted: Break) {
        self.pending = self.pending.max(wanted);
    }

    fn push_words(&mut self, text: &str) {
        // Non-breaking spaces are text to HTML; to a reader they are spaces.
        let is_space = |character: char| character.is_ascii_whitespace() || character == '\u{a0}';
        if text.starts_with(is_space) {
            self.break_at_least(Break::Space);
        }
        for word in text.split(is_space).filter(|word| !word.is_empty()) {
            self.push_piece(word);
            self.break_at_least(Break::Space);
        }
        let ends_in_word = !text.is_empty() && !text.ends_with(is_space);
        if ends_in_word && self.pending == Break::Space {
            self.pending = Break::None;
        }
    }

    /// Preformatted text: its spaces and line ends are meant.
    fn push_lines(&mut self, text: &str) {
        for (index, line) in text.split('\n').enumerate() {
            if index > 0 && !self.out.is_empty() && self.pending < Break::Line {
                self.out.push('\n');
            }
            if !line.is_empty() {
                self.push_piece(line);
            }
        }
    }

    fn push_piece_if_any(&mut self, piece: &str) {
        if !piece.is_empty() {
            self.push_piece(piece);
        }
    }

    fn push_piece(&mut self, piece: &str) {
        if !self.out.is_empty() {
            self.out.push_str(match self.pending {
                Break::None => "",
                Break::Space => " ",
                Break::Cell => " | ",
                Break::Line => "\n",
                Break::Paragraph => "\n\n",
            });
        }
        self.pending = Break::None;
        self.out.push_str(piece);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages() {
        for (page, expected) in [
            ("plain text", "plain text"),
            ("", ""),
            (
                "<html><head><title> The\n title </title><style>p{}</style></head><body>\
                 <h1>Head</h1><p>One <b>bo</b>ld\n word.</p><p>Two.<script>x()</script></p></body></html>",
                "The title\n\nHead\n\nOne bold word.\n\nTwo.",
            ),
            ("<ul><li>a<li>b <i>c</i></ul>after", "a\nb c\n\nafter"),
            ("a<br>b<br/>c", "a\nb\nc"),
            (
                "<table><tr><th>k</th><th>v</th></tr><tr><td>1</td><td>2</td></tr></table>",
                "k | v\n1 | 2",
            ),
            (
                "<p>x</p><pre>let a = 1;\n  let b;\n</pre><p>y</p>",
                "x\n\nlet a = 1;\n  let b;\n\n\ny",
            ),
            (
                "<p>fish &amp; chips &eacute;&nbsp;&lt;b&gt;</p>",
                "fish & chips é <b>",
            ),
            (
                "<div hidden>no</div><template>no</template><div>yes</div>",
                "yes",
            ),
            ("<svg><title>drawing</title></svg>text", "text"),
            ("<p>unclosed <b>tags", "unclosed tags"),
            ("<a>a</a><a>b</a> <a>c</a>", "ab c"),
        ] {
            assert_eq!(visible_text(page), expected, "{page}");
        }
    }

    #[test]
    fn deep_nesting_is_no_danger() {
        let depth = 200_000;
        for element in ["b", "div", "svg", "table"] {
            let (open, close) = (format!("<{element}>"), format!("</{element}>"));
            let page = format!("{}x{}y", open.repeat(depth), close.repeat(depth));
            let expected = match element {
                "b" => "xy",
                "svg" => "y",
                _ => "x\n\ny",
            };
            assert_eq!(visible_text(&page), expected);
        }
    }
}
