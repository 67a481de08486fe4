//! JSON straight from protobuf's values, without anything in between.

use std::collections::HashMap;

use agl_types::{AttributeError, MAX_ATTRIBUTE_DEPTH, bytes_attribute};
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};

/// JSON as it is being written, and whether all attributes in it are ones that 0.3's models can read.
pub(crate) struct Json {
    bytes: Vec<u8>,
    is_plain: bool,
}

/// What kind of attribute a value is, to tell lists of one kind from others.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Text,
    Truth,
    Number,
    Other,
}

impl Json {
    pub(crate) fn with_capacity(bytes: usize) -> Self {
        Self { bytes: Vec::with_capacity(bytes), is_plain: true }
    }

    pub(crate) fn finish(self) -> (Vec<u8>, bool) {
        (self.bytes, self.is_plain)
    }

    pub(crate) fn bytes(&mut self, json: &[u8]) {
        self.bytes.extend_from_slice(json);
    }

    pub(crate) fn raw(&mut self, json: &str) {
        self.bytes(json.as_bytes());
    }

    pub(crate) fn key(&mut self, key: &str) {
        self.string(key);
        self.raw(":");
    }

    pub(crate) fn next_key(&mut self, key: &str) {
        self.raw(",");
        self.key(key);
    }

    pub(crate) fn string(&mut self, text: &str) {
        // Writing into memory cannot fail.
        let _ = serde_json::to_writer(&mut self.bytes, text);
    }

    pub(crate) fn optional_string(&mut self, text: Option<&str>) {
        let _ = serde_json::to_writer(&mut self.bytes, &text);
    }

    pub(crate) fn optional_number(&mut self, number: Option<f64>) {
        let _ = serde_json::to_writer(&mut self.bytes, &number);
    }

    pub(crate) fn list<T>(
        &mut self,
        items: &[T],
        write: impl Fn(usize, &T, &mut Self) -> Result<(), AttributeError>,
    ) -> Result<(), AttributeError> {
        self.raw("[");
        for (index, item) in items.iter().enumerate() {
            if index > 0 {
                self.raw(",");
            }
            write(index, item, self)?;
        }
        self.raw("]");
        Ok(())
    }

    /// Writes attributes; of a repeated key the last value counts. `place` is their path within the span.
    pub(crate) fn attributes(
        &mut self,
        pairs: &[KeyValue],
        place: &dyn Fn() -> String,
    ) -> Result<(), AttributeError> {
        let too_deep = |key: &str| AttributeError { field: format!("{}.{key}", place()) };
        self.object(pairs, |pair, json| {
            let kind =
                json.value(pair.value.as_ref(), MAX_ATTRIBUTE_DEPTH).ok_or_else(|| too_deep(&pair.key))?;
            json.is_plain &= kind != Kind::Other;
            Ok(())
        })
    }

    fn object<E>(
        &mut self,
        pairs: &[KeyValue],
        mut write: impl FnMut(&KeyValue, &mut Self) -> Result<(), E>,
    ) -> Result<(), E> {
        self.raw("{");
        for (index, pair) in each_key_once(pairs).into_iter().enumerate() {
            if index > 0 {
                self.raw(",");
            }
            self.key(&pair.key);
            write(pair, self)?;
        }
        self.raw("}");
        Ok(())
    }

    /// Writes any value with at most `levels` of lists and objects; none when it has more. A number that JSON cannot
    /// write becomes its name.
    fn value(&mut self, value: Option<&AnyValue>, levels: usize) -> Option<Kind> {
        let Some(value) = value.and_then(|value| value.value.as_ref()) else {
            self.raw("null");
            return Some(Kind::Other);
        };
        Some(match value {
            // A reference into a table that only profiles carry has no meaning here, says the protocol.
            Any::StringValueStrindex(_) => {
                self.raw("null");
                Kind::Other
            }
            Any::StringValue(text) => {
                self.string(text);
                Kind::Text
            }
            Any::BoolValue(yes) => {
                self.raw(if *yes { "true" } else { "false" });
                Kind::Truth
            }
            Any::IntValue(number) => {
                let _ = serde_json::to_writer(&mut self.bytes, number);
                Kind::Number
            }
            Any::DoubleValue(number) if number.is_finite() => {
                let _ = serde_json::to_writer(&mut self.bytes, number);
                Kind::Number
            }
            Any::DoubleValue(number) => {
                self.string(match *number {
                    f64::INFINITY => "Infinity",
                    f64::NEG_INFINITY => "-Infinity",
                    _ => "NaN",
                });
                Kind::Text
            }
            Any::ArrayValue(array) => {
                let inner = levels.checked_sub(1)?;
                let mut kinds = None;
                self.raw("[");
                for (index, item) in array.values.iter().enumerate() {
                    if index > 0 {
                        self.raw(",");
                    }
                    let kind = self.value(Some(item), inner)?;
                    // Lists in lists, and lists of several kinds, are no kind that a list may have.
                    let is_scalar = !matches!(item.value, Some(Any::ArrayValue(_)));
                    kinds = Some(match kinds {
                        None if is_scalar => kind,
                        Some(known) if known == kind && is_scalar => kind,
                        _ => Kind::Other,
                    });
                }
                self.raw("]");
                match kinds {
                    Some(Kind::Other) => Kind::Other,
                    // As far as a list of these goes, one is as good as another.
                    _ => Kind::Text,
                }
            }
            Any::KvlistValue(list) => {
                let inner = levels.checked_sub(1)?;
                let deep = self.object(&list.values, |pair, json| {
                    json.value(pair.value.as_ref(), inner).map(|_| ()).ok_or(())
                });
                deep.ok()?;
                Kind::Other
            }
            Any::BytesValue(bytes) => {
                let _ = serde_json::to_writer(&mut self.bytes, &bytes_attribute(bytes));
                Kind::Other
            }
        })
    }
}

/// Up to so many keys are compared one by one, which is quicker than a table.
const FEW: usize = 32;

/// The pairs whose keys are written: the last one of each key, where the key first stood.
fn each_key_once(pairs: &[KeyValue]) -> Vec<&KeyValue> {
    let mut places: HashMap<&str, usize> = HashMap::new();
    let mut kept: Vec<&KeyValue> = Vec::with_capacity(pairs.len());
    for pair in pairs {
        let place = if pairs.len() <= FEW {
            kept.iter().position(|other| other.key == pair.key)
        } else {
            places.insert(&pair.key, kept.len())
        };
        match place {
            Some(place) => {
                kept[place] = pair;
                places.insert(&pair.key, place);
            }
            None => kept.push(pair),
        }
    }
    kept
}

/// A value as JSON text; empty when it is nested too deeply.
pub(crate) fn json_of(value: &Any) -> String {
    let mut json = Json::with_capacity(64);
    let value = AnyValue { value: Some(value.clone()) };
    json.value(Some(&value), MAX_ATTRIBUTE_DEPTH).map(|_| text(json.bytes)).unwrap_or_default()
}

/// JSON as text, which it always is.
pub(crate) fn text(json: Vec<u8>) -> String {
    String::from_utf8(json).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}
