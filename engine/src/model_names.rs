//! Models are asked for by name (`/v1/models`, `/v1/embeddings`), and a model in a folder is called
//! what the folder is called: two folders may have the same last name.
//!
//! Invariant: in a plan a model's name stands for one model, whose answers do not depend on the index
//! that is asked. Indexes may differ in what changes no answer: the device, the precision where it is
//! known to be near enough.

use vectide_model::{ComponentError, EmbedConfig, ModelIdentity};

/// One index's model, as it was configured and as it was opened.
#[derive(Clone, Copy)]
pub(crate) struct NamedModel<'a> {
    pub(crate) index: &'a str,
    pub(crate) config: &'a EmbedConfig,
    pub(crate) identity: &'a ModelIdentity,
}

impl NamedModel<'_> {
    /// Whether both are one model to whoever asks by name.
    fn is_same(&self, other: &Self) -> bool {
        self.identity.fingerprint == other.identity.fingerprint
            && self.config.query_prefix == other.config.query_prefix
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
    let is_in_folder = model.config.path.is_some() || other.config.path.is_some();
    let hint = if is_in_folder {
        "rename one of the folders, or give it a second name by a link; a model is called by its folder's name"
    } else {
        "give both indexes the same `embed`"
    };
    let field = if model.config.path.is_some() {
        "path"
    } else {
        "model"
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
    use vectide_model::Precision;

    fn identity(name: &str, fingerprint: &str) -> ModelIdentity {
        ModelIdentity {
            name: name.into(),
            fingerprint: fingerprint.into(),
            dimension: 8,
            tokens_max: 8,
            device: "cpu".into(),
        }
    }

    fn in_folder(path: &str) -> EmbedConfig {
        EmbedConfig {
            path: Some(path.into()),
            ..EmbedConfig::named("bert")
        }
    }

    fn check(
        (config, identity): (&EmbedConfig, &ModelIdentity),
        (other_config, other): (&EmbedConfig, &ModelIdentity),
    ) -> Result<(), ComponentError> {
        let model = |index, config, identity| NamedModel {
            index,
            config,
            identity,
        };
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
        let plain = EmbedConfig::named("all-MiniLM-L6-v2");
        let model = identity("all-MiniLM-L6-v2", "1");
        let of = |config: &EmbedConfig| check((config, &model), (&plain, &model));
        let exact = EmbedConfig {
            precision: Precision::F32,
            ..plain.clone()
        };
        assert_eq!(of(&exact), Ok(()));
        let prefixed = EmbedConfig {
            query_prefix: Some("query: ".into()),
            ..plain.clone()
        };
        let error = of(&prefixed).unwrap_err();
        assert_eq!(error.field, "model");
        assert!(error.hint.contains("same `embed`"), "{}", error.hint);
    }
}
