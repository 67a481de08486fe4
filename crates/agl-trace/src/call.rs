//! One call of a language model, whatever recorded it.

use std::collections::VecDeque;

use agl_types::JsonMap;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::dialect::Dialect;

/// The number of a token in the model's vocabulary.
pub type TokenId = u32;

/// One call of a language model: what went in, what came out, and where it belongs.
///
/// Whatever the span did not say is empty; nothing is made up.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LlmCall {
    /// Who recorded it.
    pub dialect: Dialect,
    /// The span that it was read from; of joined spans, the outermost one.
    pub span_id: String,
    /// The other spans of the same call, joined by the id of the response.
    pub joined: Vec<String>,
    /// Its place in the attempt.
    pub sequence_id: i64,
    /// The id that the engine gave to the response.
    pub response_id: Option<String>,
    /// The innermost agent around the call.
    pub agent: Option<String>,
    /// That agent's role.
    pub role: Option<String>,
    /// The model that was asked for.
    pub model: Option<String>,
    /// The model that answered.
    pub response_model: Option<String>,
    /// The prompt.
    pub messages: Vec<Message>,
    /// The tools that the model might call.
    pub tools: Vec<Tool>,
    /// The other parameters of the request.
    pub parameters: JsonMap,
    /// The prompt's token ids, as the engine saw them.
    pub prompt_token_ids: Vec<TokenId>,
    /// The answers.
    pub choices: Vec<Choice>,
    /// How many tokens went through.
    pub usage: Usage,
    /// When it began, in seconds since 1970.
    pub start_time: Option<f64>,
    /// When it ended, in seconds since 1970.
    pub end_time: Option<f64>,
    /// Why it failed, if it did.
    pub error: Option<String>,
    /// Why its record is known to be incomplete, if it is: what was captured must not be trained on.
    pub gap: Option<String>,
}

/// One message of a prompt, or an answer.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Message {
    /// `system`, `user`, `assistant`, `tool`, or what the sender wrote.
    pub role: String,
    /// What it says.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub parts: Vec<Part>,
    /// The tools that it calls.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
    /// The call that it answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool_call_id: Option<String>,
    /// Who speaks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// A piece of a message.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Part {
    /// Words.
    Text {
        /// The words.
        text: String,
    },
    /// Words that the model thought before it spoke.
    Reasoning {
        /// The words.
        text: String,
    },
    /// Words with which the model refused.
    Refusal {
        /// The words.
        text: String,
    },
    /// A picture.
    Image {
        /// Where it is, `data:` included.
        url: String,
    },
    /// A recording.
    Audio {
        /// Where it is, `data:` included.
        url: String,
    },
    /// A document.
    File {
        /// What it is called.
        name: Option<String>,
        /// The id under which the server of the model has it.
        id: Option<String>,
        /// Where it is, `data:` included.
        url: Option<String>,
    },
    /// Anything else, as it was written.
    Other {
        /// The part.
        value: Value,
    },
}

/// A tool that the model wants called.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ToolCall {
    /// The id that the answer refers to.
    pub id: Option<String>,
    /// The tool.
    pub name: String,
    /// Its arguments: JSON text, unless the model wrote something else.
    pub arguments: String,
}

/// A tool that the model may call.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Tool {
    /// Its name.
    pub name: String,
    /// What it is for.
    pub description: Option<String>,
    /// The JSON schema of its arguments.
    pub parameters: Option<Value>,
}

/// One answer.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Choice {
    /// What the model said.
    pub message: Message,
    /// Why it stopped.
    pub finish_reason: Option<String>,
    /// The token ids, as the engine sampled them.
    pub token_ids: Vec<TokenId>,
    /// The log-prob of each token; as long as `token_ids`, or empty.
    pub logprobs: Vec<f64>,
}

/// How many tokens went through.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Usage {
    /// Of the prompt.
    pub prompt_tokens: Option<u64>,
    /// Of all answers.
    pub completion_tokens: Option<u64>,
}

impl LlmCall {
    /// The first answer.
    #[must_use]
    pub fn choice(&self) -> Option<&Choice> {
        self.choices.first()
    }

    /// The token ids of the first answer; empty when they are not known.
    #[must_use]
    pub fn response_token_ids(&self) -> &[TokenId] {
        self.choice().map(|choice| choice.token_ids.as_slice()).unwrap_or_default()
    }

