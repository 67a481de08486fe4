//! The gateway itself: what it is set up with, and what comes in at its door.

use std::borrow::Cow;
use std::collections::HashMap;
use std::future::poll_fn;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Context;
use std::time::{Duration, Instant};

use agl_store::Store;
use agl_types::{ApiKey, Span, SpanQuery, ids, semconv, v1};
use arc_swap::ArcSwap;
use axum::Router;
use axum::extract::{Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode};
use axum::response::{IntoResponse as _, Response};
use axum::routing::any;
use axum::{Json, body};
use bytes::Bytes;
use futures_util::FutureExt as _;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::{Semaphore, oneshot};
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;
use utoipa::ToSchema;

use crate::Error;
use crate::access::{self, AttemptGrant, AttemptTokens};
use crate::address::{self, Whose};
use crate::blobs::{self, Kept};
use crate::call::{Call, End, Progress, now, speaks, tried_so_often};
use crate::change;
use crate::config::{ModelEntry, ModelList};
use crate::dialect::{Dialect, chat, messages, responses, without_hosted_tools};
use crate::link::Broken;
use crate::models::{Backend, Choice, Models};
use crate::pause::{Gate, HeldBack, Pause, PauseState};
use crate::record::Kind;
use crate::refusal::{Form, Refusal};
use crate::sessions::{Attempt, Named, Sessions};
use crate::upstream::{self, Client, LARGEST_ANSWER};
use crate::written::Written;

/// How many registered models are remembered with how they are doing.
const REMEMBERED: usize = 1024;

/// How many calls may be answered by their model servers and not recorded yet. More wait, with what they hold then, so that
/// a slow store is not outrun for ever.
const UNRECORDED: usize = 64;

/// When a call is recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Capture {
    /// Before the last byte of its answer leaves: what an agent has seen is kept.
    #[default]
    Durable,
    /// After it: the agent does not wait for the store, and what is under way when the gateway is killed is lost.
    Async,
}

/// How a gateway behaves.
#[derive(Debug, Clone)]
pub struct GatewayOptions {
    /// When calls are recorded.
    pub capture: Capture,
    /// Whether agents get to see the token ids and log-probs that capture asked for. Without a word they do on the
    /// paths of 0.3 and 1.0, whose agents read them, and nowhere else.
    pub expose_token_ids: Option<bool>,
    /// What calls have to bring along, unless they bring a token for an attempt; without one everybody may call.
    pub key: Option<ApiKey>,
    /// A PEM file of authorities whose word about an `https://` model server counts, beside the system's own.
    pub ca_file: Option<PathBuf>,
    /// Bytes of the largest request.
    pub body_limit: usize,
    /// How many calls may wait while the gateway is paused; further ones are answered 429.
    pub max_parked: usize,
    /// How long a call may wait while the gateway is paused.
    pub max_park: Duration,
    /// After how long without a call the session of those that name no rollout ends.
    pub session_idle: Duration,
}

impl Default for GatewayOptions {
    fn default() -> Self {
        Self {
            capture: Capture::Durable,
            expose_token_ids: None,
            key: None,
            ca_file: None,
            body_limit: 64 << 20,
            max_parked: 4096,
            max_park: Duration::from_secs(600),
            session_idle: Duration::from_secs(600),
        }
    }
}

/// Passes calls of models on and records them as spans. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Gateway(Arc<Inner>);

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) options: GatewayOptions,
    pub(crate) client: Client,
    models: ArcSwap<Models>,
    /// How models that the store knows are doing.
    registered: Mutex<HashMap<(String, String, i64), Arc<Backend>>>,
    tokens: AttemptTokens,
    sessions: Sessions,
    gate: Gate,
    pub(crate) calls: TaskTracker,
    /// Room for calls that are answered and not recorded yet.
    pub(crate) unrecorded: Semaphore,
    /// The files that are in the store.
    pub(crate) blobs: Kept,
    /// What tools were called with.
    pub(crate) written: Written,
}

