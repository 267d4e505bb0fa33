//! The schema of a whole configuration: a root, and tables of components for the places where a
//! `type:` or another tag chooses.
//!
//! Invariant: a `ConfigSchema` that exists can be checked against and composed without further
//! errors; every mistake of its maker is a [`SchemaError`] when it is built.

mod check;
mod compose;
mod describe;
mod hints;
mod map;
mod scalar;
mod source;
mod tagged;
mod union;

pub use compose::SchemaHead;
pub use source::SchemaError;
pub use tagged::TagTable;

use crate::path::{Path, Pattern};
pub(crate) use check::{Checker, Findings};
pub(crate) use describe::list_names;
use schemars::Schema;
use source::SchemaSource;

/// What a configuration must look like.
#[derive(Clone, Debug)]
pub struct ConfigSchema {
    root: SchemaSource,
    tables: Vec<(Pattern, TagTable)>,
}

impl ConfigSchema {
    /// From the schema of the root's type, as `schemars::schema_for!` makes it.
    ///
    /// # Errors
    /// When the schema uses what can't be checked.
    pub fn new(root: Schema) -> Result<Self, SchemaError> {
        Ok(Self {
            root: SchemaSource::new(root.to_value())?,
            tables: Vec::new(),
        })
    }

    /// At `place` (`sources.*`, `indexes.*.chunk`) the tag chooses a component of `table`, whose
    /// schema then takes the place of what the root says there.
    ///
    /// # Errors
    /// When the root's schema has no such place, or there is a table for it already.
    pub fn tagged(mut self, place: &str, table: TagTable) -> Result<Self, SchemaError> {
        let pattern = Pattern::parse(place);
        let is_taken = self
            .tables
            .iter()
            .any(|(other, kept)| *other == pattern || (kept.what == table.what));
        if is_taken {
            return Err(SchemaError::Twice(place.to_owned()));
        }
        let mut root = self.root.root.clone();
        if compose::place_in(&mut root, &pattern).is_none() {
            return Err(SchemaError::UnknownPlace(place.to_owned()));
        }
        self.tables.push((pattern, table));
        Ok(self)
    }

    fn table_at(&self, path: &Path) -> Option<&TagTable> {
        let found = self
            .tables
            .iter()
            .find(|(pattern, _)| pattern.matches(path));
        found.map(|(_, table)| table)
    }
}
