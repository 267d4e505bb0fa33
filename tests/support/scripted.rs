//! A source whose batches and pauses a test chooses, in a real pipeline within the test's process.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use vectide_engine::{
    CommitConfig, Pipeline, Plan, PlannedDeadLetters, PlannedDocuments, PlannedIndex,
    PlannedSource, RoomLimits, RunReport, StartOptions,
};
use vectide_model::{
    Change, Embedder, OpenContext, Position, ReadMode, Source, SourceBatch, SourceError,
    SourceSink, SourceStart,
};
use vectide_operators::{DocumentView, FieldPlan};

/// Keys with their new texts; `None` deletes.
pub type Changes = Vec<(String, Option<String>)>;

/// Batches of changes, each with a pause after it. Every batch is one
/// transaction.
#[derive(Clone, Debug, Default)]
pub struct Script {
    /// The batches.
    pub batches: Vec<(Changes, Duration)>,
}

impl Script {
    /// Batches a few milliseconds apart, each of which writes so many documents with a text of its own; most
    /// of them were written before.
    pub fn rewriting(batches: usize, documents: usize) -> Self {
        let batch = |number: usize| {
            let keys = (0..documents).map(|at| (number * 7 + at) % (batches * 10));
            let change = |key: usize| {
                let text = format!("page {key} as batch {number} has it");
                (key.to_string(), Some(text))
            };
            (keys.map(change).collect(), Duration::from_millis(2))
        };
        Self {
            batches: (0..batches).map(batch).collect(),
        }
    }

    /// The text of each document after the first batches.
    pub fn texts_after(&self, batches: usize) -> BTreeMap<String, String> {
        let mut texts = BTreeMap::new();
        let batches = self.batches.iter().take(batches);
        for (key, text) in batches.flat_map(|(changes, _)| changes) {
            match text {
                Some(text) => texts.insert(key.clone(), text.clone()),
                None => texts.remove(key),
            };
        }
        texts
    }
}

impl Source for Script {
    fn run(
        self: Box<Self>,
        start: SourceStart,
        sink: &mut dyn SourceSink,
    ) -> Result<(), SourceError> {
        let batches = self.batches.len();
        let split = SplitScript {
            script: *self,
            parts: 1,
            batches,
        };
        Box::new(split).run(start, sink)
    }
}

/// A script whose transactions have several batches, as a source hands on long ones in parts: all their
/// changes have one position, and only the last part says how far the source has come.
#[derive(Clone, Debug)]
pub struct SplitScript {
    /// The parts.
    pub script: Script,
    /// Of each transaction.
    pub parts: usize,
    /// Batches after which the source ends, in the midst of a transaction or not.
    pub batches: usize,
}

impl Source for SplitScript {
    fn run(
        self: Box<Self>,
        start: SourceStart,
        sink: &mut dyn SourceSink,
    ) -> Result<(), SourceError> {
        let partition: Arc<str> = "script".into();
        let resume = start.positions.get(&partition).copied().unwrap_or_default();
        let batches = &self.script.batches;
        let mut end = 0;
        for (number, (changes, pause)) in batches.iter().take(self.batches).enumerate() {
            let first = end;
            end += changes.len() as u64;
            // Where the first change stands, how far behind it the next one, and where reading goes on.
            let (place, step, behind) = match self.parts {
                1 => (first, 1, end),
                parts => {
                    let transaction = (number / parts) as u64;
                    (transaction, 0, transaction + 1)
                }
            };
            if place < resume {
                continue;
            }
            let is_last = (number + 1).is_multiple_of(self.parts) || number + 1 == batches.len();
            let changes = changes.iter().enumerate().map(|(at, (key, text))| Change {
                key: key.as_str().into(),
                row: (text.as_ref())
                    .map(|text| serde_json::json!({ "text": text }).to_string().into()),
                unchanged_fields: Vec::new(),
                position: Position {
                    source: start.name.clone(),
                    partition: partition.clone(),
                    offset: place + step * at as u64,
                },
                changed_at: SystemTime::now(),
            });
            let positions = is_last.then(|| (partition.clone(), behind));
            let batch = SourceBatch {
                changes: changes.collect(),
                positions: positions.into_iter().collect(),
                ..SourceBatch::default()
            };
            if sink.send(batch).is_err() || start.stop.wait(*pause) {
                return Ok(());
            }
        }
        sink.caught_up();
        Ok(())
    }
}

