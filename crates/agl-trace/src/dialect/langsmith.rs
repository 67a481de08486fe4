//! LangSmith's export over OpenTelemetry: a run's inputs and outputs as JSON in `gen_ai.prompt` and
//! `gen_ai.completion`, with messages as LangChain serializes them or as OpenAI's chat API has them.

use agl_types::{Span, semconv};
use serde_json::Value;

use super::{chat_call, whole};
use crate::attributes::text;
use crate::call::{Choice, LlmCall, Message, Part, Tool, ToolCall, list, parsed};

/// Parameters of a request, which are among a run's metadata.
const PARAMETERS: [&str; 8] =
    ["temperature", "top_p", "max_tokens", "max_completion_tokens", "stop", "seed", "logprobs", "stream"];

pub(super) fn read(span: &Span, _: &[&Span]) -> Option<LlmCall> {
    let attributes = &span.attributes;
    if !text(attributes, "langsmith.span.kind")?.eq_ignore_ascii_case("llm") {
        return None;
    }
    let body = |key: &str| attributes.get(key).map(parsed).unwrap_or_default();
    let (inputs, outputs) = (body(semconv::GEN_AI_PROMPT), body(semconv::GEN_AI_COMPLETION));
    // A run of OpenAI's own client, wrapped, has the bodies themselves.
    let mut call = chat_call(&inputs, &outputs);
    if inputs["messages"][0].get("role").is_none() {
        // LangChain has a list of messages for each prompt of a batch; a run is one of them.
        let batch = &inputs["messages"];
        let messages = batch.get(0).filter(|first| first.is_array()).unwrap_or(batch);
        call.messages = list(Some(messages)).map(message).collect();
    }
    if call.choices.is_empty() {
        call.choices = list(outputs["generations"].get(0)).map(choice).collect();
    }
    if call.choices.is_empty() && outputs.get("role").is_some() {
        call.choices.push(Choice { message: Message::from_chat(&outputs), ..Choice::default() });
    }
    let metadata = |key: &str| text(attributes, &format!("langsmith.metadata.{key}")).map(str::to_owned);
    call.model = call.model.or_else(|| metadata("ls_model_name"));
    let output = &outputs["llm_output"];
    let first = &outputs["generations"][0][0]["message"];
    let of_first = fields(first);
    call.response_id = call
        .response_id
        .or_else(|| output["id"].as_str().map(str::to_owned))
        .or_else(|| of_first["response_metadata"]["id"].as_str().map(str::to_owned));
    let usage = &of_first["usage_metadata"];
    call.usage.prompt_tokens = call.usage.prompt_tokens.or_else(|| whole(&usage["input_tokens"]));
    call.usage.completion_tokens = call.usage.completion_tokens.or_else(|| whole(&usage["output_tokens"]));
    if call.parameters.is_empty() {
        let told = PARAMETERS.iter().filter_map(|key| {
            let value = attributes.get(&format!("langsmith.metadata.{key}"))?;
            Some(((*key).to_owned(), value.clone()))
        });
        call.parameters = told.collect();
    }
    if call.tools.is_empty() {
        let tools = attributes.get("gen_ai.tool.definitions").map(parsed);
        call.tools = list(tools.as_ref()).filter_map(Tool::read).collect();
    }
    Some(call)
}

/// The fields of a message that LangChain has serialized.
fn fields(message: &Value) -> &Value {
    ["kwargs", "data"].iter().find_map(|key| message.get(*key)).unwrap_or(message)
}

fn message(message: &Value) -> Message {
    let fields = fields(message);
    let class = list(message.get("id")).last().or_else(|| fields.get("type")).and_then(Value::as_str);
    let role = match class.unwrap_or_default() {
        "SystemMessage" | "system" => "system",
        "HumanMessage" | "human" => "user",
        "AIMessage" | "AIMessageChunk" | "ai" => "assistant",
        "ToolMessage" | "tool" => "tool",
        "FunctionMessage" | "function" => "function",
        other => other,
    };
    let string = |key: &str| fields.get(key).and_then(Value::as_str).map(str::to_owned);
    Message {
        role: role.to_owned(),
        parts: fields.get("content").map(Part::list).unwrap_or_default(),
        tool_calls: list(fields.get("tool_calls")).filter_map(ToolCall::read).collect(),
        tool_call_id: string("tool_call_id"),
        name: string("name"),
    }
}

fn choice(generation: &Value) -> Choice {
    let about = &fields(&generation["message"])["response_metadata"];
    let reason =
        generation["generation_info"]["finish_reason"].as_str().or_else(|| about["finish_reason"].as_str());
    let mut message = match generation.get("message") {
        Some(answer) => message(answer),
        None => Message::text("assistant", generation["text"].as_str().unwrap_or_default()),
    };
    message.role = "assistant".to_owned();
    let logprobs = [&about["logprobs"], &generation["generation_info"]["logprobs"]];
    Choice {
        message,
        finish_reason: reason.map(str::to_owned),
        token_ids: about.get("token_ids").and_then(crate::call::token_ids).unwrap_or_default(),
        logprobs: logprobs
            .into_iter()
            .map(crate::call::logprobs)
            .find(|found| !found.is_empty())
            .unwrap_or_default(),
    }
}
