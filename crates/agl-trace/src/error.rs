/// Why spans could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// There was nothing to read. In Python a `ValueError`, in 0.3's words.
    #[error("No spans provided: a trace needs at least one span.")]
    NoSpans,
    /// Every span names another one as its parent, in a circle. In Python a `ValueError`, in 0.3's words.
    #[error("No root spans found in the trace.")]
    NoRoot,
    /// A pattern in the options is not a regular expression.
    #[error("{field} is not a regular expression: {message}; escape special characters with a backslash")]
    Pattern {
        /// The option.
        field: &'static str,
        /// What is wrong with it.
        message: String,
    },
    /// An attribute stands where a group of dotted attributes was asked for.
    #[error("attribute {prefix} has a value of its own: a group needs dotted keys such as {prefix}.0")]
    NotAGroup {
        /// The key.
        prefix: String,
    },
    /// A group of attributes has another shape than it must have. In Python a `ValueError`.
    #[error("{prefix} of span {span_id} has to be {wanted}")]
    Shape {
        /// The group.
        prefix: String,
        /// The span.
        span_id: String,
        /// What it has to be.
        wanted: &'static str,
    },
    /// A message has a role that the chat API does not know. In Python a `ValueError`.
    #[error(
        "span {span_id} has a message of role {role:?}: a role is system, developer, user, assistant or tool"
    )]
    Role {
        /// The role.
        role: String,
        /// The span.
        span_id: String,
    },
    /// A message or a call of a tool lacks something. In Python a `KeyError`.
    #[error("span {span_id} lacks {key}")]
    MissingKey {
        /// What.
        key: &'static str,
        /// The span.
        span_id: String,
    },
}
