//! The configuration of a pipeline: its sections, and every fault in it at once.
//!
//! Parsing, checking and opening are three steps: [`LoadedConfig::load`] does the first two and
//! touches nothing but the file; [`LoadedConfig::open`] opens models and makes a [`Plan`].
//!
//! Invariant: a configuration that loads has no fault that could have been seen without touching the
//! outside world.

use crate::budget::CommitConfig;
use crate::dead_letters_section::{LoadedDeadLetters, describe};
use crate::index_config::{IndexConfig, check_filterable, check_quantization};
use crate::model_names::{NamedModel, check_model_name};
use crate::plan::{Plan, PlannedDeadLetters, PlannedDocuments, PlannedIndex, PlannedSource};
use crate::registry::{AnyChunkerConfig, AnyEmbedderConfig, AnySourceConfig, Registry};
use crate::replay::Redecoders;
use crate::room::RoomLimits;
use schemars::{JsonSchema, schema_for};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::num::NonZeroU16;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use vectide_config::{ConfigSchema, Document, Name, Report, TagTable};
use vectide_model::{
    ByteSize, ComponentError, Embedder, HumanDuration, OpenContext, PositionProbe, Source,
    SourceError, SourceSink, SourceStart,
};
use vectide_operators::{DocumentView, PlanIndex};
use vectide_serve::ServerConfig;

/// The version of the configuration's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ApiVersion {
    /// The first.
    #[serde(rename = "vectide/v1")]
    V1,
}

/// A pipeline: sources of changes, the documents made of them, and the indexes over those.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PipelineConfig {
    /// Version of the configuration's names: `vectide/v1`.
    #[serde(rename = "apiVersion")]
    pub api_version: ApiVersion,
    /// Where the state is kept.
    pub state: StateConfig,
    /// Where changes come from, by name.
    #[schemars(extend("minProperties" = 1))]
    pub sources: BTreeMap<Name, Value>,
    /// How rows become documents, by name.
    #[schemars(extend("minProperties" = 1))]
    pub documents: BTreeMap<Name, DocumentsConfig>,
    /// What is searched, by name.
    #[schemars(extend("minProperties" = 1))]
    pub indexes: BTreeMap<Name, IndexConfig>,
    /// What becomes of dead letters (records, rows and texts that can't be used): how many the state
    /// keeps, and with `dir` or `topic` where each is written besides.
    #[serde(default)]
    pub dead_letters: Option<Value>,
    /// When changes become durable and visible.
    #[serde(default)]
    pub commit: CommitConfig,
    /// The query endpoint.
    #[serde(default)]
    pub server: ServerConfig,
    /// Threads of the dataflow; without it the machine's cores less one, at least one.
    #[serde(default)]
    pub workers: Option<NonZeroU16>,
}

/// The `state:` section.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StateConfig {
    /// Folder of the state, relative to the configuration's folder. It belongs to this pipeline
    /// alone.
    pub dir: PathBuf,
    /// Bytes that the folder may take up; without it the disk is the limit. Beyond it no more changes
    /// are taken, and queries go on; so too below `min_free`.
    #[serde(default)]
    pub max_bytes: Option<ByteSize>,
    /// Bytes of the disk that stay free.
    #[serde(default = "default_min_free")]
    pub min_free: ByteSize,
    /// How long an epoch that an answer came from can be asked again (`as_of`), at most 1,000 of them.
    #[serde(default = "default_history")]
    pub history: HumanDuration,
}

/// Time to turn pages in.
fn default_history() -> HumanDuration {
    HumanDuration::from_seconds(60)
}

fn default_min_free() -> ByteSize {
    RoomLimits::default().min_free
}

/// An entry of `documents:`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DocumentsConfig {
    /// The source whose rows become documents, one each; the row's key is the document's id.
    pub from: Name,
    /// The text, a Jinja template over the row's fields and `key`.
    pub text: String,
    /// Metadata by name, each a template; one that is a single expression keeps its type.
    #[serde(default)]
    pub metadata: BTreeMap<String, String>,
}

/// A configuration without faults.
pub struct LoadedConfig {
    pub(crate) config: PipelineConfig,
    document: Document,
    pub(crate) context: OpenContext,
    pub(crate) sources: Vec<(Name, String, Box<dyn AnySourceConfig>)>,
    pub(crate) dead_letters: LoadedDeadLetters,
    views: Vec<(Name, Arc<DocumentView>)>,
    chunkers: Vec<(Name, Box<dyn AnyChunkerConfig>)>,
    pub(crate) embedders: Vec<(Name, Box<dyn AnyEmbedderConfig>)>,
}

