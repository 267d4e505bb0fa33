//! Expands `${VAR}`, `${VAR:-default}`, `${VAR:?message}` and `$$` in the text of one value.
//!
//! Expansion happens after YAML is parsed, so that a variable's text can never add keys or
//! structure. Invariants: the text of a variable is not expanded again; the result is bounded;
//! a `$` that is followed by neither `$` nor `{` stands for itself.

/// `${A:-${B:-${C}}}` is deep enough; the bound keeps recursion from a hostile file shallow.
const DEFAULTS_DEPTH_MAX: usize = 8;

/// As large as the file itself may be: nothing in a configuration needs more.
const EXPANDED_BYTES_MAX: usize = 1024 * 1024;

/// Where the text of a variable comes from: `None` means not set.
pub type Lookup<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Looks a variable up in the environment of the process. One that is not UTF-8 counts as not
/// set.
#[must_use]
pub fn process_environment(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// A value after expansion.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Expanded {
    pub(crate) text: String,
    /// The variables that were named, in order: none for a text with `$$` alone.
    pub(crate) variables: Vec<String>,
    /// Whether one `${…}` is the whole value: then it is typed as if it stood in the file.
    pub(crate) is_whole: bool,
}

/// What is wrong with one expression.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ExpandError {
    pub(crate) fact: String,
    pub(crate) hint: String,
}

impl ExpandError {
    fn new(fact: impl Into<String>, hint: impl Into<String>) -> Self {
        Self {
            fact: fact.into(),
            hint: hint.into(),
        }
    }
}

/// Expands all expressions of `text`; the errors are all there are.
pub(crate) fn expand(text: &str, lookup: Lookup<'_>) -> Result<Expanded, Vec<ExpandError>> {
    let mut scanner = Scanner {
        rest: text,
        lookup,
        errors: Vec::new(),
        variables: Vec::new(),
        given_up: false,
    };
    let expanded = scanner.text(0, false);
    let is_whole = !scanner.variables.is_empty() && is_one_expression(text);
    if expanded.len() > EXPANDED_BYTES_MAX {
        scanner.errors.push(ExpandError::new(
            "the value is longer than 1 MiB once its variables are expanded",
            "",
        ));
    }
    if !scanner.errors.is_empty() {
        return Err(scanner.errors);
    }
    Ok(Expanded {
        text: expanded,
        variables: scanner.variables,
        is_whole,
    })
}

/// Whether `text`, which is known to be well formed, is one `${…}` and nothing else.
fn is_one_expression(text: &str) -> bool {
    let bytes = text.as_bytes();
    if !text.starts_with("${") {
        return false;
    }
    let mut depth = 0_usize;
    let mut place = 0;
    while place < bytes.len() {
        match (bytes[place], bytes.get(place + 1)) {
            (b'$', Some(b'$')) => place += 1,
            (b'$', Some(b'{')) => {
                depth += 1;
                place += 1;
            }
            (b'}', _) => {
                depth = depth.saturating_sub(1);
                if depth == 0 {
                    return place + 1 == bytes.len();
                }
            }
            _ => {}
        }
        place += 1;
    }
    false
}

struct Scanner<'a> {
    rest: &'a str,
    lookup: Lookup<'a>,
    errors: Vec<ExpandError>,
    variables: Vec<String>,
    /// After a malformed expression nothing more is read.
    given_up: bool,
}

