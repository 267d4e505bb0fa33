//! A connection to the server: start, authentication, queries in text, and the copy stream of
//! replication. Blocking, on the thread of its user.
//!
//! The messages and SCRAM are those of `postgres-protocol`; the drivers built on it do not speak
//! replication, and a source that blocks has no use for their asynchronous runtime.
//!
//! Invariant: nobody waits longer than [`TICK`] without asking the stop signal; no message longer
//! than the limit is held in memory.

use super::config::{PostgresConfig, TlsMode};
use super::errors::{PgError, ServerError};
use super::tls;
use bytes::{Bytes, BytesMut};
use fallible_iterator::FallibleIterator;
use postgres_protocol::authentication::{md5_hash, sasl};
use postgres_protocol::message::backend::{self, DataRowBody, ErrorFields, Message};
use postgres_protocol::message::frontend;
use rustls::StreamOwned;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::path::PathBuf;
use std::time::{Duration, Instant};
use vectide_model::{DeadLetter, StopSignal};

/// Longest wait on the socket before the stop signal is asked.
pub(crate) const TICK: Duration = Duration::from_millis(50);

/// Time for the server to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Time for the server to answer during start and authentication.
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// A silent peer is asked after so long whether it still lives: readers of a snapshot may wait long
/// for a lock, and a dead server must not look like one.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// What is kept of a message above the limit: a dead letter's piece, the frame around it, and one byte
/// that shows the letter to be cut.
const START_BYTES: usize = DeadLetter::RAW_BYTES_MAX + 64;

/// Bytes asked for in one read.
const READ_BYTES: usize = 64 * 1024;

/// Where and how to connect: what all connections of a source share.
#[derive(Clone)]
pub(crate) struct Connector {
    pub(crate) config: PostgresConfig,
    /// The folder of the configuration, for the certificates.
    pub(crate) folder: PathBuf,
    pub(crate) stop: StopSignal,
}

/// What a connection is for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Queries.
    Queries,
    /// Replication commands and the stream.
    Replication,
}

enum Stream {
    Plain(TcpStream),
    Tls(Box<StreamOwned<rustls::ClientConnection, TcpStream>>),
}

impl Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.read(buffer),
            Self::Tls(stream) => stream.read(buffer),
        }
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Plain(stream) => stream.write_all(bytes),
            Self::Tls(stream) => stream.write_all(bytes).and_then(|()| stream.flush()),
        }
    }
}

/// A message from the server.
pub(crate) enum Frame {
    /// A message.
    Message(Message),
    /// The stream of replication begins.
    CopyBoth,
    /// A message above the limit: its kind, its length and its beginning.
    TooLarge { tag: u8, bytes: usize, start: Bytes },
}

/// A message that is being skipped.
struct Skipped {
    tag: u8,
    bytes: usize,
    left: usize,
    start: BytesMut,
}

/// A row of a query's answer, in text.
pub(crate) type TextRow = Vec<Option<String>>;

/// An open connection.
pub(crate) struct Connection {
    stream: Stream,
    input: BytesMut,
    skipped: Option<Skipped>,
    message_bytes_max: usize,
    stop: StopSignal,
    pub(crate) is_encrypted: bool,
}

/// How values are written: fixed, so that snapshot and stream write them alike whatever the server's
/// and the role's defaults are. And nothing may end a reader that waits for the pipeline.
const SETTINGS: [(&str, &str); 9] = [
    ("application_name", "vectide"),
    ("client_encoding", "UTF8"),
    ("DateStyle", "ISO"),
    ("TimeZone", "UTC"),
    ("IntervalStyle", "iso_8601"),
    ("extra_float_digits", "3"),
    ("bytea_output", "hex"),
    ("idle_in_transaction_session_timeout", "0"),
    ("statement_timeout", "0"),
];