/// The schema that configurations are checked against.
fn config_schema(registry: &Registry) -> Result<ConfigSchema, vectide_config::SchemaError> {
    let schema = |value: Value| schemars::Schema::try_from(value).unwrap_or_default();
    let mut sources = TagTable::new("source");
    for source in &registry.sources {
        sources = sources.with(source.name, schema((source.schema)()))?;
    }
    let mut chunkers = TagTable::new("chunker");
    for chunker in &registry.chunkers {
        chunkers = chunkers.with(chunker.name, schema((chunker.schema)()))?;
    }
    let mut embedders = TagTable::new("embedding").keyed_by("model");
    for embedder in &registry.embedders {
        embedders = embedders.with(embedder.name, schema((embedder.schema)()))?;
    }
    let mut root = schema_for!(PipelineConfig).to_value();
    describe(&mut root, registry);
    ConfigSchema::new(schema(root))?
        .tagged("sources.*", sources)?
        .tagged("indexes.*.chunk", chunkers)?
        .tagged("indexes.*.embed", embedders)
}

/// The JSON Schema of configurations, for editors.
///
/// # Errors
/// When a component's schema is not one.
pub fn editor_schema(registry: &Registry) -> Result<Value, vectide_config::SchemaError> {
    let head = vectide_config::SchemaHead {
        id: "urn:vectide:schema:v1",
        title: "Vectide pipeline",
        description: "A pipeline from changing sources to vector indexes that follow them",
    };
    Ok(config_schema(registry)?.compose(&head))
}

/// What tells where each source ends, by its name.
pub type NamedProbes = Vec<(String, Box<dyn PositionProbe>)>;

