//! A pipeline whose vectors a service makes: through an outage no text becomes a dead letter and none is
//! lost, a stop does not wait for the service, and one Vectide serves another.

use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};
use vectide_connectors::testing::{EmbeddingService, Reply};
use vectide_model::Lane;
use vectide_tests::{
    Running, ScriptedPipeline, call, edit, expect_sound, export, free_port, run_to_end, signal,
    texts, vectide, write_config,
};

/// What no output may hold.
const KEY: &str = "sk-geheim-0123456789";
const PATIENCE: Duration = Duration::from_secs(60);

fn service() -> EmbeddingService {
    let model = ScriptedPipeline::with_hashing(384).embedder;
    let embed = move |text: &str| model.embed(Lane::Bulk, &[text]).unwrap().remove(0);
    EmbeddingService::start(embed).unwrap()
}

/// A pipeline over `log.jsonl` that is embedded by the service at `url`.
fn pipeline(directory: &Path, url: &str, port: u16) -> PathBuf {
    write(directory, "log", 0..0);
    let source = "{type: jsonl, path: log.jsonl, format: {type: change, key: id}, follow: true}";
    let more = format!("server: {{listen: \"127.0.0.1:{port}\"}}");
    let config = write_config(directory, "pipeline", source, &more);
    let embed = format!(
        "{{model: openai, url: \"{url}\", name: hashing, api_key: {KEY}, dimensions: 384, \
         retries: 1, timeout: 2s}}"
    );
    edit(&config, "{model: hashing}", &embed);
    config
}

/// The text of a document: three words of its own, so that no other has its vector.
fn text(number: usize) -> String {
    format!("document one{number} two{number} topic{number}")
}

/// Adds documents to a log.
fn write(directory: &Path, name: &str, numbers: std::ops::Range<usize>) {
    use std::io::Write;
    let path = directory.join(format!("{name}.jsonl"));
    let file = std::fs::File::options()
        .create(true)
        .append(true)
        .open(path);
    let mut file = file.unwrap();
    for number in numbers {
        let line = format!("{{\"id\":\"{number}\",\"text\":\"{}\"}}\n", text(number));
        file.write_all(line.as_bytes()).unwrap();
    }
}

/// The document that is nearest to a text, or the status of the refusal.
fn nearest(running: &Running, text: &str) -> Result<String, u16> {
    let body = serde_json::json!({"text": text, "k": 1}).to_string();
    let (status, answer) = running.post("/v1/indexes/pages/query", &body);
    match answer["hits"][0]["document"].as_str() {
        Some(document) if status == 200 => Ok(document.to_owned()),
        _ => Err(status),
    }
}

fn wait_for(running: &mut Running, number: usize) {
    let text = text(number);
    running.wait_until(&text, PATIENCE, |running| {
        nearest(running, &text) == Ok(number.to_string())
    });
}

/// Starts a run until it is caught up whose service is away, and waits until it was asked a few times: documents
/// that are one epoch at most have all been read by then.
fn begin_in_an_outage(config: &Path, service: &EmbeddingService) -> Child {
    service.script(|_| Reply::Http(503, "", "not now".into()));
    let mut command = vectide(&["run", "--until-caught-up"]);
    let command = command.arg(config).stderr(Stdio::piped());
    let child = command.spawn().unwrap();
    let end = Instant::now() + PATIENCE;
    while service.asked().len() < 4 {
        assert!(Instant::now() < end);
        std::thread::sleep(Duration::from_millis(10));
    }
    child
}

/// What is read is embedded and committed before a run ends by itself, and the answer that it gives is true.
#[test]
fn a_run_that_ends_by_itself_waits_for_an_outage_that_outlives_its_sources() {
    let directory = tempfile::tempdir().unwrap();
    let service = service();
    let config = pipeline(directory.path(), &service.url(), free_port());
    edit(&config, ", follow: true", "");
    write(directory.path(), "log", 0..20);
    let mut child = begin_in_an_outage(&config, &service);
    std::thread::sleep(Duration::from_millis(500));
    assert!(child.try_wait().unwrap().is_none(), "it waits");
    service.recover();
    assert!(child.wait().unwrap().success());
    assert_eq!(texts(&config).len(), 20);
    assert!(export(&config, "dead-letters").is_empty());
    expect_sound(&config, "after the outage");
}

/// All of it was read, and nothing committed: that is not caught up either.
#[test]
fn a_run_that_is_stopped_in_an_outage_is_not_caught_up() {
    let directory = tempfile::tempdir().unwrap();
    let service = service();
    let config = pipeline(directory.path(), &service.url(), free_port());
    edit(&config, ", follow: true", "");
    write(directory.path(), "log", 0..20);
    let child = begin_in_an_outage(&config, &service);
    signal("-TERM", &child.id().to_string());
    let output = child.wait_with_output().unwrap();
    let complaints = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{complaints}");
    assert!(
        complaints.contains("stopped before it was caught up"),
        "{complaints}"
    );
    service.recover();
    run_to_end(&config);
    assert_eq!(texts(&config).len(), 20);
}

