//! The service as an embedder: texts in requests, one after the other within a call, with repetitions.
//!
//! A request that fails for a reason that passes is sent again a few times; then the call ends with
//! [`EmbedError::Unavailable`], and whoever has chunks comes again. A text that is refused alone is only believed
//! to be at fault while the service takes a plain one: it might as well refuse every text. And chunks that the
//! service keeps failing with, or has no answer to in time, would fail for ever and hold up all after them:
//! they are at fault where it takes a plain text at that moment.
//!
//! What the requests of a call with chunks brought before another of them failed is not bought again ([`Kept`]).
//!
//! Invariant: a query's call ends within its time, and one with chunks repeats no request once its time is
//! up; no text is sent without the breaker's leave, but for the plain one, which goes with the leave of the
//! texts that are in doubt.

use super::breaker::{Breaker, Turn};
use super::client::{Away, Client, Outcome};
use super::config::OpenAiConfig;
use super::kept::Kept;
use super::pace::{PAUSE_MAX, before_repetition};
use super::telemetry;
use super::tokenizer::Tokens;
use std::borrow::Cow;
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
/// The longest that a plain text may take while others are in doubt.
const PROBE_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest that a call with queries waits for vectors: whoever asked is gone after that.
const QUERY_CALL_MAX: Duration = Duration::from_secs(5);
/// How long a call with chunks repeats requests, so that what waits for its end (a stop of the pipeline) waits
/// little longer than for the request that is under way. Nearly always a call is one request; where
/// `batch_bytes` makes it several, each is sent at least once, so that every call gets on.
const BULK_CALL_MAX: Duration = Duration::from_secs(30);

/// The embedder.
pub(super) struct RemoteEmbedder {
    identity: ModelIdentity,
    client: Client,
    tokens: Tokens,
    breaker: Breaker,
    /// Of calls with chunks: nobody comes again with a query.
    kept: Kept,
    config: OpenAiConfig,
}

/// A request to send.
#[derive(Clone, Copy)]
struct Request<'a> {
    lane: Lane,
    texts: &'a [String],
    /// When its call's time is up.
    end: Instant,
    /// How often it was sent before.
    repetition: u32,
}

/// A call that failed at a request, and the vectors that those before it brought: of as many texts from the first.
struct Failed {
    error: EmbedError,
    made: Vec<Vec<f32>>,
}

