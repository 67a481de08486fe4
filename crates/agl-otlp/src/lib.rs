//! OTLP trace payloads to and from [`agl_types::Span`]: pure conversion, no I/O.
//!
//! The wire format is that of the OpenTelemetry protocol 1.x (`opentelemetry/proto/collector/trace/v1`), in protobuf or
//! JSON. Which
//! rollout and attempt a span belongs to is read from the attributes `agentlightning.rollout_id` and
//! `agentlightning.attempt_id`, of the span first and of its resource second.

mod error;
mod export;
mod file;
mod format;
mod hex;
mod json;
mod receive;
mod rejected;
mod value;
mod wire;

pub use error::Error;
pub use export::{rejections, request};
pub use file::spans_of_file;
pub use format::{Format, Status};
pub use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
pub use receive::{Bounds, Received, ReceivedSpan};
pub use rejected::Rejected;