    /// Whether the engine's token ids of both prompt and first answer are known.
    #[must_use]
    pub fn has_token_ids(&self) -> bool {
        !self.prompt_token_ids.is_empty() && !self.response_token_ids().is_empty()
    }

    /// The URLs of the prompt's images, in order.
    pub fn image_urls(&self) -> impl Iterator<Item = &str> {
        self.messages.iter().flat_map(|message| &message.parts).filter_map(|part| match part {
            Part::Image { url } => Some(url.as_str()),
            _ => None,
        })
    }

    /// The request and the response of OpenAI's chat API that say the same: what [`chat_call`](crate::chat_call) reads.
    #[must_use]
    pub fn to_request_and_response(&self) -> (Value, Value) {
        let mut request = Value::Object(self.parameters.clone());
        request["model"] = self.model.clone().into();
        request["messages"] = self.messages.iter().map(Message::to_chat).collect();
        if !self.tools.is_empty() {
            request["tools"] = self.tools.iter().map(Tool::to_chat).collect();
        }
        let Usage { prompt_tokens, completion_tokens } = self.usage;
        let total_tokens =
            prompt_tokens.zip(completion_tokens).map(|(prompt, completion)| prompt + completion);
        let choice = |(index, choice): (usize, &Choice)| {
            let ids = (!choice.token_ids.is_empty()).then_some(&choice.token_ids);
            json!({
                "index": index,
                "message": choice.message.to_chat(),
                "finish_reason": choice.finish_reason,
                "token_ids": ids,
            })
        };
        let prompt_token_ids = (!self.prompt_token_ids.is_empty()).then_some(&self.prompt_token_ids);
        let response = json!({
            "id": self.response_id,
            "model": self.response_model,
            "choices": self.choices.iter().enumerate().map(choice).collect::<Vec<_>>(),
            "usage": {
                "prompt_tokens": prompt_tokens,
                "completion_tokens": completion_tokens,
                "total_tokens": total_tokens,
            },
            "prompt_token_ids": prompt_token_ids,
        });
        (request, response)
    }

    /// The prompt and the first answer as messages of OpenAI's chat API.
    #[must_use]
    pub fn to_chat(&self) -> Vec<Value> {
        let answer = self.choice().map(|choice| &choice.message);
        self.messages.iter().chain(answer).map(Message::to_chat).collect()
    }
}

impl Message {
    /// A message that says `text`.
    #[must_use]
    pub fn text(role: &str, text: &str) -> Self {
        Self { role: role.to_owned(), parts: vec![Part::text(text)], ..Self::default() }
    }

    /// All words of the message but the model's thoughts.
    #[must_use]
    pub fn words(&self) -> String {
        let texts = self.parts.iter().filter_map(|part| match part {
            Part::Text { text } => Some(text.as_str()),
            _ => None,
        });
        texts.collect()
    }

    /// Whether nothing is said and nothing called.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.parts.is_empty() && self.tool_calls.is_empty()
    }

    /// Reads a message of OpenAI's chat API, or of those that resemble it.
    ///
    /// Content may be text, null or a list of parts; calls of tools may be nested in `function` or flat, and their
    /// arguments may be an object.
    #[must_use]
    pub fn from_chat(message: &Value) -> Self {
        let string = |key: &str| message.get(key).and_then(Value::as_str).map(str::to_owned);
        let mut parts = Vec::new();
        for key in ["reasoning_content", "reasoning"] {
            if let Some(text) = message.get(key).and_then(Value::as_str).filter(|text| !text.is_empty()) {
                parts.push(Part::Reasoning { text: text.to_owned() });
                break;
            }
        }
        let mut tool_calls: Vec<ToolCall> =
            list(message.get("tool_calls")).filter_map(ToolCall::read).collect();
        parts.extend(message.get("content").map(Part::list).unwrap_or_default());
        if let Some(text) = string("refusal").filter(|text| !text.is_empty()) {
            parts.push(Part::Refusal { text });
        }
        // Anthropic's form, and that of OpenAI's responses: a call of a tool is a part.
        parts.retain(|part| match part {
            Part::Other { value } if value["type"] == "tool_use" || value["type"] == "function_call" => {
                tool_calls.extend(ToolCall::read(value));
                false
            }
            _ => true,
        });
        Self {
            role: string("role").unwrap_or_default(),
            parts,
            tool_calls,
            tool_call_id: string("tool_call_id"),
            name: string("name"),
        }
    }

    /// The message in the form of OpenAI's chat API, with only those keys that say something.
    #[must_use]
    pub fn to_chat(&self) -> Value {
        let spoken: Vec<&Part> =
            self.parts.iter().filter(|part| !matches!(part, Part::Reasoning { .. })).collect();
        let content = match spoken.as_slice() {
            [] if self.role == "assistant" => Value::Null,
            [] => "".into(),
            [Part::Text { text }] => text.as_str().into(),
            parts => parts.iter().map(|part| part.to_chat()).collect(),
        };
        let mut message = json!({"role": self.role, "content": content});
        let thought: String = self
            .parts
            .iter()
            .filter_map(|part| match part {
                Part::Reasoning { text } => Some(text.as_str()),
                _ => None,
            })
            .collect();
        if !thought.is_empty() {
            message["reasoning_content"] = thought.into();
        }
        if !self.tool_calls.is_empty() {
            message["tool_calls"] = self.tool_calls.iter().map(ToolCall::to_chat).collect();
        }
        for (key, value) in [("tool_call_id", &self.tool_call_id), ("name", &self.name)] {
            if let Some(value) = value {
                message[key] = value.as_str().into();
            }
        }
        message
    }
}