/// A service that refuses a text that nothing is wrong with refuses every text: somebody has to change that,
/// so it is asked seldom.
fn refusing_all(outcome: Outcome) -> Outcome {
    match outcome {
        Outcome::Texts(why) => Outcome::Away(Away {
            wait: Some(REFUSING_WAIT),
            ..Away::lasting(format!("every text is refused: {why}"), "name")
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
            "ca" => {
                "name a PEM file with the certificate of who signed the service's as `ca`, and in `url` the host \
                 that it is for"
            }
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
            Outcome::Texts(why) => {
                let field = match config.dimensions {
                    Some(_) => "dimensions",
                    None => "name",
                };
                Away::lasting(why, field)
            }
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
        Some(wanted) if wanted != found => {
            let why = format!("{} gives {found} dimensions, not {wanted}", config.url);
            Err(Away::lasting(why, "dimensions"))
        }
        _ => Ok(found),
    }
}

impl RemoteEmbedder {
    /// Asks the service once. It may be away where the dimensions are known.
    pub(super) fn open(
        config: &OpenAiConfig,
        client: Client,
        tokens: Tokens,
    ) -> Result<Self, ComponentError> {
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
            identity: identity(config, &tokens, dimension),
            client,
            tokens,
            breaker: Breaker::new(),
            kept: Kept::new(),
            config: config.clone(),
        })
    }

    /// The texts as they are sent, blank ones left out: those have no vector anywhere.
    fn prepared(&self, lane: Lane, texts: &[&str]) -> Vec<Option<String>> {
        let prefix = match lane {
            Lane::Query => self.config.query(),
            Lane::Bulk => self.config.passage(),
        };
        let max_tokens = self.config.max_tokens;
        let texts = texts.iter();
        texts
            .map(|text| self.tokens.prepared(prefix, text, max_tokens))
            .collect()
    }

    /// Chunks' vectors: those that a call before this one brought are not asked for again, and those of this call
    /// are kept if it fails.
    fn send_missing(&self, texts: &[String]) -> Result<Vec<Vec<f32>>, EmbedError> {
        let known: Vec<_> = texts.iter().map(|text| self.kept.take(text)).collect();
        // Nearly always all of them: then no text is copied.
        let missing: Cow<'_, [String]> = if known.iter().all(Option::is_none) {
            texts.into()
        } else {
            let pairs = texts.iter().zip(&known);
            let missing = pairs.filter(|(_, known)| known.is_none());
            missing.map(|(text, _)| text.clone()).collect()
        };
        let (made, error) = match self.send_all(Lane::Bulk, &missing) {
            Ok(made) => (made, None),
            Err(failed) => (failed.made, Some(failed.error)),
        };
        let mut made = made.into_iter();
        let vectors = known.into_iter().map(|known| known.or_else(|| made.next()));
        let Some(error) = error else {
            return Ok(vectors.flatten().collect());
        };
        for (text, vector) in texts.iter().zip(vectors) {
            if let Some(vector) = vector {
                self.kept.keep(text, vector);
            }
        }
        Err(error)
    }

    /// Sends texts in as many requests as they need, one after the other.
    fn send_all(&self, lane: Lane, texts: &[String]) -> Result<Vec<Vec<f32>>, Failed> {
        let end = Instant::now()
            + match lane {
                Lane::Query => QUERY_CALL_MAX,
                Lane::Bulk => BULK_CALL_MAX,
            };
        let mut made = Vec::with_capacity(texts.len());
        while made.len() < texts.len() {
            let rest = &texts[made.len()..];
            match self.send(lane, &rest[..self.request_of(rest)], end) {
                Ok(vectors) => made.extend(vectors),
                Err(error) => return Err(Failed { error, made }),
            }
        }
        Ok(made)
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
            let request = Request {
                lane,
                texts,
                end,
                repetition,
            };
            let away = match self.send_once(request)? {
                Outcome::Vectors(vectors) => return Ok(vectors),
                Outcome::Texts(why) => return Err(EmbedError::Texts(why)),
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

    /// Sends one request once, if the breaker lets it, and makes sure of what the outcome is about.
    fn send_once(&self, request: Request<'_>) -> Result<Outcome, EmbedError> {
        let now = Instant::now();
        if request.lane == Lane::Query && now >= request.end {
            let why = format!(
                "the embedding service at {} is too slow",
                self.config.host()
            );
            return Err(EmbedError::Unavailable(why));
        }
        let timeout = self.timeout(request);
        let is_hurried = timeout < self.config.timeout.as_duration();
        let leave = self.breaker.ask(now, is_hurried).map_err(|wait| {
            EmbedError::Unavailable(format!(
                "the embedding service at {} is away: it is asked again in {:.1} s",
                self.config.host(),
                wait.as_secs_f64()
            ))
        })?;
        let mut outcome = self.post(request.texts, timeout);
        if self.is_doubtful(request, &outcome, leave.is_probe()) {
            outcome = self.judged(request, outcome);
        }
        let turn = match &outcome {
            Outcome::Vectors(_) | Outcome::Texts(_) => leave.answered(),
            // It might have answered whoever has more time.
            Outcome::Away(away) if away.is_late && is_hurried => leave.released(),
            Outcome::Away(away) => leave.failed(Instant::now(), away.wait),
        };
        self.tell(turn, &outcome);
        Ok(outcome)
    }

    /// How long a request may take that is sent now.
    fn timeout(&self, request: Request<'_>) -> Duration {
        let timeout = self.config.timeout.as_duration();
        match request.lane {
            // None would be no time limit at all.
            Lane::Query => timeout.min(
                request
                    .end
                    .saturating_duration_since(Instant::now())
                    .max(Duration::from_millis(1)),
            ),
            Lane::Bulk => timeout,
        }
    }

    fn post(&self, texts: &[String], timeout: Duration) -> Outcome {
        let dimension = Some(self.identity.dimension);
        let outcome = self.client.post(texts, dimension, timeout);
        let name = match &outcome {
            Outcome::Vectors(_) => "answered",
            Outcome::Texts(_) => "refused",
            Outcome::Away(_) => "failed",
        };
        telemetry::count(&self.config.name, name);
        outcome
    }

    /// Whether an outcome may be about the texts or about the service. A batch that is refused is taken apart
    /// by the caller until a text stands alone; but a service that was away is not back by refusing.
    fn is_doubtful(&self, request: Request<'_>, outcome: &Outcome, is_probe: bool) -> bool {
        let is_bulk = request.lane == Lane::Bulk;
        match outcome {
            Outcome::Vectors(_) => false,
            Outcome::Texts(_) => is_probe || request.texts.len() == 1,
            Outcome::Away(away) => {
                let is_last = request.repetition >= self.config.retries
                    || Instant::now() + PAUSE_MAX >= request.end;
                is_bulk && away.may_be_texts && (is_last || is_probe)
            }
        }
    }

    /// What a doubtful outcome is about: the texts, where the service takes one that nothing is wrong with.
    fn judged(&self, request: Request<'_>, outcome: Outcome) -> Outcome {
        let timeout = self.timeout(request);
        let plain = self.post(&[PROBE.to_owned()], timeout.min(PROBE_TIMEOUT));
        if let away @ Outcome::Away(_) = refusing_all(plain) {
            return away;
        }
        match outcome {
            Outcome::Away(away) if request.texts.len() > 1 => Outcome::Texts(away.why),
            // It may have come back just between the two, and a single text is not asked for again.
            Outcome::Away(_) => match self.post(request.texts, timeout) {
                Outcome::Away(away) if away.may_be_texts => Outcome::Texts(away.why),
                other => other,
            },
            other => other,
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
            Outcome::Vectors(_) | Outcome::Texts(_) if turn != Turn::None => {
                telemetry::set_up(model, true);
                if turn == Turn::Closed {
                    tracing::info!(model, "the embedding service is back");
                }
            }
            _ => {}
        }
    }
}

/// The service's address and key are not in the fingerprint: a model that moves to another host or is asked
/// for with another key is the same, and nothing is embedded again.
fn identity(config: &OpenAiConfig, counted: &Tokens, dimension: usize) -> ModelIdentity {
    let prefix = match config.passage() {
        "" => String::new(),
        prefix => format!("-{:016x}", stable_hash(prefix.as_bytes())),
    };
    let (name, tokens) = (&config.name, config.max_tokens);
    ModelIdentity {
        name: name.clone(),
        fingerprint: format!(
            "{ALGORITHM_VERSION}-{name}-{dimension}-{tokens}{prefix}{}",
            counted.fingerprint()
        ),
        dimension,
        tokens_max: counted.tokens_max(config),
        device: format!("service at {}", config.host()),
    }
}

impl Embedder for RemoteEmbedder {
    fn identity(&self) -> &ModelIdentity {
        &self.identity
    }

    fn embed(&self, lane: Lane, texts: &[&str]) -> Result<Vec<Vec<f32>>, EmbedError> {
        let prepared = self.prepared(lane, texts);
        let sent: Vec<String> = prepared.iter().flatten().cloned().collect();
        let made = match lane {
            Lane::Query => self.send_all(lane, &sent).map_err(|failed| failed.error)?,
            Lane::Bulk => self.send_missing(&sent)?,
        };
        let mut made = made.into_iter();
        let nothing = || vec![0.0; self.identity.dimension];
        let vector = |text: &Option<String>| match text {
            Some(_) => made.next().unwrap_or_else(nothing),
            None => nothing(),
        };
        Ok(prepared.iter().map(vector).collect())
    }

    fn token_counter(&self) -> Arc<dyn TokenCounter> {
        self.tokens.counter()
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
