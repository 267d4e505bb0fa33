//! Models are asked for by name (`/v1/models`, `/v1/embeddings`), and a model in a folder is called
//! what the folder is called: two folders may have the same last name.
//!
//! Invariant: in a plan a model's name stands for one model, whose answers do not depend on the index
//! that is asked. Indexes may differ in what changes no answer: the device, the precision where it is
//! known to be near enough.

use crate::registry::AnyEmbedderConfig;
use vectide_model::{ComponentError, ModelIdentity};

/// One index's model, as it was configured and as it was opened.
#[derive(Clone, Copy)]
pub(crate) struct NamedModel<'a> {
    pub(crate) index: &'a str,
    pub(crate) config: &'a dyn AnyEmbedderConfig,
    pub(crate) identity: &'a ModelIdentity,
}

impl NamedModel<'_> {
    /// Whether both are one model to whoever asks by name.
    fn is_same(&self, other: &Self) -> bool {
        self.identity.fingerprint == other.identity.fingerprint
            && self.config.query_prefix() == other.config.query_prefix()
    }
}

/// Refuses a model whose name stands for another one already.
///
/// # Errors
/// When one of `known` has its name but other files or options.
pub(crate) fn check_model_name<'a>(
    model: NamedModel<'_>,
    mut known: impl Iterator<Item = NamedModel<'a>>,
) -> Result<(), ComponentError> {
    let name = &model.identity.name;
    let Some(other) = known.find(|it| it.identity.name == *name && !it.is_same(&model)) else {
        return Ok(());
    };
    let field = model.config.name_field();
    let is_in_folder = [field, other.config.name_field()].contains(&"path");
    let hint = if is_in_folder {
        "rename one of the folders, or give it a second name by a link; a model is called by its folder's name"
    } else {
        "give both indexes the same `embed`"
    };
    let fact = format!(
        "index `{}` has a model `{name}` with other files or options",
        other.index
    );
    Err(ComponentError::new(field, fact, hint))
}

#[cfg(test)]
mod tests {
    use super::*;
    use schemars::JsonSchema;
    use serde::Deserialize;
    use std::sync::Arc;
    use vectide_model::{Embedder, EmbedderConfig, OpenContext};

    /// As much of a model's configuration as its name follows.
    #[derive(Clone, Default, PartialEq, Deserialize, JsonSchema)]
    struct Options {
        path: Option<String>,
        query_prefix: Option<String>,
        threads: usize,
    }

    impl EmbedderConfig for Options {
        const MODEL: &'static str = "some";

        fn check(&self) -> Vec<ComponentError> {
            Vec::new()
        }
        fn open(&self, _: &OpenContext) -> Result<Arc<dyn Embedder>, ComponentError> {
            Err(ComponentError::new("", "it is a configuration only", ""))
        }
        fn locate(&self, _: &OpenContext) -> Result<String, ComponentError> {
            Ok("nowhere".into())
        }
        fn query_prefix(&self) -> Option<&str> {
            self.query_prefix.as_deref()
        }
        fn name_field(&self) -> &'static str {
            match self.path {
                Some(_) => "path",
                None => "model",
            }
        }
    }

    fn identity(name: &str, fingerprint: &str) -> ModelIdentity {
        ModelIdentity {
            name: name.into(),
            fingerprint: fingerprint.into(),
            dimension: 8,
            tokens_max: 8,
            device: "cpu".into(),
        }
    }

    fn in_folder(path: &str) -> Options {
        Options {
            path: Some(path.into()),
            ..Options::default()
        }
    }

    fn check(
        (config, identity): (&Options, &ModelIdentity),
        (other_config, other): (&Options, &ModelIdentity),
    ) -> Result<(), ComponentError> {
        fn model<'a>(
            index: &'a str,
            config: &'a Options,
            identity: &'a ModelIdentity,
        ) -> NamedModel<'a> {
            NamedModel {
                index,
                config,
                identity,
            }
        }
        let known = [model("first", other_config, other)];
        check_model_name(model("second", config, identity), known.into_iter())
    }

    #[test]
    fn two_folders_of_one_name_are_refused() {
        let (a, b) = (in_folder("a/bge"), in_folder("b/bge"));
        let first = identity("bge", "1");
        let error = check((&b, &identity("bge", "2")), (&a, &first)).unwrap_err();
        assert_eq!(error.field, "path");
        assert!(error.fact.contains("`first`") && error.fact.contains("`bge`"));
        assert!(error.hint.contains("rename"), "{}", error.hint);
        // The same files, and other names.
        assert_eq!(check((&b, &first), (&a, &first)), Ok(()));
        assert_eq!(check((&b, &identity("e5", "2")), (&a, &first)), Ok(()));
    }

    #[test]
    fn options_that_change_answers_count_and_others_do_not() {
        let plain = Options::default();
        let model = identity("all-MiniLM-L6-v2", "1");
        let of = |config: &Options| check((config, &model), (&plain, &model));
        let other = Options {
            threads: 7,
            ..plain.clone()
        };
        assert_eq!(of(&other), Ok(()));
        let prefixed = Options {
            query_prefix: Some("query: ".into()),
            ..plain.clone()
        };
        let error = of(&prefixed).unwrap_err();
        assert_eq!(error.field, "model");
        assert!(error.hint.contains("same `embed`"), "{}", error.hint);
    }

    #[test]
    fn equal_configurations_of_one_model_are_the_same() {
        let (a, b): (&dyn AnyEmbedderConfig, &dyn AnyEmbedderConfig) =
            (&in_folder("a"), &in_folder("b"));
        assert!(a.is_same(&in_folder("a")) && !a.is_same(b));
    }
}
