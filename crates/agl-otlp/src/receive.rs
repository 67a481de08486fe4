use agl_types::ids::hex;
use agl_types::semconv::{ATTEMPT_ID, ROLLOUT_ID, SPAN_SEQUENCE_ID};
use agl_types::{AttributeError, StatusCode, WrittenSpan};
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::trace::v1::span::{Event as WireEvent, Link as WireLink};
use opentelemetry_proto::tonic::trace::v1::status::StatusCode as WireCode;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, Span as WireSpan, Status as WireStatus};

use crate::write::{Json, json_of};
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
    pub span: WrittenSpan,
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

/// Turns a request into spans, straight into their JSON.
#[must_use]
pub fn receive(request: ExportTraceServiceRequest) -> Received {
    let mut received = Received::default();
    for group in request.resource_spans {
        receive_group(group, &mut received);
    }
    received
}

/// What the spans of a group have in common.
struct Shared {
    attributes: Vec<KeyValue>,
    /// The JSON of the resource, and whether it is plain; why not, where it has none.
    resource: Result<(Vec<u8>, bool), AttributeError>,
}

fn receive_group(group: ResourceSpans, received: &mut Received) {
    let attributes = group.resource.map(|resource| resource.attributes).unwrap_or_default();
    let shared = Shared { resource: resource(&attributes, &group.schema_url), attributes };
    for wire in group.scope_spans.into_iter().flat_map(|scope| scope.spans) {
        match receive_span(wire, &shared) {
            Ok(Some(one)) => received.spans.push(one),
            Ok(None) => received.rejected.add(WITHOUT_IDS),
            Err(too_deep) => received.rejected.add(too_deep.to_string()),
        }
    }
}

fn resource(attributes: &[KeyValue], schema_url: &str) -> Result<(Vec<u8>, bool), AttributeError> {
    let mut json = Json::with_capacity(256);
    json.raw("{");
    json.key("attributes");
    json.attributes(attributes, &|| "resource.attributes".to_owned())?;
    json.raw(",");
    json.key("schema_url");
    json.string(schema_url);
    json.raw("}");
    Ok(json.finish())
}

/// None when the span names no rollout or no attempt.
fn receive_span(wire: WireSpan, shared: &Shared) -> Result<Option<ReceivedSpan>, AttributeError> {
    let find = |key: &str| lookup(&wire.attributes, key).or_else(|| lookup(&shared.attributes, key));
    let (Some(rollout_id), Some(attempt_id)) =
        (find(ROLLOUT_ID).and_then(text_of), find(ATTEMPT_ID).and_then(text_of))
    else {
        return Ok(None);
    };
    let sequence_id = find(SPAN_SEQUENCE_ID).and_then(sequence_of);
    let (resource, resource_is_plain) = shared.resource.as_ref().map_err(Clone::clone)?;

    let trace_id = hex(&wire.trace_id, TRACE_ID_DIGITS);
    let span_id = hex(&wire.span_id, SPAN_ID_DIGITS);
    let parent_id = (!wire.parent_span_id.is_empty()).then(|| hex(&wire.parent_span_id, SPAN_ID_DIGITS));
    let (start_time, end_time) = (seconds(wire.start_time_unix_nano), seconds(wire.end_time_unix_nano));

    // The keys of `agl_types::Span`, in their order, from behind its place.
    let mut json = Json::with_capacity(resource.len() + likely_length(&wire));
    json.key("trace_id");
    json.string(&trace_id);
    json.next_key("span_id");
    json.string(&span_id);
    json.next_key("parent_id");
    json.optional_string(parent_id.as_deref());
    json.next_key("name");
    json.string(&wire.name);
    json.next_key("status");
    write_status(wire.status.unwrap_or_default(), &mut json);
    json.next_key("attributes");
    json.attributes(&wire.attributes, &|| "attributes".to_owned())?;
    json.next_key("events");
    json.list(&wire.events, |index, event, json| write_event(index, event, json))?;
    json.next_key("links");
    json.list(&wire.links, |index, link, json| write_link(index, link, json))?;
    json.next_key("start_time");
    json.optional_number(start_time);
    json.next_key("end_time");
    json.optional_number(end_time);
    json.next_key("context");
    write_context(&trace_id, &span_id, &mut json);
    json.next_key("parent");
    json.raw("null");
    json.next_key("resource");
    json.bytes(resource);
    json.raw("}");
    let (rest, is_plain) = json.finish();
    let span = WrittenSpan {
        rollout_id,
        attempt_id,
        sequence_id: sequence_id.unwrap_or_default(),
        trace_id,
        span_id,
        parent_id,
        name: wire.name,
        start_time,
        end_time,
        is_plain: is_plain && *resource_is_plain,
        rest: crate::write::text(rest),
    };
    Ok(Some(ReceivedSpan { span, has_sequence_id: sequence_id.is_some() }))
}

