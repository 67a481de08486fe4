//! What goes wrong, and the one place where it becomes an HTTP answer.

use std::path::PathBuf;

use axum::Json;
use axum::http::header::{RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

/// A server that cannot be set up.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// An allowed origin makes no sense.
    #[error("cors origin {origin:?} is not an origin: write one as scheme://host:port, or * for all")]
    Origin {
        /// What was given.
        origin: String,
    },
    /// A certificate or its key cannot be used.
    #[error("cannot use {}: {problem}", path.display())]
    Certificate {
        /// The file.
        path: PathBuf,
        /// What is wrong, and what would be right.
        problem: String,
    },
}

/// What a server tells those whom it asks to come back.
pub(crate) const RETRY_SOON: (HeaderName, HeaderValue) = (RETRY_AFTER, HeaderValue::from_static("1"));

/// An answer that is an error: JSON whose `detail` says what is wrong.
#[derive(Debug)]
pub(crate) struct ApiError {
    status: StatusCode,
    body: Value,
}

impl ApiError {
    fn new(status: StatusCode, detail: impl Into<Value>) -> Self {
        Self { status, body: json!({ "detail": detail.into() }) }
    }

    /// The HTTP status.
    pub(crate) fn status(&self) -> StatusCode {
        self.status
    }

    /// What went wrong, in words.
    pub(crate) fn detail(&self) -> &str {
        self.body.get("detail").and_then(Value::as_str).unwrap_or_default()
    }

    /// What goes along with the status.
    pub(crate) fn header(&self) -> Option<(HeaderName, HeaderValue)> {
        match self.status {
            StatusCode::UNAUTHORIZED => Some((WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"))),
            StatusCode::SERVICE_UNAVAILABLE => Some(RETRY_SOON),
            _ => None,
        }
    }

    /// 400: an argument makes no sense.
    pub(crate) fn bad_request(detail: impl Into<Value>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, detail)
    }

    /// 422: the request is not of the shape expected. `issues` are objects with `type`, `loc`, `msg`, `input`.
    pub(crate) fn validation(issues: Vec<Value>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, issues)
    }

    /// 401: the key is missing or wrong.
    pub(crate) fn unauthorized() -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "Invalid or missing API key")
    }

    /// 403: a token for an attempt was shown, which is not good for this.
    pub(crate) fn forbidden(detail: &str) -> Self {
        Self::new(StatusCode::FORBIDDEN, detail)
    }

    /// 408: the body did not come in time.
    pub(crate) fn too_slow() -> Self {
        Self::new(StatusCode::REQUEST_TIMEOUT, "the request body took too long to arrive")
    }

    /// 413: the body is longer than `limit` bytes.
    pub(crate) fn too_large(limit: usize) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, too_large_detail(limit))
    }

    /// 404: there is no such path.
    pub(crate) fn no_such_path() -> Self {
        Self::new(StatusCode::NOT_FOUND, "Not Found")
    }

    /// 405: the path is there, but not for this method.
    pub(crate) fn no_such_method() -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed")
    }

    /// 503: the server is about to stop.
    pub(crate) fn shutting_down() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "the server is shutting down")
    }

    /// 503: the server has as many of these under way as it takes.
    pub(crate) fn busy(what: &str) -> Self {
        let detail = format!("the server has too many {what} under way: try again");
        Self::new(StatusCode::SERVICE_UNAVAILABLE, detail)
    }

    /// 500: a defect of ours. What it was goes to the log, not to the caller.
    pub(crate) fn internal(error_type: &str) -> Self {
        let body = json!({ "detail": "Internal server error", "error_type": error_type });
        Self { status: StatusCode::INTERNAL_SERVER_ERROR, body }
    }
}

/// What to tell somebody whose request is too large.
pub(crate) fn too_large_detail(limit: usize) -> String {
    format!("the request body is larger than the limit of {limit} bytes: send less at once")
}

impl From<agl_store::Error> for ApiError {
    fn from(error: agl_store::Error) -> Self {
        let status = match &error {
            agl_store::Error::NotFound { .. } => StatusCode::NOT_FOUND,
            agl_store::Error::Invalid { .. } => StatusCode::BAD_REQUEST,
            agl_store::Error::Unsupported { .. } => StatusCode::NOT_IMPLEMENTED,
            agl_store::Error::Conflict { .. } => StatusCode::CONFLICT,
            agl_store::Error::Gone { .. } => StatusCode::GONE,
            agl_store::Error::Unavailable { .. } => StatusCode::SERVICE_UNAVAILABLE,
            agl_store::Error::Unwritable { message } => {
                tracing::error!(%message, "the store takes no changes");
                StatusCode::SERVICE_UNAVAILABLE
            }
            agl_store::Error::Backend { message } | agl_store::Error::Unauthorized { message } => {
                tracing::error!(%message, "the store failed");
                return Self::internal(error.kind());
            }
        };
        let mut body = json!({ "detail": error.to_string(), "error_type": error.kind() });
        if let agl_store::Error::Invalid { field, .. } = &error {
            body["field"] = Value::from(field.as_str());
        }
        Self { status, body }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let header = self.header();
        let mut response = (self.status, Json(self.body)).into_response();
        response.headers_mut().extend(header);
        response
    }
}