impl Part {
    /// Words.
    #[must_use]
    pub fn text(text: &str) -> Self {
        Self::Text { text: text.to_owned() }
    }

    /// Reads the content of a message: text, a list of parts, or null.
    #[must_use]
    pub fn list(content: &Value) -> Vec<Self> {
        match content {
            Value::Null => Vec::new(),
            Value::String(text) if text.is_empty() => Vec::new(),
            Value::Array(parts) => parts.iter().map(Self::read).collect(),
            other => vec![Self::read(other)],
        }
    }

    /// Reads a part in the form of OpenAI's APIs, of Anthropic's or of OpenTelemetry's.
    #[must_use]
    pub fn read(part: &Value) -> Self {
        if let Value::String(text) = part {
            return Self::text(text);
        }
        let string = |key: &str| part.get(key).and_then(Value::as_str);
        match string("type") {
            Some("text" | "input_text" | "output_text") => {
                string("text").or_else(|| string("content")).map(Self::text)
            }
            Some("reasoning" | "thinking" | "reasoning_text" | "summary_text") => {
                ["text", "content", "thinking"]
                    .iter()
                    .find_map(|key| string(key))
                    .map(|text| Self::Reasoning { text: text.to_owned() })
            }
            Some("refusal") => string("refusal").map(|text| Self::Refusal { text: text.to_owned() }),
            Some("image_url" | "input_image" | "image") => {
                location(part, &["image_url", "image", "source"]).map(|url| Self::Image { url })
            }
            Some("audio_url" | "input_audio" | "audio") => {
                location(part, &["audio_url", "input_audio", "audio", "source"])
                    .map(|url| Self::Audio { url })
            }
            Some("file" | "input_file" | "document") => file(part),
            Some("uri" | "blob") => {
                let url = location(part, &["uri"]).or_else(|| inline(part, "content"));
                match string("modality") {
                    Some("image") => url.map(|url| Self::Image { url }),
                    Some("audio") => url.map(|url| Self::Audio { url }),
                    _ => None,
                }
            }
            _ => None,
        }
        .unwrap_or_else(|| Self::Other { value: part.clone() })
    }

    /// The part in the form of OpenAI's chat API.
    #[must_use]
    pub fn to_chat(&self) -> Value {
        match self {
            Self::Text { text } | Self::Reasoning { text } => json!({"type": "text", "text": text}),
            Self::Refusal { text } => json!({"type": "refusal", "refusal": text}),
            Self::Image { url } => json!({"type": "image_url", "image_url": {"url": url}}),
            Self::Audio { url } => {
                match url.strip_prefix("data:audio/").and_then(|url| url.split_once(";base64,")) {
                    Some((format, data)) => {
                        json!({"type": "input_audio", "input_audio": {"data": data, "format": format}})
                    }
                    // vLLM's.
                    None => json!({"type": "audio_url", "audio_url": {"url": url}}),
                }
            }
            Self::File { name, id, url } => {
                let known = [("filename", name), ("file_id", id), ("file_data", url)];
                let fields = known.iter().filter_map(|(key, value)| Some((*key, value.as_deref()?)));
                let fields: JsonMap = fields.map(|(key, value)| (key.to_owned(), value.into())).collect();
                json!({"type": "file", "file": fields})
            }
            Self::Other { value } => value.clone(),
        }
    }
}

