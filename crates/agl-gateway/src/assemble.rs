//! The answer that a stream of chunks amounts to, in the shape of an answer that is not a stream.

use std::borrow::Cow;

use serde_json::{Value, json};

use crate::answer::{self, Outline};
use crate::json::{Member, members};

/// Chunks of chat completions or completions, put together.
#[derive(Debug, Default)]
pub(crate) struct Assembly {
    /// The members of the answer but its choices: those of the first chunk that had them.
    head: serde_json::Map<String, Value>,
    choices: Vec<Choice>,
    /// What went wrong, where the server said so within the stream.
    error: Option<Value>,
}

#[derive(Debug, Default)]
struct Choice {
    index: u64,
    /// `message` of a chat, none for completions.
    message: Option<serde_json::Map<String, Value>>,
    text: String,
    tool_calls: Vec<ToolCall>,
    /// As [`answer::ids`] counts them.
    token_ids: Option<Value>,
    /// Lists of log-probs by name: `content` and `refusal` of a chat, `tokens` and so on of completions.
    logprobs: serde_json::Map<String, Value>,
    /// Everything else: `finish_reason`, `stop_reason`, `prompt_token_ids`.
    rest: serde_json::Map<String, Value>,
}

#[derive(Debug, Default)]
struct ToolCall {
    index: u64,
    call: serde_json::Map<String, Value>,
    name: String,
    arguments: String,
}

impl Assembly {
    /// Takes in one chunk. Returns whether there is something of an answer in it. Most of a chunk is what all chunks say:
    /// it is passed over in the text.
    pub(crate) fn add(&mut self, text: &[u8], outline: &Outline) -> bool {
        let mut said_something = false;
        for member in &outline.members {
            match &*member.name(text) {
                "choices" if outline.choices.is_some() => {
                    for choice in outline.choices.iter().flatten() {
                        said_something |= self.add_choice(text, choice);
                    }
                }
                "object" => {}
                "error" => self.error = value(text, member).or(self.error.take()),
                // The last word on usage counts, where there are several.
                "usage" => self.head.extend(value(text, member).map(|usage| ("usage".to_owned(), usage))),
                name if self.head.contains_key(name) => {}
                "prompt_token_ids" => {
                    self.head.extend(ids(text, member).map(|ids| ("prompt_token_ids".to_owned(), ids)));
                }
                name => self.head.extend(value(text, member).map(|value| (name.to_owned(), value))),
            }
        }
        said_something
    }

    fn add_choice(&mut self, text: &[u8], choice: &answer::Choice) -> bool {
        let fields = &choice.members;
        let Some(first) = fields.first() else { return false };
        let index = if first.name(text) == "index" { Some(first) } else { None };
        let index = index.or_else(|| fields.iter().find(|field| field.name(text) == "index"));
        let index = index.and_then(|index| value(text, index)?.as_u64()).unwrap_or_default();
        let place = match self.choices.iter().position(|known| known.index == index) {
            Some(place) => place,
            None => {
                self.choices.push(Choice { index, ..Choice::default() });
                self.choices.len() - 1
            }
        };
        self.choices[place].add(text, choice)
    }

    /// What went wrong, where the server said so within the stream.
    pub(crate) fn error(&self) -> Option<&Value> {
        self.error.as_ref()
    }

    /// Whether every choice has come to its end.
    pub(crate) fn is_finished(&self) -> bool {
        !self.choices.is_empty()
            && self
                .choices
                .iter()
                .all(|choice| choice.rest.get("finish_reason").is_some_and(|reason| !reason.is_null()))
    }

    /// The answer.
    pub(crate) fn finish(mut self, object: &str) -> Value {
        self.choices.sort_by_key(|choice| choice.index);
        let mut answer = serde_json::Map::new();
        answer.extend(self.head.shift_remove("id").map(|id| ("id".to_owned(), id)));
        answer.insert("object".to_owned(), object.into());
        answer.extend(self.head);
        answer.insert("choices".to_owned(), self.choices.into_iter().map(Choice::finish).collect());
        answer.extend(self.error.map(|error| ("error".to_owned(), error)));
        Value::Object(answer)
    }
}

/// A value; none when it is null, or nothing at all.
fn value(text: &[u8], member: &Member) -> Option<Value> {
    let written = text.get(member.value.clone()).filter(|written| *written != b"null")?;
    serde_json::from_slice(written).ok()
}

/// A list of token ids, or whatever there is in its place; none when it is null.
fn ids(text: &[u8], member: &Member) -> Option<Value> {
    let written = std::str::from_utf8(text.get(member.value.clone())?).ok()?;
    answer::read_ids(written).filter(|ids| !ids.is_null())
}

/// A value that is a string.
fn string<'t>(text: &'t [u8], member: &Member) -> Option<Cow<'t, str>> {
    let quoted = text.get(member.value.clone())?;
    let inner = quoted.strip_prefix(b"\"")?.strip_suffix(b"\"")?;
    if memchr::memchr(b'\\', inner).is_some() {
        return serde_json::from_slice::<String>(quoted).ok().map(Cow::Owned);
    }
    std::str::from_utf8(inner).ok().map(Cow::Borrowed)
}

