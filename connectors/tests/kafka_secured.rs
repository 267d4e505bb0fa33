//! The Kafka source over TLS and SASL, against a real broker with a certificate made here, users in
//! SCRAM and PLAIN, and OAuth tokens from an endpoint of the test.

// The lint spares functions marked as tests, but not their helpers.
#![allow(clippy::unwrap_used)]

use serde_json::{Value, json};
use std::cell::RefCell;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};
use vectide_connectors::KafkaConfig;
use vectide_connectors::testing::{
    HeldMap, KafkaBroker, KafkaRecord, RecordingSink, Resume, free_ports, make_certificate,
    run_source,
};
use vectide_model::{OpenContext, ReadMode, SourceConfig, SourceError};

/// Where the broker listens, and whom it believes.
#[derive(Clone, Debug, Default)]
struct Listeners {
    scram: u16,
    plain: u16,
    oauth: u16,
    certificate: PathBuf,
}

#[test]
fn over_tls_and_sasl() {
    let listeners = RefCell::new(Listeners::default());
    let started = KafkaBroker::start_with(|directory, port| {
        *listeners.borrow_mut() = prepare(directory, port)?;
        Ok(())
    });
    let Some(broker) = KafkaBroker::expect_or_skip("over_tls_and_sasl", started) else {
        return;
    };
    let listeners = listeners.into_inner();
    broker.create_topic("secret", 1, &[]);
    broker.produce(&[KafkaRecord {
        topic: "secret",
        partition: 0,
        key: Some(b"k"),
        value: Some(b"{}"),
    }]);
    for mechanism in ["SCRAM-SHA-256", "SCRAM-SHA-512", "PLAIN"] {
        let port = if mechanism == "PLAIN" {
            listeners.plain
        } else {
            listeners.scram
        };
        let with = |password: &str| {
            json!({
                "security.protocol": "SASL_SSL",
                "sasl.mechanism": mechanism,
                "sasl.username": "alice",
                "sasl.password": password,
                "ssl.ca.location": listeners.certificate,
            })
        };
        assert_eq!(read(port, with("wonderland")).unwrap(), 1, "{mechanism}");
        let began_at = Instant::now();
        let text = read(port, with("looking glass")).unwrap_err().to_string();
        assert!(
            began_at.elapsed() < Duration::from_secs(20),
            "it does not take a minute"
        );
        assert!(
            text.contains("refuse") && text.contains("uthentication"),
            "{text}"
        );
        assert!(
            text.contains("sasl.*") && !text.contains("looking glass"),
            "{text}"
        );
        println!("ok: {mechanism}: {}", text.lines().next().unwrap());
    }
    let unknown = json!({
        "security.protocol": "SASL_SSL",
        "sasl.mechanism": "PLAIN",
        "sasl.username": "alice",
        "sasl.password": "wonderland",
    });
    let text = read(listeners.plain, unknown).unwrap_err().to_string();
    assert!(text.contains("certificate"), "{text}");
    oauth(&listeners);
    checked(&listeners);
}

fn oauth(listeners: &Listeners) {
    let endpoint = TokenEndpoint::start();
    let with = |secret: &str| {
        json!({
            "security.protocol": "SASL_PLAINTEXT",
            "sasl.mechanism": "OAUTHBEARER",
            "sasl.oauthbearer.method": "oidc",
            "sasl.oauthbearer.client.id": "vectide",
            "sasl.oauthbearer.client.secret": secret,
            "sasl.oauthbearer.token.endpoint.url": endpoint.url,
        })
    };
    assert_eq!(read(listeners.oauth, with("sesame")).unwrap(), 1);
    assert!(
        endpoint.given.load(Ordering::Acquire) > 0,
        "the token came from the endpoint"
    );
    let text = read(listeners.oauth, with("barley"))
        .unwrap_err()
        .to_string();
    assert!(
        text.contains("refuse") && text.contains("OAUTHBEARER"),
        "{text}"
    );
    println!("ok: OAUTHBEARER: {}", text.lines().next().unwrap());
}

fn checked(listeners: &Listeners) {
    let properties = json!({
        "security.protocol": "SASL_SSL",
        "sasl.mechanism": "PLAIN",
        "sasl.username": "alice",
        "sasl.password": "wrong",
        "ssl.ca.location": listeners.certificate,
    });
    let lines = config(listeners.plain, properties).check_connection("pages", &context());
    assert_eq!(
        lines.len(),
        1,
        "without brokers there is nothing more to ask: {lines:?}"
    );
    let error = lines[0].result.clone().unwrap_err();
    assert!(error.fact.contains("uthentication"), "{error}");
}

fn config(port: u16, properties: Value) -> KafkaConfig {
    serde_json::from_value(json!({
        "brokers": format!("127.0.0.1:{port}"),
        "topics": ["secret"],
        "format": {"type": "upsert"},
        "properties": properties,
    }))
    .unwrap()
}

fn context() -> OpenContext {
    OpenContext::in_folder("/")
}

