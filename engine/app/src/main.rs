//! The `vectide` command: what can be said on its command line.

use clap::{Parser, Subcommand, ValueEnum};
use std::path::PathBuf;
use std::process::ExitCode;
use vectide_app::query::Question;
use vectide_app::{evaluate, export, failure::Failure, logging, model, query, run, validate};
use vectide_engine::ExportKind;
use vectide_model::ReadMode;

/// Keeps vector indexes true to their sources.
#[derive(Parser)]
#[command(name = "vectide", version, about)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run a pipeline and answer queries.
    Run {
        /// The configuration.
        config: PathBuf,
        /// Stop when everything that is there now is indexed, and print what was done as JSON.
        #[arg(long)]
        until_caught_up: bool,
    },
    /// Check a configuration; exit status 78 if it has faults.
    Validate {
        /// The configuration.
        config: PathBuf,
    },
    /// Print the JSON Schema of configurations, for editors.
    Schema,
    /// Ask a running pipeline.
    Query {
        #[command(flatten)]
        endpoint: EndpointArguments,
        /// How many hits.
        #[arg(short, default_value_t = 10)]
        k: usize,
        /// Print the answer as JSON.
        #[arg(long)]
        json: bool,
        /// What to search for.
        text: String,
    },
    /// Measure answers against judgements.
    Eval {
        #[command(flatten)]
        endpoint: EndpointArguments,
        /// Queries: `{"id","text"}` a line, plain or .zst.
        #[arg(long)]
        queries: PathBuf,
        /// Judgements: query id, document id, relevance, tab-separated.
        #[arg(long)]
        qrels: PathBuf,
        /// What a hit counts for.
        #[arg(long, value_enum, default_value_t = By::Document)]
        by: By,
    },
    /// Print the committed state of a pipeline that does not run, one JSON object a line.
    Export {
        /// The configuration.
        config: PathBuf,
        /// What to print.
        #[arg(value_enum)]
        what: What,
    },
    /// Models on this machine.
    Model {
        #[command(subcommand)]
        command: ModelCommand,
    },
}

#[derive(Subcommand)]
enum ModelCommand {
    /// Fetch a model's files into the local cache.
    Fetch {
        /// Its name: all-MiniLM-L6-v2.
        name: String,
    },
}

#[derive(clap::Args)]
struct EndpointArguments {
    /// The endpoint.
    #[arg(long, default_value = "http://127.0.0.1:7700")]
    url: String,
    /// The index.
    #[arg(long)]
    index: String,
    /// Key of the endpoint, if it wants one.
    #[arg(long, env = "VECTIDE_API_KEY", hide_env_values = true)]
    api_key: Option<String>,
}

#[derive(Clone, Copy, ValueEnum)]
enum By {
    Document,
}

#[derive(Clone, Copy, ValueEnum)]
enum What {
    Documents,
    Chunks,
    DeadLetters,
}

fn main() -> ExitCode {
    logging::start("info");
    match execute(Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

fn execute(command: Command) -> Result<(), Failure> {
    match command {
        Command::Run {
            config,
            until_caught_up: true,
        } => run::run(&config, ReadMode::UntilCaughtUp),
        Command::Run {
            config,
            until_caught_up: false,
        } => run::run(&config, ReadMode::Follow),
        Command::Validate { config } => validate::validate(&config),
        Command::Schema => validate::print_schema(),
        Command::Query {
            endpoint,
            k,
            json,
            text,
        } => {
            let EndpointArguments {
                url,
                index,
                api_key,
            } = endpoint;
            let question = Question {
                url: &url,
                index: &index,
                text: &text,
                k,
                api_key,
            };
            if json {
                query::print_json(&question)
            } else {
                query::print_text(&question)
            }
        }
        Command::Eval {
            endpoint,
            queries,
            qrels,
            by: By::Document,
        } => {
            let client = query::client(&endpoint.url, endpoint.api_key)?;
            let queries = evaluate::read_queries(&queries)?;
            let judgements = evaluate::read_judgements(&qrels)?;
            let result = evaluate::evaluate(&client, &endpoint.index, &queries, &judgements)?;
            println!("{}", serde_json::to_string(&result)?);
            Ok(())
        }
        Command::Export { config, what } => {
            let kind = match what {
                What::Documents => ExportKind::Documents,
                What::Chunks => ExportKind::Chunks,
                What::DeadLetters => ExportKind::DeadLetters,
            };
            export::export(&config, kind)
        }
        Command::Model {
            command: ModelCommand::Fetch { name },
        } => model::fetch(&name),
    }
}
