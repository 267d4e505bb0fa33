//! What the endpoint itself costs: requests a second and latency at 1, 8 and 32 keep-alive clients
//! over a service that answers at once with ten prepared hits.
//!
//! `cargo bench -p vectide-serve` (seconds per run by `BENCH_SECONDS`, 5 by default). Clients are
//! threads of the same process, so they take their share of the cores.

use serde_json::value::RawValue;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
use vectide_model::{
    Answer, AsOf, Caller, ChunkId, DocumentView, EmbeddingsAnswer, Hit, IndexStatus, ModelIdentity,
    Position, Positions, Query, QueryError, QueryService, Readiness, Span, Timings,
};
use vectide_serve::{ServerConfig, serve};

struct Prepared(Answer);

impl QueryService for Prepared {
    fn indexes(&self) -> Vec<IndexStatus> {
        Vec::new()
    }
    fn index(&self, _: &str) -> Result<IndexStatus, QueryError> {
        Err(QueryError::Unavailable(String::new()))
    }
    fn document(&self, _: &str, _: &str) -> Result<DocumentView, QueryError> {
        Err(QueryError::Unavailable(String::new()))
    }
    fn query_all(&self, queries: &[Query], _: &Caller<'_>) -> Result<Vec<Answer>, QueryError> {
        Ok(queries.iter().map(|_| self.0.clone()).collect())
    }
    fn models(&self) -> Vec<ModelIdentity> {
        Vec::new()
    }
    fn embed(&self, _: &str, _: &[String], _: &Caller<'_>) -> Result<EmbeddingsAnswer, QueryError> {
        Err(QueryError::Unavailable(String::new()))
    }
    fn sources(&self) -> Vec<String> {
        Vec::new()
    }
    fn end_of(&self, _: &str) -> Result<Positions, QueryError> {
        Err(QueryError::Unavailable(String::new()))
    }
    fn positions(&self) -> Option<Arc<Positions>> {
        None
    }
    fn readiness(&self) -> Readiness {
        Readiness {
            serving: true,
            caught_up: true,
            shortage: None,
        }
    }
    fn metrics(&self) -> String {
        String::new()
    }
}

fn prepared() -> Prepared {
    let position = Position {
        source: "pages".into(),
        partition: "pages/0".into(),
        offset: 1_234_567,
    };
    let hit = |number: u8| Hit {
        document: format!("docs/guide/page-{number}.md").into(),
        chunk: ChunkId([number; 16]),
        score: 1.0 / (1.0 + f32::from(number)),
        scores: None,
        span: Span { start: 0, end: 900 },
        position: position.clone(),
        text: Some("a sentence of a chunk of a document ".repeat(25)),
        metadata: RawValue::from_string(r#"{"path":"docs/guide/page.md"}"#.into()).ok(),
        vector: None,
    };
    Prepared(Answer {
        hits: (0..10).map(hit).collect(),
        is_partial: false,
        as_of: AsOf {
            epoch: 1,
            positions: Arc::default(),
            published_at: SystemTime::now(),
        },
        took: Timings::default(),
    })
}

fn main() {
    let seconds = std::env::var("BENCH_SECONDS")
        .ok()
        .and_then(|text| text.parse().ok());
    let duration = Duration::from_secs(seconds.unwrap_or(5));
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let config = ServerConfig {
        listen: "127.0.0.1:0".into(),
        ..ServerConfig::default()
    };
    let listener = runtime.block_on(config.bind()).expect("a free port");
    let address = listener.local_addr().expect("its address");
    runtime.spawn(serve(
        listener,
        Arc::new(prepared()),
        config,
        std::future::pending(),
    ));
    println!("| clients | requests/s | p50 ms | p99 ms |");
    println!("| ---: | ---: | ---: | ---: |");
    run(address, 4, Duration::from_millis(500));
    for clients in [1, 8, 32] {
        let mut latencies_us = run(address, clients, duration);
        latencies_us.sort_unstable();
        let at = |share: f64| {
            latencies_us[((latencies_us.len() - 1) as f64 * share) as usize] as f64 / 1e3
        };
        let rate = latencies_us.len() as f64 / duration.as_secs_f64();
        println!(
            "| {clients} | {rate:.0} | {:.3} | {:.3} |",
            at(0.5),
            at(0.99)
        );
    }
}

/// Closed loop: each client asks again as soon as it is answered. Gives all latencies.
fn run(address: SocketAddr, clients: usize, duration: Duration) -> Vec<u64> {
    let threads: Vec<_> = (0..clients)
        .map(|_| std::thread::spawn(move || client(address, duration)))
        .collect();
    threads
        .into_iter()
        .flat_map(|thread| thread.join().expect("a client"))
        .collect()
}

fn client(address: SocketAddr, duration: Duration) -> Vec<u64> {
    let stream = TcpStream::connect(address).expect("a connection");
    stream.set_nodelay(true).expect("no delay");
    let mut reader = BufReader::new(stream.try_clone().expect("a handle"));
    let mut writer = stream;
    let body = r#"{"text":"how do I install the engine","k":10}"#;
    let request = format!(
        "POST /v1/indexes/pages/query HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    );
    let (start, mut latencies_us) = (Instant::now(), Vec::new());
    while start.elapsed() < duration {
        let sent = Instant::now();
        writer.write_all(request.as_bytes()).expect("sent");
        read_answer(&mut reader);
        latencies_us.push(sent.elapsed().as_micros() as u64);
    }
    latencies_us
}

fn read_answer(reader: &mut BufReader<TcpStream>) {
    let (mut line, mut length) = (String::new(), 0);
    let mut first = true;
    loop {
        line.clear();
        reader.read_line(&mut line).expect("a line of the head");
        assert!(!first || line.starts_with("HTTP/1.1 200"), "{line}");
        first = false;
        if let Some(value) = line.strip_prefix("content-length:") {
            length = value.trim().parse().expect("a length");
        }
        if line == "\r\n" {
            break;
        }
    }
    assert!(length > 1000, "an answer with ten hits");
    let mut body = vec![0; length];
    reader.read_exact(&mut body).expect("the body");
}
