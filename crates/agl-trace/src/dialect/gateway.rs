//! Our own gateway, whose spans have the engine's tokens. It writes what both OpenTelemetry's conventions and 0.3's
//! adapters read, so the readers of those read it; what is its own is the name of the tracer, and what it says of a call
//! that it could not record whole.

use agl_types::{Span, semconv, v1};
use serde_json::Value;

use super::{agentops, chat_call, genai, litellm};
use crate::attributes::text;
use crate::call::{LlmCall, as_text, parsed};

pub(super) fn read(span: &Span, children: &[&Span]) -> Option<LlmCall> {
    if text(&span.attributes, semconv::EVENT_TYPE) == Some(v1::MODEL_REQUEST) {
        return event(span);
    }
    if !is_gateway(span) {
        return None;
    }
    let mut call = litellm::read(span, children)
        .or_else(|| genai::read(span, children))
        .or_else(|| agentops::read(span, children))?;
    call.gap = text(&span.attributes, semconv::GATEWAY_GAP).map(str::to_owned);
    Some(call)
}

/// A call that was reported as an event of the 1.0 contract.
fn event(span: &Span) -> Option<LlmCall> {
    let data = span.attributes.get(semconv::EVENT_DATA).map(parsed).filter(Value::is_object)?;
    let mut call = chat_call(&data["request"], &data["response"]);
    call.model = call.model.or_else(|| data["model"].as_str().map(str::to_owned));
    let logprobs = &data["response"]["choices"][0]["logprobs"];
    if let Some(choice) = call.choices.first_mut()
        && choice.logprobs.is_empty()
    {
        choice.logprobs = crate::call::logprobs(logprobs);
    }
    let error = [&data["response"]["error"], &data["error"]].into_iter().find(|error| !error.is_null());
    call.error = error.map(|error| error["message"].as_str().map_or_else(|| as_text(error), str::to_owned));
    Some(call)
}

/// Whether our gateway recorded the span.
fn is_gateway(span: &Span) -> bool {
    [&span.attributes, &span.resource.attributes]
        .iter()
        .any(|attributes| text(attributes, semconv::TRACER_NAME) == Some(semconv::GATEWAY))
}