impl Gateway {
    /// A gateway that records in `store`. Models registered with the store (`POST /api/models`) are found beside those
    /// on the list.
    ///
    /// # Errors
    /// [`Error`] when the list makes no sense or the HTTP client cannot be set up.
    pub fn new(store: Arc<dyn Store>, models: ModelList, options: GatewayOptions) -> Result<Self, Error> {
        Ok(Self(Arc::new(Inner {
            client: Client::new(options.ca_file.as_deref())?,
            models: ArcSwap::from_pointee(Models::new(models, &Models::default())?),
            registered: Mutex::default(),
            tokens: AttemptTokens::new(options.key.as_ref()),
            sessions: Sessions::new(Arc::clone(&store), options.session_idle),
            gate: Gate::new(options.max_parked, options.max_park),
            calls: TaskTracker::new(),
            unrecorded: Semaphore::new(UNRECORDED),
            blobs: Kept::default(),
            written: Written::default(),
            store,
            options,
        })))
    }

    /// The routes. Anything else is for whoever they are merged into.
    pub fn router(&self) -> Router {
        let mut router = Router::new()
            .route("/rollout/{rollout}/attempt/{attempt}/{*endpoint}", any(take))
            .route("/proxy/rollout/{rollout}/attempt/{attempt}/mode/{mode}/{*endpoint}", any(take))
            .route("/proxy/pause", any(manage))
            .route("/proxy/resume", any(manage))
            .route("/proxy/state", any(manage));
        for endpoint in Endpoint::PATHS {
            router =
                router.route(&format!("/v1/{endpoint}"), any(take)).route(&format!("/{endpoint}"), any(take));
        }
        router.with_state(self.clone())
    }

    /// Puts another list in place. Calls under way keep the one that they began with.
    ///
    /// # Errors
    /// [`Error`] when the list makes no sense; the former stays then.
    pub fn set_models(&self, models: ModelList) -> Result<(), Error> {
        let models = Models::new(models, &self.0.models.load())?;
        self.0.models.store(Arc::new(models));
        Ok(())
    }

    /// Tokens for agents: in place of the key, and good for one attempt each.
    #[must_use]
    pub fn tokens(&self) -> &AttemptTokens {
        &self.0.tokens
    }

    /// Holds new calls back. Those under way go on.
    pub fn pause(&self, pause: Pause) {
        self.0.gate.pause(pause);
    }

    /// Lets calls through again, those first that came first.
    pub fn resume(&self) {
        self.0.gate.resume();
    }

    /// Where it stands between pause and resume.
    #[must_use]
    pub fn state(&self) -> PauseState {
        self.0.gate.look()
    }

    /// Waits until no call is under way, or the time is up, and tells how things stand then.
    pub async fn drain(&self, within: Duration) -> PauseState {
        self.0.gate.drain(within).await
    }

    /// Waits for what is under way to be recorded, and ends the sessions. To be called when no more calls come in.
    pub async fn close(&self) {
        self.0.calls.close();
        self.0.calls.wait().await;
        self.0.sessions.close().await;
    }
}

/// What can be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Endpoint<'p> {
    Call(Dialect, Kind),
    CountTokens,
    Models,
    Model(&'p str),
}

impl<'p> Endpoint<'p> {
    const PATHS: [&'static str; 8] = [
        "chat/completions",
        "completions",
        "embeddings",
        "messages",
        "messages/count_tokens",
        "responses",
        "models",
        "models/{*model}",
    ];

    fn parse(path: &'p str) -> Option<Self> {
        Some(match path {
            "chat/completions" => Self::Call(Dialect::OpenAi, Kind::Chat),
            "completions" => Self::Call(Dialect::OpenAi, Kind::Completions),
            "embeddings" => Self::Call(Dialect::OpenAi, Kind::Embeddings),
            "messages" => Self::Call(Dialect::Messages, Kind::Chat),
            "messages/count_tokens" => Self::CountTokens,
            "responses" => Self::Call(Dialect::Responses, Kind::Chat),
            "models" => Self::Models,
            _ => Self::Model(path.strip_prefix("models/")?),
        })
    }

    fn method(self) -> Method {
        match self {
            Self::Call(..) | Self::CountTokens => Method::POST,
            Self::Models | Self::Model(_) => Method::GET,
        }
    }
}

