/// What can be wrong with a payload.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The bytes are not the message expected.
    #[error("Unable to parse OTLP traces payload: {message}")]
    Payload {
        /// Where the decoder stopped and why.
        message: String,
    },
}

impl Error {
    pub(crate) fn payload(message: impl Into<String>) -> Self {
        Self::Payload { message: message.into() }
    }
}
