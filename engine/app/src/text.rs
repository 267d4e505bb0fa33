//! Texts of unknown origin on a terminal: shortened, and without anything that commands it.

/// The text on one line of at most `characters_max` characters: control characters are escaped, and
/// an ellipsis stands for what is left out.
pub fn shortened(text: &str, characters_max: usize) -> String {
    let mut shown = String::new();
    let mut left = characters_max;
    for character in text.chars() {
        let escaped: String = if character.is_control() {
            character.escape_default().collect()
        } else {
            character.into()
        };
        let length = escaped.chars().count();
        if length > left {
            // Room for the ellipsis.
            shown.pop();
            shown.push('…');
            return shown;
        }
        left -= length;
        shown += &escaped;
    }
    shown
}

/// Bytes for a person: as text where they are UTF-8 without control characters other than line ends
/// and tabs, in hex otherwise.
pub fn shown_bytes(bytes: &[u8]) -> String {
    let is_plain = |it: char| !it.is_control() || matches!(it, '\n' | '\r' | '\t');
    match std::str::from_utf8(bytes) {
        Ok(text) if text.chars().all(is_plain) => text.to_owned(),
        _ => bytes.chunks(16).map(hex_line).collect(),
    }
}

fn hex_line(bytes: &[u8]) -> String {
    let mut line: String = bytes.iter().map(|byte| format!("{byte:02x} ")).collect();
    let readable = |byte: &u8| match byte {
        b' '..=b'~' => char::from(*byte),
        _ => '.',
    };
    line = format!("{line:<48}  ");
    line.extend(bytes.iter().map(readable));
    line.push('\n');
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_commands_the_terminal() {
        assert_eq!(shortened("a\nb\u{1b}[2J", 40), "a\\nb\\u{1b}[2J");
        assert_eq!(shortened("abcdef", 6), "abcdef");
        assert_eq!(shortened("abcdefg", 6), "abcde…");
        assert_eq!(
            shown_bytes("{\"a\": \"ü\"}\n".as_bytes()),
            "{\"a\": \"ü\"}\n"
        );
        let hex = shown_bytes(b"\xff\x00ab");
        assert!(
            hex.starts_with("ff 00 61 62") && hex.ends_with("..ab\n"),
            "{hex}"
        );
    }
}
