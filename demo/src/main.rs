//! The main job in a minute, through the same library and endpoint as `vectide run`: index a real
//! corpus, ask, edit a document and see the answer follow, delete one and see it gone.
//!
//! `DEMO_EXIT=1` ends after the last step, with status 0 only if every step did what it should.

mod corpus;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use vectide_app::failure::{Failure, end};
use vectide_app::progress::ProgressLine;
use vectide_app::query::describe;
use vectide_app::registry::registry;
use vectide_app::run::{Serving, runtime};
use vectide_app::validate;
use vectide_engine::Pipeline;
use vectide_model::ReadMode;
use vectide_serve::Client;

const QUESTIONS: [&str; 3] = [
    "How do I turn a struct into JSON?",
    "Which hash function is fast but not meant for cryptography?",
    "How can threads pass messages to each other through a channel?",
];

/// What is written into a document; nothing like it stands anywhere else.
/// Long enough to be what its chunk is about, whatever text it falls into.
const FACT: &str = "The harbour master keeps the spare key of the lighthouse under the blue teapot. \
    Whoever needs the spare key of the lighthouse asks the harbour master where the blue teapot \
    is, and puts the spare key back under it when the lamp of the lighthouse is lit.";
/// The part of it that an answer must hold.
const TOLD: &str = "under the blue teapot";
/// Hits that are looked at for it.
const ANSWERS: usize = 2;
const FACT_QUESTION: &str = "Where is the spare key of the lighthouse?";

/// How long a step may take before the demo has failed.
const STEP_TIMEOUT: Duration = Duration::from_secs(30);

const CONFIG: &str = r#"# The demo's pipeline. Run it on its own with: vectide run demo.yaml
apiVersion: vectide/v1
state: {dir: ./state}
sources:
  crates:
    type: files
    path: ./corpus
    settle: 20ms        # how long a file must be quiet to count as whole
documents:
  pages:
    from: crates
    text: "{{ content }}"
    metadata: {path: "{{ key }}"}
indexes:
  pages:
    from: pages
    chunk: {type: structured, target_tokens: 200, max_tokens: 256}
    embed: {model: all-MiniLM-L6-v2, device: auto}
    shards: 2
server: {listen: "127.0.0.1:7700"}
"#;

fn main() {
    vectide_app::logging::start("warn");
    let folder = std::env::args_os()
        .nth(1)
        .map_or_else(|| "target/demo".into(), PathBuf::from);
    end(demo(&folder))
}

fn demo(folder: &Path) -> Result<(), Failure> {
    std::fs::create_dir_all(folder)?;
    let names = corpus::copy_to(&folder.join("corpus"))?;
    if folder.join("state").exists() {
        std::fs::remove_dir_all(folder.join("state"))?;
    }
    let config = folder.join("demo.yaml");
    std::fs::write(&config, CONFIG)?;
    println!(
        "1. {} documents: READMEs and CHANGELOGs of the crates that built this",
        names.len()
    );
    let loaded = validate::load(&config)?;
    let server = loaded.config().server.clone();
    let plan = loaded
        .open(&registry())
        .map_err(|report| Failure::config(&report))?;
    let runtime = runtime()?;
    let address = server.address().map_err(Failure::new)?;
    let listener = runtime
        .block_on(tokio::net::TcpListener::bind(address))
        .map_err(|error| {
            Failure::new(format!(
                "{address} can't be listened on: {error}; is another demo running?"
            ))
        })?;
    let pipeline = Pipeline::start(plan, ReadMode::Follow)?;
    let serving = Serving::start(&runtime, listener, pipeline.service(), server)?;
    let demo = Demo {
        pipeline,
        url: format!("http://{}", serving.address),
        folder,
    };
    let client = Client::new(&demo.url)?;
    demo.index(names.len() as u64)?;
    demo.ask(&client)?;
    demo.edit(&client)?;
    demo.delete(&client, &names)?;
    if std::env::var_os("DEMO_EXIT").is_some_and(|it| it != "0") {
        println!("\nDone.");
    } else {
        demo.keep_serving(&runtime)?;
    }
    demo.pipeline.stop_signal().stop();
    let ended = demo.pipeline.join();
    runtime.block_on(serving.end())?;
    ended?;
    Ok(())
}

struct Demo<'a> {
    pipeline: Pipeline,
    url: String,
    folder: &'a Path,
}

