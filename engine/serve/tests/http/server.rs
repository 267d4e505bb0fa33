//! Starts the real server on a free port and calls it with a real client.

use crate::memory::Memory;
use serde_json::Value;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;
use vectide_serve::{ServerConfig, serve};

/// Long enough for a busy machine, short enough for a test that hangs.
pub(crate) const LONG: Duration = Duration::from_secs(30);

/// A running server; it ends when this is dropped.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    pub(crate) memory: Arc<Memory>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<io::Result<()>>>,
}

/// What came back.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: ureq::http::HeaderMap,
    pub(crate) body: Vec<u8>,
}

impl Server {
    pub(crate) fn start() -> Self {
        Self::with(ServerConfig::default())
    }

    /// Starts with a configuration, on a free port whatever it says.
    pub(crate) fn with(config: ServerConfig) -> Self {
        let memory = Memory::new();
        let config = ServerConfig {
            listen: "127.0.0.1:0".into(),
            ..config
        };
        let (stop, stopped) = oneshot::channel();
        let (told, address) = std::sync::mpsc::channel();
        let service = Arc::clone(&memory);
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Runtime::new().unwrap();
            let outcome = runtime.block_on(async {
                let listener = config.bind().await.unwrap();
                told.send(listener.local_addr().unwrap()).unwrap();
                serve(listener, service, config, async { drop(stopped.await) }).await
            });
            // Calls that still wait at a gate must not hold the test up.
            runtime.shutdown_background();
            outcome
        });
        let address = address.recv().unwrap();
        Self {
            address,
            memory,
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub(crate) fn get(&self, path: &str) -> Reply {
        self.call("GET", path, &[], None)
    }

    pub(crate) fn post(&self, path: &str, body: &str) -> Reply {
        let json = [("content-type", "application/json")];
        self.call("POST", path, &json, Some(body.as_bytes()))
    }

    pub(crate) fn call(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<&[u8]>,
    ) -> Reply {
        let config = ureq::Agent::config_builder().http_status_as_error(false);
        let config = config
            .allow_non_standard_methods(true)
            .timeout_global(Some(LONG))
            .build();
        let agent = ureq::Agent::new_with_config(config);
        let mut request = ureq::http::Request::builder()
            .method(method)
            .uri(self.url(path));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let outcome = match body {
            Some(body) => agent.run(request.body(body).unwrap()),
            None => agent.run(request.body(()).unwrap()),
        };
        let mut response = outcome.unwrap();
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let body = response
            .body_mut()
            .with_config()
            .limit(1 << 30)
            .read_to_vec()
            .unwrap();
        Reply {
            status,
            headers,
            body,
        }
    }

    /// Tells the server to stop.
    pub(crate) fn tell_to_stop(&mut self) {
        self.stop.take().unwrap().send(()).unwrap();
    }

    /// Waits for its end.
    pub(crate) fn join(mut self) -> io::Result<()> {
        self.thread.take().unwrap().join().unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.memory.open_gate();
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A failed server fails the test by the answers it did not give.
            let _ = thread.join();
        }
    }
}

impl Reply {
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .map_or("", |value| value.to_str().unwrap())
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The JSON of an answer with status 200.
    pub(crate) fn ok(&self) -> Value {
        assert_eq!(self.status, 200, "{}", self.text());
        assert_eq!(self.header("content-type"), "application/json");
        self.json()
    }

    /// Checks that it is a well-formed problem of this status and code, and gives it.
    pub(crate) fn problem(&self, status: u16, code: &str) -> Value {
        let problem = self.json();
        assert_eq!(
            (self.status, problem["code"].as_str()),
            (status, Some(code)),
            "{problem}"
        );
        assert_eq!(self.header("content-type"), "application/problem+json");
        assert_eq!(problem["status"], status);
        assert_eq!(problem["type"], format!("urn:vectide:problem:{code}"));
        assert_eq!(problem["error"]["code"], code);
        for name in ["title", "detail", "hint"] {
            assert!(
                problem[name].as_str().is_some_and(|text| !text.is_empty()),
                "{name}: {problem}"
            );
        }
        let message = problem["error"]["message"].as_str().unwrap();
        assert!(
            message.starts_with(problem["detail"].as_str().unwrap()),
            "{problem}"
        );
        problem
    }
}

/// Waits until something holds.
pub(crate) fn until(what: &str, holds: impl Fn() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < LONG, "waited too long until {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}
