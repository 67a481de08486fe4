//! How others write the call of a language model into a span: one reader for each convention, all of which yield an
//! [`LlmCall`]. A further one is a file here, a line in [`READERS`] and a set of recorded spans among the tests.

mod agentops;
mod gateway;
mod genai;
mod generic;
mod langsmith;
pub(crate) mod litellm;
mod openinference;
mod openllmetry;
mod python_literal;
mod vercel;
mod weave;

use agl_types::{Attributes, JsonMap, Span, StatusCode, semconv};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::attributes::{below, group, place as place_of, text};
use crate::call::{Choice, KnownIds, LlmCall, Message, Part, Tool, logprobs, token_ids};
use crate::reading::Found;

/// Who recorded a call.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Dialect {
    /// Our own proxy of language models, which sees the engine's tokens.
    Gateway,
    /// Vercel's AI SDK.
    Vercel,
    /// Arize's OpenInference.
    OpenInference,
    /// LangSmith's export over OpenTelemetry.
    LangSmith,
    /// LiteLLM's proxy.
    LiteLlm,
    /// Weave, as 0.3's tracer hands it on, and every call recorded as an operation.
    Weave,
    /// OpenTelemetry's conventions for generative AI.
    GenAi,
    /// Traceloop's OpenLLMetry.
    OpenLlmetry,
    /// AgentOps, and our own tracers, which write the same.
    #[default]
    AgentOps,
    /// None that is known: a span with a prompt and a response.
    Generic,
}

impl Dialect {
    /// The name of the dialect, as in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Gateway => "gateway",
            Self::Vercel => "vercel",
            Self::OpenInference => "open_inference",
            Self::LangSmith => "lang_smith",
            Self::LiteLlm => "lite_llm",
            Self::Weave => "weave",
            Self::GenAi => "gen_ai",
            Self::OpenLlmetry => "open_llmetry",
            Self::AgentOps => "agent_ops",
            Self::Generic => "generic",
        }
    }
}

type Reader = fn(&Span, &[&Span]) -> Option<LlmCall>;

/// The readers, those first that are surest of what is theirs.
const READERS: [(Dialect, Reader); 9] = [
    (Dialect::Gateway, gateway::read),
    (Dialect::Vercel, vercel::read),
    (Dialect::OpenInference, openinference::read),
    (Dialect::LangSmith, langsmith::read),
    (Dialect::LiteLlm, litellm::read),
    (Dialect::Weave, weave::read),
    (Dialect::GenAi, genai::read),
    (Dialect::OpenLlmetry, openllmetry::read),
    (Dialect::AgentOps, agentops::read),
];

/// Reads the call that a span records; none when it records none. `children` are the spans directly below it, where
/// some conventions keep the tools that the model called.
#[must_use]
pub fn read_call(span: &Span, children: &[&Span]) -> Option<LlmCall> {
    read_call_after(span, children, &mut KnownIds::default(), &[])
}

/// Likewise, after the calls that were read before: where their token ids were read is known.
pub(crate) fn read_call_after<'t>(
    span: &'t Span,
    children: &[&Span],
    known: &mut KnownIds<'t>,
    before: &[Found],
) -> Option<LlmCall> {
    let (dialect, mut call) =
        READERS.iter().find_map(|(dialect, read)| Some((*dialect, read(span, children)?)))?;
    call.dialect = dialect;
    place(&mut call, span, known, before);
    Some(call)
}

/// Reads a prompt and a response out of a span that no convention explains; none when it has no such two.
#[must_use]
pub fn read_generic(span: &Span) -> Option<LlmCall> {
    let mut call = generic::read(span)?;
    place(&mut call, span, &mut KnownIds::default(), &[]);
    call.dialect = Dialect::Generic;
    Some(call)
}

/// Adds what is the same for all conventions.
fn place<'t>(call: &mut LlmCall, span: &'t Span, known: &mut KnownIds<'t>, before: &[Found]) {
    call.span_id.clone_from(&span.span_id);
    call.sequence_id = span.sequence_id;
    call.start_time = span.start_time;
    call.end_time = span.end_time;
    add_common(call, &span.attributes, known, before);
    if call.error.is_none() && span.status.status_code == StatusCode::Error {
        let description = span.status.description.clone().filter(|text| !text.is_empty());
        call.error = description.or_else(|| text(&span.attributes, "error.message").map(str::to_owned));
        call.error.get_or_insert_with(|| "the span's status is ERROR".to_owned());
    }
}

