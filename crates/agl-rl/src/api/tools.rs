//! Tool calls written as text.

use crate::api::new_id;
use crate::template::{TOOL_CALL_END, TOOL_CALL_START};
use serde_json::{Value, json};

/// Splits an answer into the text before its tool calls and the calls, in OpenAI's shape. `None`
/// if it holds none, or one that can't be read: then all of it is text.
pub(crate) fn parse(answer: &str) -> Option<(String, Vec<Value>)> {
    let (before, mut rest) = answer.split_once(TOOL_CALL_START)?;
    let mut calls = Vec::new();
    loop {
        // The model may end its turn without closing the last call.
        let (body, after) = rest.split_once(TOOL_CALL_END).unwrap_or((rest, ""));
        calls.push(call(body)?);
        match after.split_once(TOOL_CALL_START) {
            Some((_, next)) => rest = next,
            None => break,
        }
    }
    Some((before.trim_end().to_owned(), calls))
}

fn call(body: &str) -> Option<Value> {
    let parsed: Value = serde_json::from_str(body.trim()).ok()?;
    let name = parsed.get("name")?.as_str()?;
    let arguments = match parsed.get("arguments").or_else(|| parsed.get("parameters")) {
        None | Some(Value::Null) => "{}".to_owned(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    };
    Some(
        json!({"id": new_id("call"), "type": "function", "function": {"name": name, "arguments": arguments}}),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_found_and_other_text_is_left_alone() {
        let answer = "Let me see.\n<tool_call>\n{\"name\": \"add\", \"arguments\": {\"a\": 1}}\n</tool_call>\n<tool_call>{\"name\":\"now\"}";
        let (text, calls) = parse(answer).unwrap();
        assert_eq!(text, "Let me see.");
        assert_eq!(calls[0]["function"], json!({"name": "add", "arguments": "{\"a\":1}"}));
        assert_eq!(calls[1]["function"], json!({"name": "now", "arguments": "{}"}));
        assert_ne!(calls[0]["id"], calls[1]["id"]);
        assert_eq!(parse("no call"), None);
        assert_eq!(parse("<tool_call>not json</tool_call>"), None);
    }
}
