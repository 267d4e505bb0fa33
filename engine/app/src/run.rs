//! `vectide run`: a pipeline with its query endpoint, until it is caught up or told to stop.

use crate::failure::{Failure, end};
use crate::progress::ProgressLine;
use crate::registry::registry;
use crate::validate;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use vectide_engine::{Pipeline, PipelineError, RunReport, StartOptions};
use vectide_model::{QueryService, ReadMode, StopSignal};
use vectide_serve::ServerConfig;

/// How long a process that is asked to end works on what is under way: some epochs, each of a fraction
/// of a second. Supervisors wait 10 s and more.
const END_PATIENCE: Duration = Duration::from_secs(8);

/// How often the main thread looks whether the pipeline has ended.
const LOOK: Duration = Duration::from_millis(20);

/// Runs a configuration; the sources named in `resnapshot` are read anew from their beginning.
///
/// # Errors
/// A bad configuration, a state or port that can't be had, or what ended the pipeline.
pub fn run(config: &Path, mode: ReadMode, resnapshot: Vec<String>) -> Result<(), Failure> {
    let loaded = validate::load(config)?;
    let server = loaded.config().server.clone();
    let plan = loaded
        .open(&registry())
        .map_err(|report| Failure::config(&report))?;
    let runtime = runtime()?;
    // The port comes first: a second process must not open the state before it knows.
    let address = server.address().map_err(Failure::new)?;
    let listener = runtime
        .block_on(TcpListener::bind(address))
        .map_err(|error| {
            Failure::new(format!(
                "{address} can't be listened on: {error}\nhint: another process may use the port; \
             set server.listen"
            ))
        })?;
    let options = StartOptions::of(mode).resnapshot(resnapshot);
    let pipeline = Pipeline::start_with(plan, options)?;
    let stop = pipeline.stop_signal();
    runtime.block_on(stop_on_signals(&stop))?;
    let serving = Serving::start(&runtime, listener, pipeline.service(), server)?;
    eprintln!("serving on http://{}", serving.address);
    let report = follow(pipeline)?;
    runtime.block_on(serving.end())?;
    if mode == ReadMode::UntilCaughtUp {
        println!("{}", serde_json::to_string(&report)?);
    }
    Ok(())
}

/// The runtime of the endpoint: two threads only move bytes, queries have their own.
///
/// # Errors
/// When threads can't be started.
pub fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("http")
        .enable_all()
        .build()
}

/// Waits for the end of a pipeline, showing how far it is.
fn follow(pipeline: Pipeline) -> Result<RunReport, PipelineError> {
    let mut line = ProgressLine::new(None);
    while !pipeline.is_finished() {
        line.show(pipeline.progress());
        std::thread::sleep(LOOK);
    }
    line.end();
    pipeline.join()
}

/// An endpoint that serves.
pub struct Serving {
    /// Where.
    pub address: std::net::SocketAddr,
    end: tokio::sync::oneshot::Sender<()>,
    task: tokio::task::JoinHandle<std::io::Result<()>>,
}

impl Serving {
    /// Serves on the runtime's threads.
    ///
    /// # Errors
    /// When the listener has no address.
    pub fn start(
        runtime: &tokio::runtime::Runtime,
        listener: TcpListener,
        service: Arc<dyn QueryService>,
        config: ServerConfig,
    ) -> std::io::Result<Self> {
        let address = listener.local_addr()?;
        let (end, ended) = tokio::sync::oneshot::channel::<()>();
        let shutdown = async move {
            // A dropped sender ends the endpoint as well.
            let _ = ended.await;
        };
        let task = runtime.spawn(vectide_serve::serve(listener, service, config, shutdown));
        Ok(Self { address, end, task })
    }

    /// Lets the requests that run finish.
    ///
    /// # Errors
    /// When the endpoint failed.
    pub async fn end(self) -> std::io::Result<()> {
        drop(self.end);
        self.task.await.map_err(std::io::Error::other)?
    }
}

/// Sets the stop signal on SIGTERM and ctrl-C.
pub(crate) async fn stop_on_signals(stop: &StopSignal) -> std::io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut terminate, mut interrupt) = (
        signal(SignalKind::terminate())?,
        signal(SignalKind::interrupt())?,
    );
    let stop = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping");
        stop.stop();
        tokio::time::sleep(END_PATIENCE).await;
        // A disk or a device that does not answer must not keep a supervisor waiting until it kills.
        let patience = END_PATIENCE.as_secs();
        end(Err(Failure::new(format!(
            "what was under way is not done {patience} s after the signal: ending without it\nhint: \
             what was committed is intact, the rest is read again at the next start"
        ))));
    });
    Ok(())
}