/// Fills in what is written alike by whoever writes it at all, and only where the reader found nothing.
fn add_common<'t>(
    call: &mut LlmCall,
    attributes: &'t Attributes,
    known: &mut KnownIds<'t>,
    before: &[Found],
) {
    let string = |keys: &[&str]| keys.iter().find_map(|key| text(attributes, key)).map(str::to_owned);
    let count = |keys: &[&str]| keys.iter().find_map(|key| whole(attributes.get(*key)?));
    call.response_id = call.response_id.take().or_else(|| string(&[semconv::GEN_AI_RESPONSE_ID]));
    call.model = call.model.take().or_else(|| string(&["gen_ai.request.model"]));
    call.response_model = call.response_model.take().or_else(|| string(&["gen_ai.response.model"]));
    let usage = &mut call.usage;
    usage.prompt_tokens =
        usage.prompt_tokens.or_else(|| count(&["gen_ai.usage.input_tokens", "gen_ai.usage.prompt_tokens"]));
    usage.completion_tokens = usage
        .completion_tokens
        .or_else(|| count(&["gen_ai.usage.output_tokens", "gen_ai.usage.completion_tokens"]));
    let prompt = attributes.get(semconv::PROMPT_TOKEN_IDS).filter(|_| call.prompt_token_ids.is_empty());
    let tokens = |number: usize| {
        let call = &before[number].call;
        [call.prompt_token_ids.as_slice(), call.response_token_ids()]
    };
    if let Some(found) = prompt.and_then(|ids| known.token_ids(ids, tokens)) {
        call.prompt_token_ids = found;
    }
    let response =
        attributes.get(semconv::RESPONSE_TOKEN_IDS).filter(|_| call.response_token_ids().is_empty());
    if let Some(found) = response.and_then(token_ids)
        && !found.is_empty()
    {
        if let (Some(prompt), Some(response)) = (prompt, response)
            && !call.prompt_token_ids.is_empty()
        {
            known.add(prompt, response, before.len());
        }
        first_choice(call).token_ids = found;
    }
    if let Some(first) = call.choices.first_mut() {
        if first.logprobs.is_empty()
            && let Some(found) = attributes.get(semconv::LOGPROBS_CONTENT)
        {
            first.logprobs = logprobs(found);
        }
        // One for each token, or none: what does not fit its tokens helps nobody.
        if first.logprobs.len() != first.token_ids.len() && !first.token_ids.is_empty() {
            first.logprobs.clear();
        }
    }
    let is_told = |key: &str| ["model", "functions", "type"].contains(&key);
    // As a rule there are no others, which is soon seen.
    let are_told = |mut keys: std::iter::Peekable<_>| keys.peek().is_some() && keys.all(is_told);
    if call.parameters.is_empty()
        && !are_told(below(attributes, semconv::GEN_AI_REQUEST).map(|(key, _)| key).peekable())
        && let Some(Value::Object(request)) = group(attributes, semconv::GEN_AI_REQUEST)
    {
        call.parameters = request.into_iter().filter(|(key, _)| !is_told(key)).collect();
    }
}

/// The first answer, made if there is none.
fn first_choice(call: &mut LlmCall) -> &mut Choice {
    if call.choices.is_empty() {
        let message = Message { role: "assistant".to_owned(), ..Message::default() };
        call.choices.push(Choice { message, ..Choice::default() });
    }
    &mut call.choices[0]
}

/// A number of things, also where it was written as text.
fn whole(value: &Value) -> Option<u64> {
    value.as_u64().or_else(|| value.as_str()?.trim().parse().ok())
}

/// The members of a numbered group in order of their numbers, whatever else is beside them.
pub(crate) fn numbered(value: Option<Value>) -> Vec<Value> {
    match value {
        Some(Value::Array(items)) => items,
        Some(Value::Object(fields)) => {
            let mut items: Vec<(u64, Value)> =
                fields.into_iter().filter_map(|(key, item)| Some((key.parse().ok()?, item))).collect();
            items.sort_by_key(|(number, _)| *number);
            items.into_iter().map(|(_, item)| item).collect()
        }
        _ => Vec::new(),
    }
}

/// A message of a numbered group: like one of OpenAI's chat API, but a list of parts is written as JSON text.
fn flat_message(message: &Value) -> Message {
    let mut read = Message::from_chat(message);
    if let [Part::Text { text }] = read.parts.as_slice()
        && text.starts_with('[')
        && let Ok(Value::Array(parts)) = serde_json::from_str(text)
        && !parts.is_empty()
        && parts.iter().all(|part| part.get("type").is_some_and(Value::is_string))
    {
        let content = Value::Array(parts);
        read = Message { parts: Part::list(&content), ..read };
    }
    // A call of a tool that was flattened has numbers for its list.
    if read.tool_calls.is_empty() {
        let calls = numbered(message.get("tool_calls").cloned());
        read.tool_calls = calls.iter().filter_map(crate::call::ToolCall::read).collect();
    }
    read
}