/// Where what a part shows is: under the first of these keys that has it, as text or as an object with a `url` or with the
/// `data` themselves.
fn location(part: &Value, keys: &[&str]) -> Option<String> {
    let found = keys.iter().find_map(|key| part.get(*key).filter(|value| !value.is_null()))?;
    let url = || found.get("url").and_then(Value::as_str).map(str::to_owned);
    found.as_str().map(str::to_owned).or_else(url).or_else(|| inline(found, "data"))
}

/// Data in base64 as a URL.
fn inline(value: &Value, key: &str) -> Option<String> {
    let data = value.get(key)?.as_str()?;
    let string = |key: &str| value.get(key).and_then(Value::as_str);
    let mime_type = ["mime_type", "media_type"].iter().find_map(|key| string(key)).map(str::to_owned);
    let mime_type = mime_type.or_else(|| Some(format!("audio/{}", string("format")?)))?;
    Some(format!("data:{mime_type};base64,{data}"))
}

/// A document in the form of OpenAI's APIs or of Anthropic's.
fn file(part: &Value) -> Option<Part> {
    let about = part.get("file").filter(|file| file.is_object()).unwrap_or(part);
    let string = |keys: &[&str]| keys.iter().find_map(|key| about.get(*key)?.as_str().map(str::to_owned));
    let url = string(&["file_url", "file_data", "url"]).or_else(|| location(about, &["source"]));
    let id = string(&["file_id"]);
    (url.is_some() || id.is_some()).then(|| Part::File { name: string(&["filename", "title"]), id, url })
}

impl ToolCall {
    /// Reads a call, nested in `function` or flat; none without a name.
    #[must_use]
    pub fn read(call: &Value) -> Option<Self> {
        let function = call.get("function").filter(|function| function.is_object()).unwrap_or(call);
        let string = |value: &Value, keys: &[&str]| {
            keys.iter().find_map(|key| value.get(*key)?.as_str().map(str::to_owned))
        };
        let arguments =
            ["arguments", "args", "input", "parameters"].iter().find_map(|key| function.get(*key));
        Some(Self {
            id: string(call, &["id", "toolCallId", "call_id"]),
            name: string(function, &["name", "toolName"])?,
            arguments: arguments.map(as_text).unwrap_or_default(),
        })
    }

    /// The call in the form of OpenAI's chat API.
    #[must_use]
    pub fn to_chat(&self) -> Value {
        let function = json!({"name": self.name, "arguments": self.arguments});
        json!({"id": self.id, "type": "function", "function": function})
    }
}

impl Tool {
    /// Reads a tool, nested in `function` or flat; none without a name. The schema may be JSON text.
    #[must_use]
    pub fn read(tool: &Value) -> Option<Self> {
        let function = tool.get("function").filter(|function| function.is_object()).unwrap_or(tool);
        let schema = ["parameters", "input_schema", "inputSchema"].iter().find_map(|key| function.get(*key));
        Some(Self {
            name: function.get("name")?.as_str()?.to_owned(),
            description: function.get("description").and_then(Value::as_str).map(str::to_owned),
            parameters: schema.map(parsed).filter(|schema| !schema.is_null()),
        })
    }

    /// The tool in the form of OpenAI's chat API.
    #[must_use]
    pub fn to_chat(&self) -> Value {
        let description = self.description.as_deref().unwrap_or_default();
        let empty = || json!({"type": "object", "properties": {}});
        let parameters = self.parameters.clone().unwrap_or_else(empty);
        let function = json!({"name": self.name, "description": description, "parameters": parameters});
        json!({"type": "function", "function": function})
    }
}

impl Choice {
    /// Reads a choice of OpenAI's chat API, with vLLM's token ids and log-probs where they are.
    #[must_use]
    pub fn from_chat(choice: &Value) -> Self {
        let ids =
            choice.get("token_ids").or_else(|| choice.get("provider_specific_fields")?.get("token_ids"));
        let message = match choice.get("message") {
            Some(message) => Message::from_chat(message),
            // The completions API answers with text alone.
            None => {
                Message::text("assistant", choice.get("text").and_then(Value::as_str).unwrap_or_default())
            }
        };
        Self {
            message,
            finish_reason: choice.get("finish_reason").and_then(Value::as_str).map(str::to_owned),
            token_ids: ids.and_then(token_ids).unwrap_or_default(),
            logprobs: choice.get("logprobs").map(logprobs).unwrap_or_default(),
        }
    }
}

