use std::io::Write as _;

use agl_gateway::AttemptGrant;
use agl_otlp::{Bounds, Format, Received, ReceivedSpan, Rejected};
use agl_store::{Error, Store, WrittenDraft};
use agl_types::v1::{MODEL_REQUEST, REWARD};
use agl_types::{WrittenSpan, semconv};
use axum::extract::{Request, State};
use axum::http::header::{ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_TYPE, RETRY_AFTER, VARY};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::App;
use crate::admission::Scope;
use crate::encoding::{Encoding, Unreadable};
use crate::error::{ApiError, too_large_detail};
use crate::extract::{BodyLimit, read_bytes};
use crate::openapi::Protobuf;

/// Where traces are sent to.
pub(crate) const TRACES: &str = "/v1/traces";

const GZIP: &str = "gzip";
/// Seconds after which an exporter may try again.
const RETRY_AFTER_SECONDS: &str = "1";
/// Bytes that are read within a millisecond. More should not keep other requests waiting.
const SMALL: usize = 64 << 10;
/// How many times smaller than its content a compressed payload is taken to be.
const COMPRESSION: usize = 8;

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(traces))
        .routes(routes!(metrics))
        .routes(routes!(logs))
        .routes(routes!(profiles))
}

/// Takes no metrics.
#[utoipa::path(
    post,
    path = "/v1/metrics",
    operation_id = "export_metrics",
    responses((status = 501, description = "The store takes traces only.")),
)]
async fn metrics() -> StatusCode {
    StatusCode::NOT_IMPLEMENTED
}

/// Takes no logs.
#[utoipa::path(
    post,
    path = "/v1/logs",
    operation_id = "export_logs",
    responses((status = 501, description = "The store takes traces only.")),
)]
async fn logs() -> StatusCode {
    StatusCode::NOT_IMPLEMENTED
}

/// Takes no profiles.
#[utoipa::path(
    post,
    path = "/v1/development/profiles",
    operation_id = "export_profiles",
    responses((status = 501, description = "The store takes traces only.")),
)]
async fn profiles() -> StatusCode {
    StatusCode::NOT_IMPLEMENTED
}

/// Takes spans in, as OpenTelemetry exports them.
///
/// The answer is given once they are stored. The attributes `agentlightning.rollout_id` and
/// `agentlightning.attempt_id`, of the span or of its resource, say where a span belongs; those that belong nowhere are
/// rejected and counted. The body may be compressed with gzip, deflate or zstd.
#[utoipa::path(
    post,
    path = "/v1/traces",
    operation_id = "export_traces",
    request_body(description = "An `ExportTraceServiceRequest`.", content(
        (Protobuf = "application/x-protobuf"),
        (Object = "application/json"),
    )),
    responses(
        (status = 200, description = "An `ExportTraceServiceResponse`: which spans were rejected, if any.", content(
            (Protobuf = "application/x-protobuf"),
            (Object = "application/json"),
        )),
        (status = 400, description = "A `google.rpc.Status`: the request makes no sense.", content(
            (Protobuf = "application/x-protobuf"),
            (Object = "application/json"),
        )),
        (status = 401, description = "A `google.rpc.Status`: the key is missing or wrong.", content(
            (Protobuf = "application/x-protobuf"),
            (Object = "application/json"),
        )),
        (status = 403, description = "A `google.rpc.Status`: a token for an attempt was shown, which is not good for this.", content(
            (Protobuf = "application/x-protobuf"),
            (Object = "application/json"),
        )),
        (status = 413, description = "A `google.rpc.Status`: the body is too large.", content(
            (Protobuf = "application/x-protobuf"),
            (Object = "application/json"),
        )),
        (status = 415, description = "A `google.rpc.Status`: the body is compressed in a way that is not known.", content(
            (Protobuf = "application/x-protobuf"),
            (Object = "application/json"),
        )),
        (status = 503, description = "A `google.rpc.Status`: try again after `Retry-After` seconds.", content(
            (Protobuf = "application/x-protobuf"),
            (Object = "application/json"),
        )),
    ),
)]
async fn traces(State(app): State<App>, Scope(scope): Scope, request: Request) -> Response {
    let wants_gzip = accepts_gzip(request.headers());
    let format = format_of(request.headers());
    // What cannot be read at all is told in protobuf.
    let answered_in = *format.as_ref().unwrap_or(&Format::Protobuf);
    let outcome = match format {
        Ok(format) => take_in(&app, format, scope, request).await,
        Err(refusal) => Err(refusal),
    };
    let (status, body) = match outcome {
        Ok(rejected) => (StatusCode::OK, answered_in.response(&rejected)),
        Err(Refusal { status, message }) => (status, answered_in.error(message)),
    };
    answer(status, answered_in, body, wants_gzip)
}

