//! Many clients, slow ones, ones that leave; a full queue; the end of the server.

use crate::memory::WAIT;
use crate::server::{LONG, Reply, Server, until};
use serde_json::json;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use vectide_model::HumanDuration;
use vectide_serve::{Client, ServerConfig, serve};

const QUERY: &str = "/v1/indexes/pages/query";

fn wait_body() -> String {
    json!({"text": WAIT}).to_string()
}

fn raw_query(body: &str) -> String {
    let length = body.len();
    format!("POST {QUERY} HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\n{body}")
}

/// Connects and writes.
fn raw(server: &Server, text: &str) -> TcpStream {
    let mut stream = TcpStream::connect(server.address).unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    stream.write_all(text.as_bytes()).unwrap();
    stream
}

/// The status of what is read until the head is complete; `None` when the connection was closed.
fn raw_status(stream: &mut TcpStream) -> Option<u16> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        if stream.read(&mut byte).ok()? == 0 {
            return None;
        }
        head.push(byte[0]);
    }
    std::str::from_utf8(&head)
        .unwrap()
        .split(' ')
        .nth(1)
        .unwrap()
        .parse()
        .ok()
}

#[test]
fn thirty_two_clients_get_their_own_answers() {
    let server = Server::start();
    let client = Client::new(&server.url("")).unwrap();
    std::thread::scope(|scope| {
        for number in 0..32 {
            let (client, memory) = (client.clone(), &server.memory);
            scope.spawn(move || {
                for round in 0..40 {
                    let text = format!("client {number} asks about engine {}", round * number);
                    let answer = client.query("pages", &text, 3).unwrap();
                    let got: Vec<(String, f32)> = answer
                        .hits
                        .iter()
                        .map(|hit| (hit.document.to_string(), hit.score))
                        .collect();
                    assert_eq!(got, memory.expected(&text, 3), "{text}");
                }
            });
        }
    });
    assert_eq!(server.memory.searched.load(Ordering::SeqCst), 32 * 40);
}

