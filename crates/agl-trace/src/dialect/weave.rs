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
    call.parameters.retain(|key, _| key != "self");
    // A list with a gap is not one any more.
    call.messages = numbered(messages).iter().map(Message::from_chat).collect();
    call.choices = numbered(choices).iter().map(Choice::from_chat).collect();
    call.tools = numbered(input.get("tools").cloned()).iter().filter_map(Tool::read).collect();
    for (choice, ids) in call.choices.iter_mut().zip(numbered(output.get("response_token_ids").cloned())) {
        if choice.token_ids.is_empty() {
            choice.token_ids = crate::call::token_ids(&ids).unwrap_or_default();
        }
    }
    Some(call)
}

/// An operation's input or output that was written as JSON text.
fn opened(value: Value) -> Value {
    match value {
        Value::String(text) => serde_json::from_str(&text).unwrap_or_default(),
        other => other,
    }
}
