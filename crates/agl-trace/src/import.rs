//! Records that others kept of their calls, as spans.

use agl_types::{Span, StatusCode, TraceStatus};
use serde_json::{Value, json};

use crate::openai::{LLM_CALL, chat_attributes, tool_call_attributes};
use crate::rewards::{PRIMARY, RewardDimension, reward_attributes};

/// A rollout that was read from a record, without ids of its own.
#[derive(Debug, Clone, PartialEq)]
pub struct Imported {
    /// What the record says belongs together; none for a rollout of its own.
    pub session: Option<String>,
    /// The task: the first prompt.
    pub input: Value,
    /// The calls, and what they earned; their ids are to be replaced.
    pub spans: Vec<Span>,
}

/// Reads one record of a call: `request` and `response` in the form of OpenAI's chat API, or a line of its batch API.
///
/// Also read, where they are: `session_id`, `rollout_id` or `trace_id` for what belongs together, `reward`, and
/// `start_time` and `end_time` in seconds.
///
/// # Errors
/// What the record lacks.
pub fn logged_call(record: &Value) -> Result<Imported, String> {
    let first =
        |keys: &[&str]| keys.iter().find_map(|key| record.get(*key).filter(|value| value.is_object()));
    let request = first(&["request", "input", "body"]).ok_or("it has no request")?;
    let request = request.get("body").filter(|body| body.is_object()).unwrap_or(request);
    let response = first(&["response", "output"]).ok_or("it has no response")?;
    let response = response.get("body").filter(|body| body.is_object()).unwrap_or(response);
    if !request.get("messages").is_some_and(Value::is_array) {
        return Err("its request has no messages".to_owned());
    }
    let session = ["session_id", "rollout_id", "trace_id"]
        .iter()
        .find_map(|key| record.get(*key)?.as_str().map(str::to_owned));
    let input = json!({"messages": request["messages"]});
    Ok(Imported { session, input, spans: call_spans(request, response, record) })
}

/// Reads a conversation: `messages` in the form of OpenAI's chat API, with `tools` and `reward` where they are. Every answer
/// of the assistant becomes a call.
///
/// # Errors
/// What the record lacks.
pub fn conversation(record: &Value) -> Result<Imported, String> {
    let messages = record.get("messages").and_then(Value::as_array).ok_or("it has no list of messages")?;
    let mut spans = Vec::new();
    let mut first = None;
    for (at, message) in messages.iter().enumerate() {
        if message.get("role").and_then(Value::as_str).is_none() {
            return Err(format!("messages.{at} has no role"));
        }
        if message["role"] != "assistant" {
            continue;
        }
        first = first.or(Some(at));
        let mut request = json!({"messages": messages[..at]});
        for key in ["model", "tools"] {
            if let Some(value) = record.get(key) {
                request[key] = value.clone();
            }
        }
        let response = json!({"choices": [{"message": message}], "model": record.get("model")});
        spans.extend(call_spans(&request, &response, &Value::Null));
    }
    let Some(first) = first else { return Err("no message is the assistant's".to_owned()) };
    spans.extend(reward_span(record));
    Ok(Imported { session: None, input: json!({"messages": messages[..first]}), spans })
}

/// The spans of one call: its own, those of the tools that it called, and that of its reward.
fn call_spans(request: &Value, response: &Value, record: &Value) -> Vec<Span> {
    let time = |key: &str| record.get(key).and_then(Value::as_f64);
    let created = response.get("created").and_then(Value::as_f64);
    let start = time("start_time").or(created).unwrap_or_default();
    let end = time("end_time").unwrap_or(start);
    let mut call = Span::new(LLM_CALL, String::new(), "call".to_owned(), start, end);
    call.attributes = chat_attributes(request, response);
    if let Some(error) = response.get("error").filter(|error| !error.is_null()) {
        let message = error["message"].as_str().map_or_else(|| error.to_string(), str::to_owned);
        call.status = TraceStatus { description: Some(message), ..TraceStatus::new(StatusCode::Error) };
    }
    let mut spans = vec![call];
    for (number, (name, attributes)) in tool_call_attributes(response).into_iter().enumerate() {
        let mut tool = Span::new(name, String::new(), format!("tool-{number}"), end, end);
        tool.parent_id = Some("call".to_owned());
        tool.attributes = attributes;
        spans.push(tool);
    }
    spans.extend(reward_span(record));
    spans
}

fn reward_span(record: &Value) -> Option<Span> {
    let value = record.get("reward")?.as_f64()?;
    let mut span =
        Span::new(agl_types::semconv::AGL_ANNOTATION, String::new(), "reward".to_owned(), 0.0, 0.0);
    span.attributes = reward_attributes(&[RewardDimension { name: PRIMARY.to_owned(), value }]);
    Some(span)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reading::read_calls;

    #[test]
    fn logged_calls_are_read_in_three_forms() {
        let request = json!({"model": "m", "messages": [{"role": "user", "content": "hi"}]});
        let response = json!({"id": "x", "choices": [{"message": {"role": "assistant", "content": "ho"}}]});
        let forms = [
            json!({"request": request, "response": response, "reward": 1, "session_id": "s"}),
            json!({"custom_id": "c", "body": request, "response": {"status_code": 200, "body": response}}),
            json!({"input": request, "output": response}),
        ];
        for form in &forms {
            let imported = logged_call(form).unwrap();
            let call = &read_calls(&imported.spans)[0];
            assert_eq!(call.to_chat()[1]["content"], "ho");
            assert_eq!(call.response_id.as_deref(), Some("x"));
        }
        let imported = logged_call(&forms[0]).unwrap();
        assert_eq!((imported.session.as_deref(), imported.spans.len()), (Some("s"), 2));
        for (bad, why) in [(json!({}), "no request"), (json!({"request": {}, "response": {}}), "no messages")]
        {
            assert!(logged_call(&bad).unwrap_err().contains(why));
        }
    }

    #[test]
    fn every_answer_of_a_conversation_is_a_call() {
        let record = json!({"messages": [
            {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"},
            {"role": "user", "content": "c"}, {"role": "assistant", "content": "d"},
        ], "reward": 0.5});
        let imported = conversation(&record).unwrap();
        assert_eq!(imported.input, json!({"messages": [{"role": "user", "content": "a"}]}));
        assert_eq!(imported.spans.len(), 3);
        assert!(conversation(&json!({"messages": [{"role": "user", "content": "a"}]})).is_err());
        assert!(conversation(&json!({"messages": [{"content": "a"}]})).unwrap_err().contains("messages.0"));
    }
}