impl Choice {
    fn add(&mut self, text: &[u8], choice: &answer::Choice) -> bool {
        let mut said_something = false;
        for field in &choice.members {
            let inner = || members(text, field.value.clone());
            match &*field.name(text) {
                "index" => {}
                "delta" if let Some(delta) = inner() => said_something |= self.add_delta(text, &delta),
                "text" if let Some(piece) = string(text, field) => {
                    said_something |= !piece.is_empty();
                    self.text.push_str(&piece);
                }
                "token_ids" if let Some(more) = ids(text, field) => {
                    said_something |= answer::ids(&more).is_some_and(|count| count > 0);
                    match &mut self.token_ids {
                        Some(ids) => answer::join_ids(ids, more),
                        none => *none = Some(more),
                    }
                }
                "logprobs" if let Some(lists) = &choice.logprobs => {
                    for list in lists {
                        self.add_logprobs(text, list);
                    }
                }
                "prompt_token_ids" => {
                    self.rest.extend(ids(text, field).map(|ids| ("prompt_token_ids".to_owned(), ids)));
                }
                name => self.rest.extend(value(text, field).map(|value| (name.to_owned(), value))),
            }
        }
        said_something
    }

    fn add_logprobs(&mut self, text: &[u8], list: &Member) {
        let name = list.name(text);
        let written = text.get(list.value.clone()).unwrap_or_default();
        if name != "content" || !written.starts_with(b"[") {
            return join(&mut self.logprobs, name.into_owned(), value(text, list).unwrap_or_default());
        }
        // Of a chat these are the most of all that is said, and stay as they are written.
        let more = String::from_utf8_lossy(written);
        match self.logprobs.get_mut(&*name) {
            Some(Value::String(list)) => answer::join(list, &more),
            _ => {
                self.logprobs.insert(name.into_owned(), more.into());
            }
        }
    }

    fn add_delta(&mut self, text: &[u8], delta: &[Member]) -> bool {
        let message = self.message.get_or_insert_default();
        let mut said_something = false;
        for field in delta {
            let name = field.name(text);
            match (&*name, string(text, field)) {
                ("role", Some(role)) => {
                    message.insert("role".to_owned(), role.into());
                }
                // Content, reasoning, a refusal: whatever comes in pieces of text.
                (name, Some(piece)) => {
                    said_something |= !piece.is_empty();
                    match message.get_mut(name) {
                        Some(Value::String(text)) => text.push_str(&piece),
                        _ => {
                            message.insert(name.to_owned(), piece.into());
                        }
                    }
                }
                (name, None) => match (name, value(text, field)) {
                    (_, None) => {}
                    ("tool_calls", Some(Value::Array(calls))) => {
                        said_something = true;
                        calls.into_iter().for_each(|call| add_call(&mut self.tool_calls, call));
                    }
                    (name, Some(value)) => join(message, name.to_owned(), value),
                },
            }
        }
        said_something
    }

    fn finish(self) -> Value {
        let mut choice = serde_json::Map::new();
        choice.insert("index".to_owned(), self.index.into());
        match self.message {
            Some(mut message) => {
                message.entry("role").or_insert_with(|| "assistant".into());
                message.entry("content").or_insert(Value::Null);
                if !self.tool_calls.is_empty() {
                    let calls = self.tool_calls.into_iter().map(ToolCall::finish).collect();
                    message.insert("tool_calls".to_owned(), calls);
                }
                choice.insert("message".to_owned(), message.into());
            }
            None => {
                choice.insert("text".to_owned(), self.text.into());
            }
        }
        let logprobs = if self.logprobs.is_empty() { Value::Null } else { self.logprobs.into() };
        choice.insert("logprobs".to_owned(), logprobs);
        choice.insert("finish_reason".to_owned(), Value::Null);
        choice.extend(self.rest);
        choice.extend(self.token_ids.map(|ids| ("token_ids".to_owned(), ids)));
        choice.into()
    }
}

/// Lists grow, anything else is replaced.
fn join(fields: &mut serde_json::Map<String, Value>, key: String, value: Value) {
    match (fields.get_mut(&key), value) {
        (Some(Value::Array(list)), Value::Array(more)) => list.extend(more),
        (Some(_), Value::Null) => {}
        (_, value) => {
            fields.insert(key, value);
        }
    }
}

fn add_call(calls: &mut Vec<ToolCall>, piece: Value) {
    let Value::Object(mut piece) = piece else { return };
    let index = piece.shift_remove("index").and_then(|index| index.as_u64());
    let index = index.unwrap_or(calls.len() as u64);
    let place = match calls.iter().position(|call| call.index == index) {
        Some(place) => place,
        None => {
            calls.push(ToolCall { index, ..ToolCall::default() });
            calls.len() - 1
        }
    };
    let call = &mut calls[place];
    if let Some(Value::Object(function)) = piece.shift_remove("function") {
        for (part, whole) in [("name", &mut call.name), ("arguments", &mut call.arguments)] {
            whole.push_str(function.get(part).and_then(Value::as_str).unwrap_or_default());
        }
    }
    for (key, value) in piece {
        if !value.is_null() {
            call.call.insert(key, value);
        }
    }
}