/// The number of changes.
fn read(port: u16, properties: Value) -> Result<usize, SourceError> {
    let source = config(port, properties).open(&context()).unwrap();
    let sink = RecordingSink::default();
    let mode = ReadMode::UntilCaughtUp;
    let mut run = run_source(source, Resume::default(), HeldMap::default(), mode, sink);
    run.join()?;
    Ok(run.changes().len())
}

fn prepare(directory: &Path, port: u16) -> Result<Listeners, String> {
    let listeners = Listeners {
        scram: free_ports(1)?,
        plain: free_ports(1)?,
        oauth: free_ports(1)?,
        certificate: directory.join("certificate.pem"),
    };
    let store = make_certificate(directory)?;
    let store = store.display();
    let Listeners {
        scram,
        plain,
        oauth,
        ..
    } = &listeners;
    let module = "org.apache.kafka.common.security";
    let controller = port + 1;
    let settings = format!(
        "listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller},\
         SCRAM://127.0.0.1:{scram},PLAIN://127.0.0.1:{plain},OAUTH://127.0.0.1:{oauth}\n\
         advertised.listeners=PLAINTEXT://127.0.0.1:{port},SCRAM://127.0.0.1:{scram},\
         PLAIN://127.0.0.1:{plain},OAUTH://127.0.0.1:{oauth}\n\
         listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,\
         SCRAM:SASL_SSL,PLAIN:SASL_SSL,OAUTH:SASL_PLAINTEXT\n\
         ssl.keystore.type=PEM\n\
         ssl.keystore.location={store}\n\
         listener.name.scram.sasl.enabled.mechanisms=SCRAM-SHA-256,SCRAM-SHA-512\n\
         listener.name.scram.scram-sha-256.sasl.jaas.config={module}.scram.ScramLoginModule required;\n\
         listener.name.scram.scram-sha-512.sasl.jaas.config={module}.scram.ScramLoginModule required;\n\
         listener.name.plain.sasl.enabled.mechanisms=PLAIN\n\
         listener.name.plain.plain.sasl.jaas.config={module}.plain.PlainLoginModule required \
         user_alice=\"wonderland\";\n\
         listener.name.oauth.sasl.enabled.mechanisms=OAUTHBEARER\n\
         listener.name.oauth.oauthbearer.sasl.jaas.config=\
         {module}.oauthbearer.OAuthBearerLoginModule required unsecuredLoginStringClaim_sub=\"broker\";\n"
    );
    let write = |name: &str, text: &str| {
        std::fs::write(directory.join(name), text).map_err(|error| error.to_string())
    };
    write("extra.properties", &settings)?;
    write(
        "scram-users",
        "SCRAM-SHA-256=[name=alice,password=wonderland]\nSCRAM-SHA-512=[name=alice,password=wonderland]\n",
    )?;
    Ok(listeners)
}

/// Gives tokens to the client `vectide` with the secret `sesame`.
struct TokenEndpoint {
    url: String,
    given: Arc<AtomicUsize>,
}

impl TokenEndpoint {
    /// Its thread ends with the test's process.
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/token", listener.local_addr().unwrap());
        let given = Arc::new(AtomicUsize::new(0));
        let count = given.clone();
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let mut reader = BufReader::new(stream.try_clone().unwrap());
                let (mut length, mut is_known) = (0, false);
                for line in reader.by_ref().lines().map_while(Result::ok) {
                    let (name, value) = line.split_once(": ").unwrap_or_default();
                    match name.to_ascii_lowercase().as_str() {
                        "content-length" => length = value.parse().unwrap(),
                        // vectide:sesame
                        "authorization" => is_known = value == "Basic dmVjdGlkZTpzZXNhbWU=",
                        _ => {}
                    }
                    if line.is_empty() {
                        break;
                    }
                }
                let mut body = vec![0; length];
                reader.read_exact(&mut body).unwrap();
                let (status, text) = if is_known {
                    count.fetch_add(1, Ordering::AcqRel);
                    (
                        "200 OK",
                        json!({"access_token": token(), "token_type": "Bearer", "expires_in": 600}),
                    )
                } else {
                    ("401 Unauthorized", json!({"error": "invalid_client"}))
                };
                let text = text.to_string();
                let _ = write!(
                    stream,
                    "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{text}",
                    text.len()
                );
            }
        });
        Self { url, given }
    }
}

/// An unsigned token: the broker's own validator for tests takes it.
fn token() -> String {
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap()
        .as_secs();
    let claims = json!({"sub": "vectide", "iat": now - 1, "exp": now + 600});
    format!(
        "{}.{}.",
        base64url(br#"{"alg":"none"}"#),
        base64url(claims.to_string().as_bytes())
    )
}

fn base64url(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let mut word = [0; 3];
        word[..chunk.len()].copy_from_slice(chunk);
        let number = u32::from_be_bytes([0, word[0], word[1], word[2]]);
        for index in 0..=chunk.len() {
            let sextet = number >> (18 - 6 * index) & 63;
            text.push(char::from(LETTERS[sextet as usize]));
        }
    }
    text
}
