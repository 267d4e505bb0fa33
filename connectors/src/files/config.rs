//! The configuration of a directory of documents.

use super::FilesSource;
use super::patterns::FilePatterns;
use super::root::Root;
use super::tree::Tree;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::time::Duration;
use vectide_model::{
    ByteSize, ComponentError, ConnectionCheck, HumanDuration, OpenContext, PositionProbe,
    Redecoder, Source, SourceConfig,
};

/// A directory of documents: its files are the rows, their relative paths the keys.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FilesConfig {
    /// The directory. Where it is or lies behind a link, it is followed to where the link leads now.
    pub path: PathBuf,
    /// Patterns over relative paths with `/`; `*` stays within a folder, `**/` crosses folders.
    #[serde(default = "default_include")]
    pub include: Vec<String>,
    /// Patterns of files and folders to leave out. Hidden ones and editors' temporary files always
    /// are.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exclude: Vec<String>,
    /// A file counts as whole when its size and time of change stayed the same for so long.
    #[serde(default = "default_settle")]
    pub settle: HumanDuration,
    /// A larger file becomes a dead letter.
    #[serde(default = "default_max_file")]
    pub max_file: ByteSize,
    /// Go on watching after the first reading.
    #[serde(default = "default_watch")]
    pub watch: bool,
}

fn default_include() -> Vec<String> {
    ["md", "markdown", "mdx", "txt", "rst", "html", "htm"]
        .map(|ending| format!("**/*.{ending}"))
        .to_vec()
}

fn default_settle() -> HumanDuration {
    HumanDuration::from_milliseconds(200)
}

/// Far above any text document, and small enough to hold with its row.
fn default_max_file() -> ByteSize {
    ByteSize::mebibytes(16)
}

fn default_watch() -> bool {
    true
}

/// A file is held twice while its row is made.
const MAX_FILE_LIMIT: ByteSize = ByteSize::mebibytes(1024);

/// Longer waits make no file more whole, only the index staler.
const SETTLE_LIMIT: Duration = Duration::from_secs(60);

impl SourceConfig for FilesConfig {
    const TYPE: &'static str = "files";

    fn check(&self) -> Vec<ComponentError> {
        let mut errors = Vec::new();
        if self.path.as_os_str().is_empty() {
            errors.push(ComponentError::new(
                "path",
                "the path is empty",
                "name a folder",
            ));
        }
        if self.include.is_empty() {
            errors.push(ComponentError::new(
                "include",
                "no pattern is included, so no file would be read",
                "leave `include` out for Markdown, text, reStructuredText and HTML",
            ));
        }
        for (field, patterns) in [("include", &self.include), ("exclude", &self.exclude)] {
            for (index, pattern) in patterns.iter().enumerate() {
                if let Err(error) = super::patterns::glob(pattern) {
                    errors.push(ComponentError::new(
                        format!("{field}[{index}]"),
                        format!("`{pattern}` is not a pattern: {}", error.kind()),
                        "patterns look like `**/*.md`, `drafts/**` or `*.{txt,rst}`",
                    ));
                }
            }
        }
        if self.settle.as_duration() > SETTLE_LIMIT {
            errors.push(ComponentError::new(
                "settle",
                "the time is longer than 60s",
                "200ms is the default; a second covers slow network folders",
            ));
        }
        if self.max_file.as_bytes() == 0 || self.max_file > MAX_FILE_LIMIT {
            errors.push(ComponentError::new(
                "max_file",
                format!(
                    "{} is not between 1 byte and {MAX_FILE_LIMIT}",
                    self.max_file
                ),
                "16MiB is the default",
            ));
        }
        errors
    }

    fn open(self, context: &OpenContext) -> Result<Box<dyn Source>, ComponentError> {
        if let Some(error) = self.check().into_iter().next() {
            return Err(error);
        }
        let root = self.root(context)?;
        let patterns =
            FilePatterns::new(&self.include, &self.exclude).map_err(|(field, index, fault)| {
                ComponentError::new(format!("{field}[{index}]"), fault, "")
            })?;
        Ok(Box::new(FilesSource {
            tree: Tree::new(root.path().to_owned(), patterns),
            root,
            settle: self.settle.as_duration(),
            file_bytes_max: self.max_file,
            is_watched: self.watch,
        }))
    }

    /// A folder has no order of writes that a position could stand in.
    fn position_probe(&self, _: &OpenContext) -> Box<dyn PositionProbe> {
        Box::new(|| {
            let fact = "a folder has no end that a position could name";
            let hint = "ask a log, Kafka or Postgres";
            Err(ComponentError::new("", fact, hint))
        })
    }

    fn check_connection(&self, _: &str, context: &OpenContext) -> Vec<ConnectionCheck> {
        let root = self.root(context);
        vec![ConnectionCheck {
            what: format!("folder {}", context.config_dir.join(&self.path).display()),
            result: root.map(|_| "can be read".into()),
        }]
    }

    fn redecoder(&self, _: &OpenContext) -> Result<Box<dyn Redecoder>, ComponentError> {
        Err(ComponentError::new(
            "",
            "a file that became a dead letter is not replayed: it is read again when it changes",
            "repair the file",
        ))
    }
}

impl FilesConfig {
    /// Where the path leads.
    fn root(&self, context: &OpenContext) -> Result<Root, ComponentError> {
        let path = context.config_dir.join(&self.path);
        let hint = "name an existing folder; relative paths start at the configuration's folder";
        Root::resolve(path.clone()).map_err(|error| {
            let fact = format!("{} can't be read as a folder: {error}", path.display());
            ComponentError::new("path", fact, hint)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_and_faults() {
        let config: FilesConfig = serde_json::from_str(r#"{"path": "docs"}"#).unwrap();
        assert_eq!(config.check(), []);
        assert!(config.watch && config.settle == HumanDuration::from_milliseconds(200));
        let config: FilesConfig = serde_json::from_value(serde_json::json!({
            "path": "", "include": ["a[", "*.md"], "exclude": ["{"], "settle": "2m", "max_file": "0B"
        }))
        .unwrap();
        let fields: Vec<String> = config
            .check()
            .into_iter()
            .map(|error| error.field)
            .collect();
        assert_eq!(
            fields,
            ["path", "include[0]", "exclude[0]", "settle", "max_file"]
        );
        assert!(serde_json::from_str::<FilesConfig>(r#"{"path": "a", "glob": "b"}"#).is_err());
    }
}
