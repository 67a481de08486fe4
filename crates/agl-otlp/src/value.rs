//! Attribute values: protobuf's `AnyValue` to and from JSON.

use agl_types::{Attributes, attribute_bytes, bytes_attribute};
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::common::v1::{AnyValue, ArrayValue, KeyValue, KeyValueList};
use serde_json::{Number, Value};

/// The attributes as a JSON object; of a repeated key the last value counts.
pub(crate) fn attributes(pairs: Vec<KeyValue>) -> Attributes {
    pairs.into_iter().map(|pair| (pair.key, json(pair.value))).collect()
}

/// Any value as JSON. A number that JSON cannot write becomes its name.
fn json(value: Option<AnyValue>) -> Value {
    match value.and_then(|value| value.value) {
        // A reference into a table that only profiles carry has no meaning here, says the protocol.
        None | Some(Any::StringValueStrindex(_)) => Value::Null,
        Some(Any::StringValue(text)) => Value::String(text),
        Some(Any::BoolValue(yes)) => Value::Bool(yes),
        Some(Any::IntValue(number)) => Value::from(number),
        Some(Any::DoubleValue(number)) => Number::from_f64(number).map_or_else(
            || {
                let name = match number {
                    f64::INFINITY => "Infinity",
                    f64::NEG_INFINITY => "-Infinity",
                    _ => "NaN",
                };
                Value::String(name.to_owned())
            },
            Value::Number,
        ),
        Some(Any::ArrayValue(array)) => {
            array.values.into_iter().map(|item| json(Some(item))).collect::<Vec<_>>().into()
        }
        Some(Any::KvlistValue(list)) => Value::Object(attributes(list.values)),
        Some(Any::BytesValue(bytes)) => bytes_attribute(&bytes),
    }
}

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
