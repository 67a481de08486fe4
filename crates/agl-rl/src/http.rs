//! The OpenAI-compatible server.

use crate::api::chat::Chat;
use crate::api::completions::Completion;
use crate::api::fields::Fields;
use crate::api::now;
use crate::engine::{Answer, Engine, Event, Finish, Generation};
use crate::error::{Error, Result};
use crate::sampling::TokenOutput;
use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::StatusCode;
use axum::response::sse::{self, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use futures_util::stream::{BoxStream, SelectAll, StreamExt, select_all};
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use tokio::net::TcpListener;

/// Largest request body in bytes.
const MAX_BODY: usize = 32 << 20;

/// How one endpoint writes answers.
pub(crate) trait Dialect: Send + 'static {
    /// The whole response; `answers` by prompt and choice.
    fn answer(&mut self, answers: Vec<Vec<Answer>>) -> Value;
    /// The chunks ahead of the first token.
    fn open(&mut self) -> Vec<Value>;
    /// The chunk for a token, if there is anything to say.
    fn token(&mut self, prompt: usize, choice: usize, output: TokenOutput, text: String) -> Option<Value>;
    /// The chunks that end an answer.
    fn finished(&mut self, prompt: usize, choice: usize, finish: &Finish, text: String) -> Vec<Value>;
    /// The last chunk, if there is one.
    fn close(&mut self) -> Option<Value>;
}