impl Scanner<'_> {
    /// Reads text up to its end, or inside an expression up to the `}` that closes it (which is
    /// left unread).
    fn text(&mut self, depth: usize, in_expression: bool) -> String {
        let mut expanded = String::new();
        while let Some(next) = self
            .rest
            .find(|character| character == '$' || (in_expression && character == '}'))
        {
            expanded.push_str(&self.rest[..next]);
            self.rest = &self.rest[next..];
            if self.rest.starts_with('}') {
                return expanded;
            }
            if let Some(after) = self.rest.strip_prefix("$$") {
                expanded.push('$');
                self.rest = after;
            } else if let Some(after) = self.rest.strip_prefix("${") {
                self.rest = after;
                expanded.push_str(&self.expression(depth));
            } else {
                expanded.push('$');
                self.rest = &self.rest[1..];
            }
            if expanded.len() > EXPANDED_BYTES_MAX {
                self.rest = "";
                return expanded;
            }
        }
        expanded.push_str(std::mem::take(&mut self.rest));
        expanded
    }

    /// Reads what follows `${`, the closing brace included.
    fn expression(&mut self, depth: usize) -> String {
        let length = self
            .rest
            .find(|character: char| !(character.is_ascii_alphanumeric() || character == '_'))
            .unwrap_or(self.rest.len());
        let (name, after) = self.rest.split_at(length);
        if name.is_empty() || name.starts_with(|first: char| first.is_ascii_digit()) {
            return self.malformed("`${` is not followed by the name of a variable");
        }
        self.rest = after;
        self.variables.push(name.to_owned());
        if depth >= DEFAULTS_DEPTH_MAX {
            return self.malformed("the defaults are nested too deeply (at most 8)");
        }
        let set = (self.lookup)(name).filter(|text| !text.is_empty());
        if let Some(after) = self.rest.strip_prefix('}') {
            self.rest = after;
            return self.plain(name);
        }
        if let Some(after) = self.rest.strip_prefix(":-") {
            self.rest = after;
            return self.with_default(set, depth);
        }
        if let Some(after) = self.rest.strip_prefix(":?") {
            self.rest = after;
            return self.with_message(name, set);
        }
        self.malformed(&format!(
            "the expression that begins `${{{name}` is not understood"
        ))
    }

    /// `${NAME}`: set but empty is an empty text.
    fn plain(&mut self, name: &str) -> String {
        (self.lookup)(name).unwrap_or_else(|| {
            self.errors.push(ExpandError::new(
                format!("the environment variable `{name}` is not set"),
                format!("set it, or give a default: `${{{name}:-…}}`"),
            ));
            String::new()
        })
    }

    /// `${NAME:-default}`, for what is not set or empty.
    fn with_default(&mut self, set: Option<String>, depth: usize) -> String {
        let errors_before = self.errors.len();
        let default = self.text(depth + 1, true);
        if !self.close() {
            return String::new();
        }
        match set {
            Some(text) => {
                // A default that is not needed may name variables that are not set.
                self.errors.truncate(errors_before);
                text
            }
            None => default,
        }
    }

    /// `${NAME:?message}`: an error with the message for what is not set or empty.
    fn with_message(&mut self, name: &str, set: Option<String>) -> String {
        let end = self.rest.find('}').unwrap_or(self.rest.len());
        let (message, after) = self.rest.split_at(end);
        self.rest = after;
        if !self.close() {
            return String::new();
        }
        set.unwrap_or_else(|| {
            let message = crate::node::shortened(message.trim());
            self.errors.push(ExpandError::new(
                format!("the environment variable `{name}` is not set"),
                message,
            ));
            String::new()
        })
    }

    fn close(&mut self) -> bool {
        if let Some(after) = self.rest.strip_prefix('}') {
            self.rest = after;
            return true;
        }
        if !self.given_up {
            self.malformed("`${` is not closed by `}`");
        }
        false
    }

    /// Gives the rest of the value up: what follows a malformed expression can't be told apart.
    fn malformed(&mut self, fact: &str) -> String {
        self.rest = "";
        self.given_up = true;
        self.errors.push(ExpandError::new(
            fact,
            "write `${NAME}`, `${NAME:-default}` or `${NAME:?message}`; a plain dollar sign \
             before a brace is `$$`",
        ));
        String::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lookup(name: &str) -> Option<String> {
        match name {
            "A" => Some("alpha".to_owned()),
            "EMPTY" => Some(String::new()),
            "TRICK" => Some("${A}$$".to_owned()),
            _ => None,
        }
    }

    fn check(text: &str, expected: &str, is_whole: bool) {
        let expanded = expand(text, &lookup).unwrap();
        assert_eq!(expanded.text, expected, "{text}");
        assert_eq!(expanded.is_whole, is_whole, "{text}");
    }

    fn facts(text: &str) -> Vec<String> {
        let errors = expand(text, &lookup).unwrap_err();
        errors.into_iter().map(|error| error.fact).collect()
    }

    #[test]
    fn expands_every_form() {
        check("plain", "plain", false);
        check("${A}", "alpha", true);
        check("x${A}y${A}", "xalphayalpha", false);
        check("${A}${A}", "alphaalpha", false);
        check("${NONE:-7}", "7", true);
        check("${EMPTY:-7}", "7", true);
        check("${EMPTY}", "", true);
        check("${NONE:-}", "", true);
        check("${A:-7}", "alpha", true);
        check("${A:?wanted}", "alpha", true);
        check("${NONE:-${ALSO:-${A}}!}", "alpha!", true);
        check("${NONE:-a$$b}", "a$b", true);
        check("${A:-${NONE}}", "alpha", true);
        check("$${A}", "${A}", false);
        check("$$", "$", false);
        check("^a$ and $5", "^a$ and $5", false);
        check("{{ content }}", "{{ content }}", false);
        check("${NONE:-é}ü", "éü", false);
    }

    #[test]
    fn never_expands_the_text_of_a_variable() {
        check("${TRICK}", "${A}$$", true);
    }

    #[test]
    fn reports_every_error_of_a_value() {
        assert_eq!(
            facts("${ONE} ${TWO:?give a second one}"),
            [
                "the environment variable `ONE` is not set",
                "the environment variable `TWO` is not set"
            ]
        );
        assert_eq!(
            expand("${TWO:?say so}", &lookup).unwrap_err()[0].hint,
            "say so"
        );
        assert_eq!(
            facts("${"),
            ["`${` is not followed by the name of a variable"]
        );
        assert_eq!(
            facts("${1A}"),
            ["`${` is not followed by the name of a variable"]
        );
        assert_eq!(
            facts("${A"),
            ["the expression that begins `${A` is not understood"]
        );
        assert_eq!(
            facts("${A:=x}"),
            ["the expression that begins `${A` is not understood"]
        );
        assert_eq!(facts("${A:-x"), ["`${` is not closed by `}`"]);
        let deep = format!("{}{}", "${N:-".repeat(100_000), "}".repeat(100_000));
        assert_eq!(
            facts(&deep)[0],
            "the defaults are nested too deeply (at most 8)"
        );
    }

    #[test]
    fn is_bounded() {
        let large = |_: &str| Some("x".repeat(100_000));
        assert!(expand(&"${A}".repeat(100), &large).is_err());
    }
}
