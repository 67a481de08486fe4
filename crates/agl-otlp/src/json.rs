//! OTLP's JSON into the protobuf messages, as far as anything is read of them.
//!
//! Fields are in lowerCamelCase, ids hexadecimal, bytes base64; 64-bit integers may be strings, null is as good as
//! absent, and fields that are not known are passed over.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::common::v1::{AnyValue, ArrayValue, KeyValue, KeyValueList};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::span::{Event, Link};
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span, Status};
use serde_json::{Map, Value};

use crate::{Error, ExportTraceServiceRequest};

/// Reads an export request.
pub(crate) fn decode(bytes: &[u8]) -> Result<ExportTraceServiceRequest, Error> {
    let value = serde_json::from_slice(bytes).map_err(|error| Error::payload(error.to_string()))?;
    message(value, |fields| {
        Ok(ExportTraceServiceRequest { resource_spans: fields.list("resourceSpans", resource_spans)? })
    })
    .map_err(|fault| Error::payload(fault.to_string()))
}

/// What is wrong, and where.
#[derive(Debug, thiserror::Error)]
#[error("{} is not {expected}", if path.is_empty() { "the request" } else { path })]
struct Fault {
    path: String,
    expected: &'static str,
}

impl Fault {
    fn new(expected: &'static str) -> Self {
        Self { path: String::new(), expected }
    }

    fn within(self, step: &str) -> Self {
        let path = if self.path.is_empty() { step.to_owned() } else { format!("{step}.{}", self.path) };
        Self { path, ..self }
    }
}

type Read<T> = Result<T, Fault>;

/// The fields of a message that have not been read yet.
struct Fields(Map<String, Value>);

fn message<T>(value: Value, read: impl FnOnce(&mut Fields) -> Read<T>) -> Read<T> {
    match value {
        Value::Object(fields) => read(&mut Fields(fields)),
        _ => Err(Fault::new("an object")),
    }
}

impl Fields {
    /// What `read` makes of a field; none where it is absent or null.
    fn optional<T>(&mut self, key: &'static str, read: impl FnOnce(Value) -> Read<T>) -> Read<Option<T>> {
        match self.0.get_mut(key).map(Value::take) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => read(value).map(Some).map_err(|fault| fault.within(key)),
        }
    }

    fn get<T: Default>(&mut self, key: &'static str, read: impl FnOnce(Value) -> Read<T>) -> Read<T> {
        Ok(self.optional(key, read)?.unwrap_or_default())
    }

    fn list<T>(&mut self, key: &'static str, read: impl Fn(&mut Fields) -> Read<T>) -> Read<Vec<T>> {
        self.get(key, |value| {
            let Value::Array(items) = value else { return Err(Fault::new("a list")) };
            let items = items.into_iter().enumerate();
            items
                .map(|(index, item)| message(item, &read).map_err(|fault| fault.within(&index.to_string())))
                .collect()
        })
    }
}

fn text(value: Value) -> Read<String> {
    if let Value::String(text) = value { Ok(text) } else { Err(Fault::new("a string")) }
}

/// The bytes of an id.
fn id(value: Value) -> Read<Vec<u8>> {
    crate::hex::bytes(&text(value)?).ok_or(Fault::new("hexadecimal digits, two a byte"))
}

/// An integer, or its digits as a string.
fn integer<T: TryFrom<i128>>(value: &Value) -> Option<T> {
    let number = match value {
        Value::Number(number) => {
            number.as_i64().map(i128::from).or_else(|| number.as_u64().map(i128::from))?
        }
        Value::String(digits) => digits.parse().ok()?,
        _ => return None,
    };
    T::try_from(number).ok()
}

/// A number, or its digits or name as a string.
fn double(value: &Value) -> Option<f64> {
    match value {
        Value::Number(number) => number.as_f64(),
        // Reads protobuf's names of what JSON has no number for, too.
        Value::String(digits) => digits.parse().ok(),
        _ => None,
    }
}

#[expect(clippy::needless_pass_by_value, reason = "readers take values")]
fn nanos(value: Value) -> Read<u64> {
    integer(&value).ok_or(Fault::new("a time in nanoseconds"))
}

fn resource_spans(fields: &mut Fields) -> Read<ResourceSpans> {
    Ok(ResourceSpans {
        resource: fields.optional("resource", |value| message(value, resource))?,
        scope_spans: fields.list("scopeSpans", scope_spans)?,
        schema_url: fields.get("schemaUrl", text)?,
    })
}

