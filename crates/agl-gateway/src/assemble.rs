//! The answer that a stream of chunks amounts to, in the shape of an answer that is not a stream.

use serde_json::{Value, json};

use crate::answer;

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
    token_ids: Option<Vec<Value>>,
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
    /// Takes in one chunk. Returns whether there is something of an answer in it.
    pub(crate) fn add(&mut self, chunk: Value) -> bool {
        let Value::Object(chunk) = chunk else { return false };
        let mut said_something = false;
        for (key, value) in chunk {
            match (key.as_str(), value) {
                ("choices", Value::Array(choices)) => {
                    for choice in choices {
                        said_something |= self.add_choice(choice);
                    }
                }
                ("error", error) if !error.is_null() => self.error = Some(error),
                ("object", _) | (_, Value::Null) => {}
                // The last word on usage counts, where there are several.
                ("usage", usage) => {
                    self.head.insert(key, usage);
                }
                (_, value) => {
                    self.head.entry(key).or_insert(value);
                }
            }
        }
        said_something
    }

    fn add_choice(&mut self, choice: Value) -> bool {
        let Value::Object(fields) = choice else { return false };
        let index = fields.get("index").and_then(Value::as_u64).unwrap_or_default();
        let place = match self.choices.iter().position(|known| known.index == index) {
            Some(place) => place,
            None => {
                self.choices.push(Choice { index, ..Choice::default() });
                self.choices.len() - 1
            }
        };
        self.choices[place].add(fields)
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

impl Choice {
    fn add(&mut self, fields: serde_json::Map<String, Value>) -> bool {
        let mut said_something = false;
        for (key, value) in fields {
            match (key.as_str(), value) {
                ("delta", Value::Object(delta)) => said_something |= self.add_delta(delta),
                ("text", Value::String(text)) => {
                    said_something |= !text.is_empty();
                    self.text.push_str(&text);
                }
                ("token_ids", Value::Array(ids)) => {
                    said_something |= !ids.is_empty();
                    self.token_ids.get_or_insert_default().extend(ids);
                }
                ("logprobs", Value::Object(logprobs)) => {
                    for (name, value) in logprobs {
                        join(&mut self.logprobs, name, value);
                    }
                }
                ("index", _) | (_, Value::Null) => {}
                (_, value) => {
                    self.rest.insert(key, value);
                }
            }
        }
        said_something
    }

    fn add_delta(&mut self, delta: serde_json::Map<String, Value>) -> bool {
        let message = self.message.get_or_insert_default();
        let mut said_something = false;
        for (key, value) in delta {
            match (key.as_str(), value) {
                ("tool_calls", Value::Array(calls)) => {
                    said_something = true;
                    calls.into_iter().for_each(|call| add_call(&mut self.tool_calls, call));
                }
                ("role", role @ Value::String(_)) => {
                    message.insert(key, role);
                }
                // Content, reasoning, a refusal: whatever comes in pieces of text.
                (_, Value::String(piece)) => {
                    said_something |= !piece.is_empty();
                    match message.get_mut(&key) {
                        Some(Value::String(text)) => text.push_str(&piece),
                        _ => {
                            message.insert(key, piece.into());
                        }
                    }
                }
                (_, Value::Null) => {}
                (_, value) => join(message, key, value),
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
        choice.extend(self.token_ids.map(|ids| ("token_ids".to_owned(), ids.into())));
        choice.into()
    }
}

/// Lists grow, anything else is replaced.
fn join(fields: &mut serde_json::Map<String, Value>, key: String, value: Value) {
    match (fields.get_mut(&key), value) {
        (Some(Value::Array(list)), Value::Array(more)) => list.extend(more),
        // Lists that are kept as text.
        (Some(Value::String(list)), Value::String(more)) => answer::join(list, &more),
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
mod tests {
    use super::*;

    fn assembled(chunks: &[Value], object: &str) -> Value {
        let mut assembly = Assembly::default();
        for chunk in chunks {
            assembly.add(chunk.clone());
        }
        assembly.finish(object)
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
        assert!(!assembly.add(json!({"choices": [{"index": 0, "delta": {"role": "assistant"}}]})));
        assert!(assembly.add(json!({"choices": [{"index": 0, "delta": {"content": "x"}}]})));
        assert!(!assembly.is_finished());
        assembly.add(json!({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}));
        assert!(assembly.is_finished());
        assembly.add(json!({"error": {"message": "no more"}}));
        assert_eq!(assembly.error(), Some(&json!({"message": "no more"})));
        for odd in
            [json!(1), json!([]), json!({"choices": 1}), json!({"choices": [1, {"delta": 1, "index": "x"}]})]
        {
            assembly.add(odd);
        }
    }
}
