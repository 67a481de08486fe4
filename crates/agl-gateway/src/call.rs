//! One call, from the request to the last byte of the answer and its record.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use agl_store::{Clock as _, SystemClock, WrittenDraft};
use agl_types::{Span, WrittenSpan};
use axum::http::header::{CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use serde_json::Value;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use crate::answer::Outline;
use crate::blobs::{self, Blob};
use crate::change::{self, Sent};
use crate::dialect::responses::Telling;
use crate::dialect::{Dialect, messages, responses};
use crate::gateway::{Capture, Inner};
use crate::json::{Edits, member};
use crate::link::{Broken, Flow};
use crate::models::{Backend, Choice};
use crate::pause::Pass;
use crate::record::{Kind, Outcome, Record, Recorded, error_text};
use crate::refusal::Refusal;
use crate::sessions::{Attempt, Named};
use crate::stream;
use crate::upstream::{self, LARGEST_ANSWER};

/// Bytes of a request from which on it is worth being read twice for not being held twice.
const LARGE: usize = 16 << 10;
/// The pause before the first retry; it doubles with every one.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(8);
/// The longest pause that a model server may ask for.
const LONGEST_RETRY_AFTER: u64 = 60;

const BACKEND: HeaderName = HeaderName::from_static("x-agl-backend");
const TRIES: HeaderName = HeaderName::from_static("x-agl-tries");

/// A call on its way.
pub(crate) struct Call {
    pub(crate) gateway: Arc<Inner>,
    pub(crate) attempt: Attempt,
    pub(crate) dialect: Dialect,
    /// What is asked for; of other dialects than OpenAI's, what it amounts to.
    pub(crate) kind: Kind,
    /// The request as it came.
    pub(crate) body: Bytes,
    /// The same in JSON; null where it is let go of until it is needed again.
    pub(crate) request: Value,
    /// The request in chat completions, where somebody who may answer speaks nothing else.
    pub(crate) translated: Option<(Bytes, Value)>,
    /// The types of the tools that were left out of that.
    pub(crate) dropped_tools: Vec<String>,
    pub(crate) span_id: String,
    /// What goes along.
    pub(crate) headers: HeaderMap,
    /// Who may answer, in the order in which they are tried; never empty.
    pub(crate) choices: Vec<Choice>,
    /// Whether calls of tools are given back to the model as it spelled them.
    pub(crate) restores: bool,
    /// Whether the agent gets to see what capture asked for.
    pub(crate) expose: bool,
    pub(crate) started: Instant,
    pub(crate) started_at: f64,
    /// Held while it is under way.
    pub(crate) pass: Option<Pass>,
}

/// How far a call has come.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    pub(crate) tries: u32,
    pub(crate) backend: Option<Arc<Backend>>,
    pub(crate) sent: Option<Sent>,
    /// Whether the backend is spoken to in another dialect than the agent's.
    pub(crate) is_translated: bool,
}

/// What a model server answered.
enum Got {
    Whole { status: StatusCode, headers: HeaderMap, body: Bytes },
    Stream { status: StatusCode, headers: HeaderMap, flow: Flow, first: Bytes },
}

/// A try that came to nothing.
struct Trouble {
    refusal: Refusal,
    /// Whether it was the server's doing.
    is_bad: bool,
}

/// The end of a call, to be recorded.
pub(crate) struct End {
    /// In the shape of chat completions, whatever is spoken.
    pub(crate) response: Value,
    /// What the agent was told, where it will come back to it.
    pub(crate) told: Option<Value>,
    pub(crate) outcome: Outcome,
    pub(crate) error: Option<String>,
    pub(crate) status: Option<StatusCode>,
    pub(crate) first_token: Option<f64>,
}

impl End {
    fn failed(refusal: &Refusal) -> Self {
        Self {
            response: Value::Null,
            told: None,
            outcome: Outcome::Failed,
            error: Some(refusal.message.clone()),
            status: Some(refusal.status),
            first_token: None,
        }
    }

    /// The agent left before a model server was asked.
    pub(crate) fn aborted() -> Self {
        Self {
            outcome: Outcome::Aborted,
            error: Some("the agent left before its call was sent on".to_owned()),
            ..Self::disconnected(Value::Null, None)
        }
    }

