//! Rows to documents: text and metadata by templates.
//!
//! Invariant: a document is a pure function of one row and the view's templates, so that a row's
//! old value renders to exactly the document that has to go.

use minijinja::{Environment, UndefinedBehavior, Value};
use std::collections::BTreeMap;
use std::sync::Arc;
use vectide_model::{ComponentError, DeadLetter, DeadLetterReason, Document, Key};

use crate::effect::HeldRow;

/// A compiled document view.
pub struct DocumentView {
    environment: Environment<'static>,
    metadata: Vec<(String, Field)>,
}

/// How a metadata field is made.
enum Field {
    /// A whole expression: keeps its type.
    Expression(String),
    /// A template: text.
    Template(String),
}

const TEXT: &str = "text";

impl DocumentView {
    /// Compiles the templates of a view.
    ///
    /// # Errors
    /// All templates that do not compile, each with its field.
    pub fn compile(
        text: &str,
        metadata: &BTreeMap<String, String>,
    ) -> Result<Self, Vec<ComponentError>> {
        let mut environment = Environment::new();
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        environment.set_formatter(|out, state, value| {
            if value.is_none() {
                Ok(())
            } else {
                minijinja::escape_formatter(out, state, value)
            }
        });
        environment.set_keep_trailing_newline(true);
        // A template may loop over a row; this bounds what one row can cost.
        environment.set_fuel(Some(1_000_000));
        let mut faults = Vec::new();
        let mut add = |field: String, name: String, source: &str| {
            if let Err(error) = environment.add_template_owned(name, source.to_owned()) {
                faults.push(template_fault(field, &error));
            }
        };
        add(TEXT.into(), TEXT.into(), text);
        let mut fields = Vec::new();
        for (name, source) in metadata {
            let field = format!("metadata.{name}");
            match whole_expression(source) {
                Some(expression) => fields.push((name.clone(), Field::Expression(expression))),
                None => {
                    add(field.clone(), field.clone(), source);
                    fields.push((name.clone(), Field::Template(field)));
                }
            }
        }
        for (name, field) in &fields {
            if let Field::Expression(source) = field
                && let Err(error) = environment.compile_expression(source)
            {
                faults.push(template_fault(format!("metadata.{name}"), &error));
            }
        }
        if faults.is_empty() {
            Ok(Self {
                environment,
                metadata: fields,
            })
        } else {
            Err(faults)
        }
    }

    /// Makes the document of a row; its id is the row's key.
    ///
    /// # Errors
    /// A dead letter when the row is not a JSON object or a template can't be rendered from it.
    pub fn render(&self, key: &Key, held: &HeldRow) -> Result<Document, Box<DeadLetter>> {
        self.try_render(key, held).map_err(|detail| {
            Box::new(DeadLetter::new(
                DeadLetterReason::Render,
                held.position.clone(),
                Some(key.clone()),
                detail,
                held.row.as_bytes(),
            ))
        })
    }

    fn try_render(&self, key: &Key, held: &HeldRow) -> Result<Document, String> {
        let row: BTreeMap<String, serde_json::Value> = serde_json::from_str(&held.row)
            .map_err(|error| format!("the row is not a JSON object: {error}"))?;
        let mut context: BTreeMap<String, Value> = row
            .into_iter()
            .map(|(name, value)| (name, Value::from_serialize(value)))
            .collect();
        context.insert("key".into(), Value::from(&**key));
        let context = Value::from(context);
        let render = |name: &str| -> Result<String, minijinja::Error> {
            self.environment.get_template(name)?.render(&context)
        };
        let explain = |field: &str, error: &minijinja::Error| {
            format!("template `{field}` can't be rendered: {error:#}")
        };
        let text = render(TEXT).map_err(|error| explain(TEXT, &error))?;
        let mut metadata = serde_json::Map::new();
        for (name, field) in &self.metadata {
            let value = match field {
                Field::Expression(source) => self
                    .environment
                    .compile_expression(source)
                    .and_then(|expression| expression.eval(&context))
                    .map(|value| serde_json::to_value(value).unwrap_or_default()),
                Field::Template(template) => render(template).map(serde_json::Value::from),
            };
            metadata.insert(name.clone(), value.map_err(|error| explain(name, &error))?);
        }
        Ok(Document {
            id: key.clone(),
            text: text.into(),
            metadata: serde_json::Value::Object(metadata).to_string().into(),
            position: held.position.clone(),
        })
    }
}

/// The expression of a template that is nothing but `{{ expression }}`.
fn whole_expression(source: &str) -> Option<String> {
    let inner = source.trim().strip_prefix("{{")?.strip_suffix("}}")?;
    let is_one = !inner.contains("{{") && !inner.contains("}}") && !inner.contains("{%");
    is_one.then(|| inner.trim_matches('-').trim().to_owned())
}

fn template_fault(field: String, error: &minijinja::Error) -> ComponentError {
    ComponentError::new(
        field,
        format!("the template does not compile: {error}"),
        "templates are Jinja over the row's fields and `key`, e.g. \"{{ title }}\\n{{ body }}\"",
    )
}

/// A document view shared by the operators of a worker.
pub type SharedView = Arc<DocumentView>;

#[cfg(test)]
mod tests {
    use super::*;
    use vectide_model::Position;

    fn view(text: &str, metadata: &[(&str, &str)]) -> DocumentView {
        let metadata = metadata
            .iter()
            .map(|(name, source)| ((*name).into(), (*source).into()))
            .collect();
        DocumentView::compile(text, &metadata).unwrap()
    }

    fn held(row: &str) -> HeldRow {
        let position = Position {
            source: "s".into(),
            partition: "p".into(),
            offset: 3,
        };
        HeldRow {
            row: row.into(),
            position,
        }
    }

    #[test]
    fn fields_and_key_are_rendered_and_metadata_keeps_types() {
        let view = view(
            "# {{ title }}\n{{ body }}",
            &[
                ("path", "{{ key }}"),
                ("stars", "{{ stars }}"),
                ("label", "{{ title }} ({{ stars }})"),
            ],
        );
        let row = held(r#"{"title":"<T>","body":null,"stars":5}"#);
        let document = view.render(&"a/b".into(), &row).unwrap();
        assert_eq!(&*document.text, "# <T>\n");
        assert_eq!(
            &*document.metadata,
            r#"{"label":"<T> (5)","path":"a/b","stars":5}"#
        );
        assert_eq!(document.position.offset, 3);
    }

    #[test]
    fn a_missing_field_is_a_dead_letter_with_the_row() {
        let letter = view("{{ body }}", &[])
            .render(&"k".into(), &held("{}"))
            .unwrap_err();
        assert_eq!(letter.reason, DeadLetterReason::Render);
        assert!(letter.detail.contains("undefined"), "{}", letter.detail);
        assert_eq!(letter.raw, b"{}");
    }

    #[test]
    fn every_bad_template_is_reported() {
        let metadata = BTreeMap::from([
            ("a".to_owned(), "{{ 1 + }}".to_owned()),
            ("b".to_owned(), "x {% if %}".to_owned()),
        ]);
        let faults = DocumentView::compile("{{ open", &metadata).err().unwrap();
        let fields: Vec<&str> = faults.iter().map(|fault| &*fault.field).collect();
        assert_eq!(fields, ["text", "metadata.b", "metadata.a"]);
    }
}
