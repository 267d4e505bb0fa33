//! What `vectide embed` is told.

use crate::embed::Job;
use serde::de::DeserializeOwned;
use std::path::PathBuf;
use vectide_model::{Device, EmbedConfig, Lane, Precision};

/// Which texts, by which model, and where the vectors go.
#[derive(Clone, Debug, clap::Args)]
pub struct EmbedArguments {
    /// The model, as `embed.model` of a configuration names it.
    #[arg(long)]
    model: String,
    /// Folder with the model's files.
    #[arg(long)]
    path: Option<PathBuf>,
    /// Where it runs: auto, cpu or cuda.
    #[arg(long, default_value = "auto", value_parser = named::<Device>)]
    device: Device,
    /// The numbers that it computes with: auto, f32 or bf16.
    #[arg(long, default_value = "auto", value_parser = named::<Precision>)]
    precision: Precision,
    /// Dimensions of the vectors, where the model lets one choose.
    #[arg(long)]
    dimensions: Option<usize>,
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

/// By the name that configurations use.
fn named<T: DeserializeOwned>(name: &str) -> Result<T, String> {
    serde_json::from_value(name.into()).map_err(|error| error.to_string())
}

impl EmbedArguments {
    /// What is to be done.
    pub fn job(self) -> Job {
        Job {
            config: EmbedConfig {
                path: self.path,
                device: self.device,
                precision: self.precision,
                dimensions: self.dimensions,
                ..EmbedConfig::named(self.model)
            },
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