/// A list of token ids, or one as JSON text; none when it is anything else.
pub(crate) fn token_ids(value: &Value) -> Option<Vec<TokenId>> {
    match value {
        Value::Array(ids) => ids.iter().map(|id| TokenId::try_from(id.as_u64()?).ok()).collect(),
        Value::String(text) => token_ids_of_text(text),
        _ => None,
    }
}

/// Whole numbers between brackets. Rows of training data are mostly these, so they are read eight bytes at a time.
///
/// Johnny Lee, "Fast numeric string to int" (2016), for the digits of a word; a list that is not as close as ours are
/// written goes to the JSON parser.
fn token_ids_of_text(text: &str) -> Option<Vec<TokenId>> {
    let plain = || {
        let rest = text.strip_prefix('[')?;
        let mut ids = Vec::with_capacity(rest.len() / 5 + 1);
        (rest == "]" || read_plain_ids(rest.as_bytes(), &mut ids).is_some()).then_some(ids)
    };
    plain().or_else(|| serde_json::from_str(text).ok())
}

/// Reads whole numbers of seven digits at most between commas, without spaces, up to the bracket that ends the text; none of
/// anything else.
fn read_plain_ids(text: &[u8], ids: &mut Vec<TokenId>) -> Option<()> {
    const ONES: u64 = 0x0101_0101_0101_0101;
    let mut rest = text;
    loop {
        let mut word = [b']'; 8];
        match rest.first_chunk() {
            Some(chunk) => word = *chunk,
            None => word[..rest.len()].copy_from_slice(rest),
        }
        // Digits become their values, and the top bit of each other byte is set.
        let values = u64::from_le_bytes(word) ^ (ONES * 0x30);
        let others = (((values & (ONES * 0x7f)) + ONES * 0x76) | values) & (ONES * 0x80);
        let digits = others.trailing_zeros() / 8;
        if digits == 0 || digits == 8 || (digits > 1 && word[0] == b'0') {
            return None;
        }
        // The digits, as the last of eight; then pairs, fours and all of them are put together.
        let pairs = values << (64 - 8 * digits);
        let pairs = pairs.wrapping_mul(10).wrapping_add(pairs >> 8);
        let low = (pairs & 0x0000_00ff_0000_00ff).wrapping_mul(0x000f_4240_0000_0064);
        let high = ((pairs >> 16) & 0x0000_00ff_0000_00ff).wrapping_mul(0x0000_2710_0000_0001);
        ids.push(TokenId::try_from(low.wrapping_add(high) >> 32).ok()?);
        match *rest.get(digits as usize..)? {
            [b',', ..] => rest = &rest[digits as usize + 1..],
            [b']'] => return Some(()),
            _ => return None,
        }
    }
}

/// Lists of token ids that were read from text, the newest ones of an attempt: most prompts begin with the tokens of an
/// earlier prompt and of its answer, which then need not be read again.
#[derive(Default)]
pub(crate) struct KnownIds<'t> {
    newest: VecDeque<KnownCall<'t>>,
}

/// Prompt and answer of a call, as text.
struct KnownCall<'t> {
    prompt: &'t str,
    response: &'t str,
    /// Which call it is.
    number: usize,
}

impl<'t> KnownIds<'t> {
    /// As many as may well go on side by side.
    const AT_MOST: usize = 4;

    /// What [`token_ids`] reads; `tokens` has those of prompt and answer of a call that is known.
    pub(crate) fn token_ids<'c>(
        &self,
        list: &Value,
        tokens: impl Fn(usize) -> [&'c [TokenId]; 2],
    ) -> Option<Vec<TokenId>> {
        let read = |text: &str| self.newest.iter().rev().find_map(|known| known.read(text, &tokens));
        list.as_str().and_then(read).or_else(|| token_ids(list))
    }

    /// Remembers a call whose token ids were read from these lists, by its number.
    pub(crate) fn add(&mut self, prompt: &'t Value, response: &'t Value, number: usize) {
        let (Value::String(prompt), Value::String(response)) = (prompt, response) else { return };
        if self.newest.len() == Self::AT_MOST {
            self.newest.pop_front();
        }
        self.newest.push_back(KnownCall { prompt, response, number });
    }
}