impl LoadedConfig {
    /// Reads and checks a configuration.
    ///
    /// # Errors
    /// A report of everything that is wrong with it.
    pub fn load(
        path: &Path,
        registry: &Registry,
        lookup: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Self, Report> {
        let schema = config_schema(registry).map_err(|error| {
            let mut report = Report::new(path.display().to_string());
            let (at, place) = (
                vectide_config::Path::root(),
                vectide_config::Position::START,
            );
            report.push(vectide_config::Problem::new(at, place, error.to_string()));
            report
        })?;
        let mut document = Document::read(path, lookup)?;
        let mut report = document.check(&schema);
        let mut check = Check {
            document: &document,
            report: &mut report,
            registry,
        };
        check.references();
        let sources = check.sources();
        let views = check.views();
        let chunkers = check.chunkers();
        let embedders = check.embedders();
        check.filterable();
        check.quantizations();
        check.server();
        let dead_letters = LoadedDeadLetters::check(&document, &mut report, registry);
        if !report.is_empty() {
            return Err(report);
        }
        let config = document
            .parse_at(vectide_config::Path::root())
            .map_err(|problem| {
                report.push(problem);
                report
            })?;
        let config_dir = path.parent().map(Path::to_path_buf).unwrap_or_default();
        Ok(Self {
            config,
            document,
            context: registry.context(config_dir),
            sources,
            dead_letters,
            views,
            chunkers,
            embedders,
        })
    }

    /// What was configured.
    pub fn config(&self) -> &PipelineConfig {
        &self.config
    }

    /// Folder of the state.
    pub fn state_directory(&self) -> PathBuf {
        let directory = self.context.config_dir.join(&self.config.state.dir);
        // Without the dots of `./state`: the path is in what people read.
        directory.components().collect()
    }

    /// Makes one source ready to run, and nothing else.
    ///
    /// # Errors
    /// When there is no such source, or it can't be opened.
    pub fn open_source(mut self, name: &str) -> Result<Box<dyn Source>, Report> {
        let Some(at) = self.sources.iter().position(|it| it.0.as_str() == name) else {
            return Err(self.no_source(name));
        };
        let mut report = Report::new(self.document.parse_report().file());
        let (_, _, config) = self.sources.swap_remove(at);
        config.open(&self.context).map_err(|error| {
            let section = format!("sources.{name}");
            push(&self.document, &mut report, &section, &error);
            report
        })
    }

    /// What tells where each source ends now; where a name is given, of that source only.
    ///
    /// # Errors
    /// When there is no such source.
    pub fn position_probes(&self, only: Option<&str>) -> Result<NamedProbes, Report> {
        if let Some(name) = only
            && !self.sources.iter().any(|(it, ..)| it.as_str() == name)
        {
            return Err(self.no_source(name));
        }
        let wanted = |name: &str| only.is_none_or(|only| only == name);
        let sources = self.sources.iter().filter(|(it, ..)| wanted(it.as_str()));
        let probe = |(name, _, config): &(Name, String, Box<dyn AnySourceConfig>)| {
            (name.to_string(), config.position_probe(&self.context))
        };
        Ok(sources.map(probe).collect())
    }

    fn no_source(&self, name: &str) -> Report {
        let mut report = Report::new(self.document.parse_report().file());
        let known: Vec<String> = self.sources.iter().map(|it| it.0.to_string()).collect();
        let fact = format!("there is no source `{name}`");
        let problem = self.document.problem("sources", fact);
        report.push(problem.allowed(known.join(" | ")));
        report
    }

    /// Opens everything but the sources, whose records are not read: to decode dead letters again, and
    /// to look at a state.
    ///
    /// # Errors
    /// As [`LoadedConfig::open`].
    pub fn open_without_sources(
        mut self,
        registry: &Registry,
    ) -> Result<(Plan, Redecoders), Report> {
        let (mut sources, mut planned) = (BTreeMap::new(), Vec::new());
        for (name, description, config) in std::mem::take(&mut self.sources) {
            planned.push(PlannedSource {
                name: name.as_str().into(),
                description,
                source: Box::new(NotRead),
                probe: config.position_probe(&self.context).into(),
            });
            sources.insert(name.to_string(), config);
        }
        let context = self.context.clone();
        let redecoders = Redecoders { sources, context };
        let report = Report::new(self.document.parse_report().file());
        Ok((self.plan(registry, planned, report)?, redecoders))
    }

    /// Opens everything: models are found or fetched, sources made ready.
    ///
    /// # Errors
    /// What can't be opened, with its place in the configuration.
    pub fn open(mut self, registry: &Registry) -> Result<Plan, Report> {
        let mut report = Report::new(self.document.parse_report().file());
        let mut sources = Vec::new();
        for (name, description, config) in std::mem::take(&mut self.sources) {
            let probe = config.position_probe(&self.context).into();
            match config.open(&self.context) {
                Ok(source) => sources.push(PlannedSource {
                    name: name.as_str().into(),
                    description,
                    source,
                    probe,
                }),
                Err(error) => {
                    let section = format!("sources.{name}");
                    push(&self.document, &mut report, &section, &error);
                }
            }
        }
        self.plan(registry, sources, report)
    }

    /// Opens what is left to open; `report` has the faults so far.
    fn plan(
        self,
        registry: &Registry,
        sources: Vec<PlannedSource>,
        mut report: Report,
    ) -> Result<Plan, Report> {
        let state_directory = self.state_directory();
        let indexes = open_indexes(
            IndexParts {
                config: &self.config,
                chunkers: self.chunkers,
                embedders: &self.embedders,
                context: &self.context,
            },
            registry,
            (&self.document, &mut report),
        );
        let dead_letters = self
            .dead_letters
            .open(&self.context)
            .unwrap_or_else(|error| {
                push(&self.document, &mut report, "dead_letters", &error);
                PlannedDeadLetters::default()
            });
        if !report.is_empty() {
            return Err(report);
        }
        let number = |names: Vec<&Name>, name: &Name| {
            names.iter().position(|it| *it == name).unwrap_or_default() as PlanIndex
        };
        let documents = self
            .views
            .into_iter()
            .map(|(name, view)| {
                let config = &self.config.documents[&name];
                PlannedDocuments {
                    source: number(self.config.sources.keys().collect(), &config.from),
                    description: describe_view(config),
                    name: name.as_str().into(),
                    view,
                }
            })
            .collect();
        Ok(Plan {
            state_directory,
            workers: workers(self.config.workers),
            sources,
            documents,
            indexes,
            dead_letters,
            commit: self.config.commit,
            room: RoomLimits {
                max_bytes: self.config.state.max_bytes,
                min_free: self.config.state.min_free,
            },
            history: self.config.state.history.as_duration(),
        })
    }
}

/// Stands for a source that is not read.
struct NotRead;

impl Source for NotRead {
    fn run(self: Box<Self>, _: SourceStart, _: &mut dyn SourceSink) -> Result<(), SourceError> {
        Ok(())
    }
}

fn workers(configured: Option<NonZeroU16>) -> usize {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    configured.map_or(cores.saturating_sub(1).max(1), |workers| {
        usize::from(workers.get())
    })
}

fn describe_view(config: &DocumentsConfig) -> String {
    let templates = (&config.text, &config.metadata);
    serde_json::to_string(&templates).unwrap_or_default()
}

/// Puts a component's fault at its place.
pub(crate) fn push(
    document: &Document,
    report: &mut Report,
    section: &str,
    error: &ComponentError,
) {
    let path = match error.field.as_str() {
        "" => section.to_owned(),
        field => format!("{section}.{field}"),
    };
    let mut problem = document.problem(path.as_str(), error.fact.clone());
    if !error.hint.is_empty() {
        problem = problem.hint(error.hint.clone());
    }
    report.push(problem);
}

/// What indexes are made of.
struct IndexParts<'a> {
    config: &'a PipelineConfig,
    chunkers: Vec<(Name, Box<dyn AnyChunkerConfig>)>,
    embedders: &'a [(Name, Box<dyn AnyEmbedderConfig>)],
    context: &'a OpenContext,
}