#[test]
fn a_full_queue_is_told_and_probes_still_answer() {
    let config = ServerConfig {
        query_threads: Some(1),
        queue_max: 1,
        ..ServerConfig::default()
    };
    let server = Server::with(config);
    std::thread::scope(|scope| {
        let running = scope.spawn(|| server.post(QUERY, &wait_body()));
        until("one runs", || {
            server.memory.waiting.load(Ordering::SeqCst) == 1
        });
        // One of these two waits, the other finds the queue full.
        let others: Vec<_> = (0..2)
            .map(|_| scope.spawn(|| server.post(QUERY, r#"{"text":"engine"}"#)))
            .collect();
        until("one is refused", || {
            others.iter().any(|other| other.is_finished())
        });
        for path in ["/livez", "/readyz", "/metrics"] {
            assert_eq!(server.get(path).status, 200, "{path}");
        }
        server.memory.open_gate();
        let replies: Vec<Reply> = others
            .into_iter()
            .map(|other| other.join().unwrap())
            .collect();
        let refused = replies.iter().find(|reply| reply.status != 200).unwrap();
        refused.problem(503, "overloaded");
        assert_eq!(refused.header("retry-after"), "1");
        assert_eq!(
            replies.iter().filter(|reply| reply.status == 200).count(),
            1
        );
        running.join().unwrap().ok();
    });
}

#[test]
fn a_request_that_takes_too_long_is_told() {
    let request_timeout = HumanDuration::from_milliseconds(200);
    let server = Server::with(ServerConfig {
        request_timeout,
        ..ServerConfig::default()
    });
    let problem = server.post(QUERY, &wait_body()).problem(504, "timeout");
    assert!(
        problem["detail"].as_str().unwrap().contains("200 ms"),
        "{problem}"
    );
    let mut slow = raw(
        &server,
        &format!("POST {QUERY} HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n{{"),
    );
    assert_eq!(raw_status(&mut slow), Some(408));
}

#[test]
fn a_client_that_left_is_not_searched_for() {
    let server = Server::with(ServerConfig {
        query_threads: Some(1),
        ..Default::default()
    });
    std::thread::scope(|scope| {
        let running = scope.spawn(|| server.post(QUERY, &wait_body()));
        until("one runs", || {
            server.memory.waiting.load(Ordering::SeqCst) == 1
        });
        let leaving: Vec<TcpStream> = (0..5)
            .map(|_| raw(&server, &raw_query(r#"{"text":"nobody waits"}"#)))
            .collect();
        std::thread::sleep(Duration::from_millis(300));
        drop(leaving);
        std::thread::sleep(Duration::from_millis(700));
        server.memory.open_gate();
        running.join().unwrap().ok();
    });
    server.post(QUERY, r#"{"text":"engine"}"#).ok();
    assert_eq!(
        server.memory.searched.load(Ordering::SeqCst),
        2,
        "the one that ran and the last"
    );
}

#[test]
fn connections_beyond_the_limit_wait() {
    let server = Server::with(ServerConfig {
        connections_max: 1,
        ..Default::default()
    });
    let request = "GET /livez HTTP/1.1\r\nhost: x\r\n\r\n";
    let mut first = raw(&server, request);
    assert_eq!(raw_status(&mut first), Some(200));
    let mut second = raw(&server, request);
    second
        .set_read_timeout(Some(Duration::from_millis(200)))
        .unwrap();
    assert_eq!(
        raw_status(&mut second),
        None,
        "it waits while the first is open"
    );
    drop(first);
    second.set_read_timeout(Some(LONG)).unwrap();
    assert_eq!(raw_status(&mut second), Some(200));
}

#[test]
fn what_is_not_http_ends_its_own_connection_only() {
    let server = Server::start();
    for garbage in [
        "\0\u{1}\u{2}garbage\r\n\r\n",
        "GET / HTTP/9.9\r\n\r\n",
        "\r\n\r\n\r\n",
    ] {
        let mut stream = raw(&server, garbage);
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut rest = Vec::new();
        // A reset is as good as a 400.
        let _ = stream.read_to_end(&mut rest);
        assert!(!rest.starts_with(b"HTTP/1.1 2"), "{garbage:?}");
    }
    assert_eq!(server.get("/livez").status, 200);
}

#[test]
fn requests_that_run_are_finished_at_the_end() {
    let mut server = Server::start();
    let mut idle = raw(&server, "GET /livez HTTP/1.1\r\nhost: x\r\n\r\n");
    assert_eq!(raw_status(&mut idle), Some(200));
    let mut running = raw(&server, &raw_query(&wait_body()));
    until("it runs", || {
        server.memory.waiting.load(Ordering::SeqCst) == 1
    });
    server.tell_to_stop();
    until("no connection is taken", || {
        TcpStream::connect(server.address).is_err()
    });
    server.memory.open_gate();
    assert_eq!(raw_status(&mut running), Some(200));
    let start = Instant::now();
    server.join().unwrap();
    assert!(
        start.elapsed() < Duration::from_secs(4),
        "{:?}",
        start.elapsed()
    );
}

#[test]
fn requests_that_never_end_are_cut_off() {
    let mut server = Server::start();
    let mut running = raw(&server, &raw_query(&wait_body()));
    until("it runs", || {
        server.memory.waiting.load(Ordering::SeqCst) == 1
    });
    let memory = std::sync::Arc::clone(&server.memory);
    server.tell_to_stop();
    let start = Instant::now();
    server.join().unwrap();
    let waited = start.elapsed();
    assert!(
        waited > Duration::from_secs(4) && waited < Duration::from_secs(9),
        "{waited:?}"
    );
    assert_eq!(raw_status(&mut running), None);
    memory.open_gate();
}

#[tokio::test]
async fn an_open_address_without_keys_is_refused_twice() {
    let memory = crate::memory::Memory::new();
    let open = ServerConfig {
        listen: "0.0.0.0:0".into(),
        ..ServerConfig::default()
    };
    let listener = open.bind().await.unwrap();
    let error = serve(listener, memory.clone(), open, async {})
        .await
        .unwrap_err();
    assert!(error.to_string().contains("api_keys"), "{error}");
    let listener = tokio::net::TcpListener::bind("0.0.0.0:0").await.unwrap();
    let error = serve(listener, memory, ServerConfig::default(), async {})
        .await
        .unwrap_err();
    assert!(error.to_string().contains("no key"), "{error}");
}

#[tokio::test]
async fn a_taken_port_is_told_with_its_hint() {
    let first = ServerConfig {
        listen: "127.0.0.1:0".into(),
        ..ServerConfig::default()
    };
    let listener = first.bind().await.unwrap();
    let address = listener.local_addr().unwrap();
    let second = ServerConfig {
        listen: address.to_string(),
        ..ServerConfig::default()
    };
    let fault = second.bind().await.unwrap_err();
    assert_eq!(fault.field, "listen");
    assert!(fault.fact.contains(&address.to_string()) && fault.hint.contains("another port"));
}
