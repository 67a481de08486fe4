//! Vercel's AI SDK: spans `ai.generateText.doGenerate` and `ai.streamText.doStream` (and those of objects), with JSON in
//! `ai.prompt.messages`, `ai.prompt.tools` and `ai.response.*`. The spans above them stand for whole runs.
//!
//! See <https://ai-sdk.dev/docs/ai-sdk-core/telemetry>.

use agl_types::Span;
use serde_json::Value;

use super::{numbered, whole};
use crate::attributes::{group, text};
use crate::call::{Choice, LlmCall, Message, Part, Tool, ToolCall, as_text, list, parsed};

pub(super) fn read(span: &Span, _: &[&Span]) -> Option<LlmCall> {
    let attributes = &span.attributes;
    let operation = text(attributes, "ai.operationId").unwrap_or(&span.name);
    if !operation.starts_with("ai.")
        || !(operation.ends_with(".doGenerate") || operation.ends_with(".doStream"))
    {
        return None;
    }
    let get = |key: &str| attributes.get(key).map(parsed).unwrap_or_default();
    let string = |keys: &[&str]| keys.iter().find_map(|key| text(attributes, key)).map(str::to_owned);
    let prompt = get("ai.prompt.messages");
    let mut answer = Message { role: "assistant".to_owned(), ..Message::default() };
    if let Some(thought) = string(&["ai.response.reasoning"]) {
        answer.parts.push(Part::Reasoning { text: thought });
    }
    if let Some(words) = string(&["ai.response.text", "ai.response.object"]) {
        answer.parts.push(Part::text(&words));
    }
    answer.tool_calls = list(Some(&get("ai.response.toolCalls"))).filter_map(ToolCall::read).collect();
    let finish_reason = string(&["ai.response.finishReason"]);
    let mut choices = Vec::new();
    if !answer.is_empty() || finish_reason.is_some() {
        choices.push(Choice { message: answer, finish_reason, ..Choice::default() });
    }
    // Each tool is JSON text of its own.
    let tools = numbered(Some(get("ai.prompt.tools")));
    let settings = group(attributes, "ai.settings").and_then(|settings| settings.as_object().cloned());
    let mut call = LlmCall {
        messages: list(Some(&prompt)).flat_map(messages).collect(),
        choices,
        tools: tools.iter().map(parsed).filter_map(|tool| Tool::read(&tool)).collect(),
        model: string(&["ai.model.id"]),
        response_id: string(&["ai.response.id"]),
        response_model: string(&["ai.response.model"]),
        parameters: settings.unwrap_or_default(),
        ..LlmCall::default()
    };
    let count = |keys: &[&str]| keys.iter().find_map(|key| whole(attributes.get(*key)?));
    call.usage.prompt_tokens = count(&["ai.usage.inputTokens", "ai.usage.promptTokens"]);
    call.usage.completion_tokens = count(&["ai.usage.outputTokens", "ai.usage.completionTokens"]);
    Some(call)
}

/// A message whose calls of tools, and whose results, are parts.
fn messages(message: &Value) -> Vec<Message> {
    let role = super::role_or(message, "user");
    let mut read = Message { role: role.clone(), ..Message::default() };
    let mut answers = Vec::new();
    match &message["content"] {
        Value::Array(parts) => {
            for part in parts {
                match part.get("type").and_then(Value::as_str) {
                    Some("tool-call") => read.tool_calls.extend(ToolCall::read(part)),
                    Some("tool-result") => {
                        let output = part.get("output").or_else(|| part.get("result"));
                        // `{"type": "json", "value"}` since version 5.
                        let output = output.map(|output| output.get("value").unwrap_or(output));
                        answers.push(Message {
                            tool_call_id: part.get("toolCallId").and_then(Value::as_str).map(str::to_owned),
                            ..Message::text("tool", &output.map(as_text).unwrap_or_default())
                        });
                    }
                    Some("file") if is_image(part) => {
                        read.parts.push(Part::Image { url: as_text(&part["data"]) });
                    }
                    _ => read.parts.push(Part::read(part)),
                }
            }
        }
        content => read.parts = Part::list(content),
    }
    if !read.is_empty() || answers.is_empty() {
        answers.push(read);
    }
    answers
}

fn is_image(part: &Value) -> bool {
    part.get("mediaType").and_then(Value::as_str).is_some_and(|kind| kind.starts_with("image/"))
        && part.get("data").is_some_and(Value::is_string)
}