fn open_indexes(
    parts: IndexParts<'_>,
    registry: &Registry,
    (document, report): (&Document, &mut Report),
) -> Vec<PlannedIndex> {
    let mut opened: Vec<(&dyn AnyEmbedderConfig, Arc<dyn Embedder>)> = Vec::new();
    let mut indexes = Vec::new();
    let embedders = parts.embedders;
    for (name, chunker) in parts.chunkers {
        let index = &parts.config.indexes[&name];
        let Some(embed) = embedder_of(embedders, name.as_str()) else {
            continue;
        };
        let known = opened
            .iter()
            .find(|(it, _)| it.is_same(embed))
            .map(|(_, it)| it.clone());
        let embedder = known.map_or_else(|| embed.open(parts.context), Ok);
        let named = embedder.and_then(|embedder| {
            let model = NamedModel {
                index: name.as_str(),
                config: embed,
                identity: embedder.identity(),
            };
            check_model_name(model, named_models(embedders, &indexes))?;
            Ok(embedder)
        });
        let embedder = match named {
            Ok(embedder) => embedder,
            Err(error) => {
                push(document, report, &format!("indexes.{name}.embed"), &error);
                continue;
            }
        };
        opened.push((embed, embedder.clone()));
        match chunker.open(embedder.token_counter()) {
            Ok(chunker) => {
                let mut views = parts.config.documents.keys();
                let documents = views
                    .position(|view| *view == index.from)
                    .unwrap_or_default();
                indexes.push(PlannedIndex {
                    name: name.as_str().into(),
                    documents: documents as PlanIndex,
                    chunker,
                    embedder,
                    shards: index.shards,
                    recall: index.recall,
                    factory: index.factory(registry),
                    fields: index.fields(),
                });
            }
            Err(error) => push(document, report, &format!("indexes.{name}.chunk"), &error),
        }
    }
    indexes
}

fn embedder_of<'a>(
    embedders: &'a [(Name, Box<dyn AnyEmbedderConfig>)],
    index: &str,
) -> Option<&'a dyn AnyEmbedderConfig> {
    let mut embedders = embedders.iter();
    let (_, embedder) = embedders.find(|(name, _)| name.as_str() == index)?;
    Some(&**embedder)
}

/// The models of the indexes so far.
fn named_models<'a>(
    embedders: &'a [(Name, Box<dyn AnyEmbedderConfig>)],
    indexes: &'a [PlannedIndex],
) -> impl Iterator<Item = NamedModel<'a>> {
    indexes.iter().filter_map(|index| {
        Some(NamedModel {
            index: &index.name,
            config: embedder_of(embedders, &index.name)?,
            identity: index.embedder.identity(),
        })
    })
}

/// Checks that reach beyond one field.
struct Check<'a> {
    document: &'a Document,
    report: &'a mut Report,
    registry: &'a Registry,
}

