//! OpenAI's responses (<https://platform.openai.com/docs/api-reference/responses>), to and from chat completions.

use serde_json::{Map, Value, json};

use super::{event, list, put_reasoning, reasoning, text, unknown_tool, untranslatable};
use crate::refusal::Refusal;
use crate::written::Original;

/// Members of a request that say nothing about the answer, or nothing that chat completions have a word for.
const OF_NO_BEARING: &[&str] = &[
    "metadata",
    "store",
    "user",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "service_tier",
    "include",
    "reasoning",
    "truncation",
    "stream_options",
    "max_tool_calls",
    "client_metadata",
];

/// The input of a request as a list of items.
pub(crate) fn items(request: &Value) -> Vec<Value> {
    match &request["input"] {
        Value::String(said) => vec![json!({"type": "message", "role": "user", "content": said})],
        Value::Array(items) => items.clone(),
        _ => Vec::new(),
    }
}

/// A request as one of chat completions. Its input has to be whole: what went before is part of it.
pub(crate) fn to_chat(request: &Value) -> Result<Value, Refusal> {
    for (param, what) in [
        ("background", "a response in the background"),
        ("conversation", "a conversation"),
        ("prompt", "a stored prompt"),
    ] {
        if !matches!(request[param], Value::Null | Value::Bool(false)) {
            return Err(untranslatable(param, what));
        }
    }
    let mut chat = Map::new();
    chat.insert("model".to_owned(), request["model"].clone());
    chat.insert("messages".to_owned(), messages(request)?.into());
    let fields = request.as_object().into_iter().flatten();
    for (key, value) in fields.filter(|(_, value)| !value.is_null()) {
        match key.as_str() {
            "model"
            | "input"
            | "instructions"
            | "previous_response_id"
            | "background"
            | "conversation"
            | "prompt" => {}
            "max_output_tokens" => {
                chat.insert("max_tokens".to_owned(), value.clone());
            }
            "temperature" | "top_p" | "stream" => {
                chat.insert(key.clone(), value.clone());
            }
            // Without tools, a chat must not speak of them.
            "parallel_tool_calls" if !list(&request["tools"]).is_empty() => {
                chat.insert(key.clone(), value.clone());
            }
            "parallel_tool_calls" => {}
            "tools" => {
                let tools = tools(value)?;
                if !tools.is_empty() {
                    chat.insert("tools".to_owned(), tools.into());
                }
            }
            "tool_choice" if !list(&request["tools"]).is_empty() => {
                chat.insert("tool_choice".to_owned(), choice(value)?);
            }
            "tool_choice" => {}
            "text" => format(&value["format"], &mut chat)?,
            "top_logprobs" => {
                chat.insert("logprobs".to_owned(), json!(true));
                chat.insert(key.clone(), value.clone());
            }
            other if OF_NO_BEARING.contains(&other) => {}
            other => {
                let message = format!("{other} is not a parameter that can be translated");
                return Err(Refusal::new(axum::http::StatusCode::BAD_REQUEST, message));
            }
        }
    }
    Ok(chat.into())
}

/// Shows every call of a tool in the input that agents don't give back as the model wrote it, its id and what it is
/// called with, and puts in what comes back.
pub(crate) fn each_call(request: &mut Value, original: &mut dyn FnMut(&str, &str) -> Option<Original>) {
    for item in request["input"].as_array_mut().into_iter().flatten() {
        if item["type"] == "custom_tool_call"
            && let Some(found) = original(text(item, "call_id"), &arguments(item))
        {
            item["arguments"] = (*found.arguments).into();
        }
    }
}

/// What a tool is called with. Free text is said as the one argument of a function.
fn arguments(item: &Value) -> String {
    match &item["arguments"] {
        Value::String(arguments) => arguments.clone(),
        _ => json!({"input": item["input"]}).to_string(),
    }
}