impl KnownCall<'_> {
    /// Reads a list that begins with this prompt; none of any other.
    fn read<'c>(&self, text: &str, tokens: impl Fn(usize) -> [&'c [TokenId]; 2]) -> Option<Vec<TokenId>> {
        let rest = text.strip_prefix(self.prompt.strip_suffix(']')?)?;
        let answer = self.response.strip_prefix('[').and_then(|answer| answer.strip_suffix(']'));
        let after_answer =
            || rest.strip_prefix(',')?.strip_prefix(answer.filter(|answer| !answer.is_empty())?);
        // Where the last number ends there, it is the whole number.
        let ends = |rest: &&str| rest.starts_with([',', ']']);
        let [of_prompt, of_response] = tokens(self.number);
        let (known, rest) = match after_answer().filter(ends) {
            Some(rest) => ([of_prompt, of_response], rest),
            None => ([of_prompt, &[]], rest),
        };
        let count: usize = known.iter().map(|part| part.len()).sum();
        let mut ids = Vec::with_capacity(count + rest.len() / 5 + 1);
        known.iter().for_each(|part| ids.extend_from_slice(part));
        match rest.strip_prefix(',') {
            Some(more) => read_plain_ids(more.as_bytes(), &mut ids)?,
            None => (rest == "]").then_some(())?,
        }
        Some(ids)
    }
}

/// The log-probs in `{"content": [{"logprob"}]}`, in `{"token_logprobs": []}`, in the list of the former or in a plain
/// list, or one of these as JSON text; empty unless every one is a number.
pub(crate) fn logprobs(value: &Value) -> Vec<f64> {
    let opened: Value;
    let value = match value {
        Value::String(_) => {
            opened = parsed(value);
            &opened
        }
        other => other,
    };
    let number = |item: &Value| item.as_f64().or_else(|| item.get("logprob")?.as_f64());
    let items = value.get("content").or_else(|| value.get("token_logprobs")).unwrap_or(value);
    let items = items.as_array().map(Vec::as_slice).unwrap_or_default();
    items.iter().map(number).collect::<Option<_>>().unwrap_or_default()
}

/// JSON text as what it says, anything else as it is.
pub(crate) fn parsed(value: &Value) -> Value {
    match value {
        Value::String(text) => serde_json::from_str(text).unwrap_or_else(|_| value.clone()),
        other => other.clone(),
    }
}

