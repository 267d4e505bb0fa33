//! What rows of an index are found by besides their vectors: attributes of metadata, terms of text.
//!
//! Invariant: both are pure functions of the document and the plan, so they can be made again from what the
//! state holds of the document, and are the same.

mod analyzer;

pub use analyzer::{Analyzer, Language, WordCache};

use std::sync::Arc;
use vectide_model::{Attributes, RowFields, Terms};

/// What an index keeps of its documents for filters and keyword search.
#[derive(Clone, Debug, Default)]
pub struct FieldPlan {
    /// Fields of the metadata that can be filtered by.
    pub filterable: Vec<Arc<str>>,
    /// Makes terms of texts, where there is keyword search.
    pub analyzer: Option<Analyzer>,
}

impl FieldPlan {
    /// Whether nothing is kept.
    pub fn is_empty(&self) -> bool {
        self.filterable.is_empty() && self.analyzer.is_none()
    }

    /// The attributes of a document.
    pub fn attributes(&self, metadata: &str) -> Attributes {
        Attributes::of(metadata, &self.filterable)
    }

    /// The fields of a chunk, of which the document's attributes are known.
    pub fn of_chunk(&self, attributes: Attributes, text: &str, cache: &mut WordCache) -> RowFields {
        let analyzer = self.analyzer.as_ref();
        let terms = analyzer.map(|it| Terms::count(it.terms(text, cache)));
        RowFields {
            attributes,
            terms: terms.unwrap_or_default(),
        }
    }

    /// What of it decides how a state looks; empty where nothing is kept.
    pub fn fingerprint(&self) -> String {
        let mut fingerprint = String::new();
        if !self.filterable.is_empty() {
            let mut fields: Vec<&str> = self.filterable.iter().map(|it| &**it).collect();
            fields.sort_unstable();
            fingerprint += &format!(", filterable {fields:?}");
        }
        if let Some(analyzer) = &self.analyzer {
            fingerprint += &format!(", keywords {}", analyzer.version());
        }
        fingerprint
    }
}
