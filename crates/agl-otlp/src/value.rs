//! Attributes: from protobuf's encoding to JSON text, and from JSON to protobuf's messages.

use std::collections::HashMap;

use agl_types::{Attributes, MAX_ATTRIBUTE_DEPTH, attribute_bytes, bytes_attribute};
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::common::v1::{AnyValue, ArrayValue, KeyValue, KeyValueList};
use serde_json::Value;

use crate::Error;
use crate::wire::{Wire, fields};

/// Up to how many attributes it is fastest to look for a key by going through them.
const FEW: usize = 32;

/// The attributes of one thing: keys and values that have not been read yet. No key is there twice.
#[derive(Debug, Default)]
pub(crate) struct Pairs<'a> {
    pairs: Vec<(&'a str, Option<&'a [u8]>)>,
    /// Where each key is, once there are many.
    index: HashMap<&'a str, usize>,
}

impl<'a> Pairs<'a> {
    /// Takes an attribute in. Of a repeated key the last value counts.
    pub(crate) fn add(&mut self, pair: Wire<'a>) -> Result<(), Error> {
        let (mut key, mut value) = ("", None);
        let mut parts = fields(pair.bytes("attributes")?);
        while let Some((number, wire)) = parts.next()? {
            match number {
                1 => key = wire.text("the key of an attribute")?,
                2 => value = Some(wire.bytes("the value of an attribute")?),
                _ => {}
            }
        }
        match self.place_of(key) {
            Some(place) => self.pairs[place].1 = value,
            None => {
                if self.pairs.len() == FEW {
                    self.index =
                        self.pairs.iter().enumerate().map(|(place, (key, _))| (*key, place)).collect();
                }
                if self.pairs.len() >= FEW {
                    self.index.insert(key, self.pairs.len());
                }
                self.pairs.push((key, value));
            }
        }
        Ok(())
    }

    fn place_of(&self, key: &str) -> Option<usize> {
        if self.pairs.len() <= FEW {
            self.pairs.iter().position(|(known, _)| *known == key)
        } else {
            self.index.get(key).copied()
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.pairs.is_empty()
    }

    /// The value of a key as JSON; none where it is absent or null.
    pub(crate) fn get(&self, key: &str) -> Result<Option<Value>, Error> {
        let Some(value) = self.place_of(key).and_then(|place| self.pairs[place].1) else { return Ok(None) };
        let mut json = Vec::new();
        write_value(value, &mut json, 0)?;
        let value = serde_json::from_slice(&json).map_err(|error| Error::payload(error.to_string()))?;
        Ok(Some(value).filter(|value: &Value| !value.is_null()))
    }

    /// Appends them as a JSON object; tells whether all of them are plain.
    pub(crate) fn write(&self, json: &mut Vec<u8>) -> Result<bool, Error> {
        self.write_at(json, 0)
    }

    fn write_at(&self, json: &mut Vec<u8>, depth: usize) -> Result<bool, Error> {
        let mut are_plain = true;
        json.push(b'{');
        for (place, (key, value)) in self.pairs.iter().enumerate() {
            if place > 0 {
                json.push(b',');
            }
            write_text(key, json);
            json.push(b':');
            let kind = match value {
                Some(value) => write_value(value, json, depth)?,
                None => write_null(json),
            };
            are_plain &= kind != Kind::Odd;
        }
        json.push(b'}');
        Ok(are_plain)
    }
}

/// What kind of value it is, as far as 0.3's models tell kinds apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Text,
    Flag,
    Number,
    /// A list of one of the above.
    List,
    /// What the models do not take.
    Odd,
}