impl ToolCall {
    fn finish(self) -> Value {
        let mut call = self.call;
        call.insert("function".to_owned(), json!({"name": self.name, "arguments": self.arguments}));
        call.into()
    }
}

#[cfg(test)]
impl Assembly {
    pub(crate) fn add_value(&mut self, chunk: &Value) -> bool {
        let text = chunk.to_string();
        Outline::of(text.as_bytes()).is_some_and(|outline| self.add(text.as_bytes(), &outline))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assembled(chunks: &[Value], object: &str) -> Value {
        let mut assembly = Assembly::default();
        for chunk in chunks {
            assembly.add_value(chunk);
        }
        answer::spelled_out(&assembly.finish(object))
    }

    #[test]
    fn a_chat_is_put_together() {
        let chunk = |choices: Value| json!({"id": "c", "object": "chat.completion.chunk", "model": "m", "choices": choices});
        let mut first =
            chunk(json!([{"index": 0, "delta": {"role": "assistant", "content": ""}, "token_ids": null}]));
        first["prompt_token_ids"] = json!([1, 2]);
        let logprob = |n: f64| json!({"content": [{"logprob": n}], "refusal": null});
        let chunks = [
            first,
            chunk(
                json!([{"index": 0, "delta": {"content": "a"}, "token_ids": [3], "logprobs": logprob(-1.0)}]),
            ),
            chunk(json!([{"index": 1, "delta": {"reasoning_content": "hm"}, "token_ids": [9]}])),
            chunk(
                json!([{"index": 0, "delta": {"content": "b"}, "token_ids": [4, 5], "logprobs": logprob(-2.0)}]),
            ),
            chunk(
                json!([{"index": 1, "delta": {"tool_calls": [{"index": 0, "id": "t", "type": "function", "function": {"name": "f", "arguments": ""}}]}}]),
            ),
            chunk(
                json!([{"index": 1, "delta": {"tool_calls": [{"index": 0, "function": {"arguments": "{\"x\""}}]}}]),
            ),
            chunk(
                json!([{"index": 1, "delta": {"tool_calls": [{"index": 0, "function": {"arguments": ":1}"}}]}, "finish_reason": "tool_calls"}]),
            ),
            chunk(json!([{"index": 0, "delta": {}, "finish_reason": "stop", "stop_reason": 7}])),
            json!({"id": "c", "choices": [], "usage": {"completion_tokens": 4}}),
        ];
        let expected = json!({
            "id": "c", "object": "chat.completion", "model": "m", "prompt_token_ids": [1, 2], "usage": {"completion_tokens": 4},
            "choices": [
                {"index": 0, "message": {"role": "assistant", "content": "ab"},
                 "logprobs": {"content": [{"logprob": -1.0}, {"logprob": -2.0}], "refusal": null},
                 "finish_reason": "stop", "stop_reason": 7, "token_ids": [3, 4, 5]},
                {"index": 1, "message": {"reasoning_content": "hm", "role": "assistant", "content": null, "tool_calls": [
                    {"id": "t", "type": "function", "function": {"name": "f", "arguments": "{\"x\":1}"}},
                 ]}, "logprobs": null, "finish_reason": "tool_calls", "token_ids": [9]},
            ],
        });
        assert_eq!(assembled(&chunks, "chat.completion"), expected);
    }

    #[test]
    fn completions_are_put_together() {
        let chunk = |text: &str, token: u32, finish: Value| {
            json!({"id": "c", "object": "text_completion", "choices": [{"index": 0, "text": text, "finish_reason": finish,
                "token_ids": [token], "logprobs": {"tokens": [text], "token_logprobs": [-0.5], "text_offset": [0]}}]})
        };
        let answer =
            assembled(&[chunk("a", 1, json!(null)), chunk("b", 2, json!("length"))], "text_completion");
        assert_eq!(
            answer["choices"][0],
            json!({
                "index": 0, "text": "ab", "finish_reason": "length", "token_ids": [1, 2],
                "logprobs": {"tokens": ["a", "b"], "token_logprobs": [-0.5, -0.5], "text_offset": [0, 0]},
            })
        );
    }

    #[test]
    fn an_end_is_told_from_a_break() {
        let mut assembly = Assembly::default();
        assert!(!assembly.is_finished());
        assert!(!assembly.add_value(&json!({"choices": [{"index": 0, "delta": {"role": "assistant"}}]})));
        assert!(assembly.add_value(&json!({"choices": [{"index": 0, "delta": {"content": "x"}}]})));
        assert!(!assembly.is_finished());
        assembly.add_value(&json!({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}));
        assert!(assembly.is_finished());
        assembly.add_value(&json!({"error": {"message": "no more"}}));
        assert_eq!(assembly.error(), Some(&json!({"message": "no more"})));
        for odd in
            [json!(1), json!([]), json!({"choices": 1}), json!({"choices": [1, {"delta": 1, "index": "x"}]})]
        {
            assembly.add_value(&odd);
        }
    }
}