impl Check<'_> {
    /// What a section names, when the section can be read at all.
    fn names(&self, section: &str) -> Vec<Name> {
        let node = self.document.value_at(section);
        let keys = node.iter().flat_map(|node| node.keys());
        let mut names: Vec<Name> = keys.filter_map(|key| key.parse().ok()).collect();
        names.sort();
        names
    }

    /// A section. When it can't be read a fault in it is reported, once.
    fn section<T: serde::de::DeserializeOwned>(&mut self, path: &str) -> Option<T> {
        match self.document.parse_at(path) {
            Ok(section) => Some(section),
            Err(_) if self.report.has_problem_within(path) => None,
            Err(problem) => {
                self.report.push(problem);
                None
            }
        }
    }

    fn references(&mut self) {
        let problems = [("documents.*.from", "sources", "source")]
            .into_iter()
            .chain([("indexes.*.from", "documents", "documents entry")])
            .flat_map(|(values, names, what)| self.document.check_references(values, names, what));
        problems
            .collect::<Vec<_>>()
            .into_iter()
            .for_each(|problem| self.report.push(problem));
    }

    /// A section that the value under `tag` chooses the component of: that value, and the rest.
    fn tagged(&mut self, path: &str, tag: &str) -> Option<(String, Value)> {
        if self.report.has_problem_within(path) {
            return None;
        }
        let chosen = self
            .document
            .value_at(format!("{path}.{tag}").as_str())?
            .as_str()?
            .to_owned();
        let value = self.document.parse_section(path, tag);
        value
            .map_err(|problem| self.report.push(problem))
            .ok()
            .map(|value| (chosen, value))
    }

    fn sources(&mut self) -> Vec<(Name, String, Box<dyn AnySourceConfig>)> {
        let mut sources = Vec::new();
        for name in self.names("sources") {
            let path = format!("sources.{name}");
            let Some((tag, value)) = self.tagged(&path, "type") else {
                continue;
            };
            let Some(kind) = self.registry.sources.iter().find(|it| it.name == tag) else {
                continue;
            };
            let description = tag;
            match (kind.parse)(value) {
                Ok(config) => {
                    for error in config.check() {
                        push(self.document, self.report, &path, &error);
                    }
                    sources.push((name, description, config));
                }
                Err(fact) => self.report.push(self.document.problem(path.as_str(), fact)),
            }
        }
        sources
    }

    fn chunkers(&mut self) -> Vec<(Name, Box<dyn AnyChunkerConfig>)> {
        let mut chunkers = Vec::new();
        for name in self.names("indexes") {
            let path = format!("indexes.{name}.chunk");
            let Some((tag, value)) = self.tagged(&path, "type") else {
                continue;
            };
            let Some(kind) = self.registry.chunkers.iter().find(|it| it.name == tag) else {
                continue;
            };
            match (kind.parse)(value) {
                Ok(config) => {
                    for error in config.check() {
                        push(self.document, self.report, &path, &error);
                    }
                    chunkers.push((name, config));
                }
                Err(fact) => self.report.push(self.document.problem(path.as_str(), fact)),
            }
        }
        chunkers
    }

    fn views(&mut self) -> Vec<(Name, Arc<DocumentView>)> {
        let mut views = Vec::new();
        for name in self.names("documents") {
            let path = format!("documents.{name}");
            let Some(config) = self.section::<DocumentsConfig>(&path) else {
                continue;
            };
            match DocumentView::compile(&config.text, &config.metadata) {
                Ok(view) => views.push((name, Arc::new(view))),
                Err(errors) => {
                    for error in errors {
                        push(self.document, self.report, &path, &error);
                    }
                }
            }
        }
        views
    }

    fn embedders(&mut self) -> Vec<(Name, Box<dyn AnyEmbedderConfig>)> {
        let mut embedders = Vec::new();
        for name in self.names("indexes") {
            let path = format!("indexes.{name}.embed");
            let Some((tag, value)) = self.tagged(&path, "model") else {
                continue;
            };
            let Some(kind) = self.registry.embedders.iter().find(|it| it.name == tag) else {
                continue;
            };
            match (kind.parse)(value) {
                Ok(config) => {
                    for error in config.check() {
                        push(self.document, self.report, &path, &error);
                    }
                    embedders.push((name, config));
                }
                Err(fact) => self.report.push(self.document.problem(path.as_str(), fact)),
            }
        }
        embedders
    }

    fn filterable(&mut self) {
        for name in self.names("indexes") {
            let problems = check_filterable(self.document, &name);
            problems
                .into_iter()
                .for_each(|problem| self.report.push(problem));
        }
    }

    fn quantizations(&mut self) {
        for name in self.names("indexes") {
            let problem = check_quantization(self.document, &name, self.registry);
            problem
                .into_iter()
                .for_each(|problem| self.report.push(problem));
        }
    }

    fn server(&mut self) {
        if self.document.value_at("server").is_none() {
            return;
        }
        if let Some(config) = self.section::<ServerConfig>("server") {
            for error in config.check() {
                push(self.document, self.report, "server", &error);
            }
        }
    }
}