/// The messages that the items of the input amount to.
fn messages(request: &Value) -> Result<Vec<Value>, Refusal> {
    if !matches!(request["input"], Value::String(_) | Value::Array(_)) {
        return Err(Refusal::bad("input", "input has to be text or a list of items"));
    }
    let mut messages: Vec<Value> = Vec::new();
    // Templates take one system message, at the beginning.
    let mut system: Vec<String> = request["instructions"].as_str().map(str::to_owned).into_iter().collect();
    let mut thought = String::new();
    for item in items(request) {
        match (text(&item, "type"), text(&item, "role")) {
            ("message" | "", "system" | "developer") => {
                let said = plain(&item["content"])?;
                match messages.is_empty() {
                    true => system.push(said),
                    false => messages.push(json!({"role": "system", "content": said})),
                }
            }
            ("message" | "", "user") => {
                messages.push(json!({"role": "user", "content": parts(&item["content"])?}));
            }
            ("message" | "", "assistant") => {
                let said = plain(&item["content"])?;
                let message = spoken(&mut messages, &mut thought);
                message["content"] = format!("{}{said}", text(message, "content")).into();
            }
            ("function_call" | "custom_tool_call", _) => {
                let function = json!({"name": flat_name(&item), "arguments": arguments(&item)});
                let call = json!({"id": item["call_id"], "type": "function", "function": function});
                let message = spoken(&mut messages, &mut thought);
                match &mut message["tool_calls"] {
                    Value::Array(calls) => calls.push(call),
                    none => *none = json!([call]),
                }
            }
            ("function_call_output" | "custom_tool_call_output", _) => {
                // A chat's tools say text; what they show comes from the user.
                let is_image = |part: &&Value| part["type"] == "input_image";
                let (shown, said): (Vec<&Value>, Vec<&Value>) =
                    list(&item["output"]).iter().partition(is_image);
                let said =
                    if item["output"].is_array() { plain(&json!(said))? } else { plain(&item["output"])? };
                messages.push(json!({"role": "tool", "tool_call_id": item["call_id"], "content": said}));
                if !shown.is_empty() {
                    messages.push(json!({"role": "user", "content": parts(&json!(shown))?}));
                }
            }
            ("reasoning", _) => {
                let said =
                    if list(&item["content"]).is_empty() { &item["summary"] } else { &item["content"] };
                thought.extend(list(said).iter().map(|part| text(part, "text")));
            }
            (kind, role) => {
                let what = if kind == "message" || kind.is_empty() {
                    format!("the role {role:?}")
                } else {
                    format!("an item of the type {kind:?}")
                };
                return Err(untranslatable("input", &what));
            }
        }
    }
    if !system.is_empty() {
        messages.insert(0, json!({"role": "system", "content": system.join("\n\n")}));
    }
    Ok(messages)
}

/// The message of the assistant that is being put together: the last one, or a new one.
fn spoken<'m>(messages: &'m mut Vec<Value>, thought: &mut String) -> &'m mut Value {
    let goes_on = messages.last().is_some_and(|last| last["role"] == "assistant") && thought.is_empty();
    if !goes_on {
        let mut message = json!({"role": "assistant", "content": null});
        put_reasoning(&mut message, &std::mem::take(thought));
        messages.push(message);
    }
    let last = messages.len() - 1;
    &mut messages[last]
}

/// Content that can be nothing but text.
fn plain(content: &Value) -> Result<String, Refusal> {
    match content {
        Value::String(said) => Ok(said.clone()),
        Value::Null => Ok(String::new()),
        parts => list(parts)
            .iter()
            .map(|part| match text(part, "type") {
                "input_text" | "output_text" | "text" => Ok(text(part, "text")),
                "refusal" => Ok(text(part, "refusal")),
                kind => Err(untranslatable("input", &format!("a part of the type {kind:?} here"))),
            })
            .collect(),
    }
}

fn parts(content: &Value) -> Result<Value, Refusal> {
    let Value::Array(given) = content else { return Ok(content.clone()) };
    if let [only] = given.as_slice()
        && matches!(text(only, "type"), "input_text" | "text")
    {
        return Ok(only["text"].clone());
    }
    let part = |part: &Value| match (text(part, "type"), &part["image_url"]) {
        ("input_text" | "text", _) => Ok(json!({"type": "text", "text": part["text"]})),
        ("input_image", url @ Value::String(_)) => {
            let mut image = json!({"url": url});
            if let Some(detail) = part.get("detail") {
                image["detail"] = detail.clone();
            }
            Ok(json!({"type": "image_url", "image_url": image}))
        }
        (kind, _) => Err(untranslatable("input", &format!("a part of the type {kind:?}"))),
    };
    given.iter().map(part).collect::<Result<Vec<_>, _>>().map(Value::from)
}

