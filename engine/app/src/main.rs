//! The `vectide` command: what can be said on its command line.

use clap::{Parser, Subcommand, ValueEnum};
use std::path::PathBuf;
use vectide_app::bench_embed::{BenchEmbedArguments, bench_embed};
use vectide_app::embed_arguments::EmbedArguments;
use vectide_app::query::Question;
use vectide_app::search_arguments::SearchArguments;
use vectide_app::{
    backup, check, dlq, embed, evaluate, export, failure, failure::Failure, logging, model,
    position, query, rebuild, recall, run, tap, validate,
};
use vectide_engine::{ExportKind, LetterSelection};
use vectide_model::{DeadLetterReason, ReadMode};
use vectide_serve::{GroupBy, QueryRequest};

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
        /// Read this source anew from its beginning: rows that are stated again as they were are
        /// kept as they are, and those that are not stated again are removed once it has caught up.
        /// May be given several times.
        #[arg(long, value_name = "SOURCE")]
        resnapshot: Vec<String>,
    },
    /// Check a configuration; exit status 78 if it has faults.
    Validate {
        /// The configuration.
        config: PathBuf,
        /// Look at the brokers, topics, databases, files, models, folders and ports it needs, too;
        /// exit status 69 if one of them fails.
        #[arg(long)]
        connect: bool,
    },
    /// Compare the whole state of a pipeline, running or not, with the rows it was made from: every
    /// document, text, chunk, vector and file; exit status 1 if something is wrong.
    Check {
        /// The configuration.
        config: PathBuf,
        /// Print what was found as one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Copy the state of a pipeline, running or not, as of its newest epoch.
    Backup {
        /// The configuration.
        config: PathBuf,
        /// The folder to make. On the disk of the state, segments take no room of their own.
        target: PathBuf,
    },
    /// Put a backup where the configuration has its state, and check it.
    Restore {
        /// The configuration.
        config: PathBuf,
        /// The folder that `vectide backup` made.
        backup: PathBuf,
    },
    /// Give back the disk room of what is gone from a state, running or not.
    Compact {
        /// The configuration.
        config: PathBuf,
    },
    /// Say what a changed configuration would make of the rows of an earlier state: documents, chunks, and
    /// what there is to embed.
    Plan {
        /// The changed configuration.
        config: PathBuf,
        /// Folder of the earlier state, or of a backup; without it the configuration's own.
        #[arg(long, value_name = "FOLDER")]
        from: Option<PathBuf>,
        /// Print it as one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Make the state of a changed configuration from the rows of an earlier one, without reading the
    /// sources; what the model has embedded before is not embedded again.
    Rebuild {
        /// The changed configuration, whose state's folder does not exist yet.
        config: PathBuf,
        /// Folder of the earlier state, or of a backup.
        #[arg(long, value_name = "FOLDER")]
        from: PathBuf,
    },
    /// Print the changes of a source as they come, decoded; nothing is kept.
    Tap(TapArguments),
    /// Ask the sources where they end now, and print it as a query's `at_least` takes it.
    Position {
        /// The configuration.
        config: PathBuf,
        /// Only this source.
        source: Option<String>,
    },
    /// Dead letters of a pipeline that does not run.
    Dlq {
        #[command(subcommand)]
        command: DlqCommand,
    },
    /// Print the JSON Schema of configurations, for editors.
    Schema,
    /// Ask a running pipeline.
    Query {
        #[command(flatten)]
        endpoint: EndpointArguments,
        #[command(flatten)]
        question: QueryArguments,
        /// Print the answer as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Measure how many of the true hits an index's searches find: each query is asked twice, once by
    /// looking at every row.
    Recall {
        #[command(flatten)]
        endpoint: EndpointArguments,
        /// Queries: `{"id","text"}` a line, plain or .zst.
        #[arg(long)]
        queries: PathBuf,
        /// Hits of each.
        #[arg(short, default_value_t = 10)]
        k: usize,
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
        #[command(flatten)]
        search: SearchArguments,
    },
    /// Embed the texts of a file, `{"text"}` a line, into a file of vectors that numpy reads.
    Embed(EmbedArguments),
    /// Measure what this machine does.
    Bench {
        #[command(subcommand)]
        command: BenchCommand,
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

#[derive(clap::Args)]
struct TapArguments {
    /// The configuration.
    config: PathBuf,
    /// The source.
    source: String,
    /// Print what is there already, or only what comes from now on.
    #[arg(long, value_enum, default_value_t = From::Start)]
    from: From,
    /// Stop after so many changes and dead letters.
    #[arg(short = 'n', long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// Stop when everything that is there now is printed.
    #[arg(long)]
    until_caught_up: bool,
    /// Print each as one JSON object a line, rows in full.
    #[arg(long)]
    json: bool,
}

#[derive(Subcommand)]
enum DlqCommand {
    /// List dead letters.
    List {
        /// The configuration.
        config: PathBuf,
        #[command(flatten)]
        filter: LetterFilter,
        /// Print each in full as one JSON object a line.
        #[arg(long)]
        json: bool,
    },
    /// Show everything about a dead letter.
    Show {
        /// The configuration.
        config: PathBuf,
        /// Its number.
        id: u64,
    },
    /// Decode dead letters again and index what comes out; prints a summary as JSON.
    Replay {
        /// The configuration.
        config: PathBuf,
        #[command(flatten)]
        filter: LetterFilter,
        /// Numbers of the letters; without any, all that the filters leave.
        ids: Vec<u64>,
    },
}

#[derive(clap::Args)]
struct LetterFilter {
    /// Only letters of this source.
    #[arg(long)]
    source: Option<String>,
    /// Only letters with this reason.
    #[arg(long, value_parser = reason)]
    reason: Option<DeadLetterReason>,
}

impl LetterFilter {
    fn select(self, ids: Vec<u64>) -> LetterSelection {
        LetterSelection {
            ids,
            source: self.source,
            reason: self.reason,
        }
    }
}

fn reason(name: &str) -> Result<DeadLetterReason, String> {
    let mut all = DeadLetterReason::ALL.into_iter();
    all.find(|it| it.as_str() == name).ok_or_else(|| {
        let known = DeadLetterReason::ALL.map(DeadLetterReason::as_str);
        format!("known reasons are {}", known.join(", "))
    })
}

#[derive(Clone, Copy, ValueEnum)]
enum From {
    Start,
    Now,
}

#[derive(Subcommand)]
enum BenchCommand {
    /// How fast texts become vectors, how much of the processor's arithmetic that uses, and on which stages
    /// the time goes.
    Embed(BenchEmbedArguments),
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
struct QueryArguments {
    /// How many hits, or documents with `--by-document`.
    #[arg(short, default_value_t = 10)]
    k: usize,
    /// Group hits by document, at most this many chunks of each.
    #[arg(long, value_name = "CHUNKS")]
    by_document: Option<usize>,
    /// Look at every row, so that the hits are the true ones.
    #[arg(long)]
    exact: bool,
    /// Answer from this epoch, one that an answer came from lately.
    #[arg(long, value_name = "EPOCH")]
    as_of: Option<u64>,
    #[command(flatten)]
    search: SearchArguments,
    /// What to search for.
    text: String,
}

impl QueryArguments {
    fn request(self) -> QueryRequest {
        QueryRequest {
            group_by: self.by_document.map(|_| GroupBy::Document),
            group_size: self.by_document,
            exact: self.exact,
            as_of: self.as_of,
            ..self.search.request(self.text, self.k)
        }
    }
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

fn main() {
    logging::start("info");
    failure::end(execute(Arguments::parse().command))
}

fn mode(until_caught_up: bool) -> ReadMode {
    if until_caught_up {
        ReadMode::UntilCaughtUp
    } else {
        ReadMode::Follow
    }
}

fn tap_source(arguments: &TapArguments) -> Result<(), Failure> {
    let options = tap::TapOptions {
        mode: mode(arguments.until_caught_up),
        skips_present: matches!(arguments.from, From::Now),
        count: arguments.count,
        style: if arguments.json {
            tap::Style::Json
        } else {
            tap::Style::Text
        },
    };
    tap::tap(&arguments.config, &arguments.source, &options)
}

fn dead_letters(command: DlqCommand) -> Result<(), Failure> {
    match command {
        DlqCommand::List {
            config,
            filter,
            json: false,
        } => dlq::list(&config, &filter.select(Vec::new())),
        DlqCommand::List {
            config,
            filter,
            json: true,
        } => dlq::list_json(&config, &filter.select(Vec::new())),
        DlqCommand::Show { config, id } => dlq::show(&config, id),
        DlqCommand::Replay {
            config,
            filter,
            ids,
        } => dlq::replay(&config, filter.select(ids)),
    }
}

fn execute(command: Command) -> Result<(), Failure> {
    match command {
        Command::Run {
            config,
            until_caught_up,
            resnapshot,
        } => run::run(&config, mode(until_caught_up), resnapshot),
        Command::Validate {
            config,
            connect: false,
        } => validate::validate(&config),
        Command::Validate {
            config,
            connect: true,
        } => validate::connect(&config),
        Command::Check { config, json } => check::check(&config, json),
        Command::Backup { config, target } => backup::back_up(&config, &target),
        Command::Restore { config, backup } => backup::restore(&config, &backup),
        Command::Compact { config } => backup::compact(&config),
        Command::Plan { config, from, json } => rebuild::plan(&config, from.as_deref(), json),
        Command::Rebuild { config, from } => rebuild::rebuild(&config, &from),
        Command::Tap(arguments) => tap_source(&arguments),
        Command::Position { config, source } => position::position(&config, source.as_deref()),
        Command::Dlq { command } => dead_letters(command),
        Command::Schema => validate::print_schema(),
        Command::Query {
            endpoint,
            question,
            json,
        } => {
            let question = Question {
                url: &endpoint.url,
                index: &endpoint.index,
                request: question.request(),
                api_key: endpoint.api_key,
            };
            if json {
                query::print_json(&question)
            } else {
                query::print_text(&question)
            }
        }
        Command::Recall {
            endpoint,
            queries,
            k,
        } => {
            let client = query::client(&endpoint.url, endpoint.api_key)?;
            let queries = evaluate::read_queries(&queries)?;
            recall::print(&client, &endpoint.index, &queries, k)
        }
        Command::Eval {
            endpoint,
            queries,
            qrels,
            by: By::Document,
            search,
        } => {
            let client = query::client(&endpoint.url, endpoint.api_key)?;
            let request = |text: &str, k| search.request(text, k);
            evaluate::print(&client, &endpoint.index, (&queries, &qrels), &request)
        }
        Command::Embed(arguments) => embed::embed(&arguments.job()),
        Command::Bench {
            command: BenchCommand::Embed(arguments),
        } => bench_embed(&arguments),
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
