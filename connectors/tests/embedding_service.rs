//! `model: openai` against a service on loopback: the embedder's contract, every way in which a service
//! fails, and what is never sent or told.

use serde_json::{Value, json};
use std::sync::Arc;
use std::time::{Duration, Instant};
use vectide_connectors::OpenAiConfig;
use vectide_connectors::testing::{EmbeddingService, Reply, TlsProxy};
use vectide_model::{
    ComponentError, CountingTokenizer, EmbedError, Embedder, EmbedderConfig, Lane, NoTokenizer,
    OpenContext, TokenCounter, TokenizerReader, embedder_contract, stable_hash,
};

const DIMENSION: usize = 16;
const KEY: &str = "sk-geheim-0123456789";

/// A vector of a text that is not of length 1, and is no other text's.
fn vector(text: &str) -> Vec<f32> {
    let of = |at: usize| stable_hash(format!("{at} {text}").as_bytes()) % 1000;
    (0..DIMENSION).map(|at| of(at) as f32 - 499.5).collect()
}

fn unit(text: &str) -> Vec<f32> {
    let vector = vector(text);
    let norm = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
    vector.iter().map(|x| x / norm).collect()
}

fn service() -> EmbeddingService {
    EmbeddingService::start(vector).unwrap_or_else(|error| panic!("{error}"))
}

fn config(service: &EmbeddingService, more: Value) -> OpenAiConfig {
    let mut all =
        json!({"url": service.url(), "name": "some-model", "api_key": KEY, "timeout": "400ms"});
    for (name, value) in more.as_object().into_iter().flatten() {
        all[name] = value.clone();
    }
    serde_json::from_value(all).unwrap_or_else(|error| panic!("{error}"))
}

fn context() -> OpenContext {
    OpenContext::in_folder(".")
}

fn open(service: &EmbeddingService, more: Value) -> Result<Arc<dyn Embedder>, ComponentError> {
    let config = config(service, more);
    assert_eq!(config.check(), vec![]);
    config.open(&context())
}

fn opened(service: &EmbeddingService, more: Value) -> Arc<dyn Embedder> {
    open(service, more).unwrap_or_else(|error| panic!("{error:?}"))
}

fn assert_near(made: &[Vec<f32>], texts: &[&str]) {
    assert_eq!(made.len(), texts.len());
    for (made, text) in made.iter().zip(texts) {
        let cosine: f32 = made.iter().zip(unit(text)).map(|(x, y)| x * y).sum();
        assert!((cosine - 1.0).abs() < 1e-5, "{text}: {cosine}");
    }
}

#[test]
fn it_keeps_the_contract() {
    let service = service();
    for more in [
        json!({}),
        json!({"query_prefix": "query: ", "passage_prefix": "passage: ", "batch_texts": 2}),
        json!({"batch_bytes": "20B"}),
    ] {
        let embedder = opened(&service, more);
        assert_eq!(embedder.identity().dimension, DIMENSION);
        assert_eq!(embedder.identity().name, "some-model");
        embedder_contract(&*embedder);
    }
}

#[test]
fn requests_say_what_the_interface_asks_for() {
    let service = service();
    let more = json!({
        "dimensions": DIMENSION, "max_tokens": 16, "batch_texts": 2, "passage_prefix": "p: ", "query_prefix": "q: "
    });
    let embedder = opened(&service, more);
    let before = service.asked().len();
    let long = "word ".repeat(100);
    let made = embedder.embed(Lane::Bulk, &["a", " ", "b", &long]).unwrap();
    assert!(
        made[1].iter().all(|x| *x == 0.0),
        "a blank text is not sent"
    );
    assert_near(&made[2..3], &["p: b"]);
    embedder.embed(Lane::Query, &["a"]).unwrap();
    let asked = &service.asked()[before..];
    let texts: Vec<Vec<String>> = asked.iter().map(|it| it.texts()).collect();
    assert_eq!(texts[0], ["p: a", "p: b"]);
    assert!(
        texts[1][0].starts_with("p: word word") && texts[1][0].len() < 60,
        "{texts:?}"
    );
    assert_eq!(texts[2], ["q: a"]);
    for asked in asked {
        assert_eq!(asked.path, "/v1/embeddings");
        assert_eq!(
            asked.authorization.as_deref(),
            Some(&*format!("Bearer {KEY}"))
        );
        assert_eq!(asked.body["model"], "some-model");
        assert_eq!(asked.body["encoding_format"], "float");
        assert_eq!(asked.body["dimensions"], DIMENSION);
    }
}