/// Turns an exporter away before its payload is looked at.
pub(super) fn refuse(error: &ApiError, headers: &HeaderMap) -> Response {
    // What cannot be read at all is told in protobuf.
    let format = format_of(headers).unwrap_or(Format::Protobuf);
    let mut response = answer(error.status(), format, format.error(error.detail().to_owned()), false);
    response.headers_mut().extend(error.header());
    response
}

/// Why a payload is not taken.
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    pub(super) message: String,
}

impl Refusal {
    pub(super) fn bad_request(message: impl Into<String>) -> Self {
        Self { status: StatusCode::BAD_REQUEST, message: message.into() }
    }

    pub(super) fn too_large(limit: usize) -> Self {
        Self { status: StatusCode::PAYLOAD_TOO_LARGE, message: too_large_detail(limit) }
    }
}

impl From<ApiError> for Refusal {
    fn from(error: ApiError) -> Self {
        Self { status: error.status(), message: error.detail().to_owned() }
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        let (status, message) = match &error {
            // Exporters give up on 500 and try again on 503, so that a disk which is full for a minute costs
            // no spans.
            Error::Backend { message } | Error::Unauthorized { message } => {
                tracing::error!(%message, "the store failed");
                (StatusCode::SERVICE_UNAVAILABLE, "the store failed; see the server's log".to_owned())
            }
            Error::Unavailable { .. } | Error::Unwritable { .. } => {
                (StatusCode::SERVICE_UNAVAILABLE, error.to_string())
            }
            Error::Unsupported { .. } => (StatusCode::NOT_IMPLEMENTED, error.to_string()),
            Error::NotFound { .. } | Error::Invalid { .. } | Error::Conflict { .. } | Error::Gone { .. } => {
                (StatusCode::BAD_REQUEST, error.to_string())
            }
        };
        Self { status, message }
    }
}

/// The format that the body says it has.
fn format_of(headers: &HeaderMap) -> Result<Format, Refusal> {
    let content_type = text_of(headers, &CONTENT_TYPE);
    let essence = content_type.split(';').next().unwrap_or_default().trim();
    let named = |format: &Format| essence.eq_ignore_ascii_case(format.content_type());
    Format::ALL.into_iter().find(named).ok_or_else(|| {
        let [one, other] = Format::ALL.map(Format::content_type);
        Refusal::bad_request(format!("Unsupported Content-Type '{essence}', expected '{one}' or '{other}'"))
    })
}

fn text_of<'a>(headers: &'a HeaderMap, name: &HeaderName) -> &'a str {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

async fn take_in(
    app: &App,
    format: Format,
    scope: Option<AttemptGrant>,
    request: Request,
) -> Result<Rejected, Refusal> {
    let named = text_of(request.headers(), &CONTENT_ENCODING);
    let encoding = Encoding::parse(named).ok_or_else(|| Refusal {
        status: StatusCode::UNSUPPORTED_MEDIA_TYPE,
        message: format!("Unsupported Content-Encoding '{named}', expected one of {}", Encoding::NAMES),
    })?;
    let limit = body_limit(&request);
    let bytes = read_body(request, limit).await?;
    let spans = app.agent_spans;
    Payload { bytes, encoding, format, scope, limit, spans }.store(app.store.as_ref()).await
}

/// How many bytes the body of this request may have.
pub(super) fn body_limit(request: &Request) -> usize {
    // Set on every request by `admit`.
    request.extensions().get::<BodyLimit>().map_or(0, |limit| limit.0)
}

/// Reads a body of at most `limit` bytes.
pub(super) async fn read_body(request: Request, limit: usize) -> Result<Bytes, Refusal> {
    Ok(read_bytes(request, &(), limit).await?)
}

/// An export request as it came.
#[derive(Debug, Clone)]
pub(super) struct Payload {
    pub(super) bytes: Bytes,
    pub(super) encoding: Encoding,
    pub(super) format: Format,
    /// What its sender is held to, where that is one attempt.
    pub(super) scope: Option<AttemptGrant>,
    /// How many bytes it may have when unpacked.
    pub(super) limit: usize,
    /// How many spans it may hold from a sender who is held to one attempt.
    pub(super) spans: usize,
}

impl Payload {
    /// Stores the spans; the answer counts those that could not be.
    pub(super) async fn store(self, store: &dyn Store) -> Result<Rejected, Refusal> {
        let outcome = self.try_store(store).await;
        match &outcome {
            Ok(rejected) if !rejected.is_empty() => tracing::warn!("OTLP: {}", rejected.message()),
            Ok(_) => {}
            Err(refusal) => tracing::debug!(status = refusal.status.as_u16(), "OTLP: {}", refusal.message),
        }
        outcome
    }

