//! LiteLLM's proxy: `raw_gen_ai_request` holds what went to the engine and came back, as Python literals under
//! `llm.{provider}.`; its parent `litellm_request` holds the same call in numbered groups.

use agl_types::{JsonMap, Span};
use serde_json::Value;

use super::python_literal::parse;
use super::{chat_call, flat_call, genai, whole};
use crate::attributes::below;
use crate::call::{LlmCall, parsed};

/// Name of the span with the bodies.
pub(crate) const RAW: &str = "raw_gen_ai_request";
/// Name of the span with the groups.
pub(crate) const REQUEST: &str = "litellm_request";

/// Keys of a response; the others are the request's.
const RESPONSE: [&str; 9] = [
    "id",
    "choices",
    "created",
    "object",
    "usage",
    "prompt_token_ids",
    "response_token_ids",
    "prompt_logprobs",
    "system_fingerprint",
];

pub(super) fn read(span: &Span, _: &[&Span]) -> Option<LlmCall> {
    match span.name.as_str() {
        RAW => Some(raw(span)),
        REQUEST => Some(grouped(span)),
        _ => None,
    }
}

fn grouped(span: &Span) -> LlmCall {
    let mut call = flat_call(&span.attributes, "llm.request.functions");
    // Its newer versions write OpenTelemetry's own conventions.
    if call.messages.is_empty() && call.choices.is_empty() {
        genai::read_messages(&mut call, &span.attributes);
    }
    call.usage.completion_tokens = span.attributes.get("gen_ai.usage.completion_tokens").and_then(whole);
    call
}

fn raw(span: &Span) -> LlmCall {
    let mut request = JsonMap::new();
    let mut response = JsonMap::new();
    for (key, value) in below(&span.attributes, "llm") {
        // `llm.{provider}.{key}`; a provider has no dots.
        let Some((_, key)) = key.split_once('.') else { continue };
        let value = opened(value);
        if RESPONSE.contains(&key) {
            response.insert(key.to_owned(), value);
        } else {
            request.insert(key.to_owned(), value);
        }
    }
    if let Some(model) = request.get("model") {
        response.insert("model".to_owned(), model.clone());
    }
    chat_call(&Value::Object(request), &Value::Object(response))
}

/// Text that is a Python literal or JSON as what it says; anything else as it is.
#[must_use]
pub fn opened(value: &Value) -> Value {
    match value {
        Value::String(text) if text.starts_with(['[', '{', '(']) => {
            parse(text).unwrap_or_else(|| parsed(value))
        }
        Value::String(text) => match text.as_str() {
            "None" => Value::Null,
            "True" => true.into(),
            "False" => false.into(),
            _ => value.clone(),
        },
        other => other.clone(),
    }
}