/// Text as it is, null as nothing, anything else as JSON text.
pub(crate) fn as_text(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// The items of a list; nothing of anything else.
pub(crate) fn list(value: Option<&Value>) -> impl Iterator<Item = &Value> {
    value.and_then(Value::as_array).into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn token_ids_are_read_from_lists_and_from_their_text() {
        let text = |text: &str| token_ids(&text.into());
        assert_eq!(text("[1,22,4294967295]"), Some(vec![1, 22, u32::MAX]));
        let many: Vec<TokenId> = (0..8)
            .flat_map(|power| [10_u32.pow(power) - 1, 10_u32.pow(power), 7 * 10_u32.pow(power)])
            .collect();
        assert_eq!(text(&json!(many).to_string()), Some(many));
        assert_eq!(text(" [ 0 , 7 ] "), Some(vec![0, 7]));
        assert_eq!(text("[]"), Some(Vec::new()));
        for odd in [
            "",
            "1",
            "[",
            "[1",
            "[1,]",
            "[,1]",
            "[1 2]",
            "[01]",
            "[-1]",
            "[1.0]",
            "[4294967296]",
            "[\"1\"]",
            "null",
        ] {
            assert_eq!(text(odd), None, "{odd}");
        }
        assert_eq!(token_ids(&json!([1, 22])), Some(vec![1, 22]));
        assert_eq!(token_ids(&json!([1, -22])), None);
        assert_eq!(logprobs(&"[-0.5, -1]".into()), [-0.5, -1.0]);
        assert!(logprobs(&"nothing".into()).is_empty());
    }

    /// What is known of earlier calls changes how a list is read, never what is read of it.
    #[test]
    fn token_ids_are_read_on_from_earlier_calls() {
        let texts = ["[1,2,3]", "[4,5]", "[]", "[1, 2]", "[12,3]"].map(Value::from);
        let mut known = KnownIds::default();
        let calls = [(0, 2), (0, 3), (3, 1), (4, 1), (0, 1)];
        for (number, (prompt, response)) in calls.into_iter().enumerate() {
            known.add(&texts[prompt], &texts[response], number);
        }
        let ids = texts.each_ref().map(|text| token_ids(text).unwrap());
        let tokens = |number: usize| {
            let (prompt, response): (usize, usize) = calls[number];
            [ids[prompt].as_slice(), ids[response].as_slice()]
        };
        for text in [
            "[1,2,3]",
            "[1,2,3,4,5]",
            "[1,2,3,4,5,6,12345678]",
            "[1,2,3,4,56]",
            "[1,2,3,4]",
            "[1,2,34]",
            "[1,2,3,6, 7]",
            "[1, 2,4,5,6]",
            "[1, 2]",
            "[12,3,4]",
            "[12,34,5]",
            "[1,2,3,]",
            "[1,2,3,4,5,]",
            "[1,2,3,4,5",
            "[1,2,3,-1]",
            "[1,2,3",
            "[]",
            "",
        ] {
            assert_eq!(known.token_ids(&text.into(), tokens), token_ids(&text.into()), "{text}");
        }
        assert!(known.newest.len() == KnownIds::AT_MOST, "the newest are kept, and no others");
        let read = |text: &str| known.newest.back()?.read(text, tokens);
        assert_eq!(read("[1,2,3,4,5,6]"), Some(vec![1, 2, 3, 4, 5, 6]), "after prompt and answer");
        assert_eq!(read("[1,2,3,4,56]"), Some(vec![1, 2, 3, 4, 56]), "after the prompt alone");
        assert_eq!(read("[1,2,34]"), None);
    }

    #[test]
    fn parts_of_every_kind() {
        let url = |url: &str| Some(url.to_owned());
        for (written, read) in [
            (json!({"type": "input_text", "text": "a"}), Part::text("a")),
            (json!({"type": "summary_text", "text": "hm"}), Part::Reasoning { text: "hm".to_owned() }),
            (json!({"type": "refusal", "refusal": "no"}), Part::Refusal { text: "no".to_owned() }),
            (
                json!({"type": "input_image", "image_url": "http://i"}),
                Part::Image { url: "http://i".to_owned() },
            ),
            (
                json!({"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AA=="}}),
                Part::Image { url: "data:image/png;base64,AA==".to_owned() },
            ),
            (
                json!({"type": "input_audio", "input_audio": {"data": "AA==", "format": "wav"}}),
                Part::Audio { url: "data:audio/wav;base64,AA==".to_owned() },
            ),
            (
                json!({"type": "blob", "modality": "audio", "mime_type": "audio/mp3", "content": "AA=="}),
                Part::Audio { url: "data:audio/mp3;base64,AA==".to_owned() },
            ),
            (
                json!({"type": "audio_url", "audio_url": {"url": "http://a"}}),
                Part::Audio { url: "http://a".to_owned() },
            ),
            (
                json!({"type": "input_file", "file_id": "f1", "filename": "x.pdf"}),
                Part::File { name: url("x.pdf"), id: url("f1"), url: None },
            ),
            (
                json!({"type": "file", "file": {"filename": "x.pdf", "file_data": "data:application/pdf;base64,AA=="}}),
                Part::File { name: url("x.pdf"), id: None, url: url("data:application/pdf;base64,AA==") },
            ),
            (
                json!({"type": "document", "title": "t", "source": {"type": "url", "url": "http://d"}}),
                Part::File { name: url("t"), id: None, url: url("http://d") },
            ),
            (json!({"type": "input_audio"}), Part::Other { value: json!({"type": "input_audio"}) }),
            (json!({"type": "new"}), Part::Other { value: json!({"type": "new"}) }),
        ] {
            let part = Part::read(&written);
            assert_eq!(part, read, "{written}");
            let again = Part::read(&part.to_chat());
            assert!(
                again == part || matches!(part, Part::Reasoning { .. }),
                "{written} comes back as {again:?}"
            );
        }
    }

    #[test]
    fn a_call_of_a_tool_among_the_parts_is_a_call() {
        let item = json!({"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"});
        let message = Message::from_chat(&json!({"role": "assistant", "content": [item], "refusal": "no"}));
        let call = ToolCall { id: Some("c1".to_owned()), name: "f".to_owned(), arguments: "{}".to_owned() };
        assert_eq!(message.tool_calls, [call]);
        assert_eq!(message.parts, [Part::Refusal { text: "no".to_owned() }]);
    }
}
