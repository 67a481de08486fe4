//! Nested JSON as flat, dotted span attributes, and back.

use agl_types::JsonMap;
use serde_json::Value;

use crate::Error;

/// How deep dotted keys nest; the rest of a longer key stays one key. It keeps a hostile key from growing a tree
/// that overflows the stack.
const MAX_DEPTH: usize = 64;

/// Flattens nested JSON into dotted keys: `{"a": [{"x": 1}]}` becomes `{"a.0.x": 1}`.
///
/// A list of one primitive kind stays a list, unless `expand_leaf_lists` is set or it is the root; booleans,
/// integers and floats are kinds of their own. Empty lists and objects vanish. A primitive root gets the key "".
#[must_use]
pub fn flatten(nested: &Value, expand_leaf_lists: bool) -> JsonMap {
    let mut flat = JsonMap::new();
    flatten_into(&mut flat, String::new(), nested, expand_leaf_lists);
    flat
}

fn flatten_into(flat: &mut JsonMap, prefix: String, value: &Value, expand_leaf_lists: bool) {
    match value {
        Value::Object(fields) => {
            for (key, item) in fields {
                flatten_into(flat, join(&prefix, key), item, expand_leaf_lists);
            }
        }
        Value::Array(items) => {
            if !items.is_empty() && !prefix.is_empty() && !expand_leaf_lists && is_leaf_list(items) {
                flat.insert(prefix, value.clone());
                return;
            }
            for (index, item) in items.iter().enumerate() {
                flatten_into(flat, join(&prefix, &index.to_string()), item, expand_leaf_lists);
            }
        }
        _ => {
            flat.insert(prefix, value.clone());
        }
    }
}

fn join(prefix: &str, key: &str) -> String {
    if prefix.is_empty() { key.to_owned() } else { format!("{prefix}.{key}") }
}

/// The kinds of primitives that a list attribute may be made of.
#[derive(PartialEq)]
enum Kind {
    Bool,
    Int,
    Float,
    Text,
}

fn kind(value: &Value) -> Option<Kind> {
    match value {
        Value::Bool(_) => Some(Kind::Bool),
        Value::Number(number) if number.is_f64() => Some(Kind::Float),
        Value::Number(_) => Some(Kind::Int),
        Value::String(_) => Some(Kind::Text),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

fn is_leaf_list(items: &[Value]) -> bool {
    let Some(first) = items.first().and_then(kind) else { return false };
    items.iter().all(|item| kind(item).as_ref() == Some(&first))
}

/// The inverse of [`flatten`]: dotted keys become nested JSON.
///
/// Segments of digits become a list only when they are exactly `0..n-1`; otherwise they stay keys of an object.
/// Where a value and a group share a key, whichever comes later wins. No attributes give an empty object.
#[must_use]
pub fn unflatten<'a>(flat: impl IntoIterator<Item = (&'a str, &'a Value)>) -> Value {
    let mut root = JsonMap::new();
    for (key, value) in flat {
        insert(&mut root, key, value);
    }
    listify(Value::Object(root))
}

fn insert(root: &mut JsonMap, key: &str, value: &Value) {
    let mut group = root;
    let mut rest = key;
    for _ in 1..MAX_DEPTH {
        let Some((segment, tail)) = rest.split_once('.') else { break };
        let slot = group.entry(segment).or_insert_with(|| Value::Object(JsonMap::new()));
        if !slot.is_object() {
            *slot = Value::Object(JsonMap::new());
        }
        let Value::Object(next) = slot else { return };
        group = next;
        rest = tail;
    }
    group.insert(rest.to_owned(), value.clone());
}

/// Turns groups whose keys are exactly `0..n-1` into lists, from the leaves up.
fn listify(value: Value) -> Value {
    let Value::Object(mut fields) = value else { return value };
    let count = fields.len();
    // Keys differ, so as many whole numbers below their count are all of them.
    if count == 0 || !fields.keys().all(|key| place(key).is_some_and(|place| place < count)) {
        for item in fields.values_mut().filter(|item| item.is_object()) {
            *item = listify(item.take());
        }
        return Value::Object(fields);
    }
    let mut items = vec![Value::Null; count];
    for (key, item) in fields {
        if let Some(slot) = place(&key).and_then(|place| items.get_mut(place)) {
            *slot = listify(item);
        }
    }
    Value::Array(items)
}

/// The place in a list that a key stands for: a whole number without signs or zeros before it.
pub(crate) fn place(key: &str) -> Option<usize> {
    let is_number = key.bytes().all(|byte| byte.is_ascii_digit()) && (key == "0" || !key.starts_with('0'));
    key.parse().ok().filter(|_| is_number)
}

/// The attributes below `prefix`, with keys cut to what follows `prefix.`; a key that only begins with the same
/// letters is not below it.
pub fn below<'a>(attributes: &'a JsonMap, prefix: &'a str) -> impl Iterator<Item = (&'a str, &'a Value)> {
    attributes.iter().filter_map(move |(key, value)| {
        let tail = key.strip_prefix(prefix)?.strip_prefix('.')?;
        Some((tail, value))
    })
}

