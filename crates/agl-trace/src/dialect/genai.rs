//! OpenTelemetry's conventions for generative AI, in the forms that they have had: the attributes
//! `gen_ai.input.messages`, `gen_ai.output.messages`, `gen_ai.system_instructions` and `gen_ai.tool.definitions` (JSON,
//! or JSON as text; since 1.37), the event `gen_ai.client.inference.operation.details` with the same attributes, one
//! event for each message (`gen_ai.user.message`, `gen_ai.choice`, …; until 1.36), and the events
//! `gen_ai.content.prompt` and `gen_ai.content.completion` (until 1.27).
//!
//! See <https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans/>.

use agl_types::{Attributes, Span};
use serde_json::Value;

use crate::attributes::{group, text};
use crate::call::{Choice, LlmCall, Message, Part, Tool, ToolCall, as_text, list, parsed};

/// Operations that are calls of a model that generates.
const OPERATIONS: [&str; 3] = ["chat", "text_completion", "generate_content"];
const DETAILS: &str = "gen_ai.client.inference.operation.details";

pub(super) fn read(span: &Span, _: &[&Span]) -> Option<LlmCall> {
    let attributes = &span.attributes;
    match text(attributes, "gen_ai.operation.name") {
        Some(operation) if OPERATIONS.contains(&operation) => {}
        // An agent's span repeats the messages of its calls.
        Some(_) => return None,
        None if has_messages(attributes) => {}
        None if span.events.iter().any(|event| is_message(&event.name)) => {}
        None => return None,
    }
    let mut call = LlmCall::default();
    let details = span.events.iter().filter(|event| event.name == DETAILS).map(|event| &event.attributes);
    for attributes in std::iter::once(attributes).chain(details) {
        read_messages(&mut call, attributes);
    }
    if call.messages.is_empty() && call.choices.is_empty() {
        for event in &span.events {
            read_event(&mut call, &event.name, &event.attributes);
        }
    }
    // Several libraries name the operation in the new way and write the messages in the old.
    if call.messages.is_empty() && call.choices.is_empty() {
        let flat = super::flat_call(attributes, "gen_ai.request.functions");
        call = LlmCall { tools: if flat.tools.is_empty() { call.tools } else { flat.tools }, ..flat };
    }
    let reasons = attributes.get("gen_ai.response.finish_reasons").map(parsed);
    for (choice, reason) in call.choices.iter_mut().zip(list(reasons.as_ref())) {
        if choice.finish_reason.is_none() {
            choice.finish_reason = reason.as_str().map(str::to_owned);
        }
    }
    Some(call)
}

fn has_messages(attributes: &Attributes) -> bool {
    ["gen_ai.input.messages", "gen_ai.output.messages"].iter().any(|key| attributes.contains_key(*key))
}

fn is_message(event: &str) -> bool {
    event == DETAILS
        || event == "gen_ai.choice"
        || event.starts_with("gen_ai.content.")
        || (event.starts_with("gen_ai.") && event.ends_with(".message"))
}

/// The forms that keep all messages in attributes.
pub(super) fn read_messages(call: &mut LlmCall, attributes: &Attributes) {
    let get = |key: &str| attributes.get(key).map(parsed);
    if let Some(instructions) = get("gen_ai.system_instructions") {
        let parts: Vec<Part> = match &instructions {
            Value::Array(parts) => parts.iter().map(Part::read).collect(),
            other => Part::list(other),
        };
        if !parts.is_empty() {
            call.messages.push(Message { role: "system".to_owned(), parts, ..Message::default() });
        }
    }
    call.messages.extend(list(get("gen_ai.input.messages").as_ref()).flat_map(messages));
    for answer in list(get("gen_ai.output.messages").as_ref()) {
        let message = messages(answer).into_iter().next().unwrap_or_default();
        let finish_reason = answer.get("finish_reason").and_then(Value::as_str).map(str::to_owned);
        call.choices.push(Choice { message, finish_reason, ..Choice::default() });
    }
    call.tools.extend(
        list(get("gen_ai.tool.definitions").as_ref()).map(parsed).filter_map(|tool| Tool::read(&tool)),
    );
}

