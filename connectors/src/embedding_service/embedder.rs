//! The service as an embedder: texts in requests, one after the other within a call, with repetitions.
//!
//! A request that fails for a reason that passes is sent again a few times; then the call ends with
//! [`EmbedError::Unavailable`], and whoever has chunks comes again. A text that is refused alone is only believed
//! to be at fault while the service takes a plain one: it might as well refuse every text.
//!
//! Invariant: a call ends within its lane's time; no text is sent while the breaker is open.

use super::breaker::{Breaker, Turn};
use super::client::{Away, Client, Outcome};
use super::config::OpenAiConfig;
use super::pace::{PAUSE_MAX, before_repetition};
use super::telemetry;
use super::tokens::{EstimatedTokens, cut};
use std::sync::Arc;
use std::time::{Duration, Instant};
use vectide_model::{
    BatchLimits, ComponentError, EmbedError, Embedder, Lane, ModelIdentity, TokenCounter,
    stable_hash,
};

/// Changes with anything here that could change a vector by more than rounding.
const ALGORITHM_VERSION: &str = "openai-1";
/// What is asked to find out whether the service works.
const PROBE: &str = "vectide";
/// The longest that a request at the start may take: a person waits for it.
const START_TIMEOUT: Duration = Duration::from_secs(10);
/// How long nothing is sent to a service that refuses every text.
const REFUSING_WAIT: Duration = Duration::from_secs(15);
/// The longest that a query waits for its vector: whoever asked is gone after that.
const QUERY_CALL_MAX: Duration = Duration::from_secs(5);
/// The longest that a call with chunks goes on repeating requests, so that what waits for its end (a stop of
/// the pipeline) waits no longer. The last request may begin just before.
const BULK_CALL_MAX: Duration = Duration::from_secs(30);

/// The embedder.
pub(super) struct RemoteEmbedder {
    identity: ModelIdentity,
    client: Client,
    breaker: Breaker,
    config: OpenAiConfig,
}

/// What a request is to find out.
#[derive(Clone, Copy)]
enum About<'a> {
    /// The vectors of texts.
    Texts(&'a [String]),
    /// Whether the service takes a text that nothing is wrong with.
    Service,
}

/// A service that refuses a text that nothing is wrong with refuses every text: somebody has to change that,
/// so it is asked seldom.
fn refusing_all(outcome: Outcome) -> Outcome {
    match outcome {
        Outcome::Texts(why) => Outcome::Away(Away {
            why: format!("every text is refused: {why}"),
            passes: false,
            field: "name",
            wait: Some(REFUSING_WAIT),
        }),
        other => other,
    }
}

impl Away {
    /// As a fault of the configuration, or of what is around it.
    pub(super) fn error(&self) -> ComponentError {
        let hint = match self.field {
            "api_key" => "check `api_key`, and whether it may use this model",
            "name" => "check `name`, which is what the service knows the model by, and `url`",
            "dimensions" => "set the model's own `dimensions`, or remove it",
            _ => {
                "check `url` and whether the service runs; it need not at the start where `dimensions` is set"
            }
        };
        ComponentError::new(self.field, self.why.clone(), hint)
    }
}

/// The dimensions of the service's vectors.
pub(super) fn ask_dimension(config: &OpenAiConfig, client: &Client) -> Result<usize, Away> {
    let timeout = config.timeout.as_duration().min(START_TIMEOUT);
    let mut repetition = 0;
    loop {
        let away = match client.post(&[PROBE.to_owned()], None, timeout) {
            Outcome::Vectors(vectors) => {
                return expected(config, vectors.first().map_or(0, Vec::len));
            }
            Outcome::Texts(why) => Away {
                why,
                passes: false,
                field: match config.dimensions {
                    Some(_) => "dimensions",
                    None => "name",
                },
                wait: None,
            },
            Outcome::Away(away) => away,
        };
        if !away.passes || repetition >= config.retries {
            return Err(away);
        }
        std::thread::sleep(before_repetition(repetition));
        repetition += 1;
    }
}

