//! AgentOps, and our own tracers, which write the same: numbered groups, and a child span for each call of a tool.

use agl_types::Span;
use serde_json::{Value, json};

use super::flat_call;
use crate::attributes::{below, text};
use crate::call::{LlmCall, ToolCall};

pub(super) fn read(span: &Span, children: &[&Span]) -> Option<LlmCall> {
    let attributes = &span.attributes;
    let told = ["gen_ai.prompt", "gen_ai.completion"];
    let is_told = told.iter().any(|prefix| below(attributes, prefix).next().is_some());
    let has_ids = attributes.contains_key(agl_types::semconv::RESPONSE_TOKEN_IDS);
    // A request alone is a call that failed.
    let is_named = span.name == crate::LLM_CALL || text(attributes, "gen_ai.request.type") == Some("chat");
    if !is_told && !has_ids && !is_named {
        return None;
    }
    let mut call = flat_call(attributes, "gen_ai.request.functions");
    // Which choice called them is not told; the answers of one call are alike in this as a rule.
    let calls: Vec<ToolCall> = children.iter().filter_map(|child| tool_call(child)).collect();
    for choice in &mut call.choices {
        if choice.message.role == "assistant" && choice.message.tool_calls.is_empty() {
            choice.message.tool_calls.clone_from(&calls);
        }
    }
    Some(call)
}

/// The call of a tool that a child span stands for.
pub(super) fn tool_call(span: &Span) -> Option<ToolCall> {
    let get = |key: &str| span.attributes.get(key).cloned().unwrap_or(Value::Null);
    let (id, name) = (get("tool.call.id"), get("tool.name"));
    if !id.is_string() {
        return None;
    }
    ToolCall::read(&json!({"id": id, "name": name, "arguments": get("tool.parameters")}))
}