/// A message with `parts`, or one of OpenAI's chat API. One that answers several calls of tools becomes several.
fn messages(message: &Value) -> Vec<Message> {
    let Some(parts) = message.get("parts").and_then(Value::as_array) else {
        return vec![Message::from_chat(message)];
    };
    let mut read = Message { role: super::role_or(message, "user"), ..Message::default() };
    read.name = message.get("name").and_then(Value::as_str).map(str::to_owned);
    // LiteLLM leaves them where OpenAI's chat API has them.
    read.tool_calls = list(message.get("tool_calls")).filter_map(ToolCall::read).collect();
    read.tool_call_id = message.get("tool_call_id").and_then(Value::as_str).map(str::to_owned);
    let mut answers = Vec::new();
    for part in parts {
        match part.get("type").and_then(Value::as_str) {
            Some("tool_call") => read.tool_calls.extend(ToolCall::read(part)),
            Some("tool_call_response") => {
                let result = ["response", "result"].iter().find_map(|key| part.get(*key));
                answers.push(Message {
                    tool_call_id: part.get("id").and_then(Value::as_str).map(str::to_owned),
                    ..Message::text("tool", &result.map(as_text).unwrap_or_default())
                });
            }
            _ => read.parts.push(Part::read(part)),
        }
    }
    if !read.is_empty() || answers.is_empty() {
        answers.push(read);
    }
    answers
}

/// The forms that have an event for each message, or one for all of them.
fn read_event(call: &mut LlmCall, name: &str, attributes: &Attributes) {
    let body = body(attributes);
    match name {
        "gen_ai.content.prompt" => {
            let prompt = attributes.get("gen_ai.prompt").map(parsed);
            call.messages.extend(list(prompt.as_ref()).map(Message::from_chat));
        }
        "gen_ai.content.completion" => {
            let completion = attributes.get("gen_ai.completion").map(parsed);
            for answer in list(completion.as_ref()) {
                call.choices.push(Choice { message: Message::from_chat(answer), ..Choice::default() });
            }
        }
        "gen_ai.choice" => {
            let message = body.get("message").map_or_else(|| body.clone(), parsed);
            let mut message = Message::from_chat(&message);
            if message.tool_calls.is_empty() {
                let calls = body.get("tool_calls").map(parsed);
                message.tool_calls = list(calls.as_ref()).filter_map(ToolCall::read).collect();
            }
            if message.role.is_empty() || message.role == "choice" {
                message.role = "assistant".to_owned();
            }
            let finish_reason = body.get("finish_reason").and_then(Value::as_str).map(str::to_owned);
            call.choices.push(Choice { message, finish_reason, ..Choice::default() });
        }
        _ => {
            let Some(kind) = name.strip_prefix("gen_ai.").and_then(|name| name.strip_suffix(".message"))
            else {
                return;
            };
            let mut message = Message::from_chat(&body);
            if message.role.is_empty() {
                message.role = kind.to_owned();
            }
            if message.tool_call_id.is_none() && kind == "tool" {
                message.tool_call_id = body.get("id").and_then(Value::as_str).map(str::to_owned);
            }
            call.messages.push(message);
        }
    }
}

/// What an event says: its attributes, opened where they are JSON text, or the body that they hold.
fn body(attributes: &Attributes) -> Value {
    for key in ["gen_ai.event.content", "body", "event.body"] {
        if let Some(body) = attributes.get(key).map(parsed).filter(Value::is_object) {
            return body;
        }
    }
    let mut body = crate::attributes::unflatten(attributes.iter().map(|(key, value)| (key.as_str(), value)));
    if let Some(Value::Object(below)) = group(attributes, "gen_ai.message")
        && let Some(body) = body.as_object_mut()
    {
        body.extend(below);
    }
    for key in ["tool_calls", "content"] {
        if let Some(value) = body.get_mut(key)
            && let Value::String(text) = value
            && text.starts_with('[')
            && let Ok(opened) = serde_json::from_str(text)
        {
            *value = opened;
        }
    }
    body
}
