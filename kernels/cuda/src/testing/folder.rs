//! A small model in a folder of files, as `model: bert` opens it.
//!
//! Invariant: the folder's description is that of its weights.

use super::{TinyModel, as_safetensors};
use crate::launches::Pooling;
use crate::shape::BertShape;
use safetensors::Dtype;
use std::path::Path;
use std::sync::Arc;
use vectide_encoder::bert::BertConfig;
use vectide_model::{Accelerator, Device, OpenContext};

/// One layer of width 384 that looks at 64 tokens; tokenizer and pooling are those of a model that the
/// encoder's tests have.
pub(crate) fn bert_folder() -> tempfile::TempDir {
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("../encoder/tests/data/random");
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("1_Pooling")).unwrap();
    let copy = |name: &str, to: &str| {
        std::fs::copy(from.join(name), folder.path().join(to)).unwrap();
    };
    copy("tokenizer.json", "tokenizer.json");
    for name in [
        "modules.json",
        "tokenizer_config.json",
        "1_Pooling/config.json",
    ] {
        copy(&format!("cls-384/{name}"), name);
    }
    let shape = BertShape {
        vocabulary: 233,
        positions: 128,
        pooling: Pooling::First,
        ..TinyModel::shape(1, 12, 32)
    };
    let config = format!(
        r#"{{"model_type": "bert", "vocab_size": {}, "hidden_size": {}, "num_hidden_layers": {},
        "num_attention_heads": {}, "intermediate_size": {}, "max_position_embeddings": {}}}"#,
        shape.vocabulary,
        shape.width(),
        shape.layers,
        shape.heads,
        shape.intermediate,
        shape.positions
    );
    std::fs::write(folder.path().join("config.json"), config).unwrap();
    let weights = as_safetensors(&TinyModel::of(shape), Dtype::F32, "");
    std::fs::write(folder.path().join("model.safetensors"), weights).unwrap();
    folder
}

/// The configuration of the model in a folder.
pub(crate) fn bert_config(folder: &Path, device: Device) -> BertConfig {
    BertConfig {
        device,
        ..BertConfig::in_folder(folder)
    }
}

/// Of a program with that accelerator.
pub(crate) fn context(accelerator: impl Accelerator + 'static) -> OpenContext {
    OpenContext::in_folder("/").with_accelerator(Arc::new(accelerator))
}