/// The dimensions found, which are those that the configuration has.
fn expected(config: &OpenAiConfig, found: usize) -> Result<usize, Away> {
    match config.dimensions {
        Some(wanted) if wanted != found => Err(Away {
            why: format!("{} gives {found} dimensions, not {wanted}", config.url),
            passes: false,
            field: "dimensions",
            wait: None,
        }),
        _ => Ok(found),
    }
}

impl RemoteEmbedder {
    /// Asks the service once. It may be away where the dimensions are known.
    pub(super) fn open(config: &OpenAiConfig, client: Client) -> Result<Self, ComponentError> {
        if config.is_key_readable() {
            tracing::warn!(
                url = config.url,
                "the key of the embedding service is sent without encryption: use https://"
            );
        }
        let dimension = match (ask_dimension(config, &client), config.dimensions) {
            (Ok(dimension), _) => dimension,
            (Err(away), Some(dimensions)) if away.passes => {
                tracing::warn!(
                    model = config.name,
                    why = away.why,
                    "the embedding service is away: chunks wait until it returns"
                );
                dimensions
            }
            (Err(away), _) => return Err(away.error()),
        };
        Ok(Self {
            identity: identity(config, dimension),
            client,
            breaker: Breaker::new(),
            config: config.clone(),
        })
    }

    /// The texts as they are sent, blank ones left out: those have no vector anywhere.
    fn prepared(&self, lane: Lane, texts: &[&str]) -> Vec<Option<String>> {
        let prefix = match lane {
            Lane::Query => self.config.query(),
            Lane::Bulk => self.config.passage(),
        };
        let prefix_tokens = EstimatedTokens.count(prefix);
        let tokens_max = self.config.max_tokens.saturating_sub(prefix_tokens);
        let prepare = |text: &&str| {
            let text = cut(text, tokens_max);
            (!text.trim().is_empty()).then(|| format!("{prefix}{text}"))
        };
        texts.iter().map(prepare).collect()
    }

    /// Texts that go in one request, from the beginning of `texts`.
    fn request_of(&self, texts: &[String]) -> usize {
        let bytes_max = self.config.batch_bytes.as_usize();
        let mut bytes = 0;
        let fitting = texts.iter().take(self.config.batch_texts);
        let fitting = fitting.take_while(|text| {
            bytes += text.len();
            bytes <= bytes_max
        });
        fitting.count().clamp(1, texts.len().max(1))
    }

    /// Sends one request, again where that may help.
    fn send(
        &self,
        lane: Lane,
        texts: &[String],
        end: Instant,
    ) -> Result<Vec<Vec<f32>>, EmbedError> {
        let mut repetition = 0;
        loop {
            let away = match self.send_once(lane, About::Texts(texts), end)? {
                Outcome::Vectors(vectors) => return Ok(vectors),
                Outcome::Texts(why) => return Err(self.fault_of(lane, texts, why, end)),
                Outcome::Away(away) => away,
            };
            let pause = before_repetition(repetition).max(away.wait.unwrap_or_default());
            let fits = pause <= PAUSE_MAX && Instant::now() + pause < end;
            if !away.passes || repetition >= self.config.retries || !fits {
                return Err(EmbedError::Unavailable(away.why));
            }
            std::thread::sleep(pause);
            repetition += 1;
        }
    }

    /// Sends one request once, if the breaker lets it.
    fn send_once(&self, lane: Lane, about: About<'_>, end: Instant) -> Result<Outcome, EmbedError> {
        let now = Instant::now();
        if lane == Lane::Query && now >= end {
            let why = format!(
                "the embedding service at {} is too slow",
                self.config.host()
            );
            return Err(EmbedError::Unavailable(why));
        }
        let leave = self.breaker.ask(now).map_err(|wait| {
            EmbedError::Unavailable(format!(
                "the embedding service at {} is away: it is asked again in {:.1} s",
                self.config.host(),
                wait.as_secs_f64()
            ))
        })?;
        let timeout = self.config.timeout.as_duration();
        let timeout = match lane {
            Lane::Query => timeout.min(end.saturating_duration_since(now)),
            Lane::Bulk => timeout,
        };
        let dimension = Some(self.identity.dimension);
        let outcome = match about {
            About::Texts(texts) => self.client.post(texts, dimension, timeout),
            About::Service => refusing_all(self.client.post(&[PROBE.into()], dimension, timeout)),
        };
        let (turn, name) = match &outcome {
            Outcome::Vectors(_) => (leave.answered(), "answered"),
            Outcome::Texts(_) => (leave.answered(), "refused"),
            Outcome::Away(away) => (leave.failed(Instant::now(), away.wait), "failed"),
        };
        telemetry::count(&self.config.name, name);
        self.tell(turn, &outcome);
        Ok(outcome)
    }

