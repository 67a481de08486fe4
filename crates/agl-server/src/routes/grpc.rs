//! OTLP over gRPC: one call with one message each way, on the HTTP/2 that the server speaks anyway.
//!
//! A message is a byte that says whether it is compressed, its length in four bytes, and its bytes. How a call went is
//! told by the code in the trailers, whatever the status of HTTP says.

use agl_otlp::{Format, Rejected};
use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse as _, Response};
use axum::routing::post;
use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt as _, Full};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};

use super::App;
use super::otlp::{Payload, Refusal, body_limit, read_body};
use crate::encoding::Encoding;
use crate::error::ApiError;

const EXPORT: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";
const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");
const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
const GRPC_ENCODING: HeaderName = HeaderName::from_static("grpc-encoding");
const GRPC_ACCEPT_ENCODING: HeaderName = HeaderName::from_static("grpc-accept-encoding");
/// Bytes before those of a message.
const PREFIX: usize = 5;
/// What may not be in `grpc-message` as it is, beside what is not ASCII.
const ESCAPED: &AsciiSet = &CONTROLS.add(b'%');

/// The service; other calls are told that there are none.
pub(super) fn routes() -> Router<App> {
    Router::new().route(EXPORT, post(export)).fallback(unknown)
}

async fn export(State(app): State<App>, request: Request) -> Response {
    if !is_grpc(request.headers()) {
        return StatusCode::UNSUPPORTED_MEDIA_TYPE.into_response();
    }
    match take_in(&app, request).await {
        Ok(rejected) => success(&Format::Protobuf.response(&rejected)),
        Err(Failure { code, message }) => failure(code, &message),
    }
}

async fn unknown() -> Response {
    failure(Code::Unimplemented, "there is only opentelemetry.proto.collector.trace.v1.TraceService/Export")
}

/// Turns a call away before its message is looked at.
pub(super) fn refuse(error: ApiError, _request: &Request) -> Response {
    let Failure { code, message } = Refusal::from(error).into();
    failure(code, &message)
}

/// Codes of gRPC. Of these, exporters try again on `Unavailable` only.
#[derive(Debug, Clone, Copy)]
enum Code {
    InvalidArgument = 3,
    PermissionDenied = 7,
    ResourceExhausted = 8,
    Unimplemented = 12,
    Internal = 13,
    Unavailable = 14,
    Unauthenticated = 16,
}

struct Failure {
    code: Code,
    message: String,
}

impl Failure {
    fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

impl From<Refusal> for Failure {
    fn from(Refusal { status, message }: Refusal) -> Self {
        let code = match status {
            StatusCode::BAD_REQUEST => Code::InvalidArgument,
            StatusCode::UNAUTHORIZED => Code::Unauthenticated,
            StatusCode::FORBIDDEN => Code::PermissionDenied,
            StatusCode::PAYLOAD_TOO_LARGE => Code::ResourceExhausted,
            StatusCode::NOT_IMPLEMENTED => Code::Unimplemented,
            StatusCode::REQUEST_TIMEOUT | StatusCode::SERVICE_UNAVAILABLE => Code::Unavailable,
            _ => Code::Internal,
        };
        Self { code, message }
    }
}

fn is_grpc(headers: &HeaderMap) -> bool {
    let content_type = headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes);
    content_type.and_then(|text| text.strip_prefix(GRPC.as_bytes())).is_some_and(|rest| {
        // JSON and other codecs have names of their own.
        matches!(rest, b"" | b"+proto") || rest.starts_with(b";")
    })
}

async fn take_in(app: &App, request: Request) -> Result<Rejected, Failure> {
    let limit = body_limit(&request);
    let named = request.headers().get(GRPC_ENCODING).cloned();
    let body = read_body(request, limit).await?;
    let (is_compressed, bytes) = message(&body)?;
    let encoding = if is_compressed { encoding(named.as_ref())? } else { Encoding::Identity };
    let payload =
        Payload { bytes, encoding, format: Format::Protobuf, scope: None, limit, spans: usize::MAX };
    Ok(payload.store(app.store.as_ref()).await?)
}

/// The one message in a body, and whether it is compressed.
fn message(body: &Bytes) -> Result<(bool, Bytes), Failure> {
    let malformed = || Failure::new(Code::Internal, "the request is not one message of gRPC");
    let [flag, length @ ..] = body.first_chunk::<PREFIX>().ok_or_else(malformed)?;
    let bytes = body.slice(PREFIX..);
    let is_whole = usize::try_from(u32::from_be_bytes(*length)).is_ok_and(|length| length == bytes.len());
    if is_whole && *flag <= 1 { Ok((*flag == 1, bytes)) } else { Err(malformed()) }
}

/// The encoding that is named for messages which are compressed.
fn encoding(named: Option<&HeaderValue>) -> Result<Encoding, Failure> {
    let name = named.and_then(|value| value.to_str().ok()).unwrap_or_default();
    match Encoding::parse(name) {
        Some(Encoding::Identity) => {
            Err(Failure::new(Code::Internal, "a message is compressed, and grpc-encoding does not say how"))
        }
        Some(encoding) => Ok(encoding),
        None => {
            let message = format!("unsupported grpc-encoding '{name}', expected one of {}", Encoding::NAMES);
            Err(Failure::new(Code::Unimplemented, message))
        }
    }
}

fn success(message: &[u8]) -> Response {
    let mut body = BytesMut::with_capacity(PREFIX + message.len());
    body.extend_from_slice(&[0]);
    body.extend_from_slice(&u32::try_from(message.len()).unwrap_or(u32::MAX).to_be_bytes());
    body.extend_from_slice(message);
    let trailers = HeaderMap::from_iter([(GRPC_STATUS, HeaderValue::from_static("0"))]);
    let body = Full::new(body.freeze()).with_trailers(std::future::ready(Some(Ok(trailers))));
    headed(Body::new(body))
}

/// An answer without a message, whose trailers come as headers.
fn failure(code: Code, message: &str) -> Response {
    let mut response = headed(Body::empty());
    let headers = response.headers_mut();
    headers.insert(GRPC_STATUS, HeaderValue::from(code as u16));
    let message = utf8_percent_encode(message, ESCAPED).to_string();
    if let Ok(message) = HeaderValue::try_from(message) {
        headers.insert(GRPC_MESSAGE, message);
    }
    response
}

fn headed(body: Body) -> Response {
    let encodings = HeaderValue::from_static(Encoding::NAMES);
    ([(CONTENT_TYPE, GRPC), (GRPC_ACCEPT_ENCODING, encodings)], body).into_response()
}