/// The tools of a request, those in namespaces among them.
fn tools(given: &Value) -> Result<Vec<Value>, Refusal> {
    let mut tools = Vec::new();
    for given in list(given) {
        if given["type"] == "namespace" {
            for inner in list(&given["tools"]) {
                tools.push(tool(inner, flat(text(given, "name"), text(inner, "name")).into())?);
            }
        } else {
            tools.push(tool(given, given["name"].clone())?);
        }
    }
    Ok(tools)
}

/// The name that a tool in a namespace has in a chat.
fn flat(namespace: &str, name: &str) -> String {
    format!("{namespace}__{name}")
}

/// The name in a chat of the tool that an item or a choice names.
fn flat_name(named: &Value) -> Value {
    match &named["namespace"] {
        Value::String(namespace) => flat(namespace, text(named, "name")).into(),
        _ => named["name"].clone(),
    }
}

fn tool(tool: &Value, name: Value) -> Result<Value, Refusal> {
    let mut function = Map::from_iter([("name".to_owned(), name)]);
    match text(tool, "type") {
        "function" => {
            for key in ["description", "parameters", "strict"] {
                if let Some(value) = tool.get(key).filter(|value| !value.is_null()) {
                    function.insert(key.to_owned(), value.clone());
                }
            }
        }
        // Free text in, which is said as a function of one argument.
        "custom" => {
            let parameters =
                json!({"type": "object", "properties": {"input": {"type": "string"}}, "required": ["input"]});
            function.insert("description".to_owned(), text(tool, "description").into());
            function.insert("parameters".to_owned(), parameters);
        }
        kind => return Err(unknown_tool(kind)),
    }
    Ok(json!({"type": "function", "function": function}))
}

fn choice(choice: &Value) -> Result<Value, Refusal> {
    match choice {
        Value::String(_) => Ok(choice.clone()),
        named if matches!(text(named, "type"), "function" | "custom") => {
            Ok(json!({"type": "function", "function": {"name": flat_name(named)}}))
        }
        other => Err(untranslatable("tool_choice", &format!("the choice {other}"))),
    }
}

fn format(format: &Value, chat: &mut Map<String, Value>) -> Result<(), Refusal> {
    match text(format, "type") {
        "" | "text" => {}
        "json_object" => {
            chat.insert("response_format".to_owned(), json!({"type": "json_object"}));
        }
        "json_schema" => {
            let mut schema = format.clone();
            if let Value::Object(fields) = &mut schema {
                fields.shift_remove("type");
            }
            chat.insert("response_format".to_owned(), json!({"type": "json_schema", "json_schema": schema}));
        }
        kind => return Err(untranslatable("text", &format!("the format {kind:?}"))),
    }
    Ok(())
}

/// What the answer of a chat is told as.
#[derive(Debug)]
pub(crate) struct Telling {
    /// The id of the response.
    pub(crate) id: String,
    /// Wall-clock seconds.
    pub(crate) created_at: u64,
    /// The request, of which responses repeat much.
    pub(crate) request: Value,
}

impl Telling {
    /// The tool that a chat names so, and its namespace.
    fn tool(&self, name: &Value) -> (Option<&Value>, Option<&Value>) {
        for tool in list(&self.request["tools"]) {
            let is_it = |inner: &&Value| *name == flat(text(tool, "name"), text(inner, "name"));
            if let Some(inner) = list(&tool["tools"]).iter().find(is_it) {
                return (Some(inner), Some(&tool["name"]));
            }
            if tool["name"] == *name {
                return (Some(tool), None);
            }
        }
        (None, None)
    }

    fn is_custom(&self, name: &Value) -> bool {
        self.tool(name).0.is_some_and(|tool| tool["type"] == "custom")
    }