/// Answers a call.
async fn take(State(gateway): State<Gateway>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let path = parts.uri.path();
    let is_messages = path.ends_with("/messages") || path.ends_with("/messages/count_tokens");
    let form = if is_messages { Form::Anthropic } else { Form::OpenAi };
    let inner = Arc::clone(&gateway.0);
    inner.take(parts, body).await.unwrap_or_else(|refusal| refusal.into_response(form))
}

impl Inner {
    async fn take(self: Arc<Self>, parts: Parts, body: body::Body) -> Result<Response, Refusal> {
        let (started, started_at) = (Instant::now(), now());
        let grant = self.admit(&parts.headers)?;
        let not_there = || Refusal::not_found(format!("the gateway has nothing at {}", parts.uri.path()));
        let address = address::parse(parts.uri.path()).ok_or_else(not_there)?;
        let endpoint = Endpoint::parse(address.endpoint).ok_or_else(not_there)?;
        if parts.method != endpoint.method() {
            return Err(Refusal::method(parts.uri.path(), endpoint.method()));
        }
        let (dialect, kind) = match endpoint {
            Endpoint::Call(dialect, kind) => (dialect, kind),
            Endpoint::CountTokens => (Dialect::Messages, Kind::Chat),
            Endpoint::Models => return Ok(self.list().await),
            Endpoint::Model(name) => return self.describe(name).await,
        };
        let bytes = read(body, self.options.body_limit).await?;
        let mut request = parse(&bytes, dialect)?;
        // Looked for first: what cannot be called needs no session.
        let wanted = self.wanted(&request, &address.whose, &parts.headers).await?;
        let attempt = self.sessions.find(address.whose, &parts.headers, grant.as_ref()).await?;
        let choices = wanted.models.route(&wanted.name, &parts.headers, &attempt.rollout_id);
        if choices.is_empty() {
            return Err(wanted.models.unknown(&wanted.name));
        }
        let restores = (dialect, kind) == (Dialect::OpenAi, Kind::Chat)
            && attempt.session.is_none()
            && choices.iter().all(|choice| choice.backend.entry.restore_tool_calls);
        let bytes = if restores { self.respell(bytes, &mut request, &attempt).await } else { bytes };
        let is_translated = choices.iter().any(|choice| !speaks(&choice.backend, dialect));
        if dialect == Dialect::Responses && is_translated {
            self.recall(&mut request, &attempt).await?;
        }
        if is_translated {
            self.put_back(dialect, &mut request, &attempt).await?;
        }
        // Whoever is asked may have to be asked in another's place.
        let drops =
            |choice: &Choice| speaks(&choice.backend, dialect) || choice.backend.entry.drop_hosted_tools;
        let without =
            (is_translated && choices.iter().all(drops)).then(|| without_hosted_tools(&request)).flatten();
        let (said, dropped_tools) = without.unzip();
        let said = said.as_ref().unwrap_or(&request);
        let translated = match dialect {
            _ if !is_translated => None,
            Dialect::Responses => Some(responses::to_chat(said)?),
            _ => Some(messages::to_chat(said)?),
        };
        let translated = translated.map(|chat| (Bytes::from(chat.to_string()), chat));
        let headers = upstream::going_up(&parts.headers);
        let what =
            format!("rollout {} attempt {} model {}", attempt.rollout_id, attempt.attempt_id, wanted.name);
        if endpoint == Endpoint::CountTokens {
            let _pass = match self.gate.enter(|| what).await {
                Ok(pass) => pass,
                Err(HeldBack(pause)) => return Ok(held_back(&pause)),
            };
            return self
                .count(&choices[0], bytes, &request, translated.map(|(_, chat)| chat), &headers)
                .await;
        }
        let expose = self.options.expose_token_ids.unwrap_or(attempt.named != Named::Otherwise);
        let call = Call {
            gateway: Arc::clone(&self),
            attempt,
            dialect,
            kind,
            body: bytes,
            request,
            translated,
            dropped_tools: dropped_tools.unwrap_or_default(),
            span_id: ids::span_id(rand::random()),
            headers,
            choices,
            restores,
            expose,
            started,
            started_at,
            pass: None,
        };
        let (reply, mut answer) = oneshot::channel();
        let mut carried = Carried::new(self.calls.clone(), let_in(call, what, reply));
        let answered = poll_fn(|context| {
            carried.go_on(context);
            answer.poll_unpin(context)
        });
        answered.await.map_err(|_| Refusal::broken_down())
    }

