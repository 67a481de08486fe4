//! Our own gateway, whose spans have the engine's tokens. It writes what 0.3's adapters read, so AgentOps' reader reads it;
//! what is its own is below `agentlightning.gateway`: the token ids and log-probs of every choice, how the call ended, and
//! why no training data can be made of it. Calls that were reported as events of the 1.0 contract are read here too.

use agl_types::{Span, semconv, v1};
use serde_json::Value;

use super::{agentops, chat_call, numbered};
use crate::attributes::{below, group, text};
use crate::call::{LlmCall, as_text, parsed, token_ids};

pub(super) fn read(span: &Span, children: &[&Span]) -> Option<LlmCall> {
    let attributes = &span.attributes;
    if below(attributes, semconv::GATEWAY).next().is_none() {
        let is_event = text(attributes, semconv::EVENT_TYPE) == Some(v1::MODEL_REQUEST);
        return if is_event { event(span) } else { None };
    }
    if text(attributes, "gen_ai.operation.name") == Some("embeddings") {
        return None;
    }
    let mut call = agentops::read(span, children)?;
    let own = |key: &str| format!("{}.{key}", semconv::GATEWAY);
    let told = numbered(group(attributes, &own("choices")));
    for (choice, told) in call.choices.iter_mut().zip(told) {
        if let Some(ids) = told.get("token_ids").and_then(token_ids) {
            choice.token_ids = ids;
            choice.logprobs = told.get("logprobs").map(crate::call::logprobs).unwrap_or_default();
        }
    }
    // A call that failed or was never sent gave the agent nothing: it is no gap.
    if !matches!(text(attributes, &own("outcome")), Some("failed" | "aborted")) {
        call.gap = text(attributes, semconv::UNTRAINABLE).map(str::to_owned);
    }
    Some(call)
}

/// A call that was reported as an event of the 1.0 contract.
fn event(span: &Span) -> Option<LlmCall> {
    let data = span.attributes.get(semconv::EVENT_DATA).map(parsed).filter(Value::is_object)?;
    let mut call = chat_call(&data["request"], &data["response"]);
    call.model = call.model.or_else(|| data["model"].as_str().map(str::to_owned));
    let error = [&data["response"]["error"], &data["error"]].into_iter().find(|error| !error.is_null());
    call.error = error.map(|error| error["message"].as_str().map_or_else(|| as_text(error), str::to_owned));
    Some(call)
}
