//! A call that was recorded as an operation, as 0.3's tracer hands on what Weave saw: the arguments and the answer of
//! the function of OpenAI's client, flattened.

use agl_types::{Span, semconv};
use serde_json::Value;

use super::{chat_call, numbered};
use crate::attributes::group;
use crate::call::{Choice, LlmCall, Message, Tool};

pub(super) fn read(span: &Span, _: &[&Span]) -> Option<LlmCall> {
    let input = group(&span.attributes, semconv::OPERATION_INPUT).map(opened);
    let output = group(&span.attributes, semconv::OPERATION_OUTPUT).map(opened);
    let messages = input.as_ref().and_then(|input| input.get("messages")).cloned();
    let choices = output.as_ref().and_then(|output| output.get("choices")).cloned();
    if choices.is_none() && (messages.is_none() || input.as_ref()?.get("model").is_none()) {
        return None;
    }
    let (input, output) = (input.unwrap_or_default(), output.unwrap_or_default());
    let mut call = chat_call(&input, &output);
    // The client that was called, what Weave notes for itself, and what the caller left out.
    call.parameters.retain(|key, value| key != "self" && !key.starts_with("_weave") && value != "NOT_GIVEN");
    // A list with a gap is not one any more.
    call.messages = numbered(messages).iter().map(message).collect();
    call.choices = numbered(choices).iter().map(Choice::from_chat).collect();
    call.tools = numbered(input.get("tools").cloned()).iter().filter_map(Tool::read).collect();
    for (choice, ids) in call.choices.iter_mut().zip(numbered(output.get("response_token_ids").cloned())) {
        if choice.token_ids.is_empty() {
            choice.token_ids = crate::call::token_ids(&ids).unwrap_or_default();
        }
    }
    Some(call)
}

/// A message, of which None was written as text where it calls tools and says nothing.
fn message(message: &Value) -> Message {
    let mut read = Message::from_chat(message);
    if !read.tool_calls.is_empty() && message["content"] == "null" {
        read.parts.clear();
    }
    read
}

/// An operation's input or output that was written as JSON text.
fn opened(value: Value) -> Value {
    match value {
        Value::String(text) => serde_json::from_str(&text).unwrap_or_default(),
        other => other,
    }
}