    /// Puts what a response goes on from in front of the input of its request, from the record of the attempt.
    async fn recall(&self, request: &mut Value, attempt: &Attempt) -> Result<(), Refusal> {
        let Some(previous) = request["previous_response_id"].as_str() else { return Ok(()) };
        let not_there = || {
            let message =
                format!("Previous response with id '{previous}' not found among the calls of this attempt");
            Refusal::bad("previous_response_id", message)
        };
        let span_id = previous.strip_prefix("resp_").ok_or_else(not_there)?;
        let span = self.span(attempt, span_id).await?.ok_or_else(not_there)?;
        let kept = |name: &str| -> Option<Value> {
            let text = span.attributes.get(&format!("{}.{name}", semconv::GATEWAY))?.as_str()?;
            serde_json::from_str(text).ok()
        };
        let (asked, told) = kept("request").zip(kept("response")).ok_or_else(not_there)?;
        // What was recorded had what went before it in front already.
        let mut input = responses::items(&asked);
        input.extend(told["output"].as_array().cloned().unwrap_or_default());
        let mut input = Value::from(input);
        for (reference, span_id) in blobs::references(&input) {
            if let Some(span) = self.span(attempt, &span_id).await? {
                blobs::put_back(&mut input, &reference, &span);
            }
        }
        if let Value::Array(items) = &mut input {
            items.extend(responses::items(request));
        }
        request["input"] = input;
        Ok(())
    }

    /// Puts what tools were called with back into a request as the model wrote it.
    async fn put_back(
        &self,
        dialect: Dialect,
        request: &mut Value,
        attempt: &Attempt,
    ) -> Result<(), Refusal> {
        let each_call = if dialect == Dialect::Messages { messages::each_call } else { responses::each_call };
        let mut ids = Vec::new();
        each_call(request, &mut |id, _| {
            ids.push(id.to_owned());
            None
        });
        self.look_up(ids, attempt).await.map_err(|error| Refusal::of_store(&error))?;
        each_call(request, &mut |id, given| self.written.original(attempt, id, given));
        Ok(())
    }

    /// Has the calls of these ids remembered, as far as the record of the attempt has them.
    async fn look_up(&self, ids: Vec<String>, attempt: &Attempt) -> Result<(), agl_store::Error> {
        let mut unknown = ids;
        unknown.retain(|id| !self.written.knows(attempt, id));
        if unknown.is_empty() {
            return Ok(());
        }
        let query = SpanQuery {
            rollout_id: attempt.rollout_id.clone(),
            attempt_id: Some(attempt.attempt_id.clone()),
            name: Some(semconv::GATEWAY_CALL.to_owned()),
            ..SpanQuery::default()
        };
        let found = self.store.query_spans(query).await?;
        found.items.iter().for_each(|span| self.written.add_span(attempt, span));
        unknown.retain(|id| !self.written.knows(attempt, id));
        unknown.iter().for_each(|id| self.written.add(attempt, id, None));
        Ok(())
    }

    /// A chat in which calls of tools are spelled as the model spelled them; every other byte stays.
    async fn respell(&self, body: Bytes, request: &mut Value, attempt: &Attempt) -> Bytes {
        let ids: Vec<String> = chat::each_call(request).map(|(id, _)| id.to_owned()).collect();
        if ids.is_empty() {
            return body;
        }
        if let Err(error) = self.look_up(ids, attempt).await {
            tracing::warn!(%error, "calls of tools stay spelled as the agent has them");
        }
        let spelling = |id: &str, given: &str| self.written.spelling(attempt, id, given);
        chat::respelled(&body, request, spelling).unwrap_or(body)
    }

    /// A span of an attempt by its id.
    pub(crate) async fn span(&self, attempt: &Attempt, span_id: &str) -> Result<Option<Span>, Refusal> {
        let query = SpanQuery {
            rollout_id: attempt.rollout_id.clone(),
            attempt_id: Some(attempt.attempt_id.clone()),
            span_id: Some(span_id.to_owned()),
            ..SpanQuery::default()
        };
        let found = self.store.query_spans(query).await.map_err(|error| Refusal::of_store(&error))?;
        Ok(found.items.into_iter().next())
    }

