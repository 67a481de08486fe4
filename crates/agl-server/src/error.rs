//! What goes wrong, and the one place where it becomes an HTTP answer.

use axum::Json;
use axum::http::StatusCode;
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
}

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

    /// 400: an argument makes no sense.
    pub(crate) fn bad_request(detail: impl Into<Value>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, detail)
    }

    /// 422: the request is not of the shape expected. `issues` are objects with `type`, `loc`, `msg`, `input`.
    pub(crate) fn validation(issues: Vec<Value>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, issues)
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
            agl_store::Error::Backend { message } => {
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
        (self.status, Json(self.body)).into_response()
    }
}