    /// The response so far.
    fn response(&self, status: &str, output: &[Value]) -> Value {
        let request = &self.request;
        let or = |key: &str, otherwise: Value| {
            if request[key].is_null() { otherwise } else { request[key].clone() }
        };
        json!({
            "id": self.id, "object": "response", "created_at": self.created_at, "status": status, "background": false,
            "error": null, "incomplete_details": null, "instructions": request["instructions"],
            "max_output_tokens": request["max_output_tokens"], "model": request["model"], "output": output,
            "parallel_tool_calls": or("parallel_tool_calls", json!(true)),
            "previous_response_id": request["previous_response_id"], "reasoning": or("reasoning", json!({"effort": null, "summary": null})),
            "store": or("store", json!(true)), "temperature": request["temperature"],
            "text": or("text", json!({"format": {"type": "text"}})), "tool_choice": or("tool_choice", json!("auto")),
            "tools": or("tools", json!([])), "top_p": request["top_p"], "truncation": "disabled", "usage": null,
            "user": request["user"], "metadata": or("metadata", json!({})),
        })
    }

    /// The whole response.
    pub(crate) fn whole(&self, chat: &Value) -> Value {
        let choice = &chat["choices"][0];
        let message = &choice["message"];
        let mut output = Vec::new();
        let thought = reasoning(message);
        if !thought.is_empty() {
            output.push(self.thought(output.len(), thought));
        }
        let said = text(message, "content");
        let calls = list(&message["tool_calls"]);
        if !said.is_empty() || calls.is_empty() {
            output.push(self.said(output.len(), said, "completed"));
        }
        for call in calls {
            output.push(self.call(output.len(), call, "completed"));
        }
        self.ended(chat, &output)
    }

    fn ended(&self, chat: &Value, output: &[Value]) -> Value {
        let reason = match text(&chat["choices"][0], "finish_reason") {
            "length" => Some("max_output_tokens"),
            "content_filter" => Some("content_filter"),
            _ => None,
        };
        let mut response = self.response(if reason.is_some() { "incomplete" } else { "completed" }, output);
        if let Some(reason) = reason {
            response["incomplete_details"] = json!({"reason": reason});
        }
        let usage = &chat["usage"];
        let count = |value: &Value| value.as_u64().unwrap_or_default();
        response["usage"] = json!({
            "input_tokens": count(&usage["prompt_tokens"]),
            "input_tokens_details": {"cached_tokens": count(&usage["prompt_tokens_details"]["cached_tokens"])},
            "output_tokens": count(&usage["completion_tokens"]),
            "output_tokens_details": {"reasoning_tokens": count(&usage["completion_tokens_details"]["reasoning_tokens"])},
            "total_tokens": count(&usage["prompt_tokens"]) + count(&usage["completion_tokens"]),
        });
        response
    }

    fn item_id(&self, prefix: &str, index: usize) -> String {
        format!("{prefix}_{}_{index}", self.id.trim_start_matches("resp_"))
    }

    fn thought(&self, index: usize, thought: &str) -> Value {
        let content =
            if thought.is_empty() { json!([]) } else { json!([{"type": "reasoning_text", "text": thought}]) };
        json!({"id": self.item_id("rs", index), "type": "reasoning", "summary": [], "content": content})
    }

    fn said(&self, index: usize, said: &str, status: &str) -> Value {
        let content = if status == "in_progress" { json!([]) } else { json!([text_part(said)]) };
        json!({"id": self.item_id("msg", index), "type": "message", "role": "assistant", "status": status, "content": content})
    }

    fn call(&self, index: usize, call: &Value, status: &str) -> Value {
        let function = &call["function"];
        let arguments = text(function, "arguments");
        let (tool, namespace) = self.tool(&function["name"]);
        let name = tool.map_or(&function["name"], |tool| &tool["name"]);
        let mut item = if self.is_custom(&function["name"]) {
            let parsed: Value = serde_json::from_str(arguments).unwrap_or_default();
            let said = parsed["input"].as_str().unwrap_or(arguments);
            json!({
                "id": self.item_id("ctc", index), "type": "custom_tool_call", "status": status, "call_id": call["id"],
                "name": name, "input": said,
            })
        } else {
            json!({
                "id": self.item_id("fc", index), "type": "function_call", "status": status, "call_id": call["id"],
                "name": name, "arguments": arguments,
            })
        };
        if let Some(namespace) = namespace {
            item["namespace"] = namespace.clone();
        }
        item
    }
}

fn text_part(said: &str) -> Value {
    json!({"type": "output_text", "text": said, "annotations": [], "logprobs": []})
}

