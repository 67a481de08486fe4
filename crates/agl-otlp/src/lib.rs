//! OTLP trace payloads to and from [`agl_types::Span`]: pure conversion, no I/O.
//!
//! The wire format is that of the OpenTelemetry protocol 1.x (`opentelemetry/proto/collector/trace/v1`). Which
//! rollout and attempt a span belongs to is read from the attributes `agentlightning.rollout_id` and
//! `agentlightning.attempt_id`, of the span first and of its resource second.

mod error;
mod export;
mod receive;
mod rejected;
mod status;
mod value;

pub use error::Error;
pub use export::request;
pub use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
pub use receive::{Received, ReceivedSpan, decode, receive};
pub use rejected::Rejected;
pub use status::{Status, error_status, parse_error_status, response};
