//! Anything with a prompt and a response, for traces of which no convention is known.

use agl_types::{Span, semconv};
use serde_json::Value;

use crate::attributes::group;
use crate::call::{Choice, LlmCall, Message, as_text, parsed};

/// Where a prompt and its response may be, the surest first.
const PAIRS: [(&str, &str); 7] = [
    (semconv::GEN_AI_PROMPT, semconv::GEN_AI_COMPLETION),
    ("prompt", "response"),
    ("prompt", "completion"),
    ("input.value", "output.value"),
    ("traceloop.entity.input", "traceloop.entity.output"),
    ("input", "output"),
    (semconv::OPERATION_INPUT, semconv::OPERATION_OUTPUT),
];

/// Reads a span that has a prompt and a response, whatever it stands for.
pub(super) fn read(span: &Span) -> Option<LlmCall> {
    PAIRS.iter().find_map(|(prompt, response)| {
        let prompt = parsed(&group(&span.attributes, prompt)?);
        let response = parsed(&group(&span.attributes, response)?);
        let message = answer(&response);
        if message.is_empty() {
            return None;
        }
        let choices = vec![Choice { message, ..Choice::default() }];
        Some(LlmCall { messages: messages(&prompt), choices, ..LlmCall::default() })
            .filter(|call| !call.messages.is_empty())
    })
}

fn messages(prompt: &Value) -> Vec<Message> {
    let list = prompt.get("messages").unwrap_or(prompt);
    match list {
        Value::Array(messages) if messages.iter().all(|message| message.get("role").is_some()) => {
            messages.iter().map(Message::from_chat).collect()
        }
        Value::Null => Vec::new(),
        other => vec![Message::text("user", &as_text(other))],
    }
}

fn answer(response: &Value) -> Message {
    let message = response["choices"][0].get("message").unwrap_or(response);
    let mut message = match message {
        Value::Array(messages) => messages.last().map(Message::from_chat).unwrap_or_default(),
        Value::Object(fields) if fields.contains_key("content") => Message::from_chat(message),
        Value::Null => Message::default(),
        other => Message::text("assistant", &as_text(other)),
    };
    message.role = "assistant".to_owned();
    message
}
