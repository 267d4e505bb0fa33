//! Accepts connections until told to stop, and then lets the requests that run finish.
//!
//! HTTP/1.1 with keep-alive, no TLS (put a proxy in front). hyper's own limits hold for heads of
//! requests: 100 headers and about 400 KiB, answered with 431. Invariant: what one client does to its
//! connection touches no other.

use crate::config::{ServerConfig, is_loopback};
use crate::endpoint::Endpoint;
use crate::router::router;
use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use vectide_model::QueryService;

/// How long requests that run may take to finish after the signal to stop; supervisors kill after
/// ten seconds (`docker stop`) or thirty (Kubernetes).
const GRACE: Duration = Duration::from_secs(5);

/// How long a connection may take to send a request's head, or stay idle between requests: longer
/// than clients keep idle connections (15 s and less), so that they are seldom cut off.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);

/// Pause after a failed accept (most often: too many open files), so that it does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Serves until `shutdown` is ready; then closes the socket, and returns when the requests that run
/// are answered, or after five seconds.
///
/// # Errors
/// When the configuration has a fault ([`ServerConfig::check`]), a listener that other machines can
/// reach has no keys, or threads can't be started.
pub async fn serve(
    listener: TcpListener,
    service: Arc<dyn QueryService>,
    config: ServerConfig,
    shutdown: impl Future<Output = ()>,
) -> io::Result<()> {
    check(&listener, &config)?;
    let router = router(Endpoint::new(service, &config)?);
    let places = Arc::new(Semaphore::new(config.connections_max));
    let graceful = GracefulShutdown::new();
    let mut connections = JoinSet::new();
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        let (stream, place) = tokio::select! {
            biased;
            () = &mut shutdown => break,
            accepted = accept(&listener, &places) => accepted,
        };
        while connections.try_join_next().is_some() {}
        connections.spawn(graceful_connection(
            stream,
            place,
            router.clone(),
            &graceful,
        ));
    }
    drop(listener);
    if tokio::time::timeout(GRACE, graceful.shutdown())
        .await
        .is_err()
    {
        tracing::warn!(
            "requests still ran {} s after the signal to stop",
            GRACE.as_secs()
        );
        connections.abort_all();
    }
    Ok(())
}

fn check(listener: &TcpListener, config: &ServerConfig) -> io::Result<()> {
    let refuse = |message: String| Err(io::Error::new(io::ErrorKind::InvalidInput, message));
    if let Some(fault) = config.check().first() {
        return refuse(format!(
            "server.{}: {}; {}",
            fault.field, fault.fact, fault.hint
        ));
    }
    let address = listener.local_addr()?;
    if config.api_keys.is_empty() && !is_loopback(address.ip()) {
        return refuse(format!(
            "{address} can be reached from other machines and no key is set"
        ));
    }
    Ok(())
}

/// Waits for a free place and then for a connection to fill it.
async fn accept(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
) -> (TcpStream, Option<OwnedSemaphorePermit>) {
    // The semaphore is never closed; without a permit the connection would merely not be counted.
    let place = Arc::clone(places).acquire_owned().await.ok();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return (stream, place),
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Serves one connection to its end.
fn graceful_connection(
    stream: TcpStream,
    place: Option<OwnedSemaphorePermit>,
    router: Router,
    graceful: &GracefulShutdown,
) -> impl Future<Output = ()> + Send + use<> {
    // Answers are written whole: waiting to fill packets would only delay them.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "TCP_NODELAY could not be set");
    }
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let watched = graceful.watch(connection);
    async move {
        let _place = place;
        if let Err(error) = watched.await {
            // Clients that leave or talk something else: theirs to know.
            tracing::debug!(%error, "a connection ended early");
        }
    }
}