    pub(crate) fn disconnected(response: Value, first_token: Option<f64>) -> Self {
        Self {
            response,
            told: None,
            outcome: Outcome::Disconnected,
            error: Some("the agent left before the end of the answer".to_owned()),
            status: None,
            first_token,
        }
    }
}

impl Call {
    /// Makes the call and answers it. It goes on when nobody waits for the answer any more, but only to be recorded.
    pub(crate) async fn run(mut self, mut reply: oneshot::Sender<Response>) {
        let mut progress = Progress::default();
        let reserved = self.reserve();
        let got = tokio::select! {
            biased;
            (got, place) = async { tokio::join!(self.send(&mut progress), reserved) } => {
                self.attempt.sequence_id = place;
                Some(got)
            }
            () = reply.closed() => None,
        };
        // It is not sent again, and may have to wait for a while.
        if !self.request.is_null() {
            self.body = Bytes::new();
        }
        if let Some((body, _)) = &mut self.translated {
            *body = Bytes::new();
        }
        let gateway = Arc::clone(&self.gateway);
        match got {
            None => {
                let is_sent = progress.tries > 0;
                let end = if is_sent { End::disconnected(Value::Null, None) } else { End::aborted() };
                self.record_or_warn(&progress, end).await;
            }
            Some(Err(refusal)) => {
                let end = End::failed(&refusal);
                let answer = with_facts(refusal.into_response(self.dialect.form()), &progress);
                let _room = gateway.unrecorded.acquire().await;
                self.conclude(&progress, end, reply, answer).await;
            }
            Some(Ok((Got::Whole { status, headers, body }, _permit))) => {
                let _room = gateway.unrecorded.acquire().await;
                self.whole(&progress, status, headers, body, reply).await;
            }
            Some(Ok((Got::Stream { status, headers, flow, first }, permit))) => {
                let answer = stream::passed_on(self, progress, (status, headers), flow, first, permit);
                // It is recorded when it is dropped, if nobody is there to read it.
                let _ = reply.send(answer);
            }
        }
    }

    /// With capture after the answer, the place of the call among the spans is taken while the model server works, so
    /// that what the agent records after it comes after it.
    fn reserve(&self) -> impl Future<Output = Option<i64>> + Send + use<> {
        let given = self.attempt.sequence_id;
        let wanted = (self.gateway.options.capture == Capture::Async && given.is_none()).then(|| {
            (
                Arc::clone(&self.gateway.store),
                self.attempt.rollout_id.clone(),
                self.attempt.attempt_id.clone(),
            )
        });
        async move {
            let Some((store, rollout_id, attempt_id)) = wanted else { return given };
            // Without one it gets the next one when it is recorded.
            store.get_next_span_sequence_id(&rollout_id, &attempt_id).await.ok()
        }
    }

    /// Lets go of the request as JSON while a model server works, which takes long, where it can be read again.
    fn shrink(&mut self) {
        if self.body.len() > LARGE && self.dialect == Dialect::OpenAi && self.translated.is_none() {
            self.request = Value::Null;
        }
    }

    /// Reads the request again.
    fn grow(&mut self) {
        if self.request.is_null() {
            self.request = serde_json::from_slice(&self.body).unwrap_or_default();
        }
    }