/// Appends a string. Of a long one nearly everything may stand as it is, which is found out many bytes at a time.
pub(crate) fn write_text(text: &str, json: &mut Vec<u8>) {
    const AT_ONCE: usize = 32;
    let stands = |byte: u8| byte >= b' ' && byte != b'"' && byte != b'\\';
    json.push(b'"');
    for bytes in text.as_bytes().chunks(AT_ONCE) {
        // Without an early end, so that the compiler can look at all of them together.
        if bytes.iter().fold(true, |all, byte| all & stands(*byte)) {
            json.extend_from_slice(bytes);
            continue;
        }
        for byte in bytes {
            let letter = match byte {
                b'"' | b'\\' => *byte,
                0x08 => b'b',
                b'\t' => b't',
                b'\n' => b'n',
                0x0c => b'f',
                b'\r' => b'r',
                0..=0x1f => {
                    json.extend_from_slice(b"\\u00");
                    json.extend_from_slice(agl_types::ids::hex(&[*byte], 0).as_bytes());
                    continue;
                }
                _ => {
                    json.push(*byte);
                    continue;
                }
            };
            json.extend_from_slice(&[b'\\', letter]);
        }
    }
    json.push(b'"');
}

/// Appends anything else.
pub(crate) fn write_json<T: serde::Serialize + ?Sized>(value: &T, json: &mut Vec<u8>) {
    // Writing them into memory cannot fail.
    let _ = serde_json::to_writer(json, value);
}

fn write_null(json: &mut Vec<u8>) -> Kind {
    json.extend_from_slice(b"null");
    Kind::Odd
}

/// Appends an `AnyValue` that is inside `depth` lists and objects. A number that JSON cannot write becomes its name.
fn write_value(value: &[u8], json: &mut Vec<u8>, depth: usize) -> Result<Kind, Error> {
    if depth > MAX_ATTRIBUTE_DEPTH {
        return Err(Error::payload("an attribute is nested too deeply"));
    }
    let mut last = None;
    let mut parts = fields(value);
    while let Some(part) = parts.next()? {
        if (1..=8).contains(&part.0) {
            last = Some(part);
        }
    }
    match last {
        Some((1, wire)) => {
            write_text(wire.text("a value")?, json);
            Ok(Kind::Text)
        }
        Some((2, wire)) => {
            let text: &[u8] = if wire.varint("a value")? == 0 { b"false" } else { b"true" };
            json.extend_from_slice(text);
            Ok(Kind::Flag)
        }
        Some((3, wire)) => {
            write_json(&wire.varint("a value")?.cast_signed(), json);
            Ok(Kind::Number)
        }
        Some((4, wire)) => Ok(write_double(f64::from_bits(wire.fixed64("a value")?), json)),
        Some((5, wire)) => write_list(wire.bytes("a value")?, json, depth + 1),
        Some((6, wire)) => {
            let mut pairs = Pairs::default();
            let mut parts = fields(wire.bytes("a value")?);
            while let Some((number, wire)) = parts.next()? {
                if number == 1 {
                    pairs.add(wire)?;
                }
            }
            pairs.write_at(json, depth + 1)?;
            Ok(Kind::Odd)
        }
        Some((7, wire)) => {
            write_json(&bytes_attribute(wire.bytes("a value")?), json);
            Ok(Kind::Odd)
        }
        // A reference into a table that only profiles carry has no meaning here, says the protocol.
        _ => Ok(write_null(json)),
    }
}

fn write_double(number: f64, json: &mut Vec<u8>) -> Kind {
    if number.is_finite() {
        write_json(&number, json);
        return Kind::Number;
    }
    let name: &[u8] = match number {
        f64::INFINITY => br#""Infinity""#,
        f64::NEG_INFINITY => br#""-Infinity""#,
        _ => br#""NaN""#,
    };
    json.extend_from_slice(name);
    Kind::Text
}

fn write_list(list: &[u8], json: &mut Vec<u8>, depth: usize) -> Result<Kind, Error> {
    let (mut first, mut is_plain) = (None, true);
    json.push(b'[');
    let mut parts = fields(list);
    while let Some((number, wire)) = parts.next()? {
        if number != 1 {
            continue;
        }
        if first.is_some() {
            json.push(b',');
        }
        let kind = write_value(wire.bytes("a list")?, json, depth)?;
        let is_scalar = matches!(kind, Kind::Text | Kind::Flag | Kind::Number);
        is_plain &= kind == *first.get_or_insert(kind) && is_scalar;
    }
    json.push(b']');
    Ok(if is_plain { Kind::List } else { Kind::Odd })
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
