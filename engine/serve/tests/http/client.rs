//! The client that the command line uses, against the real server.

use crate::server::Server;
use vectide_serve::{ApiKey, Client, ClientError, QueryRequest, ServerConfig};

#[test]
fn every_call_gives_what_the_server_has() {
    let server = Server::start();
    let client = Client::new(&server.url("/")).unwrap();
    let answer = client.query("pages", "run the engine", 2).unwrap();
    assert_eq!(answer.hits.len(), 2);
    assert_eq!(
        *answer.hits[0].document,
        server.memory.expected("run the engine", 1)[0].0
    );
    assert!(
        answer.hits[0]
            .metadata
            .as_ref()
            .unwrap()
            .get()
            .contains("12345678901234567890")
    );
    assert!(answer.took_ms.total > 0.0);
    let vector = crate::memory::embed("run the engine");
    let by_vector = client
        .search("pages", &QueryRequest::vector(vector, 2))
        .unwrap();
    assert_eq!(by_vector.hits[0].chunk, answer.hits[0].chunk);
    assert_eq!(
        client.indexes().unwrap().indexes[0],
        client.index("pages").unwrap()
    );
    for id in ["docs/guide/größe.md", "a%2Fb", "with space?#.txt"] {
        assert_eq!(*client.document("pages", id).unwrap().id, *id);
    }
    assert!(client.readiness().unwrap().serving);
    server
        .memory
        .serving
        .store(false, std::sync::atomic::Ordering::SeqCst);
    assert!(!client.readiness().unwrap().serving);
}

#[test]
fn refusals_carry_what_the_server_said() {
    let server = Server::start();
    let client = Client::new(&server.url("")).unwrap();
    let refused = |outcome: Result<_, ClientError>| match outcome {
        Err(ClientError::Refused(problem)) => *problem,
        other => panic!("{other:?}"),
    };
    let problem = refused(client.query("page", "engine", 1));
    assert_eq!(
        (problem.status, problem.code.as_str()),
        (404, "index_not_found")
    );
    let shown = ClientError::Refused(Box::new(problem)).to_string();
    assert!(shown.contains("did you mean `pages`?"), "{shown}");
    assert_eq!(
        refused(client.query("pages", "engine", 0)).field.as_deref(),
        Some("k")
    );
}

#[test]
fn keys_are_sent_and_not_shown() {
    let key = ApiKey::new("0123456789abcdef");
    let server = Server::with(ServerConfig {
        api_keys: vec![key.clone()],
        ..Default::default()
    });
    let client = Client::new(&server.url("")).unwrap();
    assert!(matches!(
        client.query("pages", "engine", 1),
        Err(ClientError::Refused(_))
    ));
    let client = client.with_api_key(key);
    assert_eq!(client.query("pages", "engine", 1).unwrap().hits.len(), 1);
    assert!(!format!("{client:?}").contains("0123456789abcdef"));
}

#[test]
fn a_server_that_is_not_there_or_is_another_is_told() {
    let free = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let client = Client::new(&format!("http://{free}")).unwrap();
    let error = client.query("pages", "engine", 1).unwrap_err();
    assert!(matches!(error, ClientError::Unreachable { .. }), "{error}");
    assert!(error.to_string().contains("vectide run"), "{error}");
    let server = Server::start();
    let client = Client::new(&server.url("/livez?x=")).map(|_| ());
    assert!(matches!(client, Err(ClientError::BadUrl { .. })));
}
