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
}
