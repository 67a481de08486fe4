//! What goes wrong when a gateway is set up. What goes wrong with a call is in `refusal`.

/// A gateway that cannot be set up.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The configuration makes no sense.
    #[error("{place}: {field}: {problem}")]
    Config {
        /// Where in the configuration.
        place: String,
        /// The field that is wrong.
        field: &'static str,
        /// What is wrong with it, and what would be right.
        problem: String,
    },
    /// The HTTP client cannot be set up.
    #[error("the HTTP client cannot be set up: {0}")]
    Client(String),
}
