use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTracePartialSuccess, ExportTraceServiceResponse,
};
use prost::Message;

use crate::Rejected;

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

/// The bytes of a [`Status`] with this message.
#[must_use]
pub fn error_status(message: impl Into<String>) -> Vec<u8> {
    Status { code: 0, message: message.into() }.encode_to_vec()
}

/// Reads the body of an error answer; none when it is not a [`Status`].
#[must_use]
pub fn parse_error_status(bytes: &[u8]) -> Option<Status> {
    Status::decode(bytes).ok()
}

/// The bytes of a success answer; with rejected spans, a partial one.
#[must_use]
pub fn response(rejected: &Rejected) -> Vec<u8> {
    let partial_success = (!rejected.is_empty()).then(|| ExportTracePartialSuccess {
        rejected_spans: i64::try_from(rejected.total()).unwrap_or(i64::MAX),
        error_message: rejected.message(),
    });
    ExportTraceServiceResponse { partial_success }.encode_to_vec()
}
