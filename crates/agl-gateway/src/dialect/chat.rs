//! Chat completions, which go up as they come but for how they spell what tools were called with.

use std::sync::Arc;

use bytes::Bytes;
use serde_json::Value;

use super::{list, text};
use crate::json::{Edits, items, member};

/// Every call of a tool in the messages of a request: its id, and what it was called with.
pub(crate) fn each_call(request: &Value) -> impl Iterator<Item = (&str, &str)> {
    let calls = list(&request["messages"]).iter().flat_map(|message| list(&message["tool_calls"]));
    calls.map(|call| (text(call, "id"), text(&call["function"], "arguments")))
}

/// The text of a request in which calls of tools are spelled as `spelling` says, who is told the id and what the request
/// has; every other byte stays. The request that was read of it changes alike. None when nothing does.
pub(crate) fn respelled(
    body: &[u8],
    request: &mut Value,
    spelling: impl Fn(&str, &str) -> Option<Arc<str>>,
) -> Option<Bytes> {
    let mut edits = Edits::default();
    let mut places = None;
    let messages = request.get_mut("messages").and_then(Value::as_array_mut);
    for (at, message) in messages.into_iter().flatten().enumerate() {
        let calls = message.get_mut("tool_calls").and_then(Value::as_array_mut);
        for (number, call) in calls.into_iter().flatten().enumerate() {
            let Some(spelled) = spelling(text(call, "id"), text(&call["function"], "arguments")) else {
                continue;
            };
            if places.is_none() {
                places = member(body, 0..body.len(), "messages").and_then(|all| items(body, all));
            }
            let place = places.as_ref().and_then(|places| {
                let calls = member(body, places.get(at)?.clone(), "tool_calls")?;
                let function = member(body, items(body, calls)?.get(number)?.clone(), "function")?;
                member(body, function, "arguments")
            });
            let Some(given) = call.pointer_mut("/function/arguments") else { continue };
            // Where a name is there twice, readers do not agree on which one counts.
            let read = |place| serde_json::from_slice::<Value>(body.get(place)?).ok();
            let Some(place) = place.filter(|place| read(place.clone()).as_ref() == Some(&*given)) else {
                continue;
            };
            *given = (*spelled).into();
            edits.replace(place, given.to_string());
        }
    }
    (!edits.is_empty()).then(|| edits.apply(body).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_spelling_of_calls_changes() {
        let body = r#" {"model":"m", "messages" : [
            {"role":"user","content":"{\"a\":1}", "tool_calls":null},
            {"tool_calls":[ {"id":"x","function":{"name":"f", "arguments" : "{\"a\":1}"},"k":1.0},
                            {"id":"y","function":{"name":"f","arguments":"{\"a\":\u0031}"}} ],"content":null},
            {"role":"tool","tool_call_id":"x","content":"caf\u00e9"},
            {"tool_calls":[{"id":"z","function":{"arguments":"{}"}},{"id":"z"},{"id":"z","function":{}}, 7]},
            {"tool_calls":[{"id":"x","function":{"arguments":"{\"b\":1}","arguments":"{\"a\":1}"}}]}
        ], "temperature": 1e0}"#;
        let mut request: Value = serde_json::from_str(body).unwrap();
        let seen: Vec<(String, String)> =
            each_call(&request).map(|(id, given)| (id.to_owned(), given.to_owned())).collect();
        assert_eq!(seen.len(), 7);
        let spelled = |id: &str, given: &str| match (id, given) {
            ("x", r#"{"a":1}"#) => Some("{\"a\": 1}\n\u{e4}".into()),
            _ => None,
        };
        let text = respelled(body.as_bytes(), &mut request, spelled).unwrap();
        let expected =
            body.replace(r#""arguments" : "{\"a\":1}""#, "\"arguments\" : \"{\\\"a\\\": 1}\\n\u{e4}\"");
        assert_eq!(std::str::from_utf8(&text).unwrap(), expected);
        assert_eq!(serde_json::from_slice::<Value>(&text).unwrap(), request);

        let before = request.clone();
        assert_eq!(respelled(&text, &mut request, |_, _| None), None);
        assert_eq!(respelled(b"no json", &mut request, |_, _| Some("{}".into())), None);
        assert_eq!(request, before);
    }
}