/// The messages of a numbered group of words alone, and why each ended: what most groups are, read without making nested
/// JSON of them first. None when there is anything else to them.
fn plain_messages(attributes: &Attributes, prefix: &str) -> Option<Vec<(Message, Option<String>)>> {
    let mut messages: Vec<(Message, Option<String>)> = Vec::new();
    for (tail, value) in below(attributes, prefix) {
        let (number, field) = tail.split_once('.')?;
        let (number, text) = (place_of(number)?, value.as_str()?);
        if number == messages.len() {
            messages.push((Message::default(), None));
        }
        let (message, finish_reason) = messages.get_mut(number)?;
        match field {
            "role" => text.clone_into(&mut message.role),
            // A list of parts may be written as JSON text.
            "content" if text.starts_with('[') => return None,
            "content" if text.is_empty() => {}
            "content" => message.parts.push(Part::text(text)),
            "finish_reason" => *finish_reason = Some(text.to_owned()),
            _ => return None,
        }
    }
    (!messages.is_empty()).then_some(messages)
}

/// Prompt, answers and tools in the groups `gen_ai.prompt`, `gen_ai.completion` and `functions`, which several
/// conventions share.
fn flat_call(attributes: &Attributes, functions: &str) -> LlmCall {
    let choice = |choice: &Value| Choice {
        message: Message { role: role_or(choice, "assistant"), ..flat_message(choice) },
        finish_reason: choice.get("finish_reason").and_then(Value::as_str).map(str::to_owned),
        token_ids: choice.get("token_ids").and_then(token_ids).unwrap_or_default(),
        ..Choice::default()
    };
    let messages = plain_messages(attributes, semconv::GEN_AI_PROMPT)
        .filter(|messages| messages.iter().all(|(_, finish_reason)| finish_reason.is_none()))
        .map(|messages| messages.into_iter().map(|(message, _)| message).collect());
    let choices = plain_messages(attributes, semconv::GEN_AI_COMPLETION).map(|messages| {
        let choice = |(mut message, finish_reason): (Message, Option<String>)| {
            if message.role.is_empty() {
                message.role.push_str("assistant");
            }
            Choice { message, finish_reason, ..Choice::default() }
        };
        messages.into_iter().map(choice).collect()
    });
    let nested = |prefix: &str| numbered(group(attributes, prefix));
    LlmCall {
        messages: messages
            .unwrap_or_else(|| nested(semconv::GEN_AI_PROMPT).iter().map(flat_message).collect()),
        choices: choices.unwrap_or_else(|| nested(semconv::GEN_AI_COMPLETION).iter().map(choice).collect()),
        tools: numbered(group(attributes, functions)).iter().filter_map(Tool::read).collect(),
        ..LlmCall::default()
    }
}

pub(crate) fn role_or(message: &Value, otherwise: &str) -> String {
    message.get("role").and_then(Value::as_str).unwrap_or(otherwise).to_owned()
}

/// A call from the JSON of its request and of its response in OpenAI's chat API, with vLLM's extensions.
#[must_use]
pub fn chat_call(request: &Value, response: &Value) -> LlmCall {
    let string = |value: &Value, key: &str| value.get(key).and_then(Value::as_str).map(str::to_owned);
    let told = ["model", "messages", "tools"];
    let parameters: JsonMap = request
        .as_object()
        .map(|request| {
            let others =
                request.iter().filter(|(key, value)| !told.contains(&key.as_str()) && !value.is_null());
            others.map(|(key, value)| (key.clone(), value.clone())).collect()
        })
        .unwrap_or_default();
    let mut call = LlmCall {
        response_id: string(response, "id"),
        model: string(request, "model"),
        response_model: string(response, "model"),
        messages: crate::call::list(request.get("messages")).map(Message::from_chat).collect(),
        tools: crate::call::list(request.get("tools")).filter_map(Tool::read).collect(),
        parameters,
        prompt_token_ids: response.get("prompt_token_ids").and_then(token_ids).unwrap_or_default(),
        choices: crate::call::list(response.get("choices")).map(Choice::from_chat).collect(),
        ..LlmCall::default()
    };
    // The completions API tells the prompt's ids in each choice.
    if call.prompt_token_ids.is_empty()
        && let Some(ids) = response["choices"][0].get("prompt_token_ids").and_then(token_ids)
    {
        call.prompt_token_ids = ids;
    }
    // vLLM before 0.10.2, patched, told them beside the choices.
    for (choice, ids) in call.choices.iter_mut().zip(crate::call::list(response.get("response_token_ids"))) {
        if choice.token_ids.is_empty() {
            choice.token_ids = token_ids(ids).unwrap_or_default();
        }
    }
    call.usage.prompt_tokens = response["usage"].get("prompt_tokens").and_then(whole);
    call.usage.completion_tokens = response["usage"].get("completion_tokens").and_then(whole);
    call
}
