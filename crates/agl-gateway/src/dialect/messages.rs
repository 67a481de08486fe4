//! Anthropic's messages (<https://docs.anthropic.com/en/api/messages>), to and from chat completions.

use std::borrow::Cow;

use serde::Serialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use super::{event, list, put_reasoning, reasoning, text, unknown_tool, untranslatable};
use crate::answer;
use crate::json::{Edits, items, member};
use crate::refusal::Refusal;
use crate::written::Original;

/// Members of a request that say nothing about the answer.
const OF_NO_BEARING: &[&str] = &["metadata", "service_tier", "thinking", "context_management", "betas"];

/// The one member of an input in place of text that is no JSON object.
pub(crate) const RAW_ARGUMENTS: &str = "raw_arguments";

/// The text of a request with the input of each call of a tool as text in a string. As a value it would lose what
/// tokens are made of: how numbers are written, large ones altogether, and the blanks between.
pub(crate) fn with_inputs_as_text(body: &[u8]) -> Cow<'_, [u8]> {
    let mut edits = Edits::default();
    let messages = member(body, 0..body.len(), "messages").and_then(|list| items(body, list));
    for message in messages.unwrap_or_default() {
        let blocks = member(body, message, "content").and_then(|list| items(body, list));
        for block in blocks.unwrap_or_default() {
            if let Some(input) = member(body, block, "input")
                && let Ok(written) = std::str::from_utf8(&body[input.clone()])
            {
                edits.replace(input, Value::from(written).to_string());
            }
        }
    }
    if edits.is_empty() { body.into() } else { edits.apply(body).into() }
}

/// A request as one of chat completions. The inputs of calls of tools are text, as [`with_inputs_as_text`] has them.
pub(crate) fn to_chat(request: &Value) -> Result<Value, Refusal> {
    let mut messages = Vec::new();
    let system = match &request["system"] {
        Value::String(text) => text.clone(),
        blocks => list(blocks).iter().map(|block| text(block, "text")).collect::<Vec<_>>().join("\n\n"),
    };
    if !system.is_empty() {
        messages.push(json!({"role": "system", "content": system}));
    }
    let given = request["messages"].as_array();
    for message in given.ok_or_else(|| Refusal::bad("messages", "messages has to be a list"))? {
        match text(message, "role") {
            "user" => user(&message["content"], &mut messages)?,
            "assistant" => messages.push(assistant(&message["content"])?),
            "system" => messages.push(json!({"role": "system", "content": message["content"]})),
            role => {
                return Err(Refusal::bad(
                    "messages",
                    format!("a message has the role {role:?}: use user or assistant"),
                ));
            }
        }
    }
    let mut chat = Map::new();
    chat.insert("model".to_owned(), request["model"].clone());
    chat.insert("messages".to_owned(), messages.into());
    let fields = request.as_object().into_iter().flatten();
    for (key, value) in fields.filter(|(_, value)| !value.is_null()) {
        match key.as_str() {
            "model" | "messages" | "system" => {}
            "stop_sequences" => {
                chat.insert("stop".to_owned(), value.clone());
            }
            "tools" => {
                let tools = list(value).iter().map(tool).collect::<Result<Vec<_>, _>>()?;
                if !tools.is_empty() {
                    chat.insert("tools".to_owned(), tools.into());
                }
            }
            "tool_choice" => choice(value, &mut chat)?,
            "output_config" => format(&value["format"], &mut chat)?,
            "output_format" => format(value, &mut chat)?,
            "max_tokens" | "temperature" | "top_p" | "top_k" | "stream" => {
                chat.insert(key.clone(), value.clone());
            }
            "mcp_servers" | "container" if !list(value).is_empty() || value.is_string() => {
                let param = if key == "container" { "container" } else { "mcp_servers" };
                return Err(untranslatable(param, param));
            }
            "mcp_servers" | "container" => {}
            other if OF_NO_BEARING.contains(&other) => {}
            other => {
                return Err(Refusal::new(
                    axum::http::StatusCode::BAD_REQUEST,
                    format!("{other} is not a parameter that can be translated"),
                ));
            }
        }
    }
    Ok(chat.into())
}