    /// Whether a refusal is about the texts. Several are taken apart by the caller; a single one is compared
    /// with a text that nothing is wrong with.
    fn fault_of(&self, lane: Lane, texts: &[String], why: String, end: Instant) -> EmbedError {
        if texts.len() > 1 || lane == Lane::Query {
            return EmbedError::Texts(why);
        }
        match self.send_once(lane, About::Service, end) {
            Ok(Outcome::Away(away)) => EmbedError::Unavailable(away.why),
            Ok(_) => EmbedError::Texts(why),
            Err(error) => error,
        }
    }

    /// Tells where an outage begins and ends.
    fn tell(&self, turn: Turn, outcome: &Outcome) {
        let model = &self.config.name;
        match outcome {
            Outcome::Away(away) if turn == Turn::Opened => {
                telemetry::set_up(model, false);
                tracing::error!(
                    model,
                    why = away.why,
                    "the embedding service is away: chunks wait until it returns, queries by text fail"
                );
            }
            Outcome::Away(_) => {}
            Outcome::Vectors(_) | Outcome::Texts(_) => {
                telemetry::set_up(model, true);
                if turn == Turn::Closed {
                    tracing::info!(model, "the embedding service is back");
                }
            }
        }
    }
}

/// The service's address and key are not in the fingerprint: a model that moves to another host or is asked
/// for with another key is the same, and nothing is embedded again.
fn identity(config: &OpenAiConfig, dimension: usize) -> ModelIdentity {
    let prefix = match config.passage() {
        "" => String::new(),
        prefix => format!("-{:016x}", stable_hash(prefix.as_bytes())),
    };
    let (name, tokens) = (&config.name, config.max_tokens);
    ModelIdentity {
        name: name.clone(),
        fingerprint: format!("{ALGORITHM_VERSION}-{name}-{dimension}-{tokens}{prefix}"),
        dimension,
        tokens_max: tokens.saturating_sub(EstimatedTokens.count(config.passage())),
        device: format!("service at {}", config.host()),
    }
}

impl Embedder for RemoteEmbedder {
    fn identity(&self) -> &ModelIdentity {
        &self.identity
    }

    fn embed(&self, lane: Lane, texts: &[&str]) -> Result<Vec<Vec<f32>>, EmbedError> {
        let end = Instant::now()
            + match lane {
                Lane::Query => QUERY_CALL_MAX,
                Lane::Bulk => BULK_CALL_MAX,
            };
        let prepared = self.prepared(lane, texts);
        let sent: Vec<String> = prepared.iter().flatten().cloned().collect();
        let mut made = Vec::with_capacity(sent.len());
        while made.len() < sent.len() {
            let rest = &sent[made.len()..];
            let request = &rest[..self.request_of(rest)];
            made.extend(self.send(lane, request, end)?);
        }
        let mut made = made.into_iter();
        let nothing = || vec![0.0; self.identity.dimension];
        let vector = |text: &Option<String>| match text {
            Some(_) => made.next().unwrap_or_else(nothing),
            None => nothing(),
        };
        Ok(prepared.iter().map(vector).collect())
    }

    fn token_counter(&self) -> Arc<dyn TokenCounter> {
        Arc::new(EstimatedTokens)
    }

    fn bulk_threads(&self) -> usize {
        self.config.concurrency
    }

    /// A request. How many tokens it may have only the service knows.
    fn batch_limits(&self, _: Lane) -> BatchLimits {
        BatchLimits {
            tokens: usize::MAX,
            texts: self.config.batch_texts,
            is_padded: false,
        }
    }

    fn worth_remembering(&self) -> bool {
        true
    }
}
