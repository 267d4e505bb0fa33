//! What `vectide embed` is told, and how any command is told which model embeds.

use crate::embed::Job;
use serde_json::{Map, Value};
use std::path::PathBuf;
use vectide_model::Lane;

/// Which texts, by which model, and where the vectors go.
#[derive(Clone, Debug, clap::Args)]
pub struct EmbedArguments {
    /// The model, as `embed.model` of a configuration names it.
    #[arg(long)]
    model: String,
    #[command(flatten)]
    options: ModelOptions,
    /// The texts are queries, not passages: some models put another prefix before them.
    #[arg(long)]
    queries: bool,
    /// A JSON object with `text` a line, plain or .zst.
    #[arg(long)]
    input: PathBuf,
    /// The file of vectors: `.npy`, 32-bit floats, a row for each line.
    #[arg(long)]
    output: PathBuf,
}

/// How a model runs.
#[derive(Clone, Debug, clap::Args)]
pub struct ModelOptions {
    /// Folder with the model's files.
    #[arg(long)]
    path: Option<PathBuf>,
    /// Where it runs: auto, cpu or cuda.
    #[arg(long)]
    device: Option<String>,
    /// The numbers that it computes with: auto, f32 or bf16.
    #[arg(long)]
    precision: Option<String>,
    /// Dimensions of the vectors, where the model lets one choose.
    #[arg(long)]
    dimensions: Option<usize>,
    /// Any other option of the model, as a configuration has it: --option max_tokens=128.
    #[arg(long = "option", value_name = "NAME=VALUE", value_parser = option)]
    options: Vec<(String, Value)>,
}

/// A name and what stands behind it: a number, a truth value or else a text.
fn option(text: &str) -> Result<(String, Value), String> {
    let (name, value) = text.split_once('=').ok_or("write NAME=VALUE")?;
    let read = serde_json::from_str(value).ok();
    let read = read.filter(|value: &Value| value.is_number() || value.is_boolean());
    Ok((name.to_owned(), read.unwrap_or_else(|| value.into())))
}

impl ModelOptions {
    /// What `embed` of a configuration would say beside the model's name.
    pub fn as_configured(self) -> Value {
        let options = [
            ("path", self.path.map(|path| path.to_string_lossy().into())),
            ("device", self.device.map(Value::from)),
            ("precision", self.precision.map(Value::from)),
            ("dimensions", self.dimensions.map(Value::from)),
        ];
        // What was not said is not there: models that have no such option refuse it.
        let options = options
            .into_iter()
            .filter_map(|(name, value)| Some((name.to_owned(), value?)))
            .chain(self.options);
        Value::Object(options.collect::<Map<_, _>>())
    }
}

impl EmbedArguments {
    /// What is to be done.
    pub fn job(self) -> Job {
        Job {
            model: self.model,
            options: self.options.as_configured(),
            input: self.input,
            output: self.output,
            lane: if self.queries {
                Lane::Query
            } else {
                Lane::Bulk
            },
        }
    }
}
