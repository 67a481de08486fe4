//! An OpenAI chat call as span attributes, in the shape that 0.3's tracers record and adapters read.

use agl_types::{Attributes, is_plain_attribute, semconv};
use serde_json::Value;

/// Name of the span of an OpenAI chat call.
pub const LLM_CALL: &str = "openai.chat.completion";

/// Attributes of the span `openai.chat.completion` for a chat call, from the JSON of its request and response.
///
/// Messages and choices come as `gen_ai.prompt.{i}.*` and `gen_ai.completion.{i}.*`, multimodal content as JSON
/// text, tools as `gen_ai.request.functions.{i}.*`. The engine's token ids and log-probs are those of the first
/// choice: `prompt_token_ids`, `response_token_ids`, `logprobs.content` (JSON text).
#[must_use]
pub fn chat_attributes(request: &Value, response: &Value) -> Attributes {
    let mut attributes = Attributes::new();
    let mut put = |key: String, value: Value| insert(&mut attributes, key, value);
    put("gen_ai.system".to_owned(), "OpenAI".into());
    put("gen_ai.request.type".to_owned(), "chat".into());
    put("gen_ai.request.streaming".to_owned(), request["stream"].as_bool().unwrap_or(false).into());
    for parameter in ["model", "temperature", "top_p", "max_tokens", "max_completion_tokens", "seed"] {
        put(format!("gen_ai.request.{parameter}"), request[parameter].clone());
    }
    for (index, tool) in list(&request["tools"]).iter().enumerate() {
        let function = &tool["function"];
        let prefix = format!("gen_ai.request.functions.{index}");
        put(format!("{prefix}.name"), function["name"].clone());
        put(format!("{prefix}.description"), function["description"].clone());
        put(format!("{prefix}.parameters"), as_text(&function["parameters"]));
    }
    for (index, message) in list(&request["messages"]).iter().enumerate() {
        let prefix = format!("{}.{index}", semconv::GEN_AI_PROMPT);
        put(format!("{prefix}.role"), message["role"].clone());
        put(format!("{prefix}.content"), as_text(&message["content"]));
        put(format!("{prefix}.tool_call_id"), message["tool_call_id"].clone());
        put_tool_calls(&mut put, &prefix, message);
    }
    put(semconv::GEN_AI_RESPONSE_ID.to_owned(), response["id"].clone());
    put(format!("{}.model", semconv::GEN_AI_RESPONSE), response["model"].clone());
    for count in ["prompt_tokens", "completion_tokens", "total_tokens"] {
        put(format!("gen_ai.usage.{count}"), response["usage"][count].clone());
    }
    for (index, choice) in list(&response["choices"]).iter().enumerate() {
        let prefix = format!("{}.{index}", semconv::GEN_AI_COMPLETION);
        put(format!("{prefix}.role"), choice["message"]["role"].clone());
        put(format!("{prefix}.content"), as_text(&choice["message"]["content"]));
        put(format!("{prefix}.finish_reason"), choice["finish_reason"].clone());
        put_tool_calls(&mut put, &prefix, &choice["message"]);
    }
    let first = &response["choices"][0];
    put(semconv::PROMPT_TOKEN_IDS.to_owned(), response["prompt_token_ids"].clone());
    put(semconv::RESPONSE_TOKEN_IDS.to_owned(), response_token_ids(response));
    put(semconv::LOGPROBS_CONTENT.to_owned(), as_text(&first["logprobs"]["content"]));
    put("logprobs.refusal".to_owned(), as_text(&first["logprobs"]["refusal"]));
    attributes
}

/// The tools that a message calls.
fn put_tool_calls(put: &mut impl FnMut(String, Value), prefix: &str, message: &Value) {
    for (number, call) in list(&message["tool_calls"]).iter().enumerate() {
        let prefix = format!("{prefix}.tool_calls.{number}");
        put(format!("{prefix}.id"), call["id"].clone());
        put(format!("{prefix}.name"), call["function"]["name"].clone());
        put(format!("{prefix}.arguments"), call["function"]["arguments"].clone());
    }
}

/// Where the various servers put the token ids of the first choice.
fn response_token_ids(response: &Value) -> Value {
    let first = &response["choices"][0];
    [&response["response_token_ids"][0], &first["token_ids"], &first["provider_specific_fields"]["token_ids"]]
        .into_iter()
        .find(|ids| ids.is_array())
        .cloned()
        .unwrap_or_default()
}

/// For each tool call of the first choice, the name of its span and its attributes; the spans belong below the
/// chat call's.
#[must_use]
pub fn tool_call_attributes(response: &Value) -> Vec<(String, Attributes)> {
    list(&response["choices"][0]["message"]["tool_calls"])
        .iter()
        .map(|call| {
            let name = call["function"]["name"].as_str().unwrap_or_default();
            let mut attributes = Attributes::new();
            insert(&mut attributes, "tool.name".to_owned(), name.into());
            insert(&mut attributes, "tool.parameters".to_owned(), as_text(&call["function"]["arguments"]));
            insert(&mut attributes, "tool.call.id".to_owned(), call["id"].clone());
            insert(&mut attributes, "tool.call.type".to_owned(), "function".into());
            (format!("tool_call.{name}"), attributes)
        })
        .collect()
}

/// Leaves null out, and writes as JSON text what no attribute can be: a server may answer anything.
fn insert(attributes: &mut Attributes, key: String, value: Value) {
    if value.is_null() {
        return;
    }
    let value = if is_plain_attribute(&value) { value } else { value.to_string().into() };
    attributes.insert(key, value);
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

/// Text and null as they are, anything else as JSON text.
fn as_text(value: &Value) -> Value {
    match value {
        Value::Null | Value::String(_) => value.clone(),
        other => Value::String(other.to_string()),
    }
}
