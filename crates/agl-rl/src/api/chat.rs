//! `POST /v1/chat/completions`.

use super::fields::Fields;
use super::{Common, common, new_id, now, reasons, shown, tools, usage};
use crate::engine::{Answer, Engine, Finish};
use crate::error::{Error, Result};
use crate::http::Dialect;
use crate::sampling::TokenOutput;
use crate::template::TOOL_CALL_START;
use crate::text::overlap;
use serde_json::{Map, Value, json};

/// Most of the likeliest tokens that may be asked for.
const MAX_TOP_LOGPROBS: u64 = 20;

/// A chat request that is understood, and its answer in the making.
#[derive(Debug)]
pub(crate) struct Chat {
    engine: Engine,
    pub(crate) common: Common,
    id: String,
    created: u64,
    logprobs: bool,
    /// Whether tool calls are looked for in the answer.
    tools: bool,
    parallel_calls: bool,
    /// While streaming, for each choice: the text that is or may become a tool call.
    held: Vec<Held>,
    completion_tokens: usize,
}

#[derive(Debug, Clone, Default)]
struct Held {
    text: String,
    calling: bool,
}

impl Chat {
    /// Reads a request's fields and renders its prompt.
    pub(crate) fn parse(engine: Engine, mut fields: Fields) -> Result<Self> {
        let messages = fields.list("messages")?.unwrap_or_default();
        check_messages(&messages)?;
        let mut common = common(&mut fields)?;
        let logprobs = fields.boolean("logprobs")?.unwrap_or(false);
        let top = fields.integer("top_logprobs", 0, MAX_TOP_LOGPROBS)?;
        if top.is_some_and(|top| top > 0) && !logprobs {
            return Err(Error::bad_request("top_logprobs", "top_logprobs needs logprobs to be true"));
        }
        let mut tools = fields.list("tools")?.unwrap_or_default();
        check_tools(&tools)?;
        match fields.take("tool_choice") {
            None => {}
            Some(Value::String(choice)) if choice == "auto" => {}
            Some(Value::String(choice)) if choice == "none" => tools.clear(),
            Some(other) => {
                let message =
                    format!("tool_choice must be \"auto\" or \"none\", {other} is not supported here");
                return Err(Error::bad_request("tool_choice", message));
            }
        }
        let parallel_calls = fields.boolean("parallel_tool_calls")?.unwrap_or(true);
        fields.finish()?;

        let text =
            engine.template().render(&messages, &tools).map_err(|e| Error::bad_request("messages", e))?;
        common.request.prompt = engine.tokenizer().encode(&text, false)?;
        common.request.top_logprobs = top.map_or(0, |top| usize::try_from(top).unwrap_or(0));
        Ok(Self {
            engine,
            id: new_id("chatcmpl"),
            created: now(),
            logprobs,
            tools: !tools.is_empty(),
            parallel_calls,
            held: vec![Held::default(); common.request.n],
            completion_tokens: 0,
            common,
        })
    }

    fn logprobs(&self, outputs: &[TokenOutput]) -> Value {
        if !self.logprobs {
            return Value::Null;
        }
        let entry = |token: u32, logprob: f32| {
            let (text, bytes) = shown(self.engine.tokenizer(), token);
            json!({"token": text, "logprob": logprob, "bytes": bytes})
        };
        let content: Vec<Value> = outputs
            .iter()
            .map(|output| {
                let mut one = entry(output.token, output.logprob);
                one["top_logprobs"] =
                    output.top.iter().map(|&(token, logprob)| entry(token, logprob)).collect();
                one
            })
            .collect();
        json!({"content": content, "refusal": null})
    }

    /// The tool calls of a complete answer, with the text before them.
    fn calls(&self, text: &str) -> Option<(String, Vec<Value>)> {
        let (before, mut calls) = if self.tools { tools::parse(text)? } else { return None };
        if !self.parallel_calls {
            calls.truncate(1);
        }
        Some((before, calls))
    }