/// Writes the events of a response, from the chunks of a chat.
#[derive(Debug)]
pub(crate) struct Writer {
    telling: Telling,
    number: u64,
    /// The items that are done.
    output: Vec<Value>,
    open: Option<Open>,
}

#[derive(Debug)]
enum Open {
    Thought(String),
    Said(String),
    Call { index: u64, call: Value },
}

impl Writer {
    pub(crate) fn new(telling: Telling) -> Self {
        Self { telling, number: 0, output: Vec::new(), open: None }
    }

    fn tell(&mut self, name: &str, mut data: Value, out: &mut String) {
        data["type"] = name.into();
        data["sequence_number"] = self.number.into();
        self.number += 1;
        out.push_str(&event(name, &data));
    }

    /// What a chunk amounts to.
    pub(crate) fn chunk(&mut self, chunk: &Value, out: &mut String) {
        if self.number == 0 {
            for name in ["response.created", "response.in_progress"] {
                let response = self.telling.response("in_progress", &[]);
                self.tell(name, json!({ "response": response }), out);
            }
        }
        for choice in
            list(&chunk["choices"]).iter().filter(|choice| choice["index"].as_u64().unwrap_or_default() == 0)
        {
            let delta = &choice["delta"];
            let thought = reasoning(delta);
            if !thought.is_empty() {
                self.think(thought, out);
            }
            let said = text(delta, "content");
            if !said.is_empty() {
                self.say(said, out);
            }
            for call in list(&delta["tool_calls"]) {
                self.call(call, out);
            }
        }
    }

    fn place(&self) -> usize {
        self.output.len()
    }

    fn add(&mut self, item: &Value, out: &mut String) {
        self.tell("response.output_item.added", json!({"output_index": self.place(), "item": item}), out);
    }

    fn think(&mut self, piece: &str, out: &mut String) {
        if !matches!(self.open, Some(Open::Thought(_))) {
            self.end(out);
            let item = self.telling.thought(self.place(), "");
            self.add(&item, out);
            self.open = Some(Open::Thought(String::new()));
        }
        if let Some(Open::Thought(thought)) = &mut self.open {
            thought.push_str(piece);
        }
        let id = self.telling.item_id("rs", self.place());
        let data = json!({"item_id": id, "output_index": self.place(), "content_index": 0, "delta": piece});
        self.tell("response.reasoning_text.delta", data, out);
    }

    fn say(&mut self, piece: &str, out: &mut String) {
        let at = self.place();
        let id = self.telling.item_id("msg", at);
        if !matches!(self.open, Some(Open::Said(_))) {
            self.end(out);
            return self.begin_saying(piece, out);
        }
        if let Some(Open::Said(said)) = &mut self.open {
            said.push_str(piece);
        }
        let data =
            json!({"item_id": id, "output_index": at, "content_index": 0, "delta": piece, "logprobs": []});
        self.tell("response.output_text.delta", data, out);
    }

    fn begin_saying(&mut self, piece: &str, out: &mut String) {
        let at = self.place();
        let id = self.telling.item_id("msg", at);
        let item = self.telling.said(at, "", "in_progress");
        self.add(&item, out);
        let part = json!({"item_id": id, "output_index": at, "content_index": 0, "part": text_part("")});
        self.tell("response.content_part.added", part, out);
        self.open = Some(Open::Said(String::new()));
        if !piece.is_empty() {
            self.say(piece, out);
        }
    }

    fn call(&mut self, piece: &Value, out: &mut String) {
        let wanted = piece["index"].as_u64().unwrap_or_default();
        let is_open = matches!(&self.open, Some(Open::Call { index, .. }) if *index == wanted);
        if !is_open {
            self.end(out);
            let call =
                json!({"id": piece["id"], "function": {"name": piece["function"]["name"], "arguments": ""}});
            let item = self.telling.call(self.place(), &call, "in_progress");
            self.add(&item, out);
            self.open = Some(Open::Call { index: wanted, call });
        }
        let more = text(&piece["function"], "arguments");
        let Some(Open::Call { call, .. }) = &mut self.open else { return };
        call["function"]["arguments"] = format!("{}{more}", text(&call["function"], "arguments")).into();
        let is_custom = self.telling.is_custom(&call["function"]["name"]);
        // Free text is known only when its wrapping is whole.
        if !more.is_empty() && !is_custom {
            let id = self.telling.item_id("fc", self.place());
            let data = json!({"item_id": id, "output_index": self.place(), "delta": more});
            self.tell("response.function_call_arguments.delta", data, out);
        }
    }

