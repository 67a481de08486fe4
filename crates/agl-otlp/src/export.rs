use agl_types::semconv::{ATTEMPT_ID, ROLLOUT_ID, SPAN_SEQUENCE_ID};
use agl_types::{Event, Link, OtelResource, Span, StatusCode, TraceStatus};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceResponse;
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::span::{Event as WireEvent, Link as WireLink};
use opentelemetry_proto::tonic::trace::v1::status::StatusCode as WireCode;
use opentelemetry_proto::tonic::trace::v1::{
    ResourceSpans, ScopeSpans, Span as WireSpan, Status as WireStatus,
};

use prost::Message as _;

use crate::value::{pair, pairs};
use crate::{Error, ExportTraceServiceRequest};

const NANOS_PER_SECOND: f64 = 1e9;

/// An export request that holds these spans, in this order; neighbours of one resource share a group.
///
/// Rollout, attempt and sequence id travel as attributes of the span, where a receiver looks first; without a sequence id
/// of 0 or more, the receiver gives one. Ids that are not hexadecimal digits are sent empty.
#[must_use]
pub fn request(spans: &[Span]) -> ExportTraceServiceRequest {
    let resource_spans = spans.chunk_by(|one, next| one.resource == next.resource).map(group).collect();
    ExportTraceServiceRequest { resource_spans }
}

/// How many spans an answer to an export request says that were not kept, and why.
///
/// # Errors
/// [`Error::Payload`] when it is no such answer in protobuf.
pub fn rejections(answer: &[u8]) -> Result<(u64, String), Error> {
    let answer =
        ExportTraceServiceResponse::decode(answer).map_err(|error| Error::payload(error.to_string()))?;
    let partial = answer.partial_success.unwrap_or_default();
    Ok((u64::try_from(partial.rejected_spans).unwrap_or_default(), partial.error_message))
}

fn group(spans: &[Span]) -> ResourceSpans {
    let resource = spans.first().map_or_else(OtelResource::default, |span| span.resource.clone());
    ResourceSpans {
        resource: Some(Resource { attributes: pairs(&resource.attributes), ..Resource::default() }),
        scope_spans: vec![ScopeSpans {
            spans: spans.iter().map(wire_span).collect(),
            ..ScopeSpans::default()
        }],
        schema_url: resource.schema_url,
    }
}

fn wire_span(span: &Span) -> WireSpan {
    let ids = [
        (ROLLOUT_ID, span.rollout_id.clone().into()),
        (ATTEMPT_ID, span.attempt_id.clone().into()),
        (SPAN_SEQUENCE_ID, span.sequence_id.into()),
    ];
    let own = span.attributes.iter().filter(|(key, _)| ids.iter().all(|(id, _)| id != key));
    let given = if span.sequence_id < 0 { &ids[..2] } else { &ids };
    let attributes = own
        .map(|(key, value)| pair(key, value))
        .chain(given.iter().map(|(key, value)| pair(key, value)))
        .collect();
    WireSpan {
        trace_id: bytes(&span.trace_id),
        span_id: bytes(&span.span_id),
        parent_span_id: span.parent_id.as_deref().map(bytes).unwrap_or_default(),
        name: span.name.clone(),
        start_time_unix_nano: nanos(span.start_time),
        end_time_unix_nano: nanos(span.end_time),
        attributes,
        events: span.events.iter().map(wire_event).collect(),
        links: span.links.iter().map(wire_link).collect(),
        status: Some(wire_status(&span.status)),
        ..WireSpan::default()
    }
}

fn wire_event(event: &Event) -> WireEvent {
    WireEvent {
        time_unix_nano: nanos(event.timestamp),
        name: event.name.clone(),
        attributes: pairs(&event.attributes),
        ..WireEvent::default()
    }
}

fn wire_link(link: &Link) -> WireLink {
    WireLink {
        trace_id: bytes(&link.context.trace_id),
        span_id: bytes(&link.context.span_id),
        attributes: link.attributes.as_ref().map(pairs).unwrap_or_default(),
        ..WireLink::default()
    }
}

fn wire_status(status: &TraceStatus) -> WireStatus {
    let code = match status.status_code {
        StatusCode::Unset => WireCode::Unset,
        StatusCode::Ok => WireCode::Ok,
        StatusCode::Error => WireCode::Error,
    };
    WireStatus { message: status.description.clone().unwrap_or_default(), code: code.into() }
}

/// Nanoseconds since the epoch; the fraction goes its own way, as the whole would not fit into an `f64`.
fn nanos(seconds: Option<f64>) -> u64 {
    let seconds = seconds.unwrap_or_default();
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "`as` saturates, which is meant"
    )]
    let (whole, rest) = (seconds as u64, (seconds.fract() * NANOS_PER_SECOND).round() as u64);
    whole.saturating_mul(1_000_000_000).saturating_add(rest)
}

/// The bytes of an id; none when it is not hexadecimal digits.
fn bytes(id: &str) -> Vec<u8> {
    crate::hex::bytes(id).unwrap_or_default()
}