    /// How many tokens a message would have. Nothing is generated that matters, so nothing is recorded.
    async fn count(
        &self,
        choice: &Choice,
        body: Bytes,
        request: &Value,
        translated: Option<Value>,
        headers: &HeaderMap,
    ) -> Result<Response, Refusal> {
        let Choice { backend, model } = choice;
        let (endpoint, body) = match translated {
            None => {
                let sent = change::for_backend(&body, request, None, &backend.entry, model, None, false);
                ("messages/count_tokens", sent.body)
            }
            // An engine counts a prompt when it answers it; one token is the least that it says.
            Some(mut chat) => {
                chat["max_tokens"] = 1.into();
                chat["stream"] = false.into();
                let text = Bytes::from(chat.to_string());
                let sent = change::for_backend(&text, &chat, None, &backend.entry, model, None, false);
                ("chat/completions", sent.body)
            }
        };
        let broken = |error: Broken| {
            let cause = upstream::cause(&error);
            let message =
                format!("the model server {} could not count: {cause} (tried once)", backend.label());
            Refusal::new(StatusCode::BAD_GATEWAY, message)
        };
        let mut tries = 0;
        let deadline = Duration::try_from_secs_f64(backend.entry.timeout).unwrap_or(Duration::MAX);
        let counting = async {
            let _permit = backend.turn().await;
            tries = 1;
            let answer = self.client.post(backend, endpoint, headers, body).await?;
            Ok((answer.status, answer.whole(LARGEST_ANSWER).await?.unwrap_or_default()))
        };
        let Ok(counted) = tokio::time::timeout(deadline, counting).await else {
            let message = format!(
                "the model server {} did not count within {} s ({})",
                backend.label(),
                backend.entry.timeout,
                tried_so_often(tries)
            );
            return Err(Refusal::new(StatusCode::GATEWAY_TIMEOUT, message));
        };
        let (status, bytes) = counted.map_err(broken)?;
        let counted: Value = serde_json::from_slice(&bytes).unwrap_or_default();
        let count = [&counted["input_tokens"], &counted["usage"]["prompt_tokens"]]
            .into_iter()
            .find_map(Value::as_u64);
        match count {
            Some(count) if status.is_success() => Ok(Json(json!({"input_tokens": count})).into_response()),
            _ => {
                let status = if status.is_success() { StatusCode::BAD_GATEWAY } else { status };
                let said = crate::record::error_text(&upstream::without_key(bytes, backend));
                Err(Refusal::new(
                    status,
                    format!("{said} (the model server {}, tried once)", backend.label()),
                ))
            }
        }
    }

    /// What the bearer of these credentials is held to, if they may call at all.
    fn admit(&self, headers: &HeaderMap) -> Result<Option<AttemptGrant>, Refusal> {
        self.tokens
            .admit(headers, self.options.key.as_ref())
            .map_err(|access::Unknown| Refusal::new(StatusCode::UNAUTHORIZED, "Invalid or missing API key"))
    }

    /// The model that is asked for, and the list it is on.
    async fn wanted(&self, request: &Value, whose: &Whose, headers: &HeaderMap) -> Result<Wanted, Refusal> {
        let asked = match &request["model"] {
            Value::String(name) => Some(name.as_str()),
            Value::Null => None,
            _ => return Err(Refusal::bad("model", "model has to be text")),
        };
        let listed = self.models.load_full();
        let has = |models: &Models, name: &str| !models.find(name, headers).is_empty();
        if let Some(name) = asked
            && has(&listed, name)
        {
            return Ok(Wanted { name: name.to_owned(), models: listed });
        }
        let registered = Arc::new(self.registered().await);
        if let Some(name) = asked
            && has(&registered, name)
        {
            return Ok(Wanted { name: name.to_owned(), models: registered });
        }
        // 1.0's agents ask for anything, and get the model that is trained.
        let is_controlled = matches!(whose, Whose::Controlled { .. });
        for models in [&listed, &registered] {
            let only = || models.only_name().filter(|_| is_controlled || asked.is_none());
            if let Some(name) = models.stand_in().map(str::to_owned).or_else(only) {
                return Ok(Wanted { name, models: Arc::clone(models) });
            }
        }
        if listed.is_empty() && registered.is_empty() {
            return Err(Refusal::busy(
                "no model is served yet: register one with POST /api/models, or put it on the gateway's list",
            ));
        }
        let known = if listed.is_empty() { &registered } else { &listed };
        Err(asked.map_or_else(
            || Refusal::bad("model", "the request names no model, and there is no default"),
            |name| known.unknown(name),
        ))
    }