    /// Sends the call until it is answered or there is no more to be tried.
    async fn send(
        &mut self,
        progress: &mut Progress,
    ) -> Result<(Got, Option<OwnedSemaphorePermit>), Refusal> {
        let retries =
            self.choices.iter().map(|choice| choice.backend.entry.retries).max().unwrap_or_default();
        loop {
            self.grow();
            let at = progress.tries as usize % self.choices.len();
            let Choice { backend, model } = &self.choices[at];
            let deadline = Duration::try_from_secs_f64(backend.entry.timeout).unwrap_or(Duration::MAX);
            progress.backend = Some(Arc::clone(backend));
            let Ok(permit) = tokio::time::timeout(deadline, backend.turn()).await else {
                return Err(Refusal::busy(format!(
                    "the model server {} had no room for the call within {} s{}",
                    backend.label(),
                    backend.entry.timeout,
                    account(model, progress.tries)
                )));
            };
            let is_native = speaks(backend, self.dialect);
            let (body, request) = match &self.translated {
                Some((body, request)) if !is_native => (body, request),
                _ => (&self.body, &self.request),
            };
            let is_ours = self.dialect == Dialect::OpenAi || !is_native;
            let endpoint = if is_ours { self.kind.endpoint() } else { self.dialect.endpoint() };
            let returns_ids = is_ours && self.gateway.client.returns_ids(backend).await;
            let kind = is_ours.then_some(self.kind);
            let mut sent = change::for_backend(
                body,
                request,
                kind,
                &backend.entry,
                model,
                self.attempt.mode,
                returns_ids,
            );
            let body = std::mem::take(&mut sent.body);
            self.shrink();
            let Choice { backend, model } = &self.choices[at];
            progress.sent = Some(sent);
            progress.is_translated = !is_native;
            progress.tries += 1;
            let is_last = progress.tries > retries;
            let tried = tokio::time::timeout(deadline, self.try_once(backend, endpoint, body)).await;
            let tried = tried.unwrap_or_else(|_| {
                let problem = format!("gave no answer within {} s", backend.entry.timeout);
                Err(Trouble {
                    refusal: trouble(backend, StatusCode::GATEWAY_TIMEOUT, &problem),
                    is_bad: true,
                })
            });
            let wait = match tried {
                Ok(got) => {
                    let (status, headers) = match &got {
                        Got::Whole { status, headers, .. } | Got::Stream { status, headers, .. } => {
                            (*status, headers)
                        }
                    };
                    if status.is_server_error() {
                        backend.did_badly();
                    } else {
                        backend.did_well();
                    }
                    if is_last || !is_worth_another_try(status) {
                        return Ok((got, permit));
                    }
                    tracing::debug!(backend = backend.label(), %status, "a model server answered with an error; trying again");
                    retry_after(headers)
                }
                Err(Trouble { mut refusal, is_bad }) => {
                    if is_bad {
                        backend.did_badly();
                    }
                    if is_last || !is_bad {
                        refusal.message.push_str(&account(model, progress.tries));
                        return Err(refusal);
                    }
                    tracing::debug!(backend = backend.label(), problem = refusal.message, "trying again");
                    None
                }
            };
            drop(permit);
            // Another server is asked at once.
            if (progress.tries as usize) >= self.choices.len() {
                let round = u32::try_from(progress.tries as usize / self.choices.len()).unwrap_or(u32::MAX);
                tokio::time::sleep(wait.unwrap_or_else(|| pause(round))).await;
            }
        }
    }

