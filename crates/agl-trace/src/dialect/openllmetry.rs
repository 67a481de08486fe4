//! Traceloop's OpenLLMetry: numbered groups as AgentOps has them, with the calls of tools in the answer and the request
//! under `llm.request`. Its newer versions write OpenTelemetry's own conventions, which are read there.

use agl_types::Span;
use serde_json::Value;

use super::{flat_call, whole};
use crate::attributes::{below, group, text};
use crate::call::LlmCall;

pub(super) fn read(span: &Span, _: &[&Span]) -> Option<LlmCall> {
    let attributes = &span.attributes;
    let kind = text(attributes, "llm.request.type").filter(|kind| ["chat", "completion"].contains(kind));
    let is_theirs =
        kind.is_some() && !below(attributes, "metadata").any(|(key, _)| key.starts_with("requester_"));
    if !is_theirs {
        return None;
    }
    let mut call = flat_call(attributes, "llm.request.functions");
    call.usage.prompt_tokens = attributes.get("llm.usage.prompt_tokens").and_then(whole);
    call.usage.completion_tokens = attributes.get("llm.usage.completion_tokens").and_then(whole);
    if let Some(Value::Object(request)) = group(attributes, "gen_ai.request") {
        call.parameters = request.into_iter().filter(|(key, _)| key != "model").collect();
    }
    for key in
        ["llm.is_streaming", "llm.headers", "llm.top_k", "llm.frequency_penalty", "llm.presence_penalty"]
    {
        if let (Some(value), Some(name)) = (attributes.get(key), key.strip_prefix("llm.")) {
            call.parameters.insert(name.to_owned(), value.clone());
        }
    }
    Some(call)
}
