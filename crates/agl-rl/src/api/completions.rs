//! `POST /v1/completions`.

use super::fields::Fields;
use super::{Common, common, new_id, now, reasons, shown, usage};
use crate::engine::{Answer, Engine, Finish};
use crate::error::{Error, Result};
use crate::http::Dialect;
use crate::sampling::TokenOutput;
use serde_json::{Map, Value, json};

/// Most of the likeliest tokens that may be asked for.
const MAX_LOGPROBS: u64 = 20;

/// Most prompts in one request.
const MAX_PROMPTS: usize = 256;

/// A completion request that is understood, and its answer in the making.
#[derive(Debug)]
pub(crate) struct Completion {
    engine: Engine,
    pub(crate) common: Common,
    pub(crate) prompts: Vec<Vec<u32>>,
    id: String,
    created: u64,
    logprobs: bool,
    /// While streaming, for each choice: the characters sent so far.
    offsets: Vec<usize>,
    completion_tokens: usize,
}

impl Completion {
    /// Reads a request's fields.
    pub(crate) fn parse(engine: Engine, mut fields: Fields) -> Result<Self> {
        let prompts = prompts(&engine, fields.take("prompt"))?;
        let mut common = common(&mut fields)?;
        // Once, 16 was the default length; answers of unlimited length are asked for explicitly.
        common.request.max_tokens = common.request.max_tokens.or(Some(16));
        let logprobs = fields.integer("logprobs", 0, MAX_LOGPROBS)?;
        fields.finish()?;
        common.request.top_logprobs = logprobs.map_or(0, |top| usize::try_from(top).unwrap_or(0));
        Ok(Self {
            engine,
            id: new_id("cmpl"),
            created: now(),
            logprobs: logprobs.is_some(),
            offsets: vec![0; prompts.len() * common.request.n],
            completion_tokens: 0,
            prompts,
            common,
        })
    }

    /// The old shape: parallel lists. `offset` is the position of the first token in the text.
    fn logprobs(&self, outputs: &[TokenOutput], offset: usize) -> Value {
        if !self.logprobs {
            return Value::Null;
        }
        let text_of = |token: u32| shown(self.engine.tokenizer(), token).0;
        let mut position = offset;
        let mut offsets = Vec::new();
        let mut tokens = Vec::new();
        let mut token_logprobs = Vec::new();
        let mut top = Vec::new();
        for output in outputs {
            let text = text_of(output.token);
            offsets.push(position);
            position += text.chars().count();
            let mut likeliest: Map<String, Value> =
                output.top.iter().map(|&(token, logprob)| (text_of(token), logprob.into())).collect();
            // The chosen token is always among them.
            likeliest.insert(text.clone(), output.logprob.into());
            top.push(likeliest);
            tokens.push(text);
            token_logprobs.push(output.logprob);
        }
        json!({"text_offset": offsets, "tokens": tokens, "token_logprobs": token_logprobs, "top_logprobs": top})
    }

    fn envelope(&self, choices: Vec<Value>) -> Value {
        let mut body = json!({
            "id": self.id, "object": "text_completion", "created": self.created,
            "model": self.engine.model_name(), "choices": [],
        });
        body["choices"] = choices.into();
        body
    }

