//! Says a YAML parser's complaint in words that help someone who writes a configuration.
//!
//! Invariant: every complaint becomes one fact; only those whose usual cause is known get a hint.

/// A complaint's fact and hint (which may be empty).
pub(crate) struct Explanation {
    pub(crate) fact: String,
    pub(crate) hint: &'static str,
}

const INDENTATION: &str = "entries of one map or list begin in the same column";

const BRACKETS: &str = "close it, or quote a value with brackets or commas (`\"${NAME}\"`), or \
                        write the map or list in lines of its own";

/// The first entry whose text occurs in the complaint explains it.
const KNOWN: &[(&str, &str, &str)] = &[
    (
        "tab",
        "a tab stands where YAML wants spaces",
        "indent with spaces",
    ),
    (
        "mapping values are not allowed",
        "a `:` stands where no key can be",
        "quote a value that contains `: `, and check the indentation",
    ),
    (
        "simple key expect",
        "a key without `:`, on this line or the one before",
        "write `key: value`, and check the indentation",
    ),
    (
        "unexpected end of stream",
        "a quote is not closed",
        "close it, or quote the value differently",
    ),
    (
        "trailing content after double-quoted",
        "there is more text after the closing quote",
        "quote the whole value, or escape inner quotes",
    ),
    (
        "unknown escape character",
        "unknown escape after `\\` in double quotes",
        "write `\\\\` for a backslash, or use single quotes",
    ),
    (
        "unknown anchor",
        "the alias names an anchor that is not defined before it",
        "define it before, or quote a value that begins with `*`",
    ),
    (
        "plain scalar cannot start",
        "the value begins with a character that has a meaning in YAML",
        "quote the value",
    ),
    (
        "unexpected character",
        "the value begins with a character that has a meaning in YAML",
        "quote the value",
    ),
    (
        "placement of ':'",
        "a `:` stands where no key can be",
        "is a `[`, a `{` or a quote before it not closed?",
    ),
    (
        "expected node content",
        "a value is missing here",
        "is a `[` or a `{` before it not closed?",
    ),
    (
        "misplaced bracket",
        "a closing bracket without the opening one",
        "",
    ),
    (
        "',' or ']'",
        "a list in `[…]` is not continued by `,` or closed by `]`",
        BRACKETS,
    ),
    (
        "',' or '}'",
        "a map in `{…}` is not continued by `,` or closed by `}`",
        BRACKETS,
    ),
    ("recursion limit", "`[` and `{` are nested too deeply", ""),
    (
        "'-' indicator",
        "an entry is expected here, in the same column as the others of its list",
        INDENTATION,
    ),
    (
        "expected key",
        "a key is expected here, in the same column as the others of its map",
        INDENTATION,
    ),
    (
        "indentation",
        "the indentation does not fit the lines before",
        INDENTATION,
    ),
    (
        "indented",
        "the indentation does not fit the lines before",
        INDENTATION,
    ),
    ("unprintable", "a control character", "remove it"),
];

/// Explains a complaint.
pub(crate) fn explain(complaint: &str) -> Explanation {
    for (part, fact, hint) in KNOWN {
        if complaint.contains(part) {
            return Explanation {
                fact: format!("not valid YAML: {fact}"),
                hint,
            };
        }
    }
    Explanation {
        fact: format!("not valid YAML: {complaint}"),
        hint: "",
    }
}
