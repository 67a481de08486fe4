//! What an agent is told when its call cannot be answered, in the form that its SDK reads.

use axum::http::header::{ALLOW, CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderValue, Method, StatusCode};
use axum::response::{IntoResponse as _, Response};
use serde_json::{Value, json};

/// In whose form an error is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    OpenAi,
    Anthropic,
}

/// A call that is not answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) status: StatusCode,
    pub(crate) message: String,
    /// The parameter that is wrong.
    pub(crate) param: Option<&'static str>,
    pub(crate) retry_after: Option<u64>,
    /// The method that would be right.
    pub(crate) allow: Option<Method>,
}

impl Refusal {
    pub(crate) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), param: None, retry_after: None, allow: None }
    }

    /// 400: the request makes no sense.
    pub(crate) fn bad(param: &'static str, message: impl Into<String>) -> Self {
        Self { param: Some(param), ..Self::new(StatusCode::BAD_REQUEST, message) }
    }

    /// 500: the task of the call has ended without an answer.
    pub(crate) fn broken_down() -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "the gateway failed; see its log")
    }

    pub(crate) fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, message)
    }

    /// 405 with the method that would be right.
    pub(crate) fn method(path: &str, right: Method) -> Self {
        let message = format!("{path} is asked for with {right}");
        Self { allow: Some(right), ..Self::new(StatusCode::METHOD_NOT_ALLOWED, message) }
    }

    /// 503 with a time to come back.
    pub(crate) fn busy(message: impl Into<String>) -> Self {
        Self { retry_after: Some(1), ..Self::new(StatusCode::SERVICE_UNAVAILABLE, message) }
    }

    /// The store would not do something.
    pub(crate) fn of_store(error: &agl_store::Error) -> Self {
        match error {
            agl_store::Error::NotFound { .. } => Self::not_found(error.to_string()),
            agl_store::Error::Unavailable { .. } | agl_store::Error::Unwritable { .. } => {
                tracing::error!(%error, "the store cannot be used");
                Self::busy("the store of the gateway cannot be used just now")
            }
            _ => {
                tracing::error!(%error, "the store failed");
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, "the store of the gateway failed; see its log")
            }
        }
    }

    fn kind(&self, form: Form) -> &'static str {
        match (self.status, form) {
            (StatusCode::UNAUTHORIZED, _) => "authentication_error",
            (StatusCode::FORBIDDEN, _) => "permission_error",
            (StatusCode::NOT_FOUND, _) => "not_found_error",
            (StatusCode::TOO_MANY_REQUESTS, _) => "rate_limit_error",
            (StatusCode::PAYLOAD_TOO_LARGE, Form::Anthropic) => "request_too_large",
            (status, _) if status.is_client_error() => "invalid_request_error",
            (_, Form::Anthropic) => "api_error",
            (_, Form::OpenAi) => "server_error",
        }
    }

    /// What the agent's SDK reads.
    pub(crate) fn json(&self, form: Form) -> Value {
        let kind = self.kind(form);
        // `detail` is where clients of 1.0 look.
        match form {
            Form::OpenAi => json!({
                "error": {
                    "message": self.message, "type": kind, "param": self.param,
                    "code": self.status.as_str(),
                },
                "detail": self.message,
            }),
            Form::Anthropic => json!({"type": "error", "error": {"type": kind, "message": self.message}}),
        }
    }

    pub(crate) fn into_response(self, form: Form) -> Response {
        let json = (CONTENT_TYPE, HeaderValue::from_static("application/json"));
        let mut response = (self.status, [json], self.json(form).to_string()).into_response();
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        if let Some(method) = self.allow.and_then(|method| HeaderValue::from_str(method.as_str()).ok()) {
            response.headers_mut().insert(ALLOW, method);
        }
        response
    }
}
