/// Why an algorithm could not go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is nothing to do.
    #[error("both datasets are empty: give at least one task")]
    NoTasks,
    /// An option makes no sense.
    #[error("{field}: {message}")]
    Option {
        /// The option.
        field: &'static str,
        /// What is wrong with it, and what would be right.
        message: String,
    },
    /// It was told to stop before it was done.
    #[error("the algorithm was told to stop")]
    Stopped,
    /// The store failed for good.
    #[error(transparent)]
    Store(#[from] agl_store::Error),
    /// Anything else that an algorithm of one's own runs into.
    #[error(transparent)]
    Other(#[from] Box<dyn std::error::Error + Send + Sync>),
}