/// The attributes below `prefix` as nested JSON; an empty object when there are none.
///
/// # Errors
/// [`Error::NotAGroup`] when `prefix` itself is an attribute.
pub fn filter_and_unflatten(attributes: &JsonMap, prefix: &str) -> Result<Value, Error> {
    if attributes.contains_key(prefix) {
        return Err(Error::NotAGroup { prefix: prefix.to_owned() });
    }
    Ok(unflatten(below(attributes, prefix)))
}

/// The attributes below `prefix` as nested JSON, or the attribute `prefix` itself, or none.
///
/// This is the forgiving twin of [`filter_and_unflatten`] for reading what others wrote.
pub(crate) fn group(attributes: &JsonMap, prefix: &str) -> Option<Value> {
    let mut members = below(attributes, prefix).peekable();
    if members.peek().is_some() {
        return Some(unflatten(members));
    }
    attributes.get(prefix).cloned()
}

/// The attribute `key`, if it is a string that is not empty.
pub(crate) fn text<'a>(attributes: &'a JsonMap, key: &str) -> Option<&'a str> {
    attributes.get(key).and_then(Value::as_str).filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn flat(nested: &Value) -> Value {
        Value::Object(flatten(nested, false))
    }

    fn nested(flat: &Value) -> Value {
        unflatten(flat.as_object().unwrap().iter().map(|(key, value)| (key.as_str(), value)))
    }

    #[test]
    fn flattening_keeps_lists_of_one_kind() {
        assert_eq!(
            flat(&json!({"a": null, "b": [null, 1], "c": [1, true], "d": [1, 2.0], "e": ["x"]})),
            json!({"a": null, "b.0": null, "b.1": 1, "c.0": 1, "c.1": true, "d.0": 1, "d.1": 2.0, "e": ["x"]})
        );
        assert_eq!(flat(&json!([1, 2])), json!({"0": 1, "1": 2}));
        assert_eq!(flat(&json!({"a": [], "b": {}})), json!({}));
        assert_eq!(flat(&json!(7)), json!({"": 7}));
        assert_eq!(flat(&json!({"a": [{"x": 1}], "b": [1, 2], "c": []})), json!({"a.0.x": 1, "b": [1, 2]}));
        assert_eq!(Value::Object(flatten(&json!({"b": [1, 2]}), true)), json!({"b.0": 1, "b.1": 2}));
    }

    #[test]
    fn unflattening_makes_lists_of_whole_runs_only() {
        assert_eq!(
            nested(&json!({"0.role": "user", "1.role": "tool"})),
            json!([{"role": "user"}, {"role": "tool"}])
        );
        assert_eq!(nested(&json!({"1": "b", "0": "a"})), json!(["a", "b"]));
        assert_eq!(nested(&json!({"0": "a", "2": "b"})), json!({"0": "a", "2": "b"}));
        assert_eq!(nested(&json!({"0": "a", "x": "b"})), json!({"0": "a", "x": "b"}));
        assert_eq!(nested(&json!({"00": "a"})), json!({"00": "a"}));
        assert_eq!(nested(&json!({})), json!({}));
    }

    #[test]
    fn a_key_of_a_hundred_thousand_dots_does_no_harm() {
        let key = "0.".repeat(100_000);
        let flat = JsonMap::from_iter([(key, json!(1))]);
        assert!(unflatten(flat.iter().map(|(key, value)| (key.as_str(), value))).is_array());
    }

    #[test]
    fn the_later_of_two_conflicting_keys_wins() {
        assert_eq!(nested(&json!({"a": 1, "a.b": 2})), json!({"a": {"b": 2}}));
        assert_eq!(nested(&json!({"a.b": 2, "a": 1})), json!({"a": 1}));
    }

    #[test]
    fn a_group_is_what_is_below_the_dot() {
        let attributes = json!({"gen_ai.prompt.0.role": "user", "gen_ai.prompts": 1});
        let attributes = attributes.as_object().unwrap();
        assert_eq!(filter_and_unflatten(attributes, "gen_ai.prompt").unwrap(), json!([{"role": "user"}]));
        assert_eq!(
            filter_and_unflatten(attributes, "gen_ai").unwrap(),
            json!({"prompt": [{"role": "user"}], "prompts": 1})
        );
        assert_eq!(filter_and_unflatten(attributes, "absent").unwrap(), json!({}));
        let error = filter_and_unflatten(attributes, "gen_ai.prompts").unwrap_err();
        assert_eq!(error, Error::NotAGroup { prefix: "gen_ai.prompts".to_owned() });
    }
}