/// Shows every call of a tool in a request, its id and what it is called with, and puts in what comes back.
pub(crate) fn each_call(request: &mut Value, original: &mut dyn FnMut(&str, &str) -> Option<Original>) {
    for message in request["messages"].as_array_mut().into_iter().flatten() {
        let Value::Array(blocks) = &mut message["content"] else { continue };
        let mut said = None;
        for block in blocks.iter_mut().filter(|block| block["type"] == "tool_use") {
            if let Some(found) = original(text(block, "id"), &written(&block["input"])) {
                block["input"] = (*found.arguments).into();
                said = Some(found.said);
            }
        }
        if let Some(said) = said {
            put_said(blocks, &said);
        }
    }
}

/// Has blocks say what the model said, where they say the same but for blanks around it.
fn put_said(blocks: &mut Vec<Value>, said: &str) {
    let is_text = |block: &Value| block["type"] == "text";
    let given: String =
        blocks.iter().filter(|block| is_text(block)).map(|block| text(block, "text")).collect();
    if given != said && given.trim() == said.trim() {
        blocks.retain(|block| !is_text(block));
        blocks.insert(0, json!({"type": "text", "text": said}));
    }
}

fn user(content: &Value, messages: &mut Vec<Value>) -> Result<(), Refusal> {
    if content.is_string() {
        messages.push(json!({"role": "user", "content": content}));
        return Ok(());
    }
    let mut parts = Vec::new();
    for block in list(content) {
        match text(block, "type") {
            "tool_result" => {
                let (mut said, mut images) = (String::new(), Vec::new());
                match &block["content"] {
                    Value::String(text) => said.push_str(text),
                    blocks => {
                        for part in list(blocks) {
                            match text(part, "type") {
                                "text" => said.push_str(text(part, "text")),
                                _ => images.push(media(part)?),
                            }
                        }
                    }
                }
                messages.push(json!({"role": "tool", "tool_call_id": block["tool_use_id"], "content": said}));
                parts.extend(images);
            }
            "text" => parts.push(json!({"type": "text", "text": block["text"]})),
            _ => parts.push(media(block)?),
        }
    }
    match parts.as_slice() {
        [] => {}
        [only] if only["type"] == "text" => messages.push(json!({"role": "user", "content": only["text"]})),
        _ => messages.push(json!({"role": "user", "content": parts})),
    }
    Ok(())
}

/// A block that is not text, as a part of a chat message.
fn media(block: &Value) -> Result<Value, Refusal> {
    let source = &block["source"];
    match (text(block, "type"), text(source, "type")) {
        ("image", "base64") => {
            let url = format!("data:{};base64,{}", text(source, "media_type"), text(source, "data"));
            Ok(json!({"type": "image_url", "image_url": {"url": url}}))
        }
        ("image", "url") => Ok(json!({"type": "image_url", "image_url": {"url": source["url"]}})),
        ("document", "text") => Ok(json!({"type": "text", "text": source["data"]})),
        (kind, _) => Err(untranslatable("messages", &format!("a block of the type {kind:?}"))),
    }
}

fn assistant(content: &Value) -> Result<Value, Refusal> {
    if content.is_string() {
        return Ok(json!({"role": "assistant", "content": content}));
    }
    let (mut said, mut thought, mut calls) = (String::new(), String::new(), Vec::new());
    for block in list(content) {
        match text(block, "type") {
            "text" => said.push_str(text(block, "text")),
            "thinking" => thought.push_str(text(block, "thinking")),
            "redacted_thinking" => {}
            "tool_use" => calls.push(json!({
                "id": block["id"], "type": "function",
                "function": {"name": block["name"], "arguments": written(&block["input"])},
            })),
            kind => return Err(untranslatable("messages", &format!("a block of the type {kind:?}"))),
        }
    }
    let mut message = json!({"role": "assistant", "content": if said.is_empty() && !calls.is_empty() { Value::Null } else { said.into() }});
    put_reasoning(&mut message, &thought);
    if !calls.is_empty() {
        message["tool_calls"] = calls.into();
    }
    Ok(message)
}

