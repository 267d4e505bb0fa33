//! Which files of a directory are documents.
//!
//! Invariant: hidden files and what editors and downloads leave lying about while they work are
//! never documents, whatever the patterns say.

use globset::{Glob, GlobBuilder, GlobSet, GlobSetBuilder};

/// Endings of files that are being written, or kept aside, by editors, browsers and copy programs.
const UNFINISHED_SUFFIXES: [&str; 11] = [
    "~",
    ".tmp",
    ".temp",
    ".swp",
    ".swo",
    ".swx",
    ".part",
    ".partial",
    ".crdownload",
    ".bak",
    ".orig",
];

/// vim probes with this name whether it may write to a folder.
const VIM_PROBE: &str = "4913";

/// Include and exclude patterns over paths relative to the directory, with `/`.
#[derive(Clone, Debug)]
pub(crate) struct FilePatterns {
    include: GlobSet,
    exclude: GlobSet,
}

impl FilePatterns {
    /// Builds the patterns.
    ///
    /// # Errors
    /// The field, index and fault of the first pattern that is none.
    pub(crate) fn new(
        include: &[String],
        exclude: &[String],
    ) -> Result<Self, (&'static str, usize, String)> {
        Ok(Self {
            include: glob_set("include", include)?,
            exclude: glob_set("exclude", exclude)?,
        })
    }

    /// Whether a file is a document.
    pub(crate) fn accept_file(&self, relative: &str) -> bool {
        !relative.split('/').any(is_left_aside)
            && self.include.is_match(relative)
            && !self.exclude.is_match(relative)
    }

    /// Whether a folder can hold documents.
    pub(crate) fn accept_directory(&self, relative: &str) -> bool {
        !relative.split('/').any(is_hidden) && !self.exclude.is_match(relative)
    }
}

/// One pattern; `*` does not cross a `/`.
pub(crate) fn glob(pattern: &str) -> Result<Glob, globset::Error> {
    GlobBuilder::new(pattern).literal_separator(true).build()
}

fn glob_set(
    field: &'static str,
    patterns: &[String],
) -> Result<GlobSet, (&'static str, usize, String)> {
    let mut set = GlobSetBuilder::new();
    for (index, pattern) in patterns.iter().enumerate() {
        let glob = glob(pattern).map_err(|error| (field, index, error.kind().to_string()))?;
        set.add(glob);
    }
    set.build().map_err(|error| (field, 0, error.to_string()))
}

fn is_hidden(name: &str) -> bool {
    name.starts_with('.')
}

fn is_left_aside(name: &str) -> bool {
    is_hidden(name)
        || name == VIM_PROBE
        || (name.starts_with('#') && name.ends_with('#'))
        || UNFINISHED_SUFFIXES
            .iter()
            .any(|suffix| name.ends_with(suffix))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_choose_files() {
        let include = [
            "**/*.md".to_owned(),
            "**/*.{txt,rst}".to_owned(),
            "4913".to_owned(),
        ];
        let exclude = ["drafts/**".to_owned(), "**/SECRET.*".to_owned()];
        let patterns = FilePatterns::new(&include, &exclude).unwrap();
        for path in [
            "a.md",
            "b/c/d.md",
            "b/notes.txt",
            "with space.rst",
            "ß/日本.md",
        ] {
            assert!(patterns.accept_file(path), "{path}");
        }
        for path in [
            "a.png",
            "drafts/a.md",
            "drafts/b/a.md",
            "b/SECRET.md",
            ".git/a.md",
            "b/.hidden.md",
            "a.md~",
            "a.md.swp",
            "a.md.tmp",
            "4913",
            "#a.md#",
            "a.md.part",
        ] {
            assert!(!patterns.accept_file(path), "{path}");
        }
        assert!(patterns.accept_directory("b/c"));
        assert!(!patterns.accept_directory("b/.git"));
        let (field, index, _) = FilePatterns::new(&include, &["[".to_owned()]).unwrap_err();
        assert_eq!((field, index), ("exclude", 0));
    }
}