    /// Ends the item that is open.
    fn end(&mut self, out: &mut String) {
        let at = self.place();
        let item = match self.open.take() {
            None => return,
            Some(Open::Thought(thought)) => {
                let id = self.telling.item_id("rs", at);
                let data = json!({"item_id": id, "output_index": at, "content_index": 0, "text": thought});
                self.tell("response.reasoning_text.done", data, out);
                self.telling.thought(at, &thought)
            }
            Some(Open::Said(said)) => {
                let id = self.telling.item_id("msg", at);
                let data = json!({"item_id": id, "output_index": at, "content_index": 0, "text": said, "logprobs": []});
                self.tell("response.output_text.done", data, out);
                let part =
                    json!({"item_id": id, "output_index": at, "content_index": 0, "part": text_part(&said)});
                self.tell("response.content_part.done", part, out);
                self.telling.said(at, &said, "completed")
            }
            Some(Open::Call { call, .. }) => {
                let item = self.telling.call(at, &call, "completed");
                if item["type"] == "function_call" {
                    let data = json!({
                        "item_id": item["id"], "output_index": at, "name": item["name"], "arguments": item["arguments"],
                    });
                    self.tell("response.function_call_arguments.done", data, out);
                } else {
                    for (name, key) in [
                        ("response.custom_tool_call_input.delta", "delta"),
                        ("response.custom_tool_call_input.done", "input"),
                    ] {
                        let mut data = json!({"item_id": item["id"], "output_index": at});
                        data[key] = item["input"].clone();
                        self.tell(name, data, out);
                    }
                }
                item
            }
        };
        self.tell("response.output_item.done", json!({"output_index": at, "item": item}), out);
        self.output.push(item);
    }

    /// The end, from the whole answer; and the response as it was told.
    pub(crate) fn finish(&mut self, chat: &Value) -> (String, Value) {
        let mut out = String::new();
        if self.open.is_none() && self.output.is_empty() {
            self.begin_saying("", &mut out);
        }
        self.end(&mut out);
        let response = self.telling.ended(chat, &self.output);
        let name =
            if response["status"] == "incomplete" { "response.incomplete" } else { "response.completed" };
        self.tell(name, json!({ "response": response }), &mut out);
        (out, response)
    }
}

/// A response that a server answered, as the answer of a chat, for the record.
pub(crate) fn answer_as_chat(response: &Value) -> Value {
    let (mut thought, mut messages) = (String::new(), Vec::new());
    let as_input = json!({"input": response["output"]});
    for message in self::messages(&as_input).unwrap_or_default() {
        messages.push(message);
    }
    for item in list(&response["output"]).iter().filter(|item| item["type"] == "reasoning") {
        thought.extend(
            list(&item["summary"]).iter().chain(list(&item["content"])).map(|part| text(part, "text")),
        );
    }
    let mut message = messages.pop().unwrap_or_else(|| json!({"role": "assistant", "content": null}));
    put_reasoning(&mut message, &thought);
    let reason = match (text(response, "status"), message["tool_calls"].is_array()) {
        ("incomplete", _) => json!("length"),
        ("completed", true) => json!("tool_calls"),
        ("completed", false) => json!("stop"),
        _ => Value::Null,
    };
    let usage = &response["usage"];
    json!({
        "id": response["id"], "object": "chat.completion", "model": response["model"],
        "choices": [{"index": 0, "message": message, "finish_reason": reason}],
        "usage": {"prompt_tokens": usage["input_tokens"], "completion_tokens": usage["output_tokens"], "total_tokens": usage["total_tokens"]},
    })
}

/// A stream of responses' events, for the record: its last event has it all.
#[derive(Debug, Default)]
pub(crate) struct Assembly {
    response: Value,
    pub(crate) error: Option<Value>,
    pub(crate) is_whole: bool,
}

