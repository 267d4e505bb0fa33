//! A service that speaks OpenAI's embeddings interface on loopback, and fails as a test tells it to.
//!
//! Invariant: without a script it answers every text with its vector; with one the script is asked first, for
//! each request.

use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Asked {
    /// Its path.
    pub path: String,
    /// Its `Authorization`.
    pub authorization: Option<String>,
    /// Its body.
    pub body: Value,
}

impl Asked {
    /// The texts to embed.
    pub fn texts(&self) -> Vec<String> {
        let texts = self.body["input"].as_array();
        let texts = texts.into_iter().flatten();
        texts
            .map(|it| it.as_str().unwrap_or_default().to_owned())
            .collect()
    }
}

/// What is done with a request.
#[derive(Clone, Debug)]
pub enum Reply {
    /// It is answered as it should be.
    Vectors,
    /// The same, with the last text's vector first.
    Reversed,
    /// It is answered with a status, header lines (or none) and a body.
    Http(u16, &'static str, String),
    /// It is answered as it should be, but for the last bytes of the body.
    Truncated,
    /// It is never answered.
    Hang,
    /// The connection is closed.
    Close,
}

type Embed = dyn Fn(&str) -> Vec<f32> + Send + Sync;
type Script = Box<dyn FnMut(&Asked) -> Reply + Send>;

/// The service. It ends with the process.
#[derive(Clone)]
pub struct EmbeddingService {
    port: u16,
    embed: Arc<Embed>,
    script: Arc<Mutex<Option<Script>>>,
    asked: Arc<Mutex<Vec<Asked>>>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl EmbeddingService {
    /// Starts it on a free port.
    ///
    /// # Errors
    /// When there is none.
    pub fn start(
        embed: impl Fn(&str) -> Vec<f32> + Send + Sync + 'static,
    ) -> std::io::Result<Self> {
        Self::start_on(0, embed)
    }

    /// Starts it on a port.
    ///
    /// # Errors
    /// When the port is not free.
    pub fn start_on(
        port: u16,
        embed: impl Fn(&str) -> Vec<f32> + Send + Sync + 'static,
    ) -> std::io::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", port))?;
        let service = Self {
            port: listener.local_addr()?.port(),
            embed: Arc::new(embed),
            script: Arc::default(),
            asked: Arc::default(),
        };
        let served = service.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let served = served.clone();
                std::thread::spawn(move || served.serve(stream));
            }
        });
        Ok(service)
    }

    /// Its address, before `/embeddings`.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}/v1", self.port)
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Lets `script` decide what is done with each request from now on.
    pub fn script(&self, script: impl FnMut(&Asked) -> Reply + Send + 'static) {
        *locked(&self.script) = Some(Box::new(script));
    }

    /// Answers the next `times` requests with `reply` and those after as it should.
    pub fn fail_next(&self, times: usize, reply: Reply) {
        let mut left = times;
        self.script(move |_| match left {
            0 => Reply::Vectors,
            _ => {
                left -= 1;
                reply.clone()
            }
        });
    }

    /// Answers everything as it should.
    pub fn recover(&self) {
        *locked(&self.script) = None;
    }

    /// All requests so far.
    pub fn asked(&self) -> Vec<Asked> {
        locked(&self.asked).clone()
    }

    fn serve(&self, stream: TcpStream) -> Option<()> {
        let mut reader = BufReader::new(stream.try_clone().ok()?);
        let asked = read(&mut reader)?;
        let reply = match &mut *locked(&self.script) {
            Some(script) => script(&asked),
            None => Reply::Vectors,
        };
        locked(&self.asked).push(asked.clone());
        let whole = |is_reversed| self.answer(&asked, is_reversed);
        match reply {
            Reply::Vectors => write(stream, 200, "", &whole(false), 0),
            Reply::Reversed => write(stream, 200, "", &whole(true), 0),
            Reply::Http(status, header, body) => write(stream, status, header, &body, 0),
            Reply::Truncated => write(stream, 200, "", &whole(false), 9),
            Reply::Hang => {
                std::thread::sleep(Duration::from_secs(600));
                None
            }
            Reply::Close => None,
        }
    }

    fn answer(&self, asked: &Asked, is_reversed: bool) -> String {
        let texts = asked.texts();
        let entries = texts.iter().enumerate().map(|(index, text)| {
            json!({"object": "embedding", "index": index, "embedding": (self.embed)(text)})
        });
        let mut entries: Vec<Value> = entries.collect();
        if is_reversed {
            entries.reverse();
        }
        json!({"object": "list", "data": entries, "model": asked.body["model"]}).to_string()
    }
}

fn read(reader: &mut BufReader<TcpStream>) -> Option<Asked> {
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let path = line.split(' ').nth(1)?.to_owned();
    let (mut authorization, mut length) = (None, 0);
    loop {
        line.clear();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(": ") else {
            break;
        };
        match name.to_ascii_lowercase().as_str() {
            "authorization" => authorization = Some(value.to_owned()),
            "content-length" => length = value.parse().ok()?,
            _ => {}
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some(Asked {
        path,
        authorization,
        body: serde_json::from_slice(&body).ok()?,
    })
}

/// Writes an answer but for its last bytes.
fn write(mut stream: TcpStream, status: u16, header: &str, body: &str, less: usize) -> Option<()> {
    let header = match header {
        "" => String::new(),
        header => format!("{header}\r\n"),
    };
    let length = body.len();
    let head = format!(
        "HTTP/1.1 {status} x\r\n{header}content-length: {length}\r\nconnection: close\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).ok()?;
    stream
        .write_all(&body.as_bytes()[..length.saturating_sub(less)])
        .ok()
}
