use agl_types::ids::hex;
use agl_types::semconv::{ATTEMPT_ID, ROLLOUT_ID, SPAN_SEQUENCE_ID};
use agl_types::{Attributes, Event, JsonMap, Link, OtelResource, Span, SpanContext, StatusCode, TraceStatus};
use opentelemetry_proto::tonic::trace::v1::span::{Event as WireEvent, Link as WireLink};
use opentelemetry_proto::tonic::trace::v1::status::StatusCode as WireCode;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, Span as WireSpan, Status as WireStatus};
use serde_json::Value;

use crate::value::attributes;
use crate::{ExportTraceServiceRequest, Rejected};

const TRACE_ID_DIGITS: usize = 32;
const SPAN_ID_DIGITS: usize = 16;
const NANOS_PER_SECOND: u64 = 1_000_000_000;
const WITHOUT_IDS: &str = "no agentlightning.rollout_id or agentlightning.attempt_id among the attributes of the \
                           span or its resource";

/// A span as it came in.
#[derive(Debug, Clone, PartialEq)]
pub struct ReceivedSpan {
    /// The span, with the rollout and attempt it names; its `sequence_id` counts only if the next field says so.
    pub span: Span,
    /// Whether it named its place in the rollout. If not, the store issues the next one.
    pub has_sequence_id: bool,
}

/// What an export request held.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Received {
    /// The spans that name a rollout and an attempt, in payload order.
    pub spans: Vec<ReceivedSpan>,
    /// The others.
    pub rejected: Rejected,
}

/// Turns a request into spans.
#[must_use]
pub fn receive(request: ExportTraceServiceRequest) -> Received {
    let mut received = Received::default();
    for group in request.resource_spans {
        receive_group(group, &mut received);
    }
    received
}

fn receive_group(group: ResourceSpans, received: &mut Received) {
    let shared = attributes(group.resource.map(|resource| resource.attributes).unwrap_or_default());
    let mut resource = OtelResource { attributes: shared, schema_url: group.schema_url };
    let mut spans = group.scope_spans.into_iter().flat_map(|scope| scope.spans).peekable();
    while let Some(wire) = spans.next() {
        let Some(mut one) = receive_span(wire, &resource.attributes) else {
            received.rejected.add(WITHOUT_IDS);
            continue;
        };
        // The last one, very often the only one, needs no copy.
        one.span.resource =
            if spans.peek().is_some() { resource.clone() } else { std::mem::take(&mut resource) };
        received.spans.push(one);
    }
}

/// `shared` are the attributes of the resource, which is left to the caller.
fn receive_span(wire: WireSpan, shared: &Attributes) -> Option<ReceivedSpan> {
    let own = attributes(wire.attributes);
    let rollout_id = text_of(&own, shared, ROLLOUT_ID)?;
    let attempt_id = text_of(&own, shared, ATTEMPT_ID)?;
    let sequence_id = sequence_of(&own, shared);

    let trace_id = hex(&wire.trace_id, TRACE_ID_DIGITS);
    let span_id = hex(&wire.span_id, SPAN_ID_DIGITS);
    let span = Span {
        rollout_id,
        attempt_id,
        sequence_id: sequence_id.unwrap_or_default(),
        context: Some(context(trace_id.clone(), span_id.clone())),
        trace_id,
        span_id,
        parent_id: (!wire.parent_span_id.is_empty()).then(|| hex(&wire.parent_span_id, SPAN_ID_DIGITS)),
        name: wire.name,
        status: status(wire.status.unwrap_or_default()),
        attributes: own,
        events: wire.events.into_iter().map(event).collect(),
        links: wire.links.into_iter().map(link).collect(),
        start_time: seconds(wire.start_time_unix_nano),
        end_time: seconds(wire.end_time_unix_nano),
        parent: None,
        resource: OtelResource::default(),
        extra: JsonMap::new(),
    };
    Some(ReceivedSpan { span, has_sequence_id: sequence_id.is_some() })
}

/// The value of a key, of the span first and of its resource second.
fn lookup<'a>(own: &'a Attributes, shared: &'a Attributes, key: &str) -> Option<&'a Value> {
    own.get(key).or_else(|| shared.get(key)).filter(|value| !value.is_null())
}

fn text_of(own: &Attributes, shared: &Attributes, key: &str) -> Option<String> {
    let text = match lookup(own, shared, key)? {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    (!text.is_empty()).then_some(text)
}

/// The sequence id, if there is one that makes sense: a whole number or its digits, not negative.
fn sequence_of(own: &Attributes, shared: &Attributes) -> Option<i64> {
    let number = match lookup(own, shared, SPAN_SEQUENCE_ID)? {
        Value::Number(number) => number.as_i64(),
        Value::String(text) => text.trim().parse().ok(),
        _ => None,
    };
    number.filter(|number| *number >= 0)
}

fn context(trace_id: String, span_id: String) -> SpanContext {
    SpanContext { trace_id, span_id, is_remote: false, trace_state: JsonMap::new(), extra: JsonMap::new() }
}

/// Seconds since the epoch. The fraction goes its own way, so that it is rounded once.
fn seconds(nanos: u64) -> Option<f64> {
    let (whole, rest) = ((nanos / NANOS_PER_SECOND) as f64, (nanos % NANOS_PER_SECOND) as f64);
    (nanos != 0).then_some(whole + rest / NANOS_PER_SECOND as f64)
}

fn status(wire: WireStatus) -> TraceStatus {
    let code = match WireCode::try_from(wire.code) {
        Ok(WireCode::Ok) => StatusCode::Ok,
        Ok(WireCode::Error) => StatusCode::Error,
        Ok(WireCode::Unset) | Err(_) => StatusCode::Unset,
    };
    let description = (!wire.message.is_empty()).then_some(wire.message);
    TraceStatus { description, ..TraceStatus::new(code) }
}

fn event(wire: WireEvent) -> Event {
    Event {
        name: wire.name,
        attributes: attributes(wire.attributes),
        timestamp: seconds(wire.time_unix_nano),
        extra: JsonMap::new(),
    }
}

fn link(wire: WireLink) -> Link {
    let attributes = attributes(wire.attributes);
    Link {
        context: context(hex(&wire.trace_id, TRACE_ID_DIGITS), hex(&wire.span_id, SPAN_ID_DIGITS)),
        attributes: (!attributes.is_empty()).then_some(attributes),
        extra: JsonMap::new(),
    }
}