    /// Sends the call once. For a stream this returns with its first bytes, because until then it can be tried again.
    async fn try_once(&self, backend: &Backend, endpoint: &str, body: Vec<Bytes>) -> Result<Got, Trouble> {
        let broken = |error: &Broken| {
            let problem = format!("{error}: {}", upstream::cause(error));
            Trouble { refusal: trouble(backend, StatusCode::BAD_GATEWAY, &problem), is_bad: true }
        };
        let sent = self.gateway.client.post(backend, endpoint, &self.headers, body).await;
        let mut answer = sent.map_err(|error| broken(&error))?;
        let status = answer.status;
        let headers = upstream::coming_down(&answer.headers, backend);
        let is_stream =
            headers.get(CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"text/event-stream"));
        if is_stream && status.is_success() {
            return match answer.flow.chunk().await {
                Ok(Some(first)) => Ok(Got::Stream { status, headers, flow: answer.flow, first }),
                Ok(None) => {
                    let refusal =
                        trouble(backend, StatusCode::BAD_GATEWAY, "ended its stream before it began");
                    Err(Trouble { refusal, is_bad: true })
                }
                Err(error) => Err(broken(&error)),
            };
        }
        let Some(body) = answer.whole(LARGEST_ANSWER).await.map_err(|error| broken(&error))? else {
            let problem = format!("answered with more than {LARGEST_ANSWER} bytes");
            return Err(Trouble {
                refusal: trouble(backend, StatusCode::BAD_GATEWAY, &problem),
                is_bad: false,
            });
        };
        Ok(Got::Whole { status, headers, body: upstream::without_key(body, backend) })
    }

    async fn whole(
        &mut self,
        progress: &Progress,
        status: StatusCode,
        mut headers: HeaderMap,
        body: Bytes,
        reply: oneshot::Sender<Response>,
    ) {
        let body = if is_worth_another_try(status) {
            self.with_account(status, &mut headers, &body, progress)
        } else {
            body
        };
        let outline = Outline::of(&body);
        let parsed = outline.as_ref().and_then(|outline| outline.read(&body)).unwrap_or_default();
        let added = progress.sent.as_ref().map(|sent| sent.added).unwrap_or_default();
        let is_answer = status.is_success() && parsed.is_object();
        let mut end = End {
            outcome: if is_answer { Outcome::Answered } else { Outcome::Failed },
            error: (!is_answer).then(|| error_text(&body)),
            response: Value::Null,
            told: None,
            status: Some(status),
            first_token: None,
        };
        let answer = match (self.dialect, progress.is_translated) {
            (Dialect::OpenAi, _) => {
                let shown = outline
                    .filter(|_| is_answer && !self.expose)
                    .and_then(|outline| change::without_added(&body, &outline, added));
                end.response = parsed;
                (status, headers, shown.map_or(body, Bytes::from)).into_response()
            }
            (dialect, false) => {
                end.response = match dialect {
                    Dialect::Messages if is_answer => messages::answer_as_chat(&parsed),
                    Dialect::Responses if is_answer => responses::answer_as_chat(&parsed),
                    _ => Value::Null,
                };
                (status, headers, body).into_response()
            }
            (dialect, true) if is_answer => {
                let told = if dialect == Dialect::Responses {
                    let response = self.telling().whole(&parsed);
                    let told = response.to_string();
                    end.response = parsed;
                    end.response["id"] = response["id"].clone();
                    end.told = Some(response);
                    told
                } else {
                    // What was parsed can be written.
                    let told = messages::from_chat(&parsed, &self.request["model"]).unwrap_or_default();
                    end.response = parsed;
                    told
                };
                (status, headers, told).into_response()
            }
            (dialect, true) => {
                let message = message_of(&body).map_or_else(|| error_text(&body), |(_, message)| message);
                let retry_after = retry_after(&headers).map(|wait| wait.as_secs());
                Refusal { retry_after, ..Refusal::new(status, message) }.into_response(dialect.form())
            }
        };
        self.conclude(progress, end, reply, with_facts(answer, progress)).await;
    }

    /// The error of a server with who it was and how often it was asked in its message; in ours, where it has none.
    fn with_account(
        &self,
        status: StatusCode,
        headers: &mut HeaderMap,
        body: &[u8],
        progress: &Progress,
    ) -> Bytes {
        let label = progress.backend.as_ref().map_or("", |backend| backend.label());
        let who = format!("the model server {label}, {}", tried_so_often(progress.tries));
        if let Some((place, message)) = message_of(body) {
            let mut edits = Edits::default();
            edits.replace(place, Value::from(format!("{message} ({who})")).to_string());
            return edits.apply(body).into();
        }
        let said = if body.is_empty() { status.to_string() } else { error_text(body) };
        let refusal = Refusal::new(status, format!("{said} ({who})"));
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        refusal.json(self.dialect.form()).to_string().into()
    }

    /// What a response repeats of its request.
    pub(crate) fn telling(&self) -> Telling {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "seconds since 1970")]
        let created_at = self.started_at as u64;
        Telling { id: response_id(&self.span_id), created_at, request: self.request.clone() }
    }

    /// Records the call and sends the answer, in the order that capture says.
    async fn conclude(
        &mut self,
        progress: &Progress,
        end: End,
        reply: oneshot::Sender<Response>,
        answer: Response,
    ) {
        self.remember(progress, &end);
        match self.gateway.options.capture {
            Capture::Durable => {
                let answer = match self.record(progress, end).await {
                    Ok(()) => answer,
                    Err(refusal) => refusal.into_response(self.dialect.form()),
                };
                // The agent may have left in the meantime, with nothing lost.
                let _ = reply.send(answer);
            }
            Capture::Async => {
                let _ = reply.send(answer);
                // The agent's connection, which may be what carries this out, comes first.
                tokio::task::yield_now().await;
                self.record_or_warn(progress, end).await;
            }
        }
    }

    /// Keeps what tools are called with as the model wrote it, where the agent may write it anew.
    pub(crate) fn remember(&self, progress: &Progress, end: &End) {
        if progress.is_translated || self.restores {
            self.gateway.written.add_answer(&self.attempt, &end.response);
        }
    }

    pub(crate) async fn record_or_warn(&mut self, progress: &Progress, end: End) {
        if let Err(refusal) = self.record(progress, end).await {
            let Attempt { rollout_id, attempt_id, .. } = &self.attempt;
            tracing::error!(
                rollout = rollout_id,
                attempt = attempt_id,
                problem = refusal.message,
                "a call was not recorded"
            );
        }
    }

    /// The span of the call and the files that it carries. The request is given up for it: what waits for the store
    /// should be no more than what goes there.
    fn span(&mut self, progress: &Progress, end: End) -> (Recorded, Vec<Blob>) {
        self.grow();
        self.body = Bytes::new();
        let mut asked = std::mem::take(&mut self.request);
        let translated = self.translated.take().filter(|_| progress.is_translated);
        let dropped_tools: &[String] = if translated.is_some() { &self.dropped_tools } else { &[] };
        let told = end.told.as_ref();
        let before = match translated {
            Some((_, chat)) => chat,
            None if told.is_some() => asked.clone(),
            None => std::mem::take(&mut asked),
        };
        let sent = match &progress.sent {
            Some(sent) => sent.request(before),
            None => before,
        };
        let is_foreign = self.dialect != Dialect::OpenAi && !progress.is_translated;
        // Recorded in one shape, whatever was spoken.
        let as_chat = is_foreign.then(|| match self.dialect {
            Dialect::Messages => messages::to_chat(&sent),
            _ => responses::to_chat(&sent),
        });
        let as_chat = as_chat.and_then(Result::ok);
        let request = as_chat.as_ref().unwrap_or(&sent);
        let (short, blobs) = blobs::taken_out(request).unzip();
        let short_asked = told.and_then(|_| Some(blobs::taken_out(&asked)?.0));
        let record = Record {
            kind: self.kind,
            request: short.as_ref().unwrap_or(request),
            response: end.response,
            outcome: end.outcome,
            error: end.error,
            http_status: end.status.map(|status| status.as_u16()),
            backend: progress.backend.as_ref().map(|backend| backend.label()),
            model_version: progress.backend.as_ref().and_then(|backend| backend.entry.version),
            tries: progress.tries,
            wanted_ids: progress.sent.as_ref().is_some_and(|sent| sent.wants_ids),
            shortens_logprobs: progress.sent.as_ref().is_some_and(|sent| sent.added.logprobs),
            started: self.started_at,
            latency: self.started.elapsed().as_secs_f64(),
            first_token: end.first_token,
            is_event: self.attempt.named == Named::Controlled,
            span_id: self.span_id.clone(),
            dialect: self.dialect,
            dropped_tools,
            exchange: told.map(|told| (short_asked.as_ref().unwrap_or(&asked), told)),
        };
        (record.into_span(), blobs.unwrap_or_default())
    }

    /// Stores the span of the call.
    pub(crate) async fn record(&mut self, progress: &Progress, end: End) -> Result<(), Refusal> {
        let (Recorded { span: call, lists }, blobs) = self.span(progress, end);
        let Attempt { rollout_id, attempt_id, .. } = &self.attempt;
        let _turn = self.gateway.blobs.turn(rollout_id, attempt_id, &blobs).await;
        let blobs = self.new_blobs(blobs).await?;
        let new: Vec<String> = blobs.iter().map(|blob| blob.span_id().to_owned()).collect();
        let mut drafts = Vec::with_capacity(1 + blobs.len());
        for blob in blobs {
            drafts.push(self.draft(blob.into_span(&call), &[], None)?);
        }
        drafts.push(self.draft(call, &lists, self.attempt.sequence_id)?);
        let passed_over = self.gateway.store.ingest_spans(drafts).await;
        match passed_over.map_err(|error| Refusal::of_store(&error))?.into_iter().next() {
            None => {
                new.iter().for_each(|span_id| self.gateway.blobs.add(rollout_id, attempt_id, span_id));
                Ok(())
            }
            Some((reason, _)) => Err(Refusal::not_found(format!("the call could not be recorded: {reason}"))),
        }
    }

    /// `lists` are attributes more, in JSON.
    fn draft(
        &self,
        span: Span,
        lists: &[(String, String)],
        sequence_id: Option<i64>,
    ) -> Result<WrittenDraft, Refusal> {
        let Attempt { rollout_id, attempt_id, .. } = &self.attempt;
        let span = span.placed(rollout_id, attempt_id, sequence_id.unwrap_or_default());
        let span = WrittenSpan::with(&span, lists).map_err(|error| {
            tracing::error!(%error, "a call has no JSON");
            Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "the call could not be recorded")
        })?;
        Ok(WrittenDraft { span, has_sequence_id: sequence_id.is_some() })
    }

    /// Those that the attempt does not have yet.
    async fn new_blobs(&self, blobs: Vec<Blob>) -> Result<Vec<Blob>, Refusal> {
        let Attempt { rollout_id, attempt_id, .. } = &self.attempt;
        let mut new = Vec::new();
        for blob in blobs {
            let id = blob.span_id();
            if self.gateway.blobs.has(rollout_id, attempt_id, id) {
                continue;
            }
            // Another gateway may have kept it, or this one before it was started anew.
            if self.gateway.span(&self.attempt, id).await?.is_some() {
                self.gateway.blobs.add(rollout_id, attempt_id, id);
            } else {
                new.push(blob);
            }
        }
        Ok(new)
    }
}

