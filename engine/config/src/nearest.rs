//! Finds the known name that was probably meant, so that an error can say "did you mean".
//!
//! Invariant: only a name within a third of its length in typing errors is suggested; a wrong
//! suggestion costs more than none.

/// Longer text is no name that someone mistyped, and comparing it costs length squared.
const NAME_CHARACTERS_MAX: usize = 64;

/// Compared with at most this many names, so that one file cannot cost names squared.
const CANDIDATES_MAX: usize = 1000;

/// The nearest of `names` to `given`, if any is near enough. Letter case and the choice between
/// `_`, `-` and nothing count as no difference; ties go to the first.
///
/// ```
/// # use vectide_config::nearest;
/// assert_eq!(nearest("tpye", ["path", "type"]), Some("type"));
/// assert_eq!(nearest("targetTokens", ["target_tokens"]), Some("target_tokens"));
/// assert_eq!(nearest("banana", ["path", "type"]), None);
/// ```
pub fn nearest<'a>(given: &str, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    if given.chars().count() > NAME_CHARACTERS_MAX {
        return None;
    }
    let plain_given = plain(given);
    names
        .into_iter()
        .take(CANDIDATES_MAX)
        .filter(|name| name.chars().count() <= NAME_CHARACTERS_MAX && *name != given)
        .filter_map(|name| {
            let plain_name = plain(name);
            let distance = strsim::damerau_levenshtein(&plain_given, &plain_name);
            let length = plain_name.chars().count().max(plain_given.chars().count());
            let near = distance <= (length / 3).max(1) && distance < length;
            near.then_some((distance, name))
        })
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

fn plain(name: &str) -> String {
    name.chars()
        .filter(|character| !matches!(character, '_' | '-' | ' '))
        .flat_map(char::to_lowercase)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::nearest;

    #[test]
    fn suggests_near_names_only() {
        let names = ["auto", "cpu", "cuda"];
        assert_eq!(nearest("CUDA", names), Some("cuda"));
        assert_eq!(nearest("cud", names), Some("cuda"));
        assert_eq!(nearest("gpu", names), Some("cpu"));
        assert_eq!(nearest("x", names), None);
        assert_eq!(nearest("", names), None);
        assert_eq!(nearest("a", ["b"]), None);
        assert_eq!(nearest(&"a".repeat(10_000), names), None);
    }
}