    fn chunk(
        &self,
        choice: usize,
        delta: Value,
        outputs: &[TokenOutput],
        finish: Option<(&str, Value)>,
    ) -> Value {
        let mut body = json!({
            "index": choice, "delta": null, "logprobs": null, "finish_reason": null, "stop_reason": null
        });
        body["delta"] = delta;
        if !outputs.is_empty() {
            body["logprobs"] = self.logprobs(outputs);
        }
        if let Some((reason, stop)) = finish {
            body["finish_reason"] = reason.into();
            body["stop_reason"] = stop;
        }
        if self.common.return_token_ids {
            body["token_ids"] = outputs.iter().map(|output| output.token).collect();
        }
        self.envelope(vec![body])
    }

    fn envelope(&self, choices: Vec<Value>) -> Value {
        let mut chunk = json!({
            "id": self.id, "object": "chat.completion.chunk", "created": self.created,
            "model": self.engine.model_name(), "choices": [],
        });
        chunk["choices"] = choices.into();
        if self.common.include_usage {
            chunk["usage"] = Value::Null;
        }
        chunk
    }
}

impl Dialect for Chat {
    fn answer(&mut self, mut answers: Vec<Vec<Answer>>) -> Value {
        let answers = answers.pop().unwrap_or_default();
        let mut completion_tokens = 0;
        let choices: Vec<Value> = answers
            .iter()
            .enumerate()
            .map(|(index, answer)| {
                completion_tokens += answer.tokens.len();
                let (mut reason, stop) = reasons(&answer.finish);
                let mut message = Map::new();
                message.insert("role".into(), "assistant".into());
                message.insert("content".into(), answer.text.as_str().into());
                message.insert("refusal".into(), Value::Null);
                if let Some((before, calls)) = self.calls(&answer.text) {
                    let content = if before.is_empty() { Value::Null } else { before.into() };
                    message.insert("content".into(), content);
                    message.insert("tool_calls".into(), calls.into());
                    if reason == "stop" {
                        reason = "tool_calls";
                    }
                }
                let mut choice = json!({
                    "index": index, "message": message, "logprobs": self.logprobs(&answer.tokens),
                    "finish_reason": reason, "stop_reason": stop,
                });
                if self.common.return_token_ids {
                    choice["token_ids"] = answer.tokens.iter().map(|output| output.token).collect();
                }
                choice
            })
            .collect();
        let mut body = json!({
            "id": self.id, "object": "chat.completion", "created": self.created,
            "model": self.engine.model_name(), "choices": choices,
            "usage": usage(self.common.request.prompt.len(), completion_tokens),
        });
        if self.common.return_token_ids {
            body["prompt_token_ids"] = self.common.request.prompt.as_slice().into();
        }
        body
    }

    fn open(&mut self) -> Vec<Value> {
        let opening = |choice| self.chunk(choice, json!({"role": "assistant", "content": ""}), &[], None);
        let mut chunks: Vec<Value> = (0..self.common.request.n).map(opening).collect();
        if self.common.return_token_ids
            && let Some(first) = chunks.first_mut()
        {
            first["prompt_token_ids"] = self.common.request.prompt.as_slice().into();
        }
        chunks
    }

    fn token(&mut self, _: usize, choice: usize, output: TokenOutput, text: String) -> Option<Value> {
        self.completion_tokens += 1;
        let text = if self.tools { self.held[choice].push(&text) } else { text };
        if text.is_empty() && !self.logprobs && !self.common.return_token_ids {
            return None;
        }
        Some(self.chunk(choice, json!({"content": text}), &[output], None))
    }

    fn finished(&mut self, _: usize, choice: usize, finish: &Finish, text: String) -> Vec<Value> {
        let (mut reason, stop) = reasons(finish);
        let rest = std::mem::take(&mut self.held[choice].text) + &text;
        let mut chunks = Vec::new();
        if let Some((before, calls)) = self.calls(&rest) {
            if reason == "stop" {
                reason = "tool_calls";
            }
            if !before.is_empty() {
                chunks.push(self.chunk(choice, json!({"content": before}), &[], None));
            }
            let calls: Vec<Value> = calls
                .into_iter()
                .enumerate()
                .map(|(index, mut call)| {
                    call["index"] = index.into();
                    call
                })
                .collect();
            chunks.push(self.chunk(choice, json!({"tool_calls": calls}), &[], None));
        } else if !rest.is_empty() {
            chunks.push(self.chunk(choice, json!({"content": rest}), &[], None));
        }
        chunks.push(self.chunk(choice, json!({}), &[], Some((reason, stop))));
        chunks
    }

