use std::collections::HashMap;
use std::io::{Read as _, Write as _};

use agl_otlp::{Received, Rejected};
use agl_store::{Error, SpanDraft, Store};
use agl_types::{AttemptQuery, UNLIMITED};
use axum::extract::{Request, State};
use axum::http::header::{ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_TYPE, RETRY_AFTER, VARY};
use axum::http::{HeaderMap, HeaderName, StatusCode};
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use flate2::Compression;
use flate2::read::MultiGzDecoder;
use flate2::write::GzEncoder;

use super::App;
use crate::error::too_large_detail;
use crate::extract::read_bytes;

const PROTOBUF: &str = "application/x-protobuf";
const GZIP: &str = "gzip";
/// Seconds after which an exporter may try again.
const RETRY_AFTER_SECONDS: &str = "1";

/// The signals that the store does not take.
pub(super) async fn not_taken() -> StatusCode {
    StatusCode::NOT_IMPLEMENTED
}

/// Takes spans in. The answer is given once they are stored.
pub(super) async fn traces(State(app): State<App>, request: Request) -> Response {
    let wants_gzip = accepts_gzip(request.headers());
    match take_in(&app, request).await {
        Ok(rejected) => {
            if !rejected.is_empty() {
                tracing::warn!("OTLP: {}", rejected.message());
            }
            answer(StatusCode::OK, agl_otlp::response(&rejected), wants_gzip)
        }
        Err(refusal) => {
            tracing::debug!(status = refusal.status.as_u16(), "OTLP: {}", refusal.message);
            answer(refusal.status, agl_otlp::error_status(refusal.message), wants_gzip)
        }
    }
}

struct Refusal {
    status: StatusCode,
    message: String,
}

impl Refusal {
    fn bad_request(message: impl Into<String>) -> Self {
        Self { status: StatusCode::BAD_REQUEST, message: message.into() }
    }

