//! The one error type of the crate.

use std::path::PathBuf;

/// What can go wrong when a model is fetched, loaded or asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file that should hold (a part of) a model does not, or holds one we can't run.
    #[error("{}: {reason}", path.display())]
    NotAModel {
        /// The file or directory.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Reading or writing a file failed.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// The operating system's answer.
        source: std::io::Error,
    },
    /// A model name that is neither a file, nor a directory, nor a model we know how to fetch.
    #[error("`{0}` is not a .gguf file, a model directory, or a known model name (known: smollm2)")]
    UnknownModel(String),
    /// Fetching a model failed.
    #[error("fetching model `{model}` failed: {reason}")]
    Pull {
        /// The model's short name.
        model: String,
        /// Why, and what to do about it.
        reason: String,
    },
    /// A request asks for something that is not possible. `param` names the request's field.
    #[error("{message}")]
    BadRequest {
        /// What is wrong, in words for the caller.
        message: String,
        /// The request's field that is to blame, where there is one.
        param: Option<String>,
    },
    /// The request names a model that is not served here.
    #[error("The model `{0}` does not exist.")]
    NoSuchModel(String),
    /// Too many requests are waiting.
    #[error("the engine's queue is full ({0} requests are waiting); try again later")]
    QueueFull(usize),
    /// The engine has been shut down, or its worker died.
    #[error("the engine has stopped")]
    Stopped,
    /// An option of the engine or the server is out of range.
    #[error("option `{name}`: {reason}")]
    Option {
        /// The option's name.
        name: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// The address could not be bound.
    #[error("cannot listen on {address}: {source}")]
    Bind {
        /// The address asked for.
        address: String,
        /// The operating system's answer.
        source: std::io::Error,
    },
    /// A tensor operation failed: a defect of ours or a model of inconsistent shapes.
    #[error("tensor operation failed: {0}")]
    Tensor(#[from] candle_core::Error),
    /// The tokenizer failed.
    #[error("tokenizer failed: {0}")]
    Tokenizer(String),
}

/// Shorthand for this crate's results.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub(crate) fn not_a_model(path: impl Into<PathBuf>, reason: impl Into<String>) -> Self {
        Self::NotAModel { path: path.into(), reason: reason.into() }
    }

    pub(crate) fn io(path: impl Into<PathBuf>, source: std::io::Error) -> Self {
        Self::Io { path: path.into(), source }
    }

    pub(crate) fn bad_request(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self::BadRequest { message: message.into(), param: Some(param.into()) }
    }
}