impl Connector {
    /// Connects and authenticates.
    pub(crate) fn connect(&self, purpose: Purpose) -> Result<Connection, PgError> {
        let config = &self.config;
        let mut connection = self.open_stream()?;
        let mut parameters = vec![
            ("user", config.user.as_str()),
            ("database", config.database.as_str()),
        ];
        parameters.extend(SETTINGS);
        match purpose {
            Purpose::Replication => parameters.push(("replication", "database")),
            // A policy that hides rows from the role must be an error, not a smaller table.
            Purpose::Queries => parameters.push(("row_security", "off")),
        }
        let mut message = BytesMut::new();
        frontend::startup_message(parameters, &mut message).map_err(setup)?;
        connection.write(&message)?;
        connection.authenticate(config)?;
        Ok(connection)
    }

    fn open_stream(&self) -> Result<Connection, PgError> {
        let config = &self.config;
        let mode = config.tls.mode;
        let tcp = self.open_socket()?;
        let mut connection = Connection {
            stream: Stream::Plain(tcp),
            input: BytesMut::new(),
            skipped: None,
            message_bytes_max: config.max_row.as_usize(),
            stop: self.stop.clone(),
            is_encrypted: false,
        };
        if mode == TlsMode::Disable {
            return Ok(connection);
        }
        let mut request = BytesMut::new();
        frontend::ssl_request(&mut request);
        connection.write(&request)?;
        let deadline = Instant::now() + START_TIMEOUT;
        while connection.input.is_empty() {
            connection.fill(Some(deadline))?;
        }
        match (connection.input.split_to(1)[0], mode) {
            // Bytes behind the answer were not encrypted: someone on the way put them there.
            (b'S', _) if connection.input.is_empty() => {}
            (b'N', TlsMode::Prefer) => return Ok(connection),
            (b'N', _) => {
                return Err(PgError::Setup(format!(
                    "the server does not speak TLS, and `tls.mode` is {}",
                    mode.as_str()
                )));
            }
            _ => return Err(PgError::protocol("no answer to the request for TLS")),
        }
        let client =
            tls::client(&config.tls, &self.folder, &config.host).map_err(PgError::Setup)?;
        let Stream::Plain(tcp) = connection.stream else {
            return Err(PgError::protocol("TLS was asked for twice"));
        };
        connection.stream = Stream::Tls(Box::new(StreamOwned::new(client, tcp)));
        connection.is_encrypted = true;
        Ok(connection)
    }

    fn open_socket(&self) -> Result<TcpStream, PgError> {
        let PostgresConfig { host, port, .. } = &self.config;
        let unreachable = |error: &dyn std::fmt::Display| {
            PgError::Connection(format!("{host}:{port} can't be reached: {error}"))
        };
        let addresses = (host.as_str(), *port)
            .to_socket_addrs()
            .map_err(|error| unreachable(&error))?;
        let mut last = unreachable(&"the name has no address");
        for address in addresses {
            match TcpStream::connect_timeout(&address, CONNECT_TIMEOUT) {
                Ok(tcp) => {
                    let alive = socket2::TcpKeepalive::new().with_time(KEEPALIVE);
                    let set = tcp
                        .set_nodelay(true)
                        .and_then(|()| tcp.set_read_timeout(Some(TICK)))
                        .and_then(|()| tcp.set_write_timeout(Some(START_TIMEOUT)))
                        .and_then(|()| socket2::SockRef::from(&tcp).set_tcp_keepalive(&alive));
                    set.map_err(|error| unreachable(&error))?;
                    return Ok(tcp);
                }
                Err(error) => last = unreachable(&error),
            }
        }
        Err(last)
    }
}

fn setup(error: io::Error) -> PgError {
    PgError::Setup(error.to_string())
}

/// A failed read or write. rustls tells a refused certificate as invalid data.
fn broken(error: &io::Error) -> PgError {
    match error.kind() {
        ErrorKind::InvalidData => PgError::Setup(format!("TLS failed: {error}")),
        _ => PgError::Connection(format!("the connection broke: {error}")),
    }
}