    fn close(&mut self) -> Option<Value> {
        if !self.common.include_usage {
            return None;
        }
        let mut chunk = self.envelope(Vec::new());
        chunk["usage"] = usage(self.common.request.prompt.len(), self.completion_tokens);
        Some(chunk)
    }
}

impl Held {
    /// Adds text; gives what certainly is no part of a tool call.
    fn push(&mut self, text: &str) -> String {
        self.text.push_str(text);
        if self.calling {
            return String::new();
        }
        let keep_from = match self.text.find(TOOL_CALL_START) {
            Some(at) => {
                self.calling = true;
                at
            }
            None => self.text.len() - overlap(&self.text, TOOL_CALL_START),
        };
        let held = self.text.split_off(keep_from);
        std::mem::replace(&mut self.text, held)
    }
}

fn check_messages(messages: &[Value]) -> Result<()> {
    if messages.is_empty() {
        return Err(Error::bad_request("messages", "messages must be a list of at least one message"));
    }
    for (index, message) in messages.iter().enumerate() {
        let wrong = |field: &str, what: &str| {
            let path = format!("messages[{index}]{field}");
            Err(Error::bad_request(path.clone(), format!("{path} {what}")))
        };
        if !message.is_object() {
            return wrong("", "must be an object");
        }
        match message.get("role").and_then(Value::as_str) {
            Some("system" | "developer" | "user" | "assistant" | "tool" | "function") => {}
            _ => return wrong(".role", "must be one of system, developer, user, assistant, tool"),
        }
        let assistant = message["role"] == "assistant";
        match message.get("content") {
            Some(Value::String(_)) => {}
            None | Some(Value::Null) if assistant => {}
            None | Some(Value::Null) => return wrong(".content", "is missing"),
            Some(Value::Array(parts)) => {
                for part in parts {
                    match part.get("type").and_then(Value::as_str) {
                        Some("text") if part.get("text").is_some_and(Value::is_string) => {}
                        Some("text") => return wrong(".content", "holds a text part without text"),
                        Some(kind) => {
                            return wrong(
                                ".content",
                                &format!("holds a part of type `{kind}`; this model reads only text"),
                            );
                        }
                        None => return wrong(".content", "holds a part without a type"),
                    }
                }
            }
            Some(_) => return wrong(".content", "must be a string or a list of parts"),
        }
        match message.get("tool_calls") {
            None | Some(Value::Null) => {}
            Some(Value::Array(calls)) if assistant => {
                if !calls.iter().all(|call| call.pointer("/function/name").is_some_and(Value::is_string)) {
                    return wrong(".tool_calls", "holds a call without function.name");
                }
            }
            Some(_) => return wrong(".tool_calls", "must be a list, and only in a message of the assistant"),
        }
    }
    Ok(())
}

fn check_tools(tools: &[Value]) -> Result<()> {
    for (index, tool) in tools.iter().enumerate() {
        let named = tool.pointer("/function/name").is_some_and(Value::is_string);
        if tool.get("type").and_then(Value::as_str) != Some("function") || !named {
            let path = format!("tools[{index}]");
            let message = format!("{path} must have type `function` and a function with a name");
            return Err(Error::bad_request(path, message));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tool_call_is_held_back_from_the_stream_and_other_text_is_not() {
        let mut held = Held::default();
        let shown: Vec<String> =
            ["1 < 2 ", "<tool", "box>", " <tool_", "call>{\"na"].iter().map(|t| held.push(t)).collect();
        assert_eq!(shown, ["1 < 2 ", "", "<toolbox>", " ", ""]);
        assert_eq!(held.push("me\": \"f\"}"), "");
        assert_eq!(held.text, "<tool_call>{\"name\": \"f\"}");
    }
}