impl Assembly {
    /// Takes in an event. Returns whether there is something of an answer in it.
    pub(crate) fn add(&mut self, mut event: Value) -> bool {
        let kind = text(&event, "type").to_owned();
        match kind.as_str() {
            "response.completed" | "response.incomplete" | "response.failed" => {
                self.response = event["response"].take();
                self.is_whole = true;
                if !self.response["error"].is_null() {
                    self.error = Some(self.response["error"].clone());
                }
                false
            }
            "response.created" | "response.in_progress" => {
                self.response = event["response"].take();
                false
            }
            "error" => {
                self.error = Some(event);
                false
            }
            other => other.ends_with(".delta"),
        }
    }

    /// The response.
    pub(crate) fn finish(self) -> Value {
        self.response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_said_in_chat_completions() {
        let request = json!({
            "model": "m", "instructions": "be brief", "max_output_tokens": 9, "store": false, "tool_choice": "auto",
            "input": [
                {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "really"}]},
                {"role": "user", "content": "hi"},
                {"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}]},
                {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "let me"}]},
                {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{\"x\": 1}"},
                {"type": "function_call", "call_id": "c2", "name": "g", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "c1", "output": "42"},
                {"role": "user", "content": [{"type": "input_text", "text": "and"}, {"type": "input_image", "image_url": "http://h/i.png"}]},
            ],
            "tools": [{"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": true}],
            "text": {"format": {"type": "json_schema", "name": "n", "schema": {}, "strict": true}},
        });
        assert_eq!(
            to_chat(&request).unwrap(),
            json!({
                "model": "m", "max_tokens": 9, "tool_choice": "auto",
                "messages": [
                    {"role": "system", "content": "be brief\n\nreally"},
                    {"role": "user", "content": "hi"},
                    {"role": "assistant", "content": "let me", "reasoning_content": "hm", "reasoning": "hm", "tool_calls": [
                        {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{\"x\": 1}"}},
                        {"id": "c2", "type": "function", "function": {"name": "g", "arguments": "{}"}},
                    ]},
                    {"role": "tool", "tool_call_id": "c1", "content": "42"},
                    {"role": "user", "content": [{"type": "text", "text": "and"}, {"type": "image_url", "image_url": {"url": "http://h/i.png"}}]},
                ],
                "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}, "strict": true}}],
                "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {}, "strict": true}},
            })
        );
    }

    #[test]
    fn what_cannot_be_said_is_refused_by_name() {
        let refused = |extra: Value| {
            let mut request = json!({"model": "m", "input": "x"});
            request.as_object_mut().unwrap().extend(extra.as_object().cloned().unwrap());
            to_chat(&request).unwrap_err()
        };
        for (extra, part) in [
            (json!({"background": true}), "background"),
            (json!({"conversation": "c"}), "conversation"),
            (json!({"tools": [{"type": "web_search"}]}), "web_search"),
            (json!({"input": [{"type": "item_reference", "id": "x"}]}), "item_reference"),
            (json!({"input": 1}), "input has to be"),
            (json!({"novel": 1}), "novel"),
        ] {
            let refusal = refused(extra);
            assert!(refusal.status == 400 && refusal.message.contains(part), "{refusal:?}");
        }
    }

    fn telling() -> Telling {
        let tools = json!([{"type": "function", "name": "f"}, {"type": "custom", "name": "patch"}]);
        Telling { id: "resp_1".to_owned(), created_at: 7, request: json!({"model": "m", "tools": tools}) }
    }

    #[test]
    fn events_written_add_up_to_the_response() {
        let chunk = |delta: Value| json!({"id": "c", "choices": [{"index": 0, "delta": delta}]});
        let call = |index: u64, name: Option<&str>, arguments: &str| {
            let mut call = json!({"index": index, "function": {"arguments": arguments}});
            if let Some(name) = name {
                call["id"] = format!("t{index}").into();
                call["function"]["name"] = name.into();
            }
            chunk(json!({"tool_calls": [call]}))
        };
        let chunks = [
            chunk(json!({"role": "assistant", "content": ""})),
            chunk(json!({"reasoning": "h"})),
            chunk(json!({"reasoning": "m"})),
            chunk(json!({"content": "a"})),
            chunk(json!({"content": " b"})),
            call(0, Some("f"), ""),
            call(0, None, "{\"x\""),
            call(0, None, ": 1}"),
            call(1, Some("patch"), "{\"input\":\"*** \"}"),
            json!({"id": "c", "choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]}),
            json!({"id": "c", "choices": [], "usage": {"prompt_tokens": 2, "completion_tokens": 7}}),
        ];
        let mut chat = crate::assemble::Assembly::default();
        let mut writer = Writer::new(telling());
        let mut out = String::new();
        for chunk in chunks {
            writer.chunk(&chunk, &mut out);
            chat.add_value(&chunk);
        }
        let chat = chat.finish("chat.completion");
        let (end, told) = writer.finish(&chat);
        out.push_str(&end);
        assert_eq!(told, telling().whole(&chat));
        let mut read = Assembly::default();
        let mut numbers = Vec::new();
        let mut deltas = String::new();
        for line in out.lines().filter_map(|line| line.strip_prefix("data: ")) {
            let event: Value = serde_json::from_str(line).unwrap();
            numbers.push(event["sequence_number"].as_u64().unwrap());
            if event["type"] == "response.output_text.delta" {
                deltas.push_str(text(&event, "delta"));
            }
            read.add(event);
        }
        assert_eq!(numbers, (0..numbers.len() as u64).collect::<Vec<_>>());
        assert_eq!(deltas, "a b");
        assert!(read.is_whole);
        let response = read.finish();
        assert_eq!(response, told);
        let kinds: Vec<&str> = list(&response["output"]).iter().map(|item| text(item, "type")).collect();
        assert_eq!(kinds, ["reasoning", "message", "function_call", "custom_tool_call"]);
        assert_eq!(response["output"][2]["arguments"], "{\"x\": 1}");
        assert_eq!(response["output"][3]["input"], "*** ");
        let back = answer_as_chat(&response);
        assert_eq!(back["choices"][0]["message"]["content"], "a b");
        assert_eq!(back["choices"][0]["finish_reason"], "tool_calls");
    }

    #[test]
    fn tools_in_a_namespace_are_functions_of_longer_names() {
        let tool = json!({"type": "namespace", "name": "agents", "tools": [
            {"type": "function", "name": "spawn", "parameters": {"type": "object"}},
            {"type": "custom", "name": "tell"},
        ]});
        let request = json!({
            "model": "m", "tools": [tool, {"type": "function", "name": "spawn"}],
            "tool_choice": {"type": "function", "namespace": "agents", "name": "spawn"},
            "input": [{"type": "function_call", "call_id": "c", "namespace": "agents", "name": "spawn", "arguments": "{}"}],
        });
        let chat = to_chat(&request).unwrap();
        let names: Vec<&Value> = list(&chat["tools"]).iter().map(|tool| &tool["function"]["name"]).collect();
        assert_eq!(names, ["agents__spawn", "agents__tell", "spawn"]);
        assert_eq!(chat["tool_choice"]["function"]["name"], "agents__spawn");
        assert_eq!(chat["messages"][0]["tool_calls"][0]["function"]["name"], "agents__spawn");
        let call =
            |name: &str| json!({"id": name, "function": {"name": name, "arguments": "{\"input\":\"x\"}"}});
        let calls: Vec<Value> = names.iter().filter_map(|name| name.as_str()).map(call).collect();
        let answer = json!({"choices": [{"message": {"tool_calls": calls}, "finish_reason": "tool_calls"}]});
        let told = Telling { request, ..telling() }.whole(&answer);
        let of = |key: &str| -> Vec<Value> {
            list(&told["output"]).iter().map(|item| item[key].clone()).collect()
        };
        assert_eq!(of("name"), ["spawn", "tell", "spawn"]);
        assert_eq!(of("namespace"), [json!("agents"), json!("agents"), Value::Null]);
        assert_eq!(of("type"), ["function_call", "custom_tool_call", "function_call"]);
    }

    #[test]
    fn an_answer_without_a_word_is_a_message_without_one() {
        let chat = json!({"choices": [{"message": {"content": ""}, "finish_reason": "length"}], "usage": {}});
        let mut writer = Writer::new(telling());
        writer.chunk(&json!({"choices": []}), &mut String::new());
        let (_, response) = writer.finish(&chat);
        assert_eq!(response, telling().whole(&chat));
        assert_eq!(
            (&response["status"], &response["incomplete_details"]["reason"]),
            (&json!("incomplete"), &json!("max_output_tokens"))
        );
    }
}