fn malformed(error: io::Error) -> PgError {
    PgError::Protocol(error.to_string())
}

impl Connection {
    fn authenticate(&mut self, config: &PostgresConfig) -> Result<(), PgError> {
        let deadline = Instant::now() + START_TIMEOUT;
        let password = || {
            let password = config.password.as_ref().map(|secret| secret.text());
            password.ok_or_else(|| PgError::Setup("the server asks for a password".to_owned()))
        };
        let mut answer = BytesMut::new();
        loop {
            match self.message(Some(deadline))? {
                Message::AuthenticationOk
                | Message::ParameterStatus(_)
                | Message::BackendKeyData(_)
                | Message::NoticeResponse(_) => {}
                Message::ReadyForQuery(_) => return Ok(()),
                Message::AuthenticationCleartextPassword if self.is_encrypted => {
                    let password = password()?.as_bytes();
                    frontend::password_message(password, &mut answer).map_err(setup)?;
                }
                Message::AuthenticationMd5Password(body) => {
                    let user = config.user.as_bytes();
                    let hash = md5_hash(user, password()?.as_bytes(), body.salt());
                    frontend::password_message(hash.as_bytes(), &mut answer).map_err(setup)?;
                }
                Message::AuthenticationSasl(body) => {
                    let mut names = body.mechanisms();
                    if !names
                        .any(|name| Ok(name == sasl::SCRAM_SHA_256))
                        .map_err(malformed)?
                    {
                        return Err(PgError::Setup(
                            "the server offers no SCRAM-SHA-256".to_owned(),
                        ));
                    }
                    self.scram(password()?, deadline)?;
                }
                _ => {
                    return Err(PgError::Setup(
                        "the server asks for a method of authentication other than SCRAM-SHA-256, \
                         MD5 or (over TLS) a password"
                            .to_owned(),
                    ));
                }
            }
            if !answer.is_empty() {
                self.write(&answer.split())?;
            }
        }
    }

    fn scram(&mut self, password: &str, deadline: Instant) -> Result<(), PgError> {
        // "n": no channel binding; the server's certificate is what `verify-full` is for.
        let binding = sasl::ChannelBinding::unsupported();
        let mut scram = sasl::ScramSha256::new(password.as_bytes(), binding);
        let mut answer = BytesMut::new();
        frontend::sasl_initial_response(sasl::SCRAM_SHA_256, scram.message(), &mut answer)
            .map_err(setup)?;
        self.write(&answer.split())?;
        let refused = |_| PgError::protocol("the server broke off the authentication");
        match self.message(Some(deadline))? {
            Message::AuthenticationSaslContinue(body) => {
                scram.update(body.data()).map_err(setup)?;
            }
            _ => return Err(refused(())),
        }
        frontend::sasl_response(scram.message(), &mut answer).map_err(setup)?;
        self.write(&answer.split())?;
        match self.message(Some(deadline))? {
            Message::AuthenticationSaslFinal(body) => scram.finish(body.data()).map_err(setup),
            _ => Err(refused(())),
        }
    }

    /// All rows of a query, which are few.
    pub(crate) fn query(&mut self, sql: &str) -> Result<Vec<TextRow>, PgError> {
        let mut rows = Vec::new();
        self.query_each(sql, &mut |answer| {
            if let Answer::Row(row) = answer {
                rows.push(text_row(&row)?);
            }
            Ok(())
        })?;
        Ok(rows)
    }