    fn chunk(&self, index: usize, text: &str, outputs: &[TokenOutput], finish: Option<&Finish>) -> Value {
        let (reason, stop) = finish.map_or((Value::Null, Value::Null), |finish| {
            let (reason, stop) = reasons(finish);
            (reason.into(), stop)
        });
        let logprobs =
            if outputs.is_empty() { Value::Null } else { self.logprobs(outputs, self.offsets[index]) };
        let mut choice = json!({"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason, "stop_reason": stop});
        if self.common.return_token_ids {
            choice["token_ids"] = outputs.iter().map(|output| output.token).collect();
        }
        let mut chunk = self.envelope(vec![choice]);
        if self.common.include_usage {
            chunk["usage"] = Value::Null;
        }
        chunk
    }

    fn prompt_tokens(&self) -> usize {
        self.prompts.iter().map(Vec::len).sum()
    }
}

impl Dialect for Completion {
    fn answer(&mut self, answers: Vec<Vec<Answer>>) -> Value {
        let mut completion_tokens = 0;
        let mut choices = Vec::new();
        for (prompt, answers) in self.prompts.iter().zip(answers) {
            for answer in answers {
                completion_tokens += answer.tokens.len();
                let (reason, stop) = reasons(&answer.finish);
                let mut choice = json!({
                    "index": choices.len(), "text": answer.text, "logprobs": self.logprobs(&answer.tokens, 0),
                    "finish_reason": reason, "stop_reason": stop,
                });
                if self.common.return_token_ids {
                    choice["prompt_token_ids"] = prompt.as_slice().into();
                    choice["token_ids"] = answer.tokens.iter().map(|output| output.token).collect();
                }
                choices.push(choice);
            }
        }
        let mut body = self.envelope(choices);
        body["usage"] = usage(self.prompt_tokens(), completion_tokens);
        body
    }

    fn open(&mut self) -> Vec<Value> {
        if !self.common.return_token_ids {
            return Vec::new();
        }
        // The prompts' ids come ahead of everything, one chunk a prompt, at its first choice.
        let opening = |(index, prompt): (usize, &Vec<u32>)| {
            let mut chunk = self.chunk(index * self.common.request.n, "", &[], None);
            chunk["choices"][0]["prompt_token_ids"] = prompt.as_slice().into();
            chunk
        };
        self.prompts.iter().enumerate().map(opening).collect()
    }

    fn token(&mut self, prompt: usize, choice: usize, output: TokenOutput, text: String) -> Option<Value> {
        self.completion_tokens += 1;
        if text.is_empty() && !self.logprobs && !self.common.return_token_ids {
            return None;
        }
        let index = prompt * self.common.request.n + choice;
        let shown_length = shown(self.engine.tokenizer(), output.token).0.chars().count();
        let chunk = self.chunk(index, &text, &[output], None);
        self.offsets[index] += shown_length;
        Some(chunk)
    }

    fn finished(&mut self, prompt: usize, choice: usize, finish: &Finish, text: String) -> Vec<Value> {
        vec![self.chunk(prompt * self.common.request.n + choice, &text, &[], Some(finish))]
    }

    fn close(&mut self) -> Option<Value> {
        if !self.common.include_usage {
            return None;
        }
        let mut chunk = self.envelope(Vec::new());
        chunk["usage"] = usage(self.prompt_tokens(), self.completion_tokens);
        Some(chunk)
    }
}

/// A text, a list of texts, a list of token ids, or a list of such lists.
fn prompts(engine: &Engine, value: Option<Value>) -> Result<Vec<Vec<u32>>> {
    let wrong = || {
        let message = "prompt must be a string, a list of strings, a list of token ids, or a list of lists of token ids";
        Error::bad_request("prompt", message)
    };
    let encode = |text: &str| engine.tokenizer().encode(text, true);
    let ids = |list: &[Value]| -> Result<Vec<u32>> {
        list.iter().map(|id| id.as_u64().and_then(|id| u32::try_from(id).ok()).ok_or_else(wrong)).collect()
    };
    let list = match value {
        Some(Value::String(text)) => return Ok(vec![encode(&text)?]),
        Some(Value::Array(list)) if !list.is_empty() => list,
        _ => return Err(wrong()),
    };
    if list[0].is_number() {
        return Ok(vec![ids(&list)?]);
    }
    if list.len() > MAX_PROMPTS {
        return Err(Error::bad_request(
            "prompt",
            format!("prompt holds {} prompts, at most {MAX_PROMPTS} are accepted", list.len()),
        ));
    }
    list.iter()
        .map(|one| match one {
            Value::String(text) => encode(text),
            Value::Array(list) => ids(list),
            _ => Err(wrong()),
        })
        .collect()
}