#[test]
fn an_outage_makes_work_wait_and_loses_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let (service, port) = (service(), free_port());
    let config = pipeline(directory.path(), &service.url(), port);
    write(directory.path(), "log", 0..20);
    let log = directory.path().join("log.txt");
    let mut command = vectide(&["run"]);
    command.arg(&config).env("VECTIDE_LOG", "debug");
    command.stderr(std::fs::File::create(&log).unwrap());
    let mut running = Running::spawn(command, port);
    wait_for(&mut running, 19);

    service.script(|_| Reply::Http(503, "", format!("no {KEY}")));
    write(directory.path(), "log", 20..80);
    running.wait_until("told that it is away", PATIENCE, |running| {
        let metrics = running.get("/metrics").1;
        metrics.contains("vectide_embedding_service_up{model=\"hashing\"} 0")
    });
    let start = Instant::now();
    assert_eq!(nearest(&running, &text(3)), Err(503));
    assert!(start.elapsed() < Duration::from_secs(6));
    // The epoch waits; what was there before is there.
    let (_, status) = running.get("/v1/status");
    assert!(!status.contains(KEY), "{status}");

    service.recover();
    wait_for(&mut running, 79);
    let metrics = running.get("/metrics").1;
    assert!(metrics.contains("vectide_embedding_service_up{model=\"hashing\"} 1"));
    assert!(running.terminate());
    assert_eq!(texts(&config).len(), 80);
    assert!(export(&config, "dead-letters").is_empty());
    expect_sound(&config, "after the outage");
    let log = std::fs::read_to_string(log).unwrap();
    for told in [
        "is away: chunks wait",
        "answers 503: no (hidden)",
        "is back",
    ] {
        assert!(log.contains(told), "{told} is missing in {log}");
    }
    assert!(!log.contains(KEY), "{log}");
}

/// Neither a service that refuses nor one that hangs holds a stop up, and the next start reads again what
/// was under way.
#[test]
fn a_stop_does_not_wait_for_the_service() {
    for reply in [
        Reply::Http(401, "", format!("no {KEY}")),
        Reply::Hang,
        Reply::Close,
    ] {
        let directory = tempfile::tempdir().unwrap();
        let (service, port) = (service(), free_port());
        let config = pipeline(directory.path(), &service.url(), port);
        write(directory.path(), "log", 0..5);
        let mut running = Running::start(&config, port);
        wait_for(&mut running, 4);
        service.script(move |_| reply.clone());
        write(directory.path(), "log", 5..50);
        running.wait_until("told that it is away", PATIENCE, |running| {
            let metrics = running.get("/metrics").1;
            metrics.contains("vectide_embedding_service_up{model=\"hashing\"} 0")
        });
        let start = Instant::now();
        assert!(running.terminate(), "it ends cleanly");
        let took = start.elapsed();
        println!("stopped in {took:?}");
        assert!(took < Duration::from_secs(6), "{took:?}");
        service.recover();
        expect_sound(&config, "after the stop");
        assert!(export(&config, "dead-letters").is_empty());
        let mut running = Running::start(&config, port);
        wait_for(&mut running, 49);
        assert!(running.terminate());
        assert_eq!(texts(&config).len(), 50);
    }
}