    /// Runs a query and hands on its rows one after the other, as they come.
    pub(crate) fn query_each(
        &mut self,
        sql: &str,
        each: &mut dyn FnMut(Answer) -> Result<(), PgError>,
    ) -> Result<(), PgError> {
        let mut message = BytesMut::new();
        frontend::query(sql, &mut message).map_err(setup)?;
        self.write(&message)?;
        let mut refused = None;
        loop {
            match self.frame(None)? {
                Frame::Message(Message::DataRow(row)) if refused.is_none() => {
                    each(Answer::Row(row))?;
                }
                Frame::Message(Message::ErrorResponse(body)) => {
                    refused = Some(server_error(body.fields()));
                }
                Frame::Message(Message::ReadyForQuery(_)) => match refused {
                    Some(error) => return Err(PgError::Server(error)),
                    None => return Ok(()),
                },
                Frame::TooLarge {
                    tag: backend::DATA_ROW_TAG,
                    bytes,
                    start,
                } => each(Answer::TooLarge { bytes, start })?,
                Frame::TooLarge { tag, bytes, .. } => return Err(too_large(tag, bytes)),
                Frame::Message(_) | Frame::CopyBoth => {}
            }
        }
    }

    /// Begins the stream of replication.
    pub(crate) fn start_copy_both(&mut self, command: &str) -> Result<(), PgError> {
        let mut message = BytesMut::new();
        frontend::query(command, &mut message).map_err(setup)?;
        self.write(&message)?;
        loop {
            match self.frame(None)? {
                Frame::CopyBoth => return Ok(()),
                Frame::Message(Message::ErrorResponse(body)) => {
                    return Err(PgError::Server(server_error(body.fields())));
                }
                Frame::Message(Message::ReadyForQuery(_)) => {
                    return Err(PgError::protocol("the server did not begin the stream"));
                }
                Frame::TooLarge { tag, bytes, .. } => return Err(too_large(tag, bytes)),
                Frame::Message(_) => {}
            }
        }
    }

    /// Tells how far the stream is durable.
    pub(crate) fn send_status(&mut self, durable: u64, wants_reply: bool) -> Result<(), PgError> {
        let mut body = BytesMut::with_capacity(34);
        body.extend([b'r']);
        for _written_flushed_applied in 0..3 {
            body.extend(durable.to_be_bytes());
        }
        // Our clock, in microseconds since 2000-01-01; the server only shows it.
        body.extend(0_i64.to_be_bytes());
        body.extend([u8::from(wants_reply)]);
        let mut message = BytesMut::with_capacity(40);
        frontend::CopyData::new(body.freeze())
            .map_err(setup)?
            .write(&mut message);
        self.write(&message)
    }

    /// Says goodbye; the server ends the session at once instead of at the next write.
    pub(crate) fn close(mut self) {
        let mut message = BytesMut::new();
        frontend::terminate(&mut message);
        // The connection is given up either way.
        let _ = self.write(&message);
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), PgError> {
        self.stream.write(bytes).map_err(|error| broken(&error))
    }

    /// The next message that is not an error; notices are left out.
    fn message(&mut self, deadline: Option<Instant>) -> Result<Message, PgError> {
        match self.frame(deadline)? {
            Frame::Message(Message::ErrorResponse(body)) => {
                Err(PgError::Server(server_error(body.fields())))
            }
            Frame::Message(message) => Ok(message),
            Frame::CopyBoth => Err(PgError::protocol("a stream that nobody asked for")),
            Frame::TooLarge { tag, bytes, .. } => Err(too_large(tag, bytes)),
        }
    }

    fn frame(&mut self, deadline: Option<Instant>) -> Result<Frame, PgError> {
        loop {
            if let Some(frame) = self.buffered_frame()? {
                return Ok(frame);
            }
            self.fill(deadline)?;
        }
    }