    /// The models that are registered with the store.
    async fn registered(&self) -> Models {
        // A store without such models has none.
        let models = self.store.query_models().await.unwrap_or_default();
        let mut known = self.registered.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() > REMEMBERED {
            known.clear();
        }
        let backend = |v1::Model { model, endpoint, version }: v1::Model| {
            let key = (model.clone(), endpoint.clone(), version);
            if let Some(backend) = known.get(&key) {
                return Some(Arc::clone(backend));
            }
            let entry = ModelEntry { version: Some(version), ..ModelEntry::new(model, endpoint) };
            match Backend::new(entry) {
                Ok(backend) => Some(Arc::clone(known.entry(key).or_insert_with(|| Arc::new(backend)))),
                Err(error) => {
                    tracing::warn!(%error, "a registered model cannot be used");
                    None
                }
            }
        };
        Models::of(models.into_iter().filter_map(backend).collect())
    }

    async fn names(&self) -> Vec<String> {
        let mut names = self.models.load().names();
        names.extend(self.registered().await.names());
        names.sort_unstable();
        names.dedup();
        names
    }

    async fn list(&self) -> Response {
        let data: Vec<Value> = self.names().await.iter().map(|name| card(name)).collect();
        Json(json!({"object": "list", "data": data})).into_response()
    }

    async fn describe(&self, name: &str) -> Result<Response, Refusal> {
        let name = percent_encoding::percent_decode_str(name).decode_utf8_lossy();
        if self.names().await.iter().any(|known| *known == name) {
            return Ok(Json(card(&name)).into_response());
        }
        Err(Refusal::not_found(format!("there is no model {name:?}")))
    }
}

/// Makes a call when it is let in. One that its agent gives up before that is recorded too.
async fn let_in(mut call: Call, what: String, mut reply: oneshot::Sender<Response>) {
    let entered = tokio::select! {
        biased;
        entered = call.gateway.gate.enter(|| what) => Some(entered),
        () = reply.closed() => None,
    };
    match entered {
        Some(Ok(pass)) => {
            call.pass = Some(pass);
            call.run(reply).await;
        }
        Some(Err(HeldBack(pause))) => {
            // Nobody may be there to be told.
            let _ = reply.send(held_back(&pause));
        }
        None => call.record_or_warn(&Progress::default(), End::aborted()).await,
    }
}

/// A call that the agent's connection carries out while it waits, and a task of its own when the connection goes on or
/// is gone, so that the call is recorded in any case.
struct Carried {
    calls: TaskTracker,
    /// None when it has ended.
    call: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    _under_way: TaskTrackerToken,
}

impl Carried {
    fn new(calls: TaskTracker, call: impl Future<Output = ()> + Send + 'static) -> Self {
        Self { _under_way: calls.token(), calls, call: Some(Box::pin(call)) }
    }

    fn go_on(&mut self, context: &mut Context<'_>) {
        if let Some(call) = &mut self.call
            && call.as_mut().poll(context).is_ready()
        {
            self.call = None;
        }
    }
}

impl Drop for Carried {
    fn drop(&mut self) {
        // Without a runtime the program is at its end.
        if let Some(call) = self.call.take()
            && !std::thread::panicking()
            && tokio::runtime::Handle::try_current().is_ok()
        {
            self.calls.spawn(call);
        }
    }
}

/// A model that was asked for.
struct Wanted {
    name: String,
    models: Arc<Models>,
}

impl Models {
    /// 400, as 0.3 has it.
    fn unknown(&self, asked: &str) -> Refusal {
        let names = self.names();
        let known = if names.is_empty() { "none by name".to_owned() } else { names.join(", ") };
        Refusal::bad("model", format!("Invalid model name {asked:?}: there are {known}"))
    }
}

fn card(name: &str) -> Value {
    json!({"id": name, "object": "model", "created": 0, "owned_by": "agentlightning-gateway"})
}

