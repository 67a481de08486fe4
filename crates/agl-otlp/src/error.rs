/// What can be wrong with a payload.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The bytes are not the message expected.
    #[error("Unable to parse OTLP traces payload: {message}")]
    Payload {
        /// Where the decoder stopped and why.
        message: String,
    },
    /// There is more in the request than its sender may send at once.
    #[error("the request holds more than {limit} {what}: export fewer spans at once")]
    TooMuch {
        /// How much it may hold.
        limit: usize,
        /// Of what.
        what: &'static str,
    },
}

impl Error {
    pub(crate) fn payload(message: impl Into<String>) -> Self {
        Self::Payload { message: message.into() }
    }
}