/// Whether a backend is spoken to in this dialect.
pub(crate) fn speaks(backend: &Backend, dialect: Dialect) -> bool {
    match dialect {
        Dialect::OpenAi => true,
        Dialect::Messages => backend.speaks_messages(),
        Dialect::Responses => backend.entry.responses,
    }
}

/// The id of the response that a span records.
pub(crate) fn response_id(span_id: &str) -> String {
    format!("resp_{span_id}")
}

fn trouble(backend: &Backend, status: StatusCode, problem: &str) -> Refusal {
    Refusal::new(status, format!("the model server {} {problem}", backend.label()))
}

fn is_worth_another_try(status: StatusCode) -> bool {
    matches!(status.as_u16(), 408 | 409 | 429) || status.is_server_error()
}

pub(crate) fn tried_so_often(tries: u32) -> String {
    match tries {
        0 => "not tried".to_owned(),
        1 => "tried once".to_owned(),
        tries => format!("tried {tries} times"),
    }
}

/// What was asked for and how often, behind what went wrong.
fn account(model: &str, tries: u32) -> String {
    format!(" (model {model:?}, {})", tried_so_often(tries))
}

/// Where the message of an error is that SDKs show, and what it says.
fn message_of(body: &[u8]) -> Option<(Range<usize>, String)> {
    let all = 0..body.len();
    let error = member(body, all.clone(), "error");
    let inner = error.clone().and_then(|error| member(body, error, "message"));
    let outer = ["message", "detail"].into_iter().filter_map(|name| member(body, all.clone(), name));
    let text = |place: Range<usize>| Some((place.clone(), serde_json::from_slice(body.get(place)?).ok()?));
    inner.into_iter().chain(error).chain(outer).find_map(text)
}

/// How long the model server wants to be left alone.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds: u64 = headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds.min(LONGEST_RETRY_AFTER)))
}

/// The pause before a round of retries, made uneven so that many calls do not come back at once.
fn pause(round: u32) -> Duration {
    let pause = FIRST_PAUSE.saturating_mul(1 << round.saturating_sub(1).min(8)).min(LONGEST_PAUSE);
    pause.mul_f64(rand::random_range(0.75..1.25))
}

/// The answer with who gave it and how often that was tried.
pub(crate) fn with_facts(mut answer: Response, progress: &Progress) -> Response {
    let headers = answer.headers_mut();
    let label = progress.backend.as_ref().and_then(|backend| HeaderValue::from_str(backend.label()).ok());
    if let Some(label) = label {
        headers.insert(BACKEND, label);
    }
    headers.insert(TRIES, HeaderValue::from(progress.tries));
    answer
}

/// Wall-clock seconds.
pub(crate) fn now() -> f64 {
    SystemClock.now()
}