/// About how many bytes of JSON a span makes, its resource apart.
fn likely_length(wire: &WireSpan) -> usize {
    let text = |pair: &KeyValue| match pair.value.as_ref().and_then(|value| value.value.as_ref()) {
        Some(Any::StringValue(text)) => text.len(),
        _ => 16,
    };
    512 + wire.attributes.iter().map(|pair| pair.key.len() + text(pair) + 16).sum::<usize>()
        + 256 * (wire.events.len() + wire.links.len())
}

/// The last value of a key, unless it is none.
fn lookup<'a>(attributes: &'a [KeyValue], key: &str) -> Option<&'a Any> {
    let pair = attributes.iter().rev().find(|pair| pair.key == key)?;
    pair.value.as_ref()?.value.as_ref().filter(|value| !matches!(value, Any::StringValueStrindex(_)))
}

fn text_of(value: &Any) -> Option<String> {
    let text = match value {
        Any::StringValue(text) => text.clone(),
        other => json_of(other),
    };
    (!text.is_empty()).then_some(text)
}

/// The sequence id, if there is one that makes sense: a whole number or its digits, not negative.
fn sequence_of(value: &Any) -> Option<i64> {
    let number = match value {
        Any::IntValue(number) => Some(*number),
        Any::StringValue(text) => text.trim().parse().ok(),
        _ => None,
    };
    number.filter(|number| *number >= 0)
}

/// Seconds since the epoch. The fraction goes its own way, so that it is rounded once.
fn seconds(nanos: u64) -> Option<f64> {
    let (whole, rest) = ((nanos / NANOS_PER_SECOND) as f64, (nanos % NANOS_PER_SECOND) as f64);
    (nanos != 0).then_some(whole + rest / NANOS_PER_SECOND as f64)
}

fn write_status(wire: WireStatus, json: &mut Json) {
    let code = match WireCode::try_from(wire.code) {
        Ok(WireCode::Ok) => StatusCode::Ok,
        Ok(WireCode::Error) => StatusCode::Error,
        Ok(WireCode::Unset) | Err(_) => StatusCode::Unset,
    };
    json.raw("{");
    json.key("status_code");
    json.string(code.as_str());
    json.next_key("description");
    json.optional_string(Some(wire.message.as_str()).filter(|message| !message.is_empty()));
    json.raw("}");
}

fn write_context(trace_id: &str, span_id: &str, json: &mut Json) {
    json.raw("{");
    json.key("trace_id");
    json.string(trace_id);
    json.next_key("span_id");
    json.string(span_id);
    json.raw(r#","is_remote":false,"trace_state":{}}"#);
}

fn write_event(index: usize, wire: &WireEvent, json: &mut Json) -> Result<(), AttributeError> {
    json.raw("{");
    json.key("name");
    json.string(&wire.name);
    json.next_key("attributes");
    json.attributes(&wire.attributes, &|| format!("events.{index}.attributes"))?;
    json.next_key("timestamp");
    json.optional_number(seconds(wire.time_unix_nano));
    json.raw("}");
    Ok(())
}

fn write_link(index: usize, wire: &WireLink, json: &mut Json) -> Result<(), AttributeError> {
    json.raw("{");
    json.key("context");
    write_context(&hex(&wire.trace_id, TRACE_ID_DIGITS), &hex(&wire.span_id, SPAN_ID_DIGITS), json);
    json.next_key("attributes");
    if wire.attributes.is_empty() {
        json.raw("null");
    } else {
        json.attributes(&wire.attributes, &|| format!("links.{index}.attributes"))?;
    }
    json.raw("}");
    Ok(())
}