/// What a tool is called with, as text.
fn written(input: &Value) -> String {
    match input {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn tool(tool: &Value) -> Result<Value, Refusal> {
    if !matches!(&tool["type"], Value::Null) && tool["type"] != "custom" {
        return Err(unknown_tool(text(tool, "type")));
    }
    let mut function = json!({"name": tool["name"], "parameters": tool["input_schema"]});
    if let Some(description) = tool.get("description") {
        function["description"] = description.clone();
    }
    Ok(json!({"type": "function", "function": function}))
}

fn choice(choice: &Value, chat: &mut Map<String, Value>) -> Result<(), Refusal> {
    let chosen = match text(choice, "type") {
        "auto" => json!("auto"),
        "any" => json!("required"),
        "none" => json!("none"),
        "tool" => json!({"type": "function", "function": {"name": choice["name"]}}),
        other => {
            return Err(Refusal::bad(
                "tool_choice",
                format!("tool_choice has the type {other:?}: use auto, any, tool or none"),
            ));
        }
    };
    chat.insert("tool_choice".to_owned(), chosen);
    if choice["disable_parallel_tool_use"] == json!(true) {
        chat.insert("parallel_tool_calls".to_owned(), json!(false));
    }
    Ok(())
}

/// The form that an answer shall have.
fn format(format: &Value, chat: &mut Map<String, Value>) -> Result<(), Refusal> {
    match text(format, "type") {
        "" => {}
        "json_schema" => {
            let schema = json!({"name": "output", "schema": format["schema"], "strict": true});
            let wanted = json!({"type": "json_schema", "json_schema": schema});
            chat.insert("response_format".to_owned(), wanted);
        }
        kind => return Err(untranslatable("output_config", &format!("the format {kind:?}"))),
    }
    Ok(())
}

/// A message as it is answered.
#[derive(Serialize)]
struct Message<'c> {
    id: &'c Value,
    r#type: &'static str,
    role: &'static str,
    model: &'c Value,
    content: Vec<Content<'c>>,
    stop_reason: &'static str,
    stop_sequence: Value,
    usage: Value,
}

#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Content<'c> {
    Thinking { thinking: &'c str, signature: &'static str },
    Text { text: &'c str },
    ToolUse { id: &'c Value, name: &'c Value, input: Box<RawValue> },
}

/// An answer of chat completions as a message, in JSON. What the model calls tools with is in it as it wrote that.
pub(crate) fn from_chat(chat: &Value, model: &Value) -> Result<String, serde_json::Error> {
    let choice = &chat["choices"][0];
    let message = &choice["message"];
    let mut content = Vec::new();
    let thinking = reasoning(message);
    if !thinking.is_empty() {
        content.push(Content::Thinking { thinking, signature: "" });
    }
    let said = text(message, "content");
    if !said.is_empty() {
        content.push(Content::Text { text: said });
    }
    for call in list(&message["tool_calls"]) {
        let function = &call["function"];
        let input = input(text(function, "arguments"))?;
        content.push(Content::ToolUse { id: &call["id"], name: &function["name"], input });
    }
    let (stop_reason, stop_sequence) = stop(choice);
    serde_json::to_string(&Message {
        id: &chat["id"],
        r#type: "message",
        role: "assistant",
        model,
        content,
        stop_reason,
        stop_sequence,
        usage: usage(&chat["usage"]),
    })
}

/// What a model calls a tool with, as it wrote it. Text that is no JSON object is kept under a name of its own.
fn input(arguments: &str) -> Result<Box<RawValue>, serde_json::Error> {
    match serde_json::from_str::<Box<RawValue>>(arguments) {
        Ok(written) if written.get().starts_with('{') => Ok(written),
        _ if arguments.trim().is_empty() => RawValue::from_string("{}".to_owned()),
        _ => RawValue::from_string(json!({RAW_ARGUMENTS: arguments}).to_string()),
    }
}

fn stop(choice: &Value) -> (&'static str, Value) {
    match (text(choice, "finish_reason"), &choice["stop_reason"]) {
        ("stop", sequence @ Value::String(_)) => ("stop_sequence", sequence.clone()),
        ("length", _) => ("max_tokens", Value::Null),
        ("tool_calls" | "function_call", _) => ("tool_use", Value::Null),
        // Servers that were told which tool to call end with a plain stop, at which agents would not call it.
        ("stop", _) if !list(&choice["message"]["tool_calls"]).is_empty() => ("tool_use", Value::Null),
        ("content_filter", _) => ("refusal", Value::Null),
        _ => ("end_turn", Value::Null),
    }
}

fn usage(usage: &Value) -> Value {
    let cached = usage["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap_or_default();
    let prompt = usage["prompt_tokens"].as_u64().unwrap_or_default();
    json!({
        "input_tokens": prompt.saturating_sub(cached), "cache_read_input_tokens": cached,
        "cache_creation_input_tokens": 0, "output_tokens": usage["completion_tokens"].as_u64().unwrap_or_default(),
    })
}

/// Writes the events of a message, from the chunks of a chat.
#[derive(Debug)]
pub(crate) struct Writer {
    model: Value,
    started: bool,
    /// How many blocks have begun.
    blocks: usize,
    open: Option<Block>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Block {
    Thinking,
    Text,
    Tool(u64),
}

impl Writer {
    /// `model` is what the agent asked for.
    pub(crate) fn new(model: Value) -> Self {
        Self { model, started: false, blocks: 0, open: None }
    }

    /// What a chunk amounts to.
    pub(crate) fn chunk(&mut self, chunk: &Value, out: &mut String) {
        if !self.started {
            self.started = true;
            let prompt = answer::ids(&chunk["prompt_token_ids"]).unwrap_or_default();
            let message = json!({
                "id": chunk["id"], "type": "message", "role": "assistant", "model": self.model, "content": [],
                "stop_reason": null, "stop_sequence": null,
                "usage": {"input_tokens": prompt, "cache_read_input_tokens": 0, "cache_creation_input_tokens": 0, "output_tokens": 0},
            });
            out.push_str(&event("message_start", &json!({"type": "message_start", "message": message})));
        }
        for choice in
            list(&chunk["choices"]).iter().filter(|choice| choice["index"].as_u64().unwrap_or_default() == 0)
        {
            let delta = &choice["delta"];
            self.piece(Block::Thinking, reasoning(delta), out);
            self.piece(Block::Text, text(delta, "content"), out);
            for call in list(&delta["tool_calls"]) {
                let index = call["index"].as_u64().unwrap_or_default();
                let function = &call["function"];
                if self.open != Some(Block::Tool(index)) {
                    let block =
                        json!({"type": "tool_use", "id": call["id"], "name": function["name"], "input": {}});
                    self.begin(Block::Tool(index), &block, out);
                }
                self.delta(
                    &json!({"type": "input_json_delta", "partial_json": text(function, "arguments")}),
                    text(function, "arguments"),
                    out,
                );
            }
        }
    }

    fn piece(&mut self, kind: Block, piece: &str, out: &mut String) {
        if piece.is_empty() {
            return;
        }
        let (block, delta) = match kind {
            Block::Thinking => (
                json!({"type": "thinking", "thinking": "", "signature": ""}),
                json!({"type": "thinking_delta", "thinking": piece}),
            ),
            Block::Text | Block::Tool(_) => {
                (json!({"type": "text", "text": ""}), json!({"type": "text_delta", "text": piece}))
            }
        };
        if self.open != Some(kind) {
            self.begin(kind, &block, out);
        }
        self.delta(&delta, piece, out);
    }

    fn begin(&mut self, kind: Block, block: &Value, out: &mut String) {
        self.end(out);
        let start = json!({"type": "content_block_start", "index": self.blocks, "content_block": block});
        out.push_str(&event("content_block_start", &start));
        self.blocks += 1;
        self.open = Some(kind);
    }

    fn delta(&self, delta: &Value, piece: &str, out: &mut String) {
        if !piece.is_empty() {
            let data = json!({"type": "content_block_delta", "index": self.blocks - 1, "delta": delta});
            out.push_str(&event("content_block_delta", &data));
        }
    }

    fn end(&mut self, out: &mut String) {
        if self.open.take().is_some() {
            let data = json!({"type": "content_block_stop", "index": self.blocks - 1});
            out.push_str(&event("content_block_stop", &data));
        }
    }

    /// The end, from the whole answer.
    pub(crate) fn finish(&mut self, chat: &Value) -> String {
        let mut out = String::new();
        self.end(&mut out);
        let (reason, sequence) = stop(&chat["choices"][0]);
        let data = json!({
            "type": "message_delta", "delta": {"stop_reason": reason, "stop_sequence": sequence}, "usage": usage(&chat["usage"]),
        });
        out.push_str(&event("message_delta", &data));
        out.push_str(&event("message_stop", &json!({"type": "message_stop"})));
        out
    }
}

/// A message put together from its events, for the record.
#[derive(Debug, Default)]
pub(crate) struct Assembly {
    message: Map<String, Value>,
    blocks: Vec<Value>,
    /// Arguments of tools, which come as pieces of JSON.
    inputs: Vec<String>,
    pub(crate) error: Option<Value>,
    pub(crate) is_whole: bool,
}

impl Assembly {
    /// Takes in an event. Returns whether there is something of an answer in it.
    pub(crate) fn add(&mut self, mut event: Value) -> bool {
        match text(&event, "type") {
            "message_start" => {
                if let Value::Object(message) = event["message"].take() {
                    self.message = message;
                }
            }
            "content_block_start" => {
                self.blocks.push(event["content_block"].take());
                self.inputs.push(String::new());
                return true;
            }
            "content_block_delta" => {
                let index = event["index"].as_u64().and_then(|index| usize::try_from(index).ok());
                let at = index.unwrap_or_default();
                let (Some(block), Some(input)) = (self.blocks.get_mut(at), self.inputs.get_mut(at)) else {
                    return false;
                };
                let delta = &event["delta"];
                for key in ["text", "thinking", "signature"] {
                    if let Some(piece) = delta[key].as_str() {
                        block[key] = format!("{}{piece}", text(block, key)).into();
                    }
                }
                input.push_str(text(delta, "partial_json"));
                return true;
            }
            "message_delta" => {
                if let Value::Object(delta) = event["delta"].take() {
                    self.message.extend(delta);
                }
                if let (Some(Value::Object(usage)), Value::Object(more)) =
                    (self.message.get_mut("usage"), event["usage"].take())
                {
                    usage.extend(more);
                }
            }
            "message_stop" => self.is_whole = true,
            "error" => self.error = Some(event["error"].take()),
            _ => {}
        }
        false
    }

    /// The message, with the inputs of calls of tools as text.
    pub(crate) fn finish(self) -> Value {
        let mut message = self.message;
        let blocks = self.blocks.into_iter().zip(self.inputs).map(|(mut block, input_text)| {
            if !input_text.is_empty() {
                block["input"] = input_text.into();
            }
            block
        });
        message.insert("content".to_owned(), blocks.collect());
        message.into()
    }
}

/// A message that an Anthropic server answered, as the answer of a chat, for the record.
pub(crate) fn answer_as_chat(message: &Value) -> Value {
    let said = assistant(&message["content"])
        .unwrap_or_else(|_| json!({"role": "assistant", "content": message["content"].to_string()}));
    let usage = &message["usage"];
    let count = |key: &str| usage[key].as_u64().unwrap_or_default();
    let prompt =
        count("input_tokens") + count("cache_read_input_tokens") + count("cache_creation_input_tokens");
    let reason = match text(message, "stop_reason") {
        "max_tokens" => json!("length"),
        "tool_use" => json!("tool_calls"),
        "refusal" => json!("content_filter"),
        "" => Value::Null,
        _ => json!("stop"),
    };
    json!({
        "id": message["id"], "object": "chat.completion", "model": message["model"],
        "choices": [{"index": 0, "message": said, "finish_reason": reason}],
        "usage": {"prompt_tokens": prompt, "completion_tokens": count("output_tokens"), "total_tokens": prompt + count("output_tokens")},
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_said_in_chat_completions() {
        let request = json!({
            "model": "m", "max_tokens": 9, "stop_sequences": ["x"], "metadata": {"user_id": "u"}, "top_k": 3,
            "system": [{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}, {"type": "text", "text": "b"}],
            "messages": [
                {"role": "user", "content": "hi"},
                {"role": "assistant", "content": [
                    {"type": "thinking", "thinking": "hm", "signature": "s"}, {"type": "text", "text": "let me"},
                    {"type": "tool_use", "id": "t1", "name": "f", "input": "{\"x\": 1}"},
                ]},
                {"role": "user", "content": [
                    {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "42"}]},
                    {"type": "text", "text": "and"},
                    {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AA=="}},
                ]},
            ],
            "tools": [{"name": "f", "description": "d", "input_schema": {"type": "object"}}],
            "tool_choice": {"type": "any", "disable_parallel_tool_use": true},
            "output_config": {"effort": "low", "format": {"type": "json_schema", "schema": {"type": "object"}}},
        });
        let chat = to_chat(&request).unwrap();
        assert_eq!(
            chat,
            json!({
                "model": "m", "max_tokens": 9, "stop": ["x"], "top_k": 3,
                "messages": [
                    {"role": "system", "content": "a\n\nb"},
                    {"role": "user", "content": "hi"},
                    {"role": "assistant", "content": "let me", "reasoning_content": "hm", "reasoning": "hm", "tool_calls": [
                        {"id": "t1", "type": "function", "function": {"name": "f", "arguments": "{\"x\": 1}"}},
                    ]},
                    {"role": "tool", "tool_call_id": "t1", "content": "42"},
                    {"role": "user", "content": [
                        {"type": "text", "text": "and"}, {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}},
                    ]},
                ],
                "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}, "description": "d"}}],
                "tool_choice": "required", "parallel_tool_calls": false,
                "response_format": {"type": "json_schema", "json_schema": {"name": "output", "schema": {"type": "object"}, "strict": true}},
            })
        );
    }

    #[test]
    fn what_cannot_be_said_is_refused_by_name() {
        let refused = |extra: Value| {
            let mut request = json!({"model": "m", "messages": []});
            request.as_object_mut().unwrap().extend(extra.as_object().cloned().unwrap());
            to_chat(&request).unwrap_err().message
        };
        assert!(
            refused(json!({"tools": [{"type": "web_search_20250305", "name": "w"}]}))
                .contains("web_search_20250305")
        );
        assert!(refused(json!({"mcp_servers": [{}]})).contains("mcp_servers"));
        assert!(refused(json!({"messages": [{"role": "x"}]})).contains("\"x\""));
        let document = json!({"messages": [{"role": "user", "content": [{"type": "document", "source": {"type": "base64"}}]}]});
        assert!(refused(document).contains("document"));
        assert!(refused(json!({"output_format": {"type": "grammar"}})).contains("grammar"));
    }

    #[test]
    fn events_written_add_up_to_the_message() {
        let chunks = [
            json!({"id": "c", "prompt_token_ids": [1, 2], "choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}),
            json!({"id": "c", "choices": [{"index": 0, "delta": {"reasoning_content": "h"}}]}),
            json!({"id": "c", "choices": [{"index": 0, "delta": {"reasoning_content": "m"}}]}),
            json!({"id": "c", "choices": [{"index": 0, "delta": {"content": "a"}}]}),
            json!({"id": "c", "choices": [{"index": 0, "delta": {"content": "  b"}}]}),
            json!({"id": "c", "choices": [{"index": 0, "delta": {"tool_calls": [{"index": 0, "id": "t", "type": "function", "function": {"name": "f", "arguments": ""}}]}}]}),
            json!({"id": "c", "choices": [{"index": 0, "delta": {"tool_calls": [{"index": 0, "function": {"arguments": "{\"x\":"}}]}}]}),
            json!({"id": "c", "choices": [{"index": 0, "delta": {"tool_calls": [{"index": 0, "function": {"arguments": "1}"}}]}}]}),
            json!({"id": "c", "choices": [{"index": 0, "delta": {"tool_calls": [{"index": 1, "id": "u", "type": "function", "function": {"name": "g", "arguments": "{}"}}]}}]}),
            json!({"id": "c", "choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]}),
            json!({"id": "c", "choices": [], "usage": {"prompt_tokens": 2, "completion_tokens": 7}}),
        ];
        let mut chat = crate::assemble::Assembly::default();
        let mut writer = Writer::new(json!("m"));
        let mut out = String::new();
        for chunk in chunks {
            writer.chunk(&chunk, &mut out);
            chat.add_value(&chunk);
        }
        let chat = chat.finish("chat.completion");
        out.push_str(&writer.finish(&chat));
        let mut read = Assembly::default();
        for line in out.lines().filter_map(|line| line.strip_prefix("data: ")) {
            read.add(serde_json::from_str(line).unwrap());
        }
        assert!(read.is_whole);
        let whole: Value = serde_json::from_str(&from_chat(&chat, &json!("m")).unwrap()).unwrap();
        let mut told = read.finish();
        assert_eq!(told["content"][2]["input"], "{\"x\":1}", "as the model wrote it");
        for (at, input) in [(2, json!({"x": 1})), (3, json!({}))] {
            told["content"][at]["input"] = input;
        }
        assert_eq!(told, whole);
        assert_eq!(
            whole["content"],
            json!([
                {"type": "thinking", "thinking": "hm", "signature": ""}, {"type": "text", "text": "a  b"},
                {"type": "tool_use", "id": "t", "name": "f", "input": {"x": 1}}, {"type": "tool_use", "id": "u", "name": "g", "input": {}},
            ])
        );
        assert_eq!(
            (&whole["stop_reason"], &whole["usage"]["output_tokens"]),
            (&json!("tool_use"), &json!(7))
        );
        let back = answer_as_chat(&whole);
        assert_eq!(back["choices"][0]["message"]["tool_calls"], chat["choices"][0]["message"]["tool_calls"]);
        assert_eq!(back["usage"]["prompt_tokens"], 2);
    }

    #[test]
    fn what_was_said_before_a_call_is_put_back_unless_it_says_something_else() {
        for (blocks, said, expected) in [
            (json!([]), "\n\n", "\n\n"),
            (json!([{"type": "text", "text": "Let me see."}]), "Let me see.\n", "Let me see.\n"),
            (
                json!([{"type": "text", "text": "Let "}, {"type": "text", "text": "me."}]),
                "Let me.",
                "Let me.",
            ),
            (json!([{"type": "text", "text": "Other."}]), "Let me see.", "Other."),
            (json!([]), "Let me see.", ""),
        ] {
            let mut content = blocks.as_array().cloned().unwrap();
            content.push(json!({"type": "tool_use", "id": "t", "name": "f", "input": "{}"}));
            let mut request = json!({"messages": [{"role": "assistant", "content": content}]});
            each_call(&mut request, &mut |_, _| {
                Some(Original { arguments: "{ }".into(), said: said.into() })
            });
            let message = to_chat(&request).unwrap()["messages"][0].clone();
            assert_eq!(text(&message, "content"), expected, "{blocks}");
            assert_eq!(message["tool_calls"][0]["function"]["arguments"], "{ }");
        }
    }

    /// Arguments that a value would not keep as they are.
    const ODD: &str = r#"{"z": 1.0,"a":12345678901234567890123, "e": 1e400,  "n":-0.10, "s":"\u00e4\/"}"#;

    #[test]
    fn arguments_stay_letter_for_letter_both_ways() {
        let chat = |arguments: &str| {
            let call =
                json!({"id": "t", "type": "function", "function": {"name": "f", "arguments": arguments}});
            json!({"id": "c", "choices": [{"message": {"tool_calls": [call]}, "finish_reason": "tool_calls"}]})
        };
        let told = |arguments: &str| from_chat(&chat(arguments), &json!("m")).unwrap();
        assert!(told(ODD).contains(&format!(r#""input":{ODD}"#)), "{}", told(ODD));
        assert!(told(" ").contains(r#""input":{}"#));
        let mut forced = chat("{}");
        forced["choices"][0]["finish_reason"] = json!("stop");
        assert!(from_chat(&forced, &json!("m")).unwrap().contains(r#""stop_reason":"tool_use""#));
        for odd in ["[1]", "{\"x\":", "42"] {
            let input = json!({ RAW_ARGUMENTS: odd });
            assert!(told(odd).contains(&format!(r#""input":{input}"#)), "{}", told(odd));
        }
        let request = format!(
            r#"{{"messages": [{{"role":"user","content":"input"}}, {{"role":"assistant","content":[{{"type":"text","text":"x"}},{{"type":"tool_use","id":"t","name":"f","input": {ODD} }}]}}]}}"#
        );
        let read: Value = serde_json::from_slice(&with_inputs_as_text(request.as_bytes())).unwrap();
        let chat = to_chat(&read).unwrap();
        assert_eq!(chat["messages"][1]["tool_calls"][0]["function"]["arguments"], ODD);
        for plain in [r#"{"messages": []}"#, r#"{"messages": {"content": [{"input": 1}]}}"#, "no json", ""] {
            assert_eq!(with_inputs_as_text(plain.as_bytes()), plain.as_bytes());
        }
    }
}