fn resource(fields: &mut Fields) -> Read<Resource> {
    Ok(Resource { attributes: fields.list("attributes", key_value)?, ..Resource::default() })
}

fn scope_spans(fields: &mut Fields) -> Read<ScopeSpans> {
    Ok(ScopeSpans { spans: fields.list("spans", span)?, ..ScopeSpans::default() })
}

fn span(fields: &mut Fields) -> Read<Span> {
    Ok(Span {
        trace_id: fields.get("traceId", id)?,
        span_id: fields.get("spanId", id)?,
        parent_span_id: fields.get("parentSpanId", id)?,
        name: fields.get("name", text)?,
        start_time_unix_nano: fields.get("startTimeUnixNano", nanos)?,
        end_time_unix_nano: fields.get("endTimeUnixNano", nanos)?,
        attributes: fields.list("attributes", key_value)?,
        events: fields.list("events", event)?,
        links: fields.list("links", link)?,
        status: fields.optional("status", |value| message(value, status))?,
        ..Span::default()
    })
}

fn event(fields: &mut Fields) -> Read<Event> {
    Ok(Event {
        time_unix_nano: fields.get("timeUnixNano", nanos)?,
        name: fields.get("name", text)?,
        attributes: fields.list("attributes", key_value)?,
        ..Event::default()
    })
}

fn link(fields: &mut Fields) -> Read<Link> {
    Ok(Link {
        trace_id: fields.get("traceId", id)?,
        span_id: fields.get("spanId", id)?,
        attributes: fields.list("attributes", key_value)?,
        ..Link::default()
    })
}

fn status(fields: &mut Fields) -> Read<Status> {
    Ok(Status {
        message: fields.get("message", text)?,
        code: fields.get("code", |value| integer(&value).ok_or(Fault::new("a number of a status code")))?,
    })
}

fn key_value(fields: &mut Fields) -> Read<KeyValue> {
    Ok(KeyValue {
        key: fields.get("key", text)?,
        value: fields.optional("value", |value| message(value, any_value))?,
        ..KeyValue::default()
    })
}

fn any_value(fields: &mut Fields) -> Read<AnyValue> {
    let value = if let Some(text) = fields.optional("stringValue", text)? {
        Some(Any::StringValue(text))
    } else if let Some(number) = fields.optional("intValue", whole)? {
        Some(number)
    } else if let Some(number) =
        fields.optional("doubleValue", |value| double(&value).ok_or(Fault::new("a number")))?
    {
        Some(Any::DoubleValue(number))
    } else if let Some(yes) =
        fields.optional("boolValue", |value| value.as_bool().ok_or(Fault::new("a boolean")))?
    {
        Some(Any::BoolValue(yes))
    } else if let Some(list) = fields.optional("arrayValue", |value| message(value, array))? {
        Some(Any::ArrayValue(list))
    } else if let Some(list) = fields.optional("kvlistValue", |value| message(value, key_values))? {
        Some(Any::KvlistValue(list))
    } else {
        fields.optional("bytesValue", base64_bytes)?.map(Any::BytesValue)
    };
    Ok(AnyValue { value })
}

/// An integer; a number beyond 64 bits, as JavaScript may write one here, is a double.
#[expect(clippy::needless_pass_by_value, reason = "readers take values")]
fn whole(value: Value) -> Read<Any> {
    let number = integer(&value).map(Any::IntValue);
    let number =
        number.or_else(|| if value.is_number() { double(&value).map(Any::DoubleValue) } else { None });
    number.ok_or(Fault::new("an integer of 64 bits"))
}

fn array(fields: &mut Fields) -> Read<ArrayValue> {
    Ok(ArrayValue { values: fields.list("values", any_value)? })
}

fn key_values(fields: &mut Fields) -> Read<KeyValueList> {
    Ok(KeyValueList { values: fields.list("values", key_value)? })
}

/// Base64 in either alphabet, padded or not, as protobuf's JSON may have it.
fn base64_bytes(value: Value) -> Read<Vec<u8>> {
    let text = text(value)?.replace('-', "+").replace('_', "/");
    STANDARD_NO_PAD.decode(text.trim_end_matches('=')).map_err(|_| Fault::new("base64"))
}