    fn too_large(limit: usize) -> Self {
        Self { status: StatusCode::PAYLOAD_TOO_LARGE, message: too_large_detail(limit) }
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        let (status, message) = match &error {
            // Exporters give up on 500 and try again on 503, so that a disk which is full for a minute costs
            // no spans.
            Error::Backend { message } => {
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

async fn take_in(app: &App, request: Request) -> Result<Rejected, Refusal> {
    let encoding = Encoding::of(request.headers())?;
    let limit = app.body_limit;
    let bytes = read_bytes(request, &(), limit).await.map_err(|error| {
        if error.status() == StatusCode::PAYLOAD_TOO_LARGE {
            Refusal::too_large(limit)
        } else {
            Refusal::bad_request("the request body broke off")
        }
    })?;
    // Large payloads take a while, in which other requests should not have to wait.
    let decoding = tokio::task::spawn_blocking(move || decode(&bytes, encoding, limit)).await;
    let Received { spans, mut rejected } = decoding.map_err(|error| {
        tracing::error!(%error, "decoding an OTLP payload failed");
        Refusal { status: StatusCode::INTERNAL_SERVER_ERROR, message: "Internal server error".to_owned() }
    })??;
    let drafts: Vec<SpanDraft> = spans
        .into_iter()
        .map(|one| SpanDraft { span: one.span, has_sequence_id: one.has_sequence_id })
        .collect();
    if drafts.is_empty() {
        return Ok(rejected);
    }
    // Nearly always everything is known. Only when something is not, it is worth finding out what.
    match app.store.add_span_drafts(drafts.clone()).await {
        Ok(_) => {}
        Err(Error::NotFound { .. }) => {
            let known = known_only(app.store.as_ref(), drafts, &mut rejected).await?;
            app.store.add_span_drafts(known).await?;
        }
        Err(error) => return Err(error.into()),
    }
    Ok(rejected)
}

/// The spans whose rollout and attempt exist; the others are counted in `rejected`.
async fn known_only(
    store: &dyn Store,
    drafts: Vec<SpanDraft>,
    rejected: &mut Rejected,
) -> Result<Vec<SpanDraft>, Error> {
    let mut attempts: HashMap<String, Option<Vec<String>>> = HashMap::new();
    let mut known = Vec::with_capacity(drafts.len());
    for draft in drafts {
        let rollout_id = &draft.span.rollout_id;
        if !attempts.contains_key(rollout_id) {
            attempts.insert(rollout_id.clone(), attempts_of(store, rollout_id).await?);
        }
        let attempt_id = &draft.span.attempt_id;
        match attempts.get(rollout_id) {
            Some(Some(ids)) if ids.contains(attempt_id) => known.push(draft),
            Some(Some(_)) => rejected.add(Error::attempt_not_found(rollout_id, attempt_id).to_string()),
            Some(None) | None => rejected.add(Error::rollout_not_found(rollout_id).to_string()),
        }
    }
    Ok(known)
}

/// The attempts of a rollout; none when it does not exist.
async fn attempts_of(store: &dyn Store, rollout_id: &str) -> Result<Option<Vec<String>>, Error> {
    if store.get_rollout_by_id(rollout_id).await?.is_none() {
        return Ok(None);
    }
    let query =
        AttemptQuery { rollout_id: rollout_id.to_owned(), limit: UNLIMITED, ..AttemptQuery::default() };
    let page = store.query_attempts(query).await?;
    Ok(Some(page.items.into_iter().map(|attempt| attempt.attempt_id).collect()))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Encoding {
    Plain,
    Gzip,
}

impl Encoding {
    /// What the headers say about the body.
    fn of(headers: &HeaderMap) -> Result<Self, Refusal> {
        let content_type = text_of(headers, &CONTENT_TYPE);
        let essence = content_type.split(';').next().unwrap_or_default().trim();
        if !essence.eq_ignore_ascii_case(PROTOBUF) {
            let message = format!("Unsupported Content-Type '{essence}', expected '{PROTOBUF}'");
            return Err(Refusal::bad_request(message));
        }
        let encoding = text_of(headers, &CONTENT_ENCODING).trim();
        if encoding.is_empty() || encoding.eq_ignore_ascii_case("identity") {
            Ok(Self::Plain)
        } else if encoding.eq_ignore_ascii_case(GZIP) {
            Ok(Self::Gzip)
        } else {
            let message = format!("Unsupported Content-Encoding '{encoding}', expected '{GZIP}' or none");
            Err(Refusal::bad_request(message))
        }
    }
}

fn text_of<'a>(headers: &'a HeaderMap, name: &HeaderName) -> &'a str {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

fn decode(bytes: &Bytes, encoding: Encoding, limit: usize) -> Result<Received, Refusal> {
    let inflated;
    let payload: &[u8] = match encoding {
        Encoding::Plain => bytes,
        Encoding::Gzip => {
            inflated = inflate(bytes, limit)?;
            &inflated
        }
    };
    let request = agl_otlp::decode(payload).map_err(|error| Refusal::bad_request(error.to_string()))?;
    Ok(agl_otlp::receive(request))
}

/// Decompresses, but never more than `limit` bytes.
fn inflate(bytes: &[u8], limit: usize) -> Result<Vec<u8>, Refusal> {
    let one_more = u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1);
    let mut inflated = Vec::new();
    MultiGzDecoder::new(bytes)
        .take(one_more)
        .read_to_end(&mut inflated)
        .map_err(|error| Refusal::bad_request(format!("Unable to decompress the gzip payload: {error}")))?;
    if inflated.len() > limit { Err(Refusal::too_large(limit)) } else { Ok(inflated) }
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

fn answer(status: StatusCode, body: Vec<u8>, wants_gzip: bool) -> Response {
    let zipped = if wants_gzip { gzip(&body) } else { None };
    let mut response = match zipped {
        Some(zipped) => {
            (status, [(CONTENT_ENCODING, GZIP), (VARY, ACCEPT_ENCODING.as_str())], zipped).into_response()
        }
        None => (status, body).into_response(),
    };
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, axum::http::HeaderValue::from_static(PROTOBUF));
    if status == StatusCode::SERVICE_UNAVAILABLE {
        headers.insert(RETRY_AFTER, axum::http::HeaderValue::from_static(RETRY_AFTER_SECONDS));
    }
    response
}

/// None only if writing into memory failed; the answer then goes out as it is.
fn gzip(body: &[u8]) -> Option<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(body).ok()?;
    encoder.finish().ok()
}