/// The routes: `POST /v1/chat/completions`, `POST /v1/completions`, `GET /v1/models` (and
/// `/v1/models/{id}`), `GET /health`.
pub fn router(engine: Engine) -> Router {
    Router::new()
        .route("/v1/chat/completions", post(chat_completions))
        .route("/v1/completions", post(completions))
        .route("/v1/models", get(models))
        .route("/v1/models/{*id}", get(model))
        .route("/health", get(async || StatusCode::OK))
        .fallback(async || failure(StatusCode::NOT_FOUND, "Not Found", None))
        .method_not_allowed_fallback(async || {
            failure(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed", None)
        })
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(engine)
}

/// Serves an engine until `shutdown` completes, then lets running requests finish.
///
/// `host` is a name or address, port 0 picks a free one; `on_ready` is told the address as soon as
/// connections are accepted.
///
/// # Errors
/// [`Error::Bind`] if the address can't be listened on, [`Error::Io`] if the listener fails later.
pub async fn serve(
    engine: Engine,
    host: &str,
    port: u16,
    on_ready: impl FnOnce(SocketAddr),
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<()> {
    let bind = |source| Error::Bind { address: format!("{host}:{port}"), source };
    let listener = TcpListener::bind((host, port)).await.map_err(bind)?;
    on_ready(listener.local_addr().map_err(bind)?);
    axum::serve(listener, router(engine))
        .with_graceful_shutdown(shutdown)
        .await
        .map_err(|source| Error::Io { path: format!("{host}:{port}").into(), source })
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let (status, param) = match &self {
            Self::BadRequest { param, .. } => (StatusCode::BAD_REQUEST, param.as_deref()),
            Self::NoSuchModel(_) => (StatusCode::NOT_FOUND, Some("model")),
            Self::QueueFull(_) | Self::Stopped => (StatusCode::SERVICE_UNAVAILABLE, None),
            _ => (StatusCode::INTERNAL_SERVER_ERROR, None),
        };
        failure(status, &self.to_string(), param)
    }
}

/// An error in vLLM's shape.
fn failure(status: StatusCode, message: &str, param: Option<&str>) -> Response {
    (status, axum::Json(error_body(status, message, param))).into_response()
}

fn error_body(status: StatusCode, message: &str, param: Option<&str>) -> Value {
    let kind = match status {
        StatusCode::BAD_REQUEST => "BadRequestError",
        StatusCode::NOT_FOUND => "NotFoundError",
        StatusCode::METHOD_NOT_ALLOWED => "MethodNotAllowedError",
        StatusCode::SERVICE_UNAVAILABLE => "ServiceUnavailableError",
        _ => "InternalServerError",
    };
    json!({"error": {"message": message, "type": kind, "param": param, "code": status.as_u16()}})
}

fn card(engine: &Engine) -> Value {
    json!({
        "id": engine.model_name(), "object": "model", "created": now(), "owned_by": "agentlightning",
        "root": engine.model_name(), "parent": null, "max_model_len": engine.max_context(),
    })
}

async fn models(State(engine): State<Engine>) -> Response {
    axum::Json(json!({"object": "list", "data": [card(&engine)]})).into_response()
}

async fn model(State(engine): State<Engine>, Path(id): Path<String>) -> Result<Response> {
    if id == engine.model_name() {
        Ok(axum::Json(card(&engine)).into_response())
    } else {
        Err(Error::NoSuchModel(id))
    }
}

/// The fields of a request, after its model was found to be the one served.
fn fields(engine: &Engine, body: &[u8]) -> Result<Fields> {
    let mut fields = Fields::parse(body)?;
    match fields.string("model")? {
        Some(name) if name != engine.model_name() => Err(Error::NoSuchModel(name)),
        // Absent means the one there is, as in vLLM.
        _ => Ok(fields),
    }
}

async fn chat_completions(State(engine): State<Engine>, body: Bytes) -> Result<Response> {
    let chat = Chat::parse(engine.clone(), fields(&engine, &body)?)?;
    let generation = engine.submit(chat.common.request.clone())?;
    let stream = chat.common.stream;
    respond(chat, vec![generation], stream).await
}

async fn completions(State(engine): State<Engine>, body: Bytes) -> Result<Response> {
    let completion = Completion::parse(engine.clone(), fields(&engine, &body)?)?;
    let mut generations = Vec::new();
    for prompt in &completion.prompts {
        let mut request = completion.common.request.clone();
        request.prompt.clone_from(prompt);
        generations.push(engine.submit(request)?);
    }
    let stream = completion.common.stream;
    respond(completion, generations, stream).await
}

async fn respond(mut dialect: impl Dialect, generations: Vec<Generation>, stream: bool) -> Result<Response> {
    if stream {
        return Ok(Sse::new(events(dialect, generations))
            .keep_alive(sse::KeepAlive::default())
            .into_response());
    }
    let mut answers = Vec::new();
    for generation in generations {
        answers.push(generation.collect().await?);
    }
    Ok(axum::Json(dialect.answer(answers)).into_response())
}

/// A stream's progress.
struct Streaming<D> {
    dialect: D,
    /// Events of all prompts, each with its prompt's number.
    events: SelectAll<BoxStream<'static, (usize, Result<Event>)>>,
    ready: VecDeque<sse::Event>,
    ended: bool,
}

/// Server-sent events; dropping the stream cancels the requests.
fn events<D: Dialect>(
    mut dialect: D,
    generations: Vec<Generation>,
) -> impl futures_util::Stream<Item = std::result::Result<sse::Event, Infallible>> {
    let sources = generations.into_iter().enumerate().map(|(prompt, generation)| {
        futures_util::stream::unfold(Some(generation), move |generation| async move {
            let mut generation = generation?;
            match generation.next().await {
                Ok(None) => None,
                Ok(Some(event)) => Some(((prompt, Ok(event)), Some(generation))),
                Err(error) => Some(((prompt, Err(error)), None)),
            }
        })
        .boxed()
    });
    let ready = dialect.open().iter().map(data).collect();
    let state = Streaming { dialect, events: select_all(sources), ready, ended: false };
    futures_util::stream::unfold(state, |mut state| async move {
        loop {
            if let Some(event) = state.ready.pop_front() {
                return Some((Ok(event), state));
            }
            if state.ended {
                return None;
            }
            match state.events.next().await {
                Some((prompt, Ok(Event::Token { choice, output, text }))) => {
                    state.ready.extend(state.dialect.token(prompt, choice, output, text).as_ref().map(data));
                }
                Some((prompt, Ok(Event::Finished { choice, finish, text }))) => {
                    state
                        .ready
                        .extend(state.dialect.finished(prompt, choice, &finish, text).iter().map(data));
                }
                Some((_, Ok(Event::Failed(_)) | Err(_))) => {
                    let message = Error::Stopped.to_string();
                    state.ready.push_back(data(&error_body(StatusCode::SERVICE_UNAVAILABLE, &message, None)));
                    state.ready.push_back(sse::Event::default().data("[DONE]"));
                    state.ended = true;
                }
                None => {
                    state.ready.extend(state.dialect.close().as_ref().map(data));
                    state.ready.push_back(sse::Event::default().data("[DONE]"));
                    state.ended = true;
                }
            }
        }
    })
}

fn data(value: &Value) -> sse::Event {
    sse::Event::default().data(value.to_string())
}
