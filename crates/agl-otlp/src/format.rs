use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTracePartialSuccess, ExportTraceServiceResponse,
};
use prost::Message;
use serde_json::json;

use crate::{Bounds, Error, Received, Rejected};

/// The two ways in which OTLP/HTTP writes a message. An answer has the format of its request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Format {
    /// Protobuf.
    #[default]
    Protobuf,
    /// JSON, with hexadecimal trace and span ids.
    Json,
}

impl Format {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Protobuf, Self::Json];

    /// The media type.
    #[must_use]
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::Protobuf => "application/x-protobuf",
            Self::Json => "application/json",
        }
    }

    /// Reads the spans of an export request.
    ///
    /// # Errors
    /// [`Error::Payload`] when the bytes are something else.
    pub fn receive(self, bytes: &[u8]) -> Result<Received, Error> {
        self.receive_within(bytes, Bounds::default())
    }

    /// Reads the spans of an export request of somebody who is not trusted with all of the memory.
    ///
    /// # Errors
    /// [`Error::Payload`] when the bytes are something else, [`Error::TooMuch`] when what they hold is beyond `bounds`.
    pub fn receive_within(self, bytes: &[u8], bounds: Bounds) -> Result<Received, Error> {
        match self {
            Self::Protobuf => crate::receive::receive(bytes, bounds),
            // JSON is for small senders. What it costs to go through protobuf buys one way in for all.
            Self::Json => crate::receive::receive(&crate::json::decode(bytes)?.encode_to_vec(), bounds),
        }
    }

    /// A success answer; with rejected spans, a partial one.
    #[must_use]
    pub fn response(self, rejected: &Rejected) -> Vec<u8> {
        let partial_success = (!rejected.is_empty()).then(|| ExportTracePartialSuccess {
            rejected_spans: i64::try_from(rejected.total()).unwrap_or(i64::MAX),
            error_message: rejected.message(),
        });
        match (self, partial_success) {
            (Self::Protobuf, partial_success) => {
                ExportTraceServiceResponse { partial_success }.encode_to_vec()
            }
            (Self::Json, None) => b"{}".to_vec(),
            (Self::Json, Some(ExportTracePartialSuccess { rejected_spans, error_message })) => {
                // 64-bit integers are strings in protobuf's JSON.
                let partial =
                    json!({ "rejectedSpans": rejected_spans.to_string(), "errorMessage": error_message });
                json!({ "partialSuccess": partial }).to_string().into_bytes()
            }
        }
    }

    /// An error answer: a [`Status`] with this message.
    #[must_use]
    pub fn error(self, message: impl Into<String>) -> Vec<u8> {
        let message = message.into();
        match self {
            Self::Protobuf => Status { code: 0, message }.encode_to_vec(),
            Self::Json => json!({ "message": message }).to_string().into_bytes(),
        }
    }
}

/// `google.rpc.Status`, the body of every OTLP answer that is an error.
///
/// Its `details` are left out: receivers skip fields they do not know.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Status {
    /// A code of `google.rpc.Code`, or 0.
    #[prost(int32, tag = "1")]
    pub code: i32,
    /// What is wrong, for a developer to read.
    #[prost(string, tag = "2")]
    pub message: String,
}