/// A pipeline over a script: documents are the texts, chunked, embedded by feature hashing.
pub struct ScriptedPipeline {
    /// What embeds; a test may put its own around it.
    pub embedder: Arc<dyn Embedder>,
    /// Timely workers.
    pub workers: usize,
    /// Shards of the index.
    pub shards: u32,
    /// The share of true hits that its searches promise.
    pub recall: f64,
    /// Templates of the documents' metadata.
    pub metadata: BTreeMap<String, String>,
    /// What is kept of rows besides vectors.
    pub fields: FieldPlan,
    /// Configuration of the chunker, as JSON, and its type.
    pub chunker: (&'static str, serde_json::Value),
}

impl Default for ScriptedPipeline {
    fn default() -> Self {
        Self::with_model("hashing", 1, 1)
    }
}

impl ScriptedPipeline {
    /// A pipeline with a model.
    pub fn with_model(model: &str, workers: usize, shards: u32) -> Self {
        Self::with(model, serde_json::json!({"device": "cpu"}), workers, shards)
    }

    /// A pipeline with feature hashing to so many dimensions.
    pub fn with_hashing(dimensions: usize) -> Self {
        let options = serde_json::json!({"dimensions": dimensions});
        Self::with("hashing", options, 1, 1)
    }

    /// A pipeline with a model's options.
    pub fn with(model: &str, options: serde_json::Value, workers: usize, shards: u32) -> Self {
        let context = OpenContext::in_folder(".");
        let config = vectide_app::registry::registry().embedder(model, options);
        let opened = config.and_then(|config| config.open(&context));
        let embedder = opened.unwrap_or_else(|error| panic!("{error}"));
        let chunker = ("structured", serde_json::json!({}));
        Self {
            embedder,
            workers,
            shards,
            recall: 0.98,
            metadata: BTreeMap::new(),
            fields: FieldPlan::default(),
            chunker,
        }
    }

    /// The plan over several named scripts with a state in `directory`; each script has an index
    /// of its own name.
    pub fn plan(&self, directory: &Path, scripts: Vec<(&str, Box<dyn Source>)>) -> Plan {
        let registry = vectide_app::registry::registry();
        let kind = registry
            .chunkers
            .iter()
            .find(|it| it.name == self.chunker.0);
        let kind = kind.unwrap_or_else(|| panic!("no chunker {}", self.chunker.0));
        let view = DocumentView::compile("{{ text }}", &self.metadata);
        let view = Arc::new(view.unwrap_or_else(|errors| panic!("{errors:?}")));
        let mut plan = Plan {
            state_directory: directory.to_owned(),
            workers: self.workers,
            sources: Vec::new(),
            documents: Vec::new(),
            indexes: Vec::new(),
            dead_letters: PlannedDeadLetters::default(),
            commit: CommitConfig::default(),
            room: RoomLimits::default(),
            history: Duration::from_secs(60),
        };
        for (number, (name, source)) in scripts.into_iter().enumerate() {
            let name: Arc<str> = name.into();
            let chunker = (kind.parse)(self.chunker.1.clone()).and_then(|it| {
                it.open(self.embedder.token_counter())
                    .map_err(|e| e.to_string())
            });
            plan.sources.push(PlannedSource {
                name: name.clone(),
                description: "script".into(),
                source,
                probe: Arc::new(|| Ok(BTreeMap::new())),
            });
            plan.documents.push(PlannedDocuments {
                name: name.clone(),
                source: number as u16,
                description: "text".into(),
                view: view.clone(),
            });
            plan.indexes.push(PlannedIndex {
                name,
                documents: number as u16,
                chunker: chunker.unwrap_or_else(|error| panic!("{error}")),
                embedder: self.embedder.clone(),
                shards: self.shards,
                recall: self.recall,
                factory: registry.indexes[0].factory.clone(),
                fields: Arc::new(self.fields.clone()),
            });
        }
        plan
    }

    /// Starts one script as the source and index `pages`.
    pub fn start(&self, directory: &Path, script: Script, mode: ReadMode) -> Pipeline {
        let plan = self.plan(directory, vec![("pages", Box::new(script))]);
        Pipeline::start(plan, mode).unwrap_or_else(|error| panic!("{error}"))
    }

    /// Runs one script to its end.
    pub fn run(&self, directory: &Path, script: Script) -> RunReport {
        let options = StartOptions::of(ReadMode::UntilCaughtUp);
        self.run_source(directory, Box::new(script), options)
    }

    /// Runs a source to its end, as the source and index `pages`.
    pub fn run_source(
        &self,
        directory: &Path,
        source: Box<dyn Source>,
        options: StartOptions,
    ) -> RunReport {
        let plan = self.plan(directory, vec![("pages", source)]);
        let pipeline = Pipeline::start_with(plan, options).unwrap_or_else(|e| panic!("{e}"));
        while !pipeline.is_finished() {
            std::thread::sleep(Duration::from_millis(1));
        }
        pipeline.join().unwrap_or_else(|error| panic!("{error}"))
    }
}
