use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use crate::JsonMap;

/// Attributes of a span, an event, a link or a resource: any JSON, no deeper than [`MAX_ATTRIBUTE_DEPTH`].
///
/// Bytes, for which JSON has no type, are an object with the one key `bytesValue` and their base64, as in OTLP's
/// own JSON: see [`bytes_attribute`].
pub type Attributes = JsonMap;

/// How many lists and objects may be around the innermost value of an attribute. JSON readers give up at some
/// depth (serde's at 128), and what is stored has to be readable, with a page around it.
pub const MAX_ATTRIBUTE_DEPTH: usize = 64;

/// The request header by which a client says that it reads attributes of any type. Its value is the client's
/// version. Whoever does not send it gets what 0.3's models can read: [`crate::Span::into_plain`].
pub const CLIENT_HEADER: &str = "x-agl-client";

const BYTES_KEY: &str = "bytesValue";

/// Whether `value` is what 0.3's models take for an attribute: a string, a boolean, a number, or a list of one of
/// these.
#[must_use]
pub fn is_plain_attribute(value: &Value) -> bool {
    match value {
        Value::String(_) | Value::Bool(_) | Value::Number(_) => true,
        Value::Array(items) => {
            items.iter().all(Value::is_string)
                || items.iter().all(Value::is_boolean)
                || items.iter().all(Value::is_number)
        }
        Value::Null | Value::Object(_) => false,
    }
}

/// Bytes as an attribute.
#[must_use]
pub fn bytes_attribute(bytes: &[u8]) -> Value {
    Value::Object(JsonMap::from_iter([(BYTES_KEY.to_owned(), STANDARD.encode(bytes).into())]))
}

/// The bytes of an attribute that [`bytes_attribute`] made; none of any other.
#[must_use]
pub fn attribute_bytes(value: &Value) -> Option<Vec<u8>> {
    let fields = value.as_object().filter(|fields| fields.len() == 1)?;
    STANDARD.decode(fields.get(BYTES_KEY)?.as_str()?).ok()
}

/// An attribute that is nested too deeply.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field} is nested more than {MAX_ATTRIBUTE_DEPTH} levels deep: give it as JSON text")]
pub struct AttributeError {
    /// Where it is, e.g. `attributes.KEY` or `events.0.attributes.KEY`.
    pub field: String,
}

/// `place` is the path of the attributes within the span.
pub(crate) fn check(place: impl Fn() -> String, attributes: &Attributes) -> Result<(), AttributeError> {
    let is_too_deep = |value: &Value| !fits(value, MAX_ATTRIBUTE_DEPTH);
    match attributes.iter().find(|(_, value)| is_too_deep(value)) {
        Some((key, _)) => Err(AttributeError { field: format!("{}.{key}", place()) }),
        None => Ok(()),
    }
}

/// Whether a value has at most `levels` of lists and objects.
fn fits(value: &Value, levels: usize) -> bool {
    let within = |value: &Value| fits(value, levels - 1);
    match value {
        Value::Array(items) => levels > 0 && items.iter().all(within),
        Value::Object(fields) => levels > 0 && fields.values().all(within),
        _ => true,
    }
}

/// Turns what [`is_plain_attribute`] is not into text: bytes into their hexadecimal digits, the rest into JSON.
pub(crate) fn make_plain(attributes: &mut Attributes) {
    for value in attributes.values_mut().filter(|value| !is_plain_attribute(value)) {
        spell_bytes(value);
        if !is_plain_attribute(value) {
            *value = value.to_string().into();
        }
    }
}

/// Hexadecimal digits in place of bytes, as 0.3 has them, wherever in the value they are.
fn spell_bytes(value: &mut Value) {
    if let Some(bytes) = attribute_bytes(value) {
        *value = crate::ids::hex(&bytes, 0).into();
        return;
    }
    match value {
        Value::Array(items) => items.iter_mut().for_each(spell_bytes),
        Value::Object(fields) => fields.values_mut().for_each(spell_bytes),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn plain(value: Value) -> Value {
        let mut attributes = Attributes::from_iter([("k".to_owned(), value)]);
        make_plain(&mut attributes);
        attributes.remove("k").unwrap_or_default()
    }

    #[test]
    fn what_models_can_read_stays_and_the_rest_becomes_text() {
        for same in [json!("x"), json!(true), json!(1), json!(0.5), json!([]), json!(["a"]), json!([1, 0.5])]
        {
            assert_eq!(plain(same.clone()), same);
        }
        let texts = [
            (json!(null), "null"),
            (json!({"a": [1]}), r#"{"a":[1]}"#),
            (json!([1, "a"]), r#"[1,"a"]"#),
            (json!([true, 1]), "[true,1]"),
            (json!([null]), "[null]"),
            (json!([[1]]), "[[1]]"),
            (bytes_attribute(b"\xde\xad"), "dead"),
            (json!({"raw": bytes_attribute(b"\x01")}), r#"{"raw":"01"}"#),
        ];
        for (value, text) in texts {
            assert_eq!(plain(value), json!(text));
        }
        assert_eq!(plain(json!([bytes_attribute(b"\x01"), bytes_attribute(b"")])), json!(["01", ""]));
    }

    #[test]
    fn only_what_is_bytes_is_taken_for_bytes() {
        assert_eq!(attribute_bytes(&bytes_attribute(b"\0\xff")).as_deref(), Some(&b"\0\xff"[..]));
        for other in [json!({"bytesValue": "?"}), json!({"bytesValue": "AA==", "b": 1}), json!("AA==")] {
            assert_eq!(attribute_bytes(&other), None);
        }
    }

    #[test]
    fn depth_has_an_end() {
        let nested = |levels: usize| {
            let deep = (0..levels).fold(json!(1), |inner, level| {
                if level % 2 == 0 { json!([inner]) } else { json!({ "k": inner }) }
            });
            Attributes::from_iter([("deep".to_owned(), deep)])
        };
        assert_eq!(check(String::new, &nested(MAX_ATTRIBUTE_DEPTH)), Ok(()));
        let error = check(|| "attributes".to_owned(), &nested(MAX_ATTRIBUTE_DEPTH + 1));
        assert_eq!(error, Err(AttributeError { field: "attributes.deep".to_owned() }));
    }
}