impl Demo<'_> {
    fn index(&self, documents: u64) -> Result<(), Failure> {
        let start = Instant::now();
        let mut line = ProgressLine::new(Some(documents));
        while self.pipeline.progress().documents < documents {
            if self.pipeline.is_finished() {
                return Err(Failure::new("the pipeline ended while it was indexing"));
            }
            line.show(self.pipeline.progress());
            std::thread::sleep(Duration::from_millis(20));
        }
        line.end();
        let (done, seconds) = (self.pipeline.progress(), start.elapsed().as_secs_f64());
        println!(
            "   indexed {} documents as {} chunks in {seconds:.1} s ({:.0} embeddings/s; equal \
             texts are embedded once: {} of {})",
            done.documents,
            done.chunks,
            done.embedded_chunks as f64 / seconds,
            done.embedded_chunks,
            done.chunks
        );
        Ok(())
    }

    fn ask(&self, client: &Client) -> Result<(), Failure> {
        println!("\n2. Three questions");
        for question in QUESTIONS {
            let answer = client.query("pages", question, 2)?;
            if answer.hits.is_empty() {
                return Err(Failure::new(format!("no answer to: {question}")));
            }
            println!("\n   {question}\n{}", describe(&answer).trim_end());
        }
        Ok(())
    }

    /// Waits for a condition and says how long it took.
    fn until(
        &self,
        what: &str,
        holds: impl Fn() -> Result<bool, Failure>,
    ) -> Result<Duration, Failure> {
        let start = Instant::now();
        while !holds()? {
            if start.elapsed() > STEP_TIMEOUT {
                return Err(Failure::new(format!(
                    "{what} took longer than {STEP_TIMEOUT:?}"
                )));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(start.elapsed())
    }

    /// The document with the most chunks.
    fn longest(&self, client: &Client) -> Result<(String, String, usize), Failure> {
        let mut longest = (String::new(), String::new(), 0);
        for hit in client.query("pages", "changes", 1_000)?.hits {
            if *hit.document != *longest.0 {
                let document = client.document("pages", &hit.document)?;
                if document.chunks.len() > longest.2 {
                    let chunks = document.chunks.len();
                    longest = (hit.document.to_string(), document.text, chunks);
                }
            }
        }
        Ok(longest)
    }

    fn edit(&self, client: &Client) -> Result<(), Failure> {
        let (name, text, chunks) = self.longest(client)?;
        println!("\n3. A paragraph is written into the middle of {name}");
        let mut middle = text.len() / 2;
        while !text.is_char_boundary(middle) {
            middle += 1;
        }
        let middle = text[middle..]
            .find("\n\n")
            .map_or(text.len(), |at| middle + at);
        let edited = format!("{}\n\n{FACT}{}", &text[..middle], &text[middle..]);
        let before = self.pipeline.progress().embedded_chunks;
        std::fs::write(self.folder.join("corpus").join(&name), edited)?;
        let took = self.until("the edit", || {
            let answer = client.query("pages", FACT_QUESTION, ANSWERS)?;
            let mut texts = answer.hits.iter().filter_map(|hit| hit.text.as_deref());
            Ok(texts.any(|text| text.contains(TOLD)))
        })?;
        let embedded = self.pipeline.progress().embedded_chunks - before;
        println!("   {FACT_QUESTION}");
        println!(
            "{}",
            describe(&client.query("pages", FACT_QUESTION, ANSWERS)?).trim_end()
        );
        println!(
            "   the answer had changed {:.0} ms after the file was written; {embedded} of its \
             {chunks} chunks were embedded again",
            took.as_secs_f64() * 1e3
        );
        if embedded == 0 || embedded as usize * 2 > chunks.max(4) {
            return Err(Failure::new("the edit embedded more than it should have"));
        }
        Ok(())
    }

    fn delete(&self, client: &Client, names: &[String]) -> Result<(), Failure> {
        let question = QUESTIONS[0];
        let answer = client.query("pages", question, 1)?;
        let name = answer.hits.first().map(|hit| hit.document.to_string());
        let name = name.filter(|name| names.contains(name));
        let Some(name) = name else {
            return Err(Failure::new("the best hit is no document"));
        };
        println!("\n4. {name} is deleted, the best answer to: {question}");
        std::fs::remove_file(self.folder.join("corpus").join(&name))?;
        let took = self.until("the delete", || {
            let answer = client.query("pages", question, 50)?;
            Ok(answer.hits.iter().all(|hit| *hit.document != *name))
        })?;
        if client.document("pages", &name).is_ok() {
            return Err(Failure::new("the deleted document is still there"));
        }
        println!(
            "   it was gone after {:.0} ms; now the best is",
            took.as_secs_f64() * 1e3
        );
        println!(
            "{}",
            describe(&client.query("pages", question, 1)?).trim_end()
        );
        Ok(())
    }

    fn keep_serving(&self, runtime: &tokio::runtime::Runtime) -> Result<(), Failure> {
        println!(
            "\nServing on {} until ctrl-C; the corpus is in {}",
            self.url,
            self.folder.join("corpus").display()
        );
        println!("Edit it, and ask:\n");
        println!(
            "curl -s {}/v1/indexes/pages/query -H 'content-type: application/json' \\",
            self.url
        );
        println!("  -d '{{\"text\": \"How do I parse command line arguments?\", \"k\": 3}}'");
        Ok(runtime.block_on(tokio::signal::ctrl_c())?)
    }
}
