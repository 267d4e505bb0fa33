//! TLS in front of a service that speaks none, with a certificate of its own or one of an authority of its own: for
//! tests of clients that have to trust it.
//!
//! Invariant: it listens on 127.0.0.1 alone, and its threads end with their connections.

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;

/// How long one side is listened to while the other may have something to say.
const TURN: Duration = Duration::from_millis(2);

/// Makes a certificate for 127.0.0.1 and its key, `certificate.pem` and `key.pem`, and gives the file
/// `keystore.pem` with both.
///
/// # Errors
/// What openssl says.
pub fn make_certificate(directory: &Path) -> Result<PathBuf, String> {
    openssl(directory, &LEAF)?;
    joined(directory)
}

/// Makes the same, signed by an authority that is made too, whose certificate `authority.pem` is.
///
/// # Errors
/// What openssl says.
pub fn make_signed_certificate(directory: &Path) -> Result<PathBuf, String> {
    openssl(directory, &AUTHORITY)?;
    openssl(
        directory,
        &[
            &LEAF[..],
            &["-CA", "authority.pem", "-CAkey", "authority-key.pem"],
        ]
        .concat(),
    )?;
    joined(directory)
}

const AUTHORITY: [&str; 8] = [
    "-subj",
    "/CN=Authority of a test",
    "-addext",
    "basicConstraints=critical,CA:TRUE",
    "-keyout",
    "authority-key.pem",
    "-out",
    "authority.pem",
];
const LEAF: [&str; 10] = [
    "-subj",
    "/CN=127.0.0.1",
    "-addext",
    "subjectAltName=IP:127.0.0.1",
    // rustls takes no authority's certificate for a server's.
    "-addext",
    "basicConstraints=critical,CA:FALSE",
    "-keyout",
    "key.pem",
    "-out",
    "certificate.pem",
];

fn openssl(directory: &Path, more: &[&str]) -> Result<(), String> {
    let output = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes"])
        .args(["-days", "2"])
        .args(more)
        .current_dir(directory)
        .output()
        .map_err(|error| format!("openssl can't be run: {error}"))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!(
            "openssl: {}",
            String::from_utf8_lossy(&output.stderr)
        )),
    }
}

/// Writes key and certificate into one file.
fn joined(directory: &Path) -> Result<PathBuf, String> {
    let both = directory.join("keystore.pem");
    let read = |name: &str| {
        let text = std::fs::read_to_string(directory.join(name));
        text.map_err(|error| error.to_string())
    };
    let text = read("key.pem")? + &read("certificate.pem")?;
    std::fs::write(&both, text).map_err(|error| error.to_string())?;
    Ok(both)
}

/// TLS in front of a port of 127.0.0.1.
pub struct TlsProxy {
    port: u16,
    directory: TempDir,
    trusted: &'static str,
}

impl TlsProxy {
    /// Starts one whose certificate is its own authority.
    ///
    /// # Errors
    /// When a certificate or a port can't be had.
    pub fn start(to_port: u16) -> Result<Self, String> {
        let directory = tempfile::tempdir().map_err(|error| error.to_string())?;
        let store = make_certificate(directory.path())?;
        Self::start_with(to_port, directory, &store, "certificate.pem")
    }

    /// Starts one whose certificate an authority has signed.
    ///
    /// # Errors
    /// When a certificate or a port can't be had.
    pub fn start_signed(to_port: u16) -> Result<Self, String> {
        let directory = tempfile::tempdir().map_err(|error| error.to_string())?;
        let store = make_signed_certificate(directory.path())?;
        Self::start_with(to_port, directory, &store, "authority.pem")
    }

    fn start_with(
        to_port: u16,
        directory: TempDir,
        store: &Path,
        trusted: &'static str,
    ) -> Result<Self, String> {
        let certificate = CertificateDer::from_pem_file(store).map_err(|it| it.to_string())?;
        let key = PrivateKeyDer::from_pem_file(store).map_err(|it| it.to_string())?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .and_then(|it| {
                it.with_no_client_auth()
                    .with_single_cert(vec![certificate], key)
            })
            .map_err(|error| error.to_string())?;
        let listener = TcpListener::bind("127.0.0.1:0").map_err(|error| error.to_string())?;
        let port = listener
            .local_addr()
            .map_err(|error| error.to_string())?
            .port();
        let config = Arc::new(config);
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let config = config.clone();
                // A connection that fails is the client's to tell.
                std::thread::spawn(move || drop(serve(client, config, to_port)));
            }
        });
        Ok(Self {
            port,
            directory,
            trusted,
        })
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The certificate to trust.
    pub fn certificate(&self) -> PathBuf {
        self.directory.path().join(self.trusted)
    }
}

fn serve(
    client: TcpStream,
    config: Arc<ServerConfig>,
    to_port: u16,
) -> Result<(), Box<dyn std::error::Error>> {
    let mut service = TcpStream::connect(("127.0.0.1", to_port))?;
    client.set_read_timeout(Some(TURN))?;
    service.set_read_timeout(Some(TURN))?;
    let mut client = StreamOwned::new(ServerConnection::new(config)?, client);
    while pass(&mut client, &mut service)? && pass(&mut service, &mut client)? {}
    Ok(())
}

/// Passes on what is there; whether there may be more.
fn pass(from: &mut impl Read, to: &mut impl Write) -> std::io::Result<bool> {
    let mut buffer = [0; 16 * 1024];
    match from.read(&mut buffer) {
        Ok(0) => Ok(false),
        Ok(read) => {
            to.write_all(&buffer[..read])?;
            to.flush()?;
            Ok(true)
        }
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
            Ok(true)
        }
        Err(error) => Err(error),
    }
}