    /// The next message among the bytes already here.
    pub(crate) fn buffered_frame(&mut self) -> Result<Option<Frame>, PgError> {
        if self.skipped.is_some() {
            return Ok(self.skip());
        }
        let Some(header) = backend::Header::parse(&self.input).map_err(malformed)? else {
            return Ok(None);
        };
        let bytes = usize::try_from(header.len()).unwrap_or(0) + 1;
        if bytes > self.message_bytes_max {
            self.skipped = Some(Skipped {
                tag: header.tag(),
                bytes: bytes - 5,
                left: bytes - 5,
                start: BytesMut::new(),
            });
            let _header = self.input.split_to(5);
            return Ok(self.skip());
        }
        if self.input.len() < bytes {
            return Ok(None);
        }
        // CopyBothResponse, which `postgres-protocol` does not know.
        if header.tag() == b'W' {
            let _message = self.input.split_to(bytes);
            return Ok(Some(Frame::CopyBoth));
        }
        let message = Message::parse(&mut self.input).map_err(malformed)?;
        Ok(message.map(Frame::Message))
    }

    /// Drops what has come of a message above the limit, but for its beginning.
    fn skip(&mut self) -> Option<Frame> {
        let skipped = self.skipped.as_mut()?;
        let part = self.input.split_to(skipped.left.min(self.input.len()));
        let room = START_BYTES.saturating_sub(skipped.start.len());
        skipped
            .start
            .extend_from_slice(&part[..part.len().min(room)]);
        skipped.left -= part.len();
        if skipped.left > 0 {
            return None;
        }
        let Skipped {
            tag, bytes, start, ..
        } = self.skipped.take()?;
        Some(Frame::TooLarge {
            tag,
            bytes,
            start: start.freeze(),
        })
    }

    /// Waits for bytes; returns without any when none come for a while.
    pub(crate) fn fill(&mut self, deadline: Option<Instant>) -> Result<(), PgError> {
        if self.stop.is_stopped() {
            return Err(PgError::Stopped);
        }
        let before = self.input.len();
        self.input.resize(before + READ_BYTES, 0);
        let read = self.stream.read(&mut self.input[before..]);
        self.input
            .truncate(before + read.as_ref().map_or(0, |bytes| *bytes));
        match read {
            Ok(0) => Err(PgError::Connection(
                "the server closed the connection".to_owned(),
            )),
            Ok(_) => Ok(()),
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
                ) =>
            {
                match deadline {
                    Some(at) if Instant::now() >= at => {
                        Err(PgError::Connection("the server does not answer".to_owned()))
                    }
                    _ => Ok(()),
                }
            }
            Err(error) => Err(broken(&error)),
        }
    }
}

/// A row of an answer.
pub(crate) enum Answer {
    /// A row.
    Row(DataRowBody),
    /// A row above the limit.
    TooLarge { bytes: usize, start: Bytes },
}

fn too_large(tag: u8, bytes: usize) -> PgError {
    PgError::protocol(format!(
        "a message `{}` of {bytes} bytes is longer than `max_row`",
        tag.escape_ascii()
    ))
}

fn text_row(row: &DataRowBody) -> Result<TextRow, PgError> {
    let buffer = row.buffer();
    let cells = row
        .ranges()
        .map(|range| Ok(range.map(|range| String::from_utf8_lossy(&buffer[range]).into_owned())));
    cells.collect().map_err(malformed)
}

/// What the server says in an error.
pub(crate) fn server_error(mut fields: ErrorFields<'_>) -> ServerError {
    let mut error = ServerError::default();
    while let Ok(Some(field)) = fields.next() {
        let text = || String::from_utf8_lossy(field.value_bytes()).into_owned();
        match field.type_() {
            b'C' => error.code = text(),
            b'M' => error.message.insert_str(0, &text()),
            b'D' => error.message.push_str(&format!(": {}", text())),
            b'H' => error.hint = text(),
            _ => {}
        }
    }
    error
}

/// A name as an SQL identifier.
pub(crate) fn quote_name(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Text as an SQL literal; a backslash is one whatever `standard_conforming_strings` says.
pub(crate) fn quote_text(text: &str) -> String {
    format!("E'{}'", text.replace('\\', "\\\\").replace('\'', "''"))
}
