//! One call of a language model, whatever recorded it.

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
    /// A picture.
    Image {
        /// Where it is, `data:` included.
        url: String,
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
        // Anthropic's form: a call of a tool is a part.
        parts.retain(|part| match part {
            Part::Other { value } if value["type"] == "tool_use" => {
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
        let image = || {
            let image = part.get("image_url").or_else(|| part.get("image"))?;
            image.as_str().or_else(|| image.get("url")?.as_str()).map(str::to_owned)
        };
        match string("type") {
            Some("text" | "input_text" | "output_text") => {
                string("text").or_else(|| string("content")).map(Self::text)
            }
            Some("reasoning" | "thinking") => ["text", "content", "thinking"]
                .iter()
                .find_map(|key| string(key))
                .map(|text| Self::Reasoning { text: text.to_owned() }),
            Some("image_url" | "input_image" | "image") => image().map(|url| Self::Image { url }),
            Some("uri") if string("modality") == Some("image") => {
                string("uri").map(|url| Self::Image { url: url.to_owned() })
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
            Self::Image { url } => json!({"type": "image_url", "image_url": {"url": url}}),
            Self::Other { value } => value.clone(),
        }
    }
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

/// A list of token ids; none when it is anything else.
pub(crate) fn token_ids(value: &Value) -> Option<Vec<TokenId>> {
    value.as_array()?.iter().map(|id| TokenId::try_from(id.as_u64()?).ok()).collect()
}

/// The log-probs in `{"content": [{"logprob"}]}`, in `{"token_logprobs": []}`, in the list of the former or in a plain
/// list; empty unless every one is a number.
pub(crate) fn logprobs(value: &Value) -> Vec<f64> {
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
