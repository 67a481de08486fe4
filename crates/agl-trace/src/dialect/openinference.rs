//! Arize's OpenInference: flattened messages under `llm.`, and the bodies of request and response in `input.value` and
//! `output.value`, where vLLM's token ids are.
//!
//! See <https://github.com/Arize-ai/openinference/blob/main/spec/semantic_conventions.md>.

use agl_types::Span;
use serde_json::{Value, json};

use super::{chat_call, numbered, whole};
use crate::attributes::{group, text};
use crate::call::{Choice, LlmCall, Message, Part, Tool, ToolCall, as_text, parsed};

pub(super) fn read(span: &Span, _: &[&Span]) -> Option<LlmCall> {
    let attributes = &span.attributes;
    if !text(attributes, "openinference.span.kind")?.eq_ignore_ascii_case("LLM") {
        return None;
    }
    let body = |key: &str| attributes.get(key).map(parsed).unwrap_or_default();
    // What the bodies say is what went over the wire; the flattened attributes fill in where there is none.
    let mut call = chat_call(&body("input.value"), &body("output.value"));
    let entries = |key: &str| numbered(group(attributes, key));
    if call.messages.is_empty() {
        call.messages =
            entries("llm.input_messages").iter().map(|entry| message(&entry["message"])).collect();
    }
    if call.choices.is_empty() {
        let answer = |entry: &Value| Choice { message: message(&entry["message"]), ..Choice::default() };
        call.choices = entries("llm.output_messages").iter().map(answer).collect();
    }
    if call.tools.is_empty() {
        let tool = |entry: &Value| Tool::read(&parsed(&entry["tool"]["json_schema"]));
        call.tools = entries("llm.tools").iter().filter_map(tool).collect();
    }
    if call.parameters.is_empty()
        && let Some(Value::Object(parameters)) = attributes.get("llm.invocation_parameters").map(parsed)
    {
        let told = ["model", "messages", "tools"];
        call.parameters = parameters.into_iter().filter(|(key, _)| !told.contains(&key.as_str())).collect();
    }
    let model = || text(attributes, "llm.model_name").map(str::to_owned);
    call.model = call.model.or_else(model);
    let count = |key: &str| attributes.get(key).and_then(whole);
    call.usage.prompt_tokens = call.usage.prompt_tokens.or_else(|| count("llm.token_count.prompt"));
    call.usage.completion_tokens =
        call.usage.completion_tokens.or_else(|| count("llm.token_count.completion"));
    if let Some(choice) = call.choices.first_mut()
        && choice.finish_reason.is_none()
    {
        choice.finish_reason = text(attributes, "llm.finish_reason").map(str::to_owned);
    }
    Some(call)
}

fn message(message: &Value) -> Message {
    let string = |key: &str| message.get(key).and_then(Value::as_str).map(str::to_owned);
    let part = |entry: &Value| {
        let content = &entry["message_content"];
        let url = content["image"]["image"]["url"].as_str().or_else(|| content["image"]["url"].as_str());
        match (content["text"].as_str(), url) {
            (_, Some(url)) => Part::Image { url: url.to_owned() },
            (Some(text), _) => Part::text(text),
            _ => Part::Other { value: content.clone() },
        }
    };
    let mut parts = message.get("content").map(Part::list).unwrap_or_default();
    parts.extend(numbered(message.get("contents").cloned()).iter().map(part));
    let call = |entry: &Value| {
        let call = &entry["tool_call"];
        let function = &call["function"];
        let arguments = as_text(&function["arguments"]);
        ToolCall::read(&json!({"id": call["id"], "name": function["name"], "arguments": arguments}))
    };
    Message {
        role: string("role").unwrap_or_default(),
        parts,
        tool_calls: numbered(message.get("tool_calls").cloned()).iter().filter_map(call).collect(),
        tool_call_id: string("tool_call_id"),
        name: string("name"),
    }
}