/// The order of the answer is not that of the texts; and what passes is asked again.
#[test]
fn failures_that_pass_are_repeated() {
    let service = service();
    let embedder = opened(&service, json!({}));
    let texts = ["one", "two", "three"];
    let html = || "<html>busy</html>".to_owned();
    let other = || json!({"data": [{"index": 0, "embedding": [1, 2]}]}).to_string();
    for reply in [
        Reply::Reversed,
        Reply::Http(500, "", html()),
        Reply::Http(503, "", html()),
        Reply::Http(408, "", html()),
        Reply::Http(429, "Retry-After: 0.3", html()),
        Reply::Http(200, "", html()),
        Reply::Http(200, "", other()),
        Reply::Truncated,
        Reply::Hang,
        Reply::Close,
    ] {
        service.fail_next(1, reply.clone());
        let start = Instant::now();
        let made = embedder.embed(Lane::Bulk, &texts);
        let made = made.unwrap_or_else(|error| panic!("{reply:?}: {error}"));
        assert_near(&made, &texts);
        if matches!(reply, Reply::Http(429, ..)) {
            assert!(start.elapsed() >= Duration::from_millis(300));
        }
    }
}

/// What the service says of every text is no fault of texts.
#[test]
fn an_outage_is_no_fault_of_texts() {
    let wrong = |vector: Value| json!({"data": [{"index": 0, "embedding": vector}]}).to_string();
    for reply in [
        Reply::Http(500, "", "down".into()),
        Reply::Http(429, "Retry-After: 60", "slow".into()),
        Reply::Http(401, "", format!("{{\"error\": \"no such key {KEY}\"}}")),
        Reply::Http(403, "", String::new()),
        Reply::Http(404, "", r#"{"error": {"message": "no such model"}}"#.into()),
        Reply::Http(307, "Location: http://127.0.0.1:1/", String::new()),
        Reply::Http(400, "", r#"{"error": "every text is refused"}"#.into()),
        Reply::Http(200, "", wrong(json!([1, 2, 3]))),
        Reply::Http(200, "", "x".repeat(1_000_000)),
        Reply::Truncated,
        Reply::Hang,
        Reply::Close,
    ] {
        let service = service();
        let embedder = opened(&service, json!({"retries": 1}));
        let shown = format!("{reply:?}").chars().take(60).collect::<String>();
        service.script(move |_| reply.clone());
        let error = embedder.embed(Lane::Bulk, &["text"]).unwrap_err();
        assert!(
            matches!(error, EmbedError::Unavailable(_)),
            "{shown}: {error:?}"
        );
        assert!(!error.to_string().contains(KEY), "{error}");
        assert!(error.to_string().len() < 500);
    }
}

/// A text that is refused while others are taken stands alone in the end: the caller halves.
#[test]
fn a_text_that_can_not_be_embedded_is_told_as_such() {
    let service = service();
    let embedder = opened(&service, json!({}));
    let zeros = json!({"data": [{"index": 0, "embedding": vec![0.0; DIMENSION]}]}).to_string();
    for (status, body) in [
        (400, r#"{"error": {"message": "too long"}}"#.to_owned()),
        (413, String::new()),
        (422, "no".to_owned()),
        (200, zeros.clone()),
        (200, zeros.replacen("0.0", "NaN", 1)),
        (200, zeros.replacen("0.0", "null", 1)),
        (200, zeros.replacen("0.0", "1e999", 1)),
    ] {
        let told = body.clone();
        service.script(
            move |asked| match asked.texts().contains(&"poison".into()) {
                true => Reply::Http(status, "", told.clone()),
                false => Reply::Vectors,
            },
        );
        let error = embedder.embed(Lane::Bulk, &["poison"]).unwrap_err();
        assert!(
            matches!(error, EmbedError::Texts(_)),
            "{status} {body}: {error:?}"
        );
        assert!(embedder.embed(Lane::Bulk, &["healthy"]).is_ok());
    }
}

#[test]
fn while_the_service_is_away_nothing_is_sent_and_it_is_found_when_it_returns() {
    let service = service();
    let embedder = opened(&service, json!({"retries": 0}));
    service.script(|_| Reply::Http(503, "", String::new()));
    for _ in 0..5 {
        embedder.embed(Lane::Bulk, &["text"]).unwrap_err();
    }
    let sent = service.asked().len();
    for lane in [Lane::Bulk, Lane::Query, Lane::Bulk] {
        let start = Instant::now();
        let error = embedder.embed(lane, &["text"]).unwrap_err();
        assert!(
            error.to_string().contains("is away: it is asked again in"),
            "{error}"
        );
        assert!(
            start.elapsed() < Duration::from_millis(100),
            "it fails fast"
        );
    }
    assert_eq!(service.asked().len(), sent, "nothing is sent");
    service.recover();
    let start = Instant::now();
    while embedder.embed(Lane::Bulk, &["text"]).is_err() {
        assert!(start.elapsed() < Duration::from_secs(20));
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_near(&embedder.embed(Lane::Query, &["text"]).unwrap(), &["text"]);
}

/// A person waits for a query: it has a few seconds, however often requests may be repeated.
#[test]
fn a_query_ends_soon() {
    let service = service();
    let embedder = opened(&service, json!({"timeout": "60s", "retries": 10}));
    service.script(|_| Reply::Hang);
    let start = Instant::now();
    embedder.embed(Lane::Query, &["text"]).unwrap_err();
    assert!(
        start.elapsed() < Duration::from_secs(8),
        "{:?}",
        start.elapsed()
    );
}

#[test]
fn what_is_wrong_at_the_start_is_told_with_its_field() {
    let service = service();
    for (reply, dimensions, field) in [
        (
            Reply::Http(401, "", format!("bad key {KEY}")),
            true,
            Some("api_key"),
        ),
        (Reply::Http(403, "", String::new()), false, Some("api_key")),
        (Reply::Http(404, "", String::new()), true, Some("name")),
        (
            Reply::Http(400, "", "no dimensions".into()),
            true,
            Some("dimensions"),
        ),
        (Reply::Http(301, "", String::new()), true, Some("url")),
        (Reply::Http(500, "", String::new()), false, Some("url")),
        (Reply::Hang, false, Some("url")),
        // It may be away where the dimensions are known.
        (Reply::Http(500, "", String::new()), true, None),
        (Reply::Close, true, None),
    ] {
        let shown = format!("{reply:?}");
        service.script(move |_| reply.clone());
        let more = match dimensions {
            true => json!({"dimensions": DIMENSION, "retries": 0}),
            false => json!({"retries": 0}),
        };
        let located = config(&service, more.clone()).locate(&context());
        assert!(
            located.is_err_and(|error| !error.fact.contains(KEY)),
            "{shown}"
        );
        let error = open(&service, more).err();
        let told = error.as_ref().map(|error| error.field.as_str());
        assert_eq!(told, field, "{shown}: {error:?}");
        assert!(error.is_none_or(|it| !it.fact.contains(KEY) && !it.hint.is_empty()));
    }
    service.recover();
    let located = config(&service, json!({})).locate(&context()).unwrap();
    assert!(located.contains("16 dimensions"), "{located}");
    // A service whose vectors are not as long as they are said to be.
    let error = open(&service, json!({"dimensions": 8})).err().unwrap();
    assert_eq!(error.field, "dimensions");
}

/// What changes vectors changes the fingerprint, and nothing else does.
#[test]
fn the_fingerprint_follows_what_vectors_depend_on() {
    let (service, other) = (service(), service());
    let of = |service: &EmbeddingService, more: Value| {
        opened(service, more).identity().fingerprint.clone()
    };
    let plain = of(&service, json!({}));
    assert_eq!(plain, "openai-1-some-model-16-512");
    for more in [
        json!({"api_key": "another"}),
        json!({"dimensions": DIMENSION}),
        json!({"query_prefix": "q"}),
        json!({"concurrency": 9, "batch_texts": 3, "timeout": "9s"}),
    ] {
        assert_eq!(of(&other, more), plain);
    }
    for more in [
        json!({"name": "other-model"}),
        json!({"max_tokens": 256}),
        json!({"passage_prefix": "p"}),
    ] {
        assert_ne!(of(&service, more), plain);
    }
}

/// What fails only with these texts would fail for ever: it is told as theirs, where a plain text is taken.
#[test]
fn texts_that_the_service_keeps_failing_with_are_at_fault() {
    for reply in [Reply::Http(500, "", "no room".into()), Reply::Hang] {
        let service = service();
        let embedder = opened(&service, json!({"retries": 1}));
        service.script(
            move |asked| match asked.texts().contains(&"poison".into()) {
                true => reply.clone(),
                false => Reply::Vectors,
            },
        );
        for texts in [&["poison", "healthy"][..], &["poison"]] {
            let error = embedder.embed(Lane::Bulk, texts).unwrap_err();
            assert!(matches!(error, EmbedError::Texts(_)), "{error:?}");
        }
        assert!(embedder.embed(Lane::Bulk, &["healthy"]).is_ok());
        let error = embedder.embed(Lane::Query, &["poison"]).unwrap_err();
        assert!(matches!(error, EmbedError::Unavailable(_)), "{error:?}");
    }
}

/// Also where they are asked for so often that the service is taken for away meanwhile.
#[test]
fn texts_that_fail_always_do_not_keep_the_service_away() {
    let service = service();
    let embedder = opened(&service, json!({"retries": 10}));
    service.script(
        |asked| match asked.texts().iter().any(|text| text == "poison") {
            true => Reply::Http(500, "", String::new()),
            false => Reply::Vectors,
        },
    );
    let start = Instant::now();
    while let Err(EmbedError::Unavailable(_)) = embedder.embed(Lane::Bulk, &["poison"]) {
        assert!(start.elapsed() < Duration::from_secs(20));
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(embedder.embed(Lane::Bulk, &["healthy"]).is_ok());
}

/// A lone text that failed just before the service came back is sent once more.
#[test]
fn a_text_that_failed_by_chance_is_not_at_fault() {
    let service = service();
    let embedder = opened(&service, json!({"retries": 0}));
    service.fail_next(1, Reply::Http(500, "", String::new()));
    let made = embedder.embed(Lane::Bulk, &["text"]).unwrap();
    assert_near(&made, &["text"]);
}

/// A service that is slower than a query waits is no outage for chunks.
#[test]
fn queries_that_give_up_do_not_keep_chunks_waiting() {
    let service = service();
    let embedder = opened(&service, json!({"timeout": "60s"}));
    service.script(|asked| match asked.texts().contains(&"query".into()) {
        true => Reply::Hang,
        false => Reply::Vectors,
    });
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| embedder.embed(Lane::Query, &["query"]).unwrap_err());
        }
    });
    assert_near(&embedder.embed(Lane::Bulk, &["text"]).unwrap(), &["text"]);
}

/// A service that was away is not back by refusing whatever it is asked.
#[test]
fn a_service_that_refuses_every_text_is_not_back() {
    let service = service();
    let embedder = opened(&service, json!({"retries": 0}));
    service.script(|_| Reply::Http(503, "", String::new()));
    for _ in 0..5 {
        embedder.embed(Lane::Bulk, &["one", "two"]).unwrap_err();
    }
    service.script(|_| Reply::Http(400, "", String::new()));
    std::thread::sleep(Duration::from_millis(1100));
    for told in ["every text is refused", "is away: it is asked again in"] {
        let error = embedder.embed(Lane::Bulk, &["one", "two"]).unwrap_err();
        assert!(matches!(error, EmbedError::Unavailable(_)), "{error:?}");
        assert!(error.to_string().contains(told), "{error}");
    }
}

/// Wherever the key stands, and however it is written, none of it is told.
#[test]
fn no_part_of_the_key_is_told() {
    let key = "geheim/0123456789/abcdef";
    for body in [
        format!("{}{key}", "x".repeat(290)),
        format!("{{\"error\": \"{}{key}\"}}", "x".repeat(290)),
        format!("<p>{}</p>", key.replace('/', "\\/")),
        format!("{{\"why\": \"{}\"}}", key.replace('/', "\\u002f")),
    ] {
        let service = service();
        let embedder = opened(&service, json!({"api_key": key}));
        let shown = body.clone();
        service.script(move |_| Reply::Http(401, "", body.clone()));
        let error = embedder.embed(Lane::Bulk, &["text"]).unwrap_err();
        assert!(!error.to_string().contains("geheim"), "{shown}: {error}");
    }
}

/// A query that is refused alone is told as such, but not by a service that refuses everything.
#[test]
fn a_query_that_is_refused_is_only_believed_while_others_are_taken() {
    let service = service();
    let embedder = opened(&service, json!({"retries": 0}));
    service.script(|asked| match asked.texts() == ["poison"] {
        true => Reply::Http(400, "", String::new()),
        false => Reply::Vectors,
    });
    let error = embedder.embed(Lane::Query, &["poison"]).unwrap_err();
    assert!(matches!(error, EmbedError::Texts(_)), "{error:?}");
    service.script(|_| Reply::Http(400, "", String::new()));
    let error = embedder.embed(Lane::Query, &["poison"]).unwrap_err();
    assert!(matches!(error, EmbedError::Unavailable(_)), "{error:?}");
}

/// The texts of all requests from `before` on.
fn texts_since(service: &EmbeddingService, before: usize) -> Vec<Vec<String>> {
    let asked = service.asked();
    asked[before..].iter().map(|it| it.texts()).collect()
}

/// What a call has paid for before one of its requests failed is not bought again.
#[test]
fn answers_of_a_call_that_fails_are_kept_for_the_next() {
    let service = service();
    let embedder = opened(&service, json!({"retries": 0, "batch_texts": 2}));
    let texts = ["one", "two", "three", "four", "five"];
    let busy = || Reply::Http(429, "Retry-After: 0", String::new());
    service.script(move |asked| match asked.texts() == ["five"] {
        true => busy(),
        false => Reply::Vectors,
    });
    let before = service.asked().len();
    for _ in 0..2 {
        let error = embedder.embed(Lane::Bulk, &texts).unwrap_err();
        assert!(matches!(error, EmbedError::Unavailable(_)), "{error:?}");
    }
    service.recover();
    assert_near(&embedder.embed(Lane::Bulk, &texts).unwrap(), &texts);
    let sent = [
        &["one", "two"][..],
        &["three", "four"],
        &["five"],
        &["five"],
        &["five"],
    ];
    assert_eq!(texts_since(&service, before), sent);
    // Given out once: a later call with the same texts is another one.
    let before = service.asked().len();
    assert_near(&embedder.embed(Lane::Bulk, &texts).unwrap(), &texts);
    assert_eq!(texts_since(&service, before).len(), 3);
}

/// Also where the caller takes the call apart to find the text that is at fault.
#[test]
fn answers_beside_a_text_that_is_refused_are_kept_for_the_halves() {
    let service = service();
    let embedder = opened(&service, json!({"retries": 0, "batch_texts": 2}));
    let texts = ["one", "two", "three", "poison"];
    service.script(
        |asked| match asked.texts().iter().any(|text| text == "poison") {
            true => Reply::Http(400, "", String::new()),
            false => Reply::Vectors,
        },
    );
    let error = embedder.embed(Lane::Bulk, &texts).unwrap_err();
    assert!(matches!(error, EmbedError::Texts(_)), "{error:?}");
    let before = service.asked().len();
    assert_near(
        &embedder.embed(Lane::Bulk, &texts[..2]).unwrap(),
        &texts[..2],
    );
    assert_eq!(
        texts_since(&service, before).len(),
        0,
        "nothing is bought twice"
    );
    embedder.embed(Lane::Bulk, &texts[2..]).unwrap_err();
    assert_near(
        &embedder.embed(Lane::Bulk, &texts[2..3]).unwrap(),
        &texts[2..3],
    );
    assert_eq!(
        texts_since(&service, before),
        [&["three", "poison"][..], &["three"]]
    );
}

/// Nobody comes again with a query: its vectors would only lie there.
#[test]
fn answers_of_a_query_are_not_kept() {
    let service = service();
    let embedder = opened(&service, json!({"retries": 0, "batch_texts": 1}));
    service.script(|asked| match asked.texts() == ["two"] {
        true => Reply::Http(429, "Retry-After: 0", String::new()),
        false => Reply::Vectors,
    });
    embedder.embed(Lane::Query, &["one", "two"]).unwrap_err();
    let before = service.asked().len();
    assert_near(&embedder.embed(Lane::Query, &["one"]).unwrap(), &["one"]);
    assert_near(&embedder.embed(Lane::Bulk, &["one"]).unwrap(), &["one"]);
    assert_eq!(texts_since(&service, before), [["one"], ["one"]]);
}

/// The service's clock is far from ours: its dates are read by it, and are bounded as seconds are.
#[test]
fn a_wait_that_is_asked_for_as_a_date_is_kept() {
    let service = service();
    let embedder = opened(&service, json!({}));
    const HEADERS: &str = "Date: Wed, 21 Oct 2026 07:30:00 GMT\r\n\
                           Retry-After: Wed, 21 Oct 2026 07:30:01 GMT";
    for status in [429, 503] {
        service.fail_next(1, Reply::Http(status, HEADERS, String::new()));
        let start = Instant::now();
        assert_near(&embedder.embed(Lane::Bulk, &["text"]).unwrap(), &["text"]);
        let took = start.elapsed();
        assert!(
            took >= Duration::from_secs(1) && took < Duration::from_secs(3),
            "{took:?}"
        );
    }
    const YEARS: &str = "Date: Wed, 21 Oct 2026 07:30:00 GMT\r\n\
                         Retry-After: Wed, 21 Oct 2099 07:30:01 GMT";
    service.fail_next(1, Reply::Http(429, YEARS, String::new()));
    embedder.embed(Lane::Bulk, &["text"]).unwrap_err();
    let error = embedder
        .embed(Lane::Bulk, &["text"])
        .unwrap_err()
        .to_string();
    let wait = error
        .split("again in ")
        .nth(1)
        .and_then(|rest| rest.split(' ').next());
    let wait: f64 = wait.unwrap().parse().unwrap();
    assert!(
        (290.0..=300.0).contains(&wait),
        "as long as seconds may be: {error}"
    );
}

/// A service with TLS in front of it, whose certificate an authority of the test has signed.
fn secured(service: &EmbeddingService) -> TlsProxy {
    TlsProxy::start_signed(service.port()).unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn texts_go_over_tls_to_a_service_whose_authority_is_named() {
    let service = service();
    let proxy = secured(&service);
    let url = format!("https://127.0.0.1:{}/v1", proxy.port());
    let ca = proxy.certificate();
    let more = json!({"url": url, "ca": ca, "timeout": "10s", "query_prefix": "q: "});
    let located = config(&service, more.clone()).locate(&context()).unwrap();
    assert!(located.contains("16 dimensions"), "{located}");
    let embedder = opened(&service, more);
    assert_near(
        &embedder.embed(Lane::Bulk, &["one", "two"]).unwrap(),
        &["one", "two"],
    );
    let made = embedder.embed(Lane::Query, &["one"]).unwrap();
    assert_near(&made, &["q: one"]);
    let asked = service.asked();
    assert_eq!(
        asked.last().unwrap().authorization,
        Some(format!("Bearer {KEY}"))
    );
}

/// Nothing is sent to a service that can't prove who it is, and waiting does not help: the start says so, also where
/// the service may be away.
#[test]
fn a_certificate_that_is_not_trusted_is_an_error_of_its_field() {
    let service = service();
    let (proxy, other) = (secured(&service), secured(&service));
    let url = format!("https://127.0.0.1:{}/v1", proxy.port());
    let other_name = format!("https://localhost:{}/v1", proxy.port());
    for (more, told) in [
        (json!({"url": url}), "UnknownIssuer"),
        (
            json!({"url": url, "ca": other.certificate()}),
            "BadSignature|UnknownIssuer",
        ),
        (
            json!({"url": other_name, "ca": proxy.certificate()}),
            "not valid for name",
        ),
    ] {
        for dimensions in [json!(null), json!(DIMENSION)] {
            let mut more = more.clone();
            more["timeout"] = json!("10s");
            more["dimensions"] = dimensions;
            let start = Instant::now();
            let error = open(&service, more.clone()).err().unwrap();
            assert!(
                start.elapsed() < Duration::from_secs(5),
                "it is not repeated"
            );
            assert_eq!(error.field, "ca", "{error:?}");
            assert!(error.fact.contains("certificate of https://"), "{error:?}");
            assert!(
                told.split('|').any(|told| error.fact.contains(told)),
                "{error:?}"
            );
            assert!(
                error.hint.contains("`ca`") && error.hint.contains("`url`"),
                "{error:?}"
            );
            let located = config(&service, more).locate(&context()).unwrap_err();
            assert_eq!(located.field, "ca");
        }
    }
    assert!(service.asked().is_empty(), "no key was sent");
    let file = proxy.certificate().with_file_name("authority-key.pem");
    for ca in [json!("none.pem"), json!(file)] {
        let error = open(&service, json!({"url": url, "ca": ca})).err().unwrap();
        assert_eq!(error.field, "ca");
        assert!(!error.fact.is_empty() && !error.hint.is_empty());
    }
}

/// A token a word, and as many special ones as the file says.
struct Words;

impl TokenCounter for Words {
    fn count(&self, text: &str) -> usize {
        text.split_whitespace().count()
    }
}

impl TokenizerReader for Words {
    fn read(&self, json: &[u8]) -> Result<CountingTokenizer, NoTokenizer> {
        let special_tokens = serde_json::from_slice(json);
        let special_tokens = special_tokens.map_err(|error| NoTokenizer(error.to_string()))?;
        let counter = Arc::new(Words);
        Ok(CountingTokenizer {
            counter,
            special_tokens,
        })
    }
}

/// Opens it with `tokenizer.json` beside the configuration, which has that content.
fn open_counted(
    service: &EmbeddingService,
    file: &str,
    more: Value,
) -> Result<Arc<dyn Embedder>, ComponentError> {
    let folder = tempfile::tempdir().unwrap_or_else(|error| panic!("{error}"));
    let written = std::fs::write(folder.path().join("tokenizer.json"), file);
    written.unwrap_or_else(|error| panic!("{error}"));
    let context = OpenContext::in_folder(folder.path()).with_tokenizers(Arc::new(Words));
    let mut config = config(service, more);
    config.tokenizer = Some("tokenizer.json".into());
    assert_eq!(config.check(), vec![]);
    let located = config.locate(&context).map(|_| ());
    let opened = config.open(&context);
    assert_eq!(located.err(), opened.as_ref().err().cloned());
    opened
}

#[test]
fn texts_are_cut_by_the_tokenizer_that_is_named() {
    let service = service();
    let more = json!({"max_tokens": 16, "query_prefix": "a query: "});
    let embedder = open_counted(&service, "3", more).unwrap();
    let word = "internationalization ";
    let before = service.asked().len();
    let texts = [&*word.repeat(13), &word.repeat(100)];
    embedder.embed(Lane::Bulk, &texts).unwrap();
    embedder.embed(Lane::Query, &texts[1..]).unwrap();
    let query = format!("a query: {}", word.repeat(11));
    let sent = [vec![word.repeat(13); 2], vec![query]];
    assert_eq!(texts_since(&service, before), sent);
    assert_eq!(embedder.token_counter().count(texts[1]), 100);
    // The chunk's own thirteen tokens, and two of the three special ones.
    assert_eq!(embedder.identity().tokens_max, 15);
    embedder_contract(&*embedder);
}

#[test]
fn a_tokenizer_is_part_of_what_vectors_depend_on_and_its_faults_are_told() {
    let service = service();
    let fingerprint = |file: &str| {
        let embedder = open_counted(&service, file, json!({})).unwrap();
        embedder.identity().fingerprint.clone()
    };
    let estimated = opened(&service, json!({})).identity().fingerprint.clone();
    assert!(fingerprint("2").starts_with(&estimated));
    assert_ne!(fingerprint("2"), estimated);
    assert_ne!(fingerprint("2"), fingerprint("3"));
    assert_eq!(fingerprint("2"), fingerprint("2"));
    let long = json!({"max_tokens": 16, "passage_prefix": "a b c d e f g: "});
    for (file, more, field) in [
        ("none", json!({}), "tokenizer"),
        ("2", long, "passage_prefix"),
    ] {
        let error = open_counted(&service, file, more).err().unwrap();
        assert_eq!(error.field, field);
        assert!(
            !error.fact.is_empty() && !error.hint.is_empty(),
            "{error:?}"
        );
    }
    // A program that reads none, and a file that is not there.
    let mut config = config(&service, json!({}));
    config.tokenizer = Some("missing.json".into());
    let context = context().with_tokenizers(Arc::new(Words));
    let error = config.open(&context).err().unwrap();
    assert_eq!(error.field, "tokenizer");
    assert!(error.fact.contains("missing.json"), "{error:?}");
    config.tokenizer = Some("Cargo.toml".into());
    let error = config.open(&self::context()).err().unwrap();
    assert!(error.fact.contains("reads no tokenizers"), "{error:?}");
}
