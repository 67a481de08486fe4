//! Attribute values: JSON to protobuf's `AnyValue`. The way back is in `write`.

use agl_types::{Attributes, attribute_bytes};
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::common::v1::{AnyValue, ArrayValue, KeyValue, KeyValueList};
use serde_json::Value;

/// A JSON object as attributes.
pub(crate) fn pairs(attributes: &Attributes) -> Vec<KeyValue> {
    attributes.iter().map(|(key, value)| pair(key, value)).collect()
}

/// One attribute.
pub(crate) fn pair(key: &str, value: &Value) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(any(value)), ..KeyValue::default() }
}

fn any(value: &Value) -> AnyValue {
    let value = match value {
        Value::Null => None,
        Value::Bool(yes) => Some(Any::BoolValue(*yes)),
        Value::Number(number) => Some(
            number
                .as_i64()
                .map_or_else(|| Any::DoubleValue(number.as_f64().unwrap_or(f64::NAN)), Any::IntValue),
        ),
        Value::String(text) => Some(Any::StringValue(text.clone())),
        Value::Array(items) => Some(Any::ArrayValue(ArrayValue { values: items.iter().map(any).collect() })),
        Value::Object(fields) => Some(match attribute_bytes(value) {
            Some(bytes) => Any::BytesValue(bytes),
            None => Any::KvlistValue(KeyValueList { values: pairs(fields) }),
        }),
    };
    AnyValue { value }
}
