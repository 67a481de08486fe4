use std::time::Duration;

/// What can go wrong with a store call.
///
/// Servers map it to an HTTP status once, the Python layer to an exception once.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Error {
    /// The thing named does not exist. HTTP 404; a `ValueError` in Python.
    #[error("{message}")]
    NotFound {
        /// Which thing, in the words that 0.3's callers match on: `Rollout X not found`.
        message: String,
    },
    /// An argument makes no sense. HTTP 400; a `ValueError` in Python.
    #[error("{message}")]
    Invalid {
        /// The argument.
        field: String,
        /// What is wrong with it, and what would be right.
        message: String,
    },
    /// The store does not do this. HTTP 501; a `NotImplementedError` in Python.
    #[error("{message}")]
    Unsupported {
        /// What it does not do, and what to use instead.
        message: String,
    },
    /// The call does not fit what the store holds. HTTP 409; a `ValueError` in Python.
    #[error("{message}")]
    Conflict {
        /// What it collides with, and what would be right.
        message: String,
    },
    /// What was asked for was there, and was removed to make room. HTTP 410; a `RuntimeError` in Python.
    #[error("{message}")]
    Gone {
        /// What is gone.
        message: String,
    },
    /// The store takes no changes for now: its disk is full, its file read-only or held by another program. Nothing
    /// is lost that was acknowledged, and it goes on when that passes. HTTP 503; a `RuntimeError` in Python.
    #[error("{message}")]
    Unwritable {
        /// Why, and what to do about it.
        message: String,
    },
    /// The store could not be reached, or did not answer, for this long. A `ConnectionError` in Python.
    #[error("the store did not answer for {:.1} s: {message}", elapsed.as_secs_f64())]
    Unavailable {
        /// What was tried and what happened last.
        message: String,
        /// How long it was tried.
        elapsed: Duration,
    },
    /// The server did not accept the key of this client, or asks for one. A `PermissionError` in Python.
    #[error("{message}")]
    Unauthorized {
        /// Who refused, and how to give a key.
        message: String,
    },
    /// The backend failed: the database is damaged. HTTP 500; a `RuntimeError` in Python.
    #[error("{message}")]
    Backend {
        /// What failed.
        message: String,
    },
}

impl Error {
    /// There is no such rollout.
    #[must_use]
    pub fn rollout_not_found(rollout_id: &str) -> Self {
        Self::NotFound { message: format!("Rollout {rollout_id} not found") }
    }

    /// There is no such attempt.
    #[must_use]
    pub fn attempt_not_found(rollout_id: &str, attempt_id: &str) -> Self {
        Self::NotFound { message: format!("Attempt {attempt_id} not found for rollout {rollout_id}") }
    }

    /// An argument makes no sense.
    pub fn invalid(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Invalid { field: field.into(), message: message.into() }
    }

    /// The call does not fit what the store holds.
    pub fn conflict(message: impl Into<String>) -> Self {
        Self::Conflict { message: message.into() }
    }

    /// The backend failed.
    pub fn backend(message: impl Into<String>) -> Self {
        Self::Backend { message: message.into() }
    }

    /// A stable word for the kind of error, used on the wire as `error_type`.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::NotFound { .. } => "not_found",
            Self::Invalid { .. } => "invalid",
            Self::Unsupported { .. } => "unsupported",
            Self::Conflict { .. } => "conflict",
            Self::Gone { .. } => "gone",
            Self::Unwritable { .. } => "unwritable",
            Self::Unavailable { .. } => "unavailable",
            Self::Unauthorized { .. } => "unauthorized",
            Self::Backend { .. } => "backend",
        }
    }
}
