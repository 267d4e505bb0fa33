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
    /// Any other option of the model, as a configuration has it: --option max_tokens=128. A text that looks like
    /// a number or a truth value stands in double quotes: --option 'name="7"'.
    #[arg(long = "option", value_name = "NAME=VALUE", value_parser = option)]
    options: Vec<(String, Value)>,
}

/// A name and what stands behind it: a number, a truth value, a text in double quotes, or else a text as it stands.
fn option(text: &str) -> Result<(String, Value), String> {
    let (name, value) = text.split_once('=').ok_or("write NAME=VALUE")?;
    let read = serde_json::from_str(value).ok();
    let read =
        read.filter(|value: &Value| value.is_number() || value.is_boolean() || value.is_string());
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

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn options_are_numbers_truth_values_or_texts() {
        for (text, value) in [
            ("a=7", json!(7)),
            ("a=true", json!(true)),
            ("a=\"7\"", json!("7")),
            ("a=\"query: \"", json!("query: ")),
            ("a=query: ", json!("query: ")),
            ("a=\"", json!("\"")),
            ("a=[1]", json!("[1]")),
            ("a=b=c", json!("b=c")),
            ("a=", json!("")),
        ] {
            assert_eq!(option(text), Ok(("a".to_owned(), value)), "{text}");
        }
        assert!(option("a").is_err());
    }
}