/// A text that the service refuses alone is a dead letter; its neighbours have their vectors.
#[test]
fn a_text_that_is_refused_is_a_dead_letter() {
    let directory = tempfile::tempdir().unwrap();
    let (service, port) = (service(), free_port());
    let config = pipeline(directory.path(), &service.url(), port);
    service.script(|asked| {
        let is_poison = asked.texts().iter().any(|text| text.ends_with("topic7"));
        match is_poison {
            true => Reply::Http(400, "", r#"{"error":{"message":"unwanted"}}"#.into()),
            false => Reply::Vectors,
        }
    });
    write(directory.path(), "log", 0..30);
    let mut running = Running::start(&config, port);
    wait_for(&mut running, 29);
    assert!(running.terminate());
    let letters = export(&config, "dead-letters");
    assert_eq!(letters.len(), 1, "{letters:?}");
    let letter = letters[0].to_string();
    assert!(
        letter.contains("unwanted") && !letter.contains(KEY),
        "{letter}"
    );
}

/// Whoever asks with a text that the service refuses is at fault, and is told so in the endpoint's own words; while
/// every text is refused nobody is.
#[test]
fn a_query_that_is_refused_is_told_as_the_callers_fault() {
    let directory = tempfile::tempdir().unwrap();
    let (service, port) = (service(), free_port());
    let config = pipeline(directory.path(), &service.url(), port);
    write(directory.path(), "log", 0..5);
    let mut running = Running::start(&config, port);
    wait_for(&mut running, 4);
    let inside = || format!(r#"{{"error":{{"message":"inside, with {KEY}"}}}}"#);
    service.script(move |asked| {
        let is_long = |text: &String| text.starts_with("too long");
        match asked.texts().iter().any(is_long) {
            true => Reply::Http(400, "", inside()),
            false => Reply::Vectors,
        }
    });
    let queries = r#"{"queries": [{"text": "one"}, {"text": "too long for it"}, {"text": "two"}]}"#;
    let inputs = r#"{"model": "hashing", "input": ["one", "two", "too long for it"]}"#;
    for (path, body, field) in [
        (
            "/v1/indexes/pages/query",
            r#"{"text": "too long for it"}"#,
            "text",
        ),
        ("/v1/indexes/pages/query/batch", queries, "text"),
        ("/v1/embeddings", inputs, "input"),
    ] {
        let (status, told) = running.post(path, body);
        assert_eq!(status, 400, "{path}: {told}");
        assert_eq!(
            (&told["code"], &told["field"]),
            (&"invalid_field".into(), &field.into())
        );
        let fact = told["detail"].as_str().unwrap();
        assert!(fact.contains("\"too long for it\""), "{fact}");
        assert!(!told["hint"].as_str().unwrap().is_empty(), "{told}");
        let told = told.to_string();
        assert!(
            !told.contains("inside") && !told.contains("127.0.0.1"),
            "{told}"
        );
    }
    assert_eq!(nearest(&running, &text(3)), Ok("3".to_owned()));
    service.script(move |_| Reply::Http(400, "", inside()));
    assert_eq!(nearest(&running, &text(3)), Err(503));
    assert!(running.terminate());
}

/// BERT's tokenizer with one long word, which the estimate takes for seven tokens.
const TOKENIZER: &str = r###"{"version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
    "normalizer": {"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
        "strip_accents": null, "lowercase": true},
    "pre_tokenizer": {"type": "BertPreTokenizer"},
    "post_processor": {"type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2]},
    "decoder": null,
    "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 100,
        "vocab": {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "internationalization": 4}}}"###;

/// The service is sent as much of a text as its own tokenizer has room for.
#[test]
fn tokens_are_counted_by_the_services_tokenizer() {
    let directory = tempfile::tempdir().unwrap();
    let (service, port) = (service(), free_port());
    let config = pipeline(directory.path(), &service.url(), port);
    let path = directory.path().join("tokenizer.json");
    std::fs::write(&path, "{}").unwrap();
    edit(
        &config,
        "retries: 1",
        "max_tokens: 16, tokenizer: tokenizer.json, retries: 1",
    );
    let (status, told, _) = call(&["validate", "--connect"], &config, &[]);
    assert_eq!(status, Some(69), "{told}");
    let fault = told.lines().find(|line| line.starts_with("FAIL"));
    assert!(
        fault.is_some_and(|line| line.contains("tokenizer.json")),
        "{told}"
    );
    std::fs::write(&path, TOKENIZER).unwrap();
    let (status, told, complaints) = call(&["validate", "--connect"], &config, &[]);
    assert_eq!(status, Some(0), "{told}{complaints}");
    write(directory.path(), "log", 0..1);
    let mut running = Running::start(&config, port);
    wait_for(&mut running, 0);
    let before = service.asked().len();
    let words = "internationalization ".repeat(20);
    let body = serde_json::json!({"model": "hashing", "input": words});
    let (status, answer) = running.post("/v1/embeddings", &body.to_string());
    assert_eq!(status, 200, "{answer}");
    assert_eq!(answer["usage"]["prompt_tokens"], 20);
    let sent: Vec<String> = service.asked()[before..]
        .iter()
        .flat_map(|it| it.texts())
        .collect();
    assert_eq!(sent.len(), 1);
    // Two of the sixteen are special ones.
    assert_eq!(sent[0].split_whitespace().count(), 14);
    assert!(running.terminate());
}

#[test]
fn one_vectide_embeds_for_another() {
    let directories = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let (port, other_port) = (free_port(), free_port());
    let source = "{type: jsonl, path: log.jsonl, format: {type: change, key: id}, follow: true}";
    let more = format!("server: {{listen: \"127.0.0.1:{port}\"}}");
    write(directories[0].path(), "log", 0..40);
    let config = write_config(directories[0].path(), "pipeline", source, &more);
    let mut serving = Running::start(&config, port);
    wait_for(&mut serving, 39);

    let url = format!("{}/v1", serving.url);
    write(directories[1].path(), "log", 0..40);
    let config = pipeline(directories[1].path(), &url, other_port);
    let (status, told, complaints) = call(&["validate", "--connect"], &config, &[]);
    assert_eq!(status, Some(0), "{told}{complaints}");
    assert!(
        told.contains("`hashing` answers at") && told.contains("384 dimensions"),
        "{told}"
    );
    let mut served = Running::start(&config, other_port);
    wait_for(&mut served, 39);
    for number in 0..40 {
        let text = text(number);
        assert_eq!(nearest(&served, &text), nearest(&serving, &text));
    }
    assert!(serving.terminate());
    let (status, told, _) = call(&["validate", "--connect"], &config, &[]);
    assert_eq!(status, Some(69), "{told}");
    let model = told.lines().find(|line| line.contains("model openai"));
    let model = model.unwrap_or_else(|| panic!("{told}"));
    assert!(
        model.starts_with("FAIL") && model.contains("does not answer"),
        "{model}"
    );
    assert!(served.terminate());
}
