//! Spans as OTLP's JSON, written as the protocol says and exporters do.

use agl_types::semconv::{ATTEMPT_ID, ROLLOUT_ID, SPAN_SEQUENCE_ID};
use agl_types::{Attributes, Span};
use serde_json::{Value, json};

/// An export request with a group for each span.
pub(crate) fn request(spans: &[Span]) -> Value {
    json!({ "resourceSpans": spans.iter().map(group).collect::<Vec<_>>() })
}

fn group(span: &Span) -> Value {
    let mut attributes = span.attributes.clone();
    attributes.insert(ROLLOUT_ID.to_owned(), span.rollout_id.clone().into());
    attributes.insert(ATTEMPT_ID.to_owned(), span.attempt_id.clone().into());
    attributes.insert(SPAN_SEQUENCE_ID.to_owned(), span.sequence_id.into());
    let nanos = |seconds: Option<f64>| format!("{:.0}", seconds.unwrap_or_default() * 1e9);
    json!({
        "resource": {"attributes": pairs(&span.resource.attributes)},
        "scopeSpans": [{
            "scope": {"name": "test"},
            "spans": [{
                "traceId": span.trace_id, "spanId": span.span_id, "name": span.name, "kind": 1,
                "startTimeUnixNano": nanos(span.start_time), "endTimeUnixNano": nanos(span.end_time),
                "attributes": pairs(&attributes), "status": {"code": 1}, "droppedAttributesCount": 0,
            }],
        }],
    })
}

fn pairs(attributes: &Attributes) -> Value {
    attributes.iter().map(|(key, value)| json!({ "key": key, "value": any(value) })).collect()
}

fn any(value: &Value) -> Value {
    match value {
        Value::Null => json!({}),
        Value::Bool(yes) => json!({ "boolValue": yes }),
        Value::Number(number) if number.is_f64() => json!({ "doubleValue": number }),
        Value::Number(number) => json!({ "intValue": number.to_string() }),
        Value::String(text) => json!({ "stringValue": text }),
        Value::Array(items) => {
            json!({ "arrayValue": { "values": items.iter().map(any).collect::<Vec<_>>() } })
        }
        // Bytes are kept in the very form of OTLP's JSON.
        Value::Object(_) if agl_types::attribute_bytes(value).is_some() => value.clone(),
        Value::Object(fields) => json!({ "kvlistValue": { "values": pairs(fields) } }),
    }
}