    async fn try_store(self, store: &dyn Store) -> Result<Rejected, Refusal> {
        let (spans, mut rejected) = self.read().await?;
        if !spans.is_empty() {
            for (reason, spans) in store.ingest_spans(spans).await? {
                rejected.add_many(reason, spans);
            }
        }
        Ok(rejected)
    }

    /// The spans, and those that cannot be stored anywhere.
    async fn read(&self) -> Result<(Vec<WrittenDraft>, Rejected), Refusal> {
        let likely = match self.encoding {
            Encoding::Identity => self.bytes.len(),
            _ => self.bytes.len().saturating_mul(COMPRESSION),
        };
        if likely <= SMALL {
            return self.read_now();
        }
        let payload = self.clone();
        tokio::task::spawn_blocking(move || payload.read_now()).await.unwrap_or_else(|error| {
            tracing::error!(%error, "decoding an OTLP payload failed");
            let message = "Internal server error".to_owned();
            Err(Refusal { status: StatusCode::INTERNAL_SERVER_ERROR, message })
        })
    }

    fn read_now(&self) -> Result<(Vec<WrittenDraft>, Rejected), Refusal> {
        let bytes = self.encoding.inflate(&self.bytes, self.limit).map_err(|error| match error {
            Unreadable::Corrupt(message) => Refusal::bad_request(message),
            Unreadable::TooLarge => Refusal::too_large(self.limit),
        })?;
        let bounds = match self.scope {
            // Spans that share a long resource become longer than the request is.
            Some(_) => Bounds { spans: self.spans, bytes: self.limit.saturating_mul(2) },
            None => Bounds::default(),
        };
        let received = self.format.receive_within(&bytes, bounds);
        let Received { mut spans, mut rejected } = received.map_err(|error| {
            let status = match error {
                agl_otlp::Error::Payload { .. } => StatusCode::BAD_REQUEST,
                agl_otlp::Error::TooMuch { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            };
            Refusal { status, message: error.to_string() }
        })?;
        if let Some(grant) = &self.scope {
            spans.retain_mut(|one| match beyond(grant, &one.span) {
                Some(reason) => {
                    rejected.add(reason);
                    false
                }
                None => {
                    // One number that is too large would be the last of its rollout.
                    one.has_sequence_id = false;
                    true
                }
            });
        }
        let draft = |one: ReceivedSpan| WrittenDraft { span: one.span, has_sequence_id: one.has_sequence_id };
        Ok((spans.into_iter().map(draft).collect(), rejected))
    }
}

/// Why a span is none that an agent with this grant may record; none when it is.
fn beyond(grant: &AttemptGrant, written: &WrittenSpan) -> Option<&'static str> {
    if written.rollout_id != grant.rollout_id || written.attempt_id != grant.attempt_id {
        return Some("the token is for another attempt");
    }
    let Ok(span) = written.parse() else { return Some("the span cannot be read") };
    let event = agl_trace::read_event(&span).map(|event| event.event_type);
    let is_reward = event.as_deref() == Some(REWARD) || agl_trace::gives_rewards(&span);
    if is_reward && !grant.may_reward {
        return Some("this agent may not set its own reward");
    }
    let is_of_gateway = event.as_deref() == Some(MODEL_REQUEST)
        || matches!(span.name.as_str(), semconv::GATEWAY_CALL | "raw_gen_ai_request")
        || span.attributes.keys().any(|key| key.starts_with(semconv::GATEWAY));
    is_of_gateway.then_some("model calls are recorded by the gateway")
}

/// Whether gzip is among the encodings accepted, whatever the weight.
fn accepts_gzip(headers: &HeaderMap) -> bool {
    let names = |text: &str| text.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case(GZIP);
    headers
        .get_all(ACCEPT_ENCODING)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .any(|value| value.split(',').any(names))
}

fn answer(status: StatusCode, format: Format, body: Vec<u8>, wants_gzip: bool) -> Response {
    let zipped = if wants_gzip { gzip(&body) } else { None };
    let mut response = match zipped {
        Some(zipped) => {
            (status, [(CONTENT_ENCODING, GZIP), (VARY, ACCEPT_ENCODING.as_str())], zipped).into_response()
        }
        None => (status, body).into_response(),
    };
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(format.content_type()));
    if status == StatusCode::SERVICE_UNAVAILABLE {
        headers.insert(RETRY_AFTER, HeaderValue::from_static(RETRY_AFTER_SECONDS));
    }
    response
}

/// None only if writing into memory failed; the answer then goes out as it is.
fn gzip(body: &[u8]) -> Option<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(body).ok()?;
    encoder.finish().ok()
}