async fn read(body: body::Body, limit: usize) -> Result<Bytes, Refusal> {
    body::to_bytes(body, limit).await.map_err(|error| {
        let is_too_large = std::error::Error::source(&error)
            .is_some_and(|source| source.to_string().contains("length limit"));
        if is_too_large {
            Refusal::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                format!("the request is larger than the limit of {limit} bytes"),
            )
        } else {
            Refusal::new(StatusCode::BAD_REQUEST, "the request broke off")
        }
    })
}

/// The request as JSON.
fn parse(bytes: &Bytes, dialect: Dialect) -> Result<Value, Refusal> {
    let wrong = |message: String| Refusal::new(StatusCode::BAD_REQUEST, message);
    let text = match dialect {
        Dialect::Messages => messages::with_inputs_as_text(bytes),
        _ => Cow::Borrowed(bytes.as_ref()),
    };
    let request: Value =
        serde_json::from_slice(&text).map_err(|error| wrong(format!("the request is not JSON: {error}")))?;
    if !request.is_object() {
        return Err(wrong("the request has to be a JSON object".to_owned()));
    }
    if let Some(name) = change::repeated(bytes) {
        return Err(wrong(format!("the request has {name:?} twice")));
    }
    if !matches!(request["stream"], Value::Null | Value::Bool(_)) {
        return Err(Refusal::bad("stream", "stream has to be true or false"));
    }
    Ok(request)
}

/// What a call is told that may not wait, as 1.0 has it.
fn held_back(pause: &Pause) -> Response {
    let body = json!({"error": "gateway paused", "reason": pause.reason});
    let mut response = (StatusCode::TOO_MANY_REQUESTS, Json(body)).into_response();
    let headers = response.headers_mut();
    headers.insert(axum::http::header::RETRY_AFTER, HeaderValue::from(pause.retry_after_seconds));
    headers.insert("x-agl-paused", HeaderValue::from_static("true"));
    response
}

/// What `POST /proxy/pause` may say.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(default)]
pub struct PauseRequest {
    /// What calls are told to wait that may not, in seconds.
    retry_after_seconds: u64,
    /// Why it is paused.
    reason: Option<String>,
    /// Seconds to wait for the calls under way; the answer comes as soon as there are none.
    drain_seconds: Option<f64>,
}

impl Default for PauseRequest {
    fn default() -> Self {
        let Pause { retry_after_seconds, reason } = Pause::default();
        Self { retry_after_seconds, reason, drain_seconds: None }
    }
}

/// Pause, resume and state. They are not for agents.
async fn manage(State(gateway): State<Gateway>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let done = gateway.manage(parts, body).await;
    done.map_or_else(|refusal| refusal.into_response(Form::OpenAi), |state| Json(state).into_response())
}

impl Gateway {
    async fn manage(&self, parts: Parts, body: body::Body) -> Result<PauseState, Refusal> {
        if self.0.admit(&parts.headers)?.is_some() {
            return Err(Refusal::new(
                StatusCode::FORBIDDEN,
                "a token for an attempt does not let you do that",
            ));
        }
        match (parts.uri.path(), parts.method) {
            ("/proxy/state", Method::GET) => {}
            ("/proxy/resume", Method::POST) => self.resume(),
            ("/proxy/pause", Method::POST) => {
                let bytes = read(body, self.0.options.body_limit).await?;
                let PauseRequest { retry_after_seconds, reason, drain_seconds } = if bytes.is_empty() {
                    PauseRequest::default()
                } else {
                    serde_json::from_slice(&bytes)
                        .map_err(|error| Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, error.to_string()))?
                };
                let drain = drain_seconds.map(Duration::try_from_secs_f64).transpose();
                let drain =
                    drain.map_err(|_| Refusal::bad("drain_seconds", "drain_seconds has to be 0 or more"))?;
                self.pause(Pause { retry_after_seconds, reason });
                if let Some(within) = drain {
                    return Ok(self.drain(within).await);
                }
            }
            (path @ "/proxy/state", _) => return Err(Refusal::method(path, Method::GET)),
            (path, _) => return Err(Refusal::method(path, Method::POST)),
        }
        Ok(self.state())
    }
}
