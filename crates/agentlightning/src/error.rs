/// Why a trainer or a model could not do its work.
///
/// ```
/// use agentlightning::Trainer;
///
/// let error = Trainer::builder().build().unwrap_err();
/// assert_eq!(error.to_string(), "agent: give one with .agent(...)");
/// ```
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A part is missing or out of range.
    #[error("{field}: {message}")]
    Option {
        /// The part.
        field: &'static str,
        /// What is wrong with it, and what would be right.
        message: &'static str,
    },
    /// The algorithm could not go on.
    #[error(transparent)]
    Algorithm(#[from] agl_algorithm::Error),
    /// The store does not take it.
    #[error(transparent)]
    Store(#[from] agl_store::Error),
    /// The embedded model could not be loaded.
    #[cfg(feature = "model")]
    #[error(transparent)]
    Model(#[from] agl_rl::Error),
    /// The model refused a request.
    #[error("the model answered with status {status}: {message}")]
    Refused {
        /// The HTTP status that it would have had.
        status: u16,
        /// Why.
        message: String,
    },
    /// The model's answer is not JSON; a defect.
    #[error("the model's answer makes no sense: {0}")]
    Answer(String),
    /// A span could not be taken in.
    #[error(transparent)]
    Span(#[from] agl_runner::Error),
}
