//! A call as a span: what 0.3's adapters and 1.0's clients read, OpenTelemetry's GenAI attributes, and ours.

use agl_types::v1::MODEL_REQUEST;
use agl_types::{Attributes, Span, StatusCode, ids, is_plain_attribute, semconv};
use serde::de::IgnoredAny;
use serde_json::{Value, json};

use crate::answer;
use crate::dialect::{Dialect, reasoning};

/// Bytes of the longest error text kept.
const LONGEST_ERROR: usize = 4096;

/// What was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Chat,
    Completions,
    Embeddings,
}

impl Kind {
    /// The path of it below the base URL.
    pub(crate) fn endpoint(self) -> &'static str {
        match self {
            Self::Chat => "chat/completions",
            Self::Completions => "completions",
            Self::Embeddings => "embeddings",
        }
    }

    fn operation(self) -> &'static str {
        match self {
            Self::Chat => "chat",
            Self::Completions => "text_completion",
            Self::Embeddings => "embeddings",
        }
    }

    /// `object` of an answer.
    pub(crate) fn object(self) -> &'static str {
        match self {
            Self::Chat => "chat.completion",
            Self::Completions => "text_completion",
            Self::Embeddings => "list",
        }
    }
}

/// How a call ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// With a whole answer.
    Answered,
    /// With an error, the model server's or the gateway's.
    Failed,
    /// The model server broke off in the middle.
    BrokenOff,
    /// The agent left before the end.
    Disconnected,
    /// The agent left before the call was sent to a model server.
    Aborted,
}

impl Outcome {
    fn as_str(self) -> &'static str {
        match self {
            Self::Answered => "answered",
            Self::Failed => "failed",
            Self::BrokenOff => "broken_off",
            Self::Disconnected => "disconnected",
            Self::Aborted => "aborted",
        }
    }
}

/// Everything that is known of a call.
#[derive(Debug)]
pub(crate) struct Record<'c> {
    pub(crate) kind: Kind,
    /// The request as the model server got it.
    pub(crate) request: &'c Value,
    /// The answer, or what there was of it.
    pub(crate) response: Value,
    pub(crate) outcome: Outcome,
    pub(crate) error: Option<String>,
    pub(crate) http_status: Option<u16>,
    pub(crate) backend: Option<&'c str>,
    pub(crate) model_version: Option<i64>,
    /// How many times the call was sent.
    pub(crate) tries: u32,
    /// Whether token ids were asked for.
    pub(crate) wanted_ids: bool,
    /// Whether nobody but capture asked for log-probs: of each, its token and its number are kept then.
    pub(crate) shortens_logprobs: bool,
    /// Wall-clock seconds.
    pub(crate) started: f64,
    /// Seconds.
    pub(crate) latency: f64,
    /// Seconds until the first token of a stream.
    pub(crate) first_token: Option<f64>,
    /// Whether it is an event for 1.0's clients too.
    pub(crate) is_event: bool,
    pub(crate) span_id: String,
    /// What the agent spoke.
    pub(crate) dialect: Dialect,
    /// The types of the tools that the model server was not told of.
    pub(crate) dropped_tools: &'c [String],
    /// The agent's own request and answer, where somebody will come back to them.
    pub(crate) exchange: Option<(&'c Value, &'c Value)>,
}

/// A call as a span that is not placed in an attempt yet.
#[derive(Debug)]
pub(crate) struct Recorded {
    pub(crate) span: Span,
    /// Attributes more, in JSON: token ids and log-probs, which are never anything but text.
    pub(crate) lists: Vec<(String, String)>,
}

impl Record<'_> {
    pub(crate) fn into_span(mut self) -> Recorded {
        let event = self.is_event.then(|| self.event().to_string());
        let short = self.shortens_logprobs;
        let choices = self.response.get_mut("choices").and_then(Value::as_array_mut);
        let logprobs: Vec<Logprobs> =
            choices.into_iter().flatten().map(|choice| Logprobs::taken_from(choice, short)).collect();
        let mut ids = Ids::taken_from(&mut self.response);
        let untrainable = self.untrainable(&ids, &logprobs);
        let mut attributes = match self.kind {
            Kind::Chat => agl_trace::chat_attributes(self.request, &self.response),
            Kind::Completions => self.completion_attributes(),
            Kind::Embeddings => self.embedding_attributes(),
        };
        let mut put = |key: &str, value: Value| put(&mut attributes, key, value);
        put("gen_ai.operation.name", self.kind.operation().into());
        put("gen_ai.usage.input_tokens", self.response["usage"]["prompt_tokens"].clone());
        put("gen_ai.usage.output_tokens", self.response["usage"]["completion_tokens"].clone());
        let reasons: Vec<Value> =
            self.choices().filter_map(|choice| Some(choice["finish_reason"].as_str()?.into())).collect();
        if !reasons.is_empty() {
            put("gen_ai.response.finish_reasons", reasons.into());
        }
        for (index, choice) in self.choices().enumerate() {
            let thought = reasoning(&choice["message"]);
            if !thought.is_empty() {
                let name = format!("{}.{index}.reasoning_content", semconv::GEN_AI_COMPLETION);
                put(&name, thought.into());
            }
        }
        let name = |part: &str| format!("{}.{part}", semconv::GATEWAY);
        let dialect = match (self.dialect, self.kind) {
            (Dialect::OpenAi, Kind::Completions) => "openai.completions",
            (Dialect::OpenAi, Kind::Embeddings) => "openai.embeddings",
            (dialect, _) => dialect.name(),
        };
        put(&name("dialect"), dialect.into());
        put(&name("outcome"), self.outcome.as_str().into());
        put(&name("tries"), self.tries.into());
        put(&name("latency"), rounded(self.latency));
        put(&name("http_status"), self.http_status.into());
        put(&name("backend"), self.backend.into());
        put(&name("model_version"), self.model_version.into());
        put(&name("time_to_first_token"), self.first_token.map_or(Value::Null, rounded));
        if !self.dropped_tools.is_empty() {
            put(&name("dropped_tools"), self.dropped_tools.into());
        }
        put(semconv::UNTRAINABLE, untrainable.into());
        if let Some((request, response)) = self.exchange {
            put(&name("request"), request.to_string().into());
            put(&name("response"), response.to_string().into());
        }
        if let Some(error) = &self.error {
            let kind = self
                .http_status
                .map_or_else(|| self.outcome.as_str().to_owned(), |status| status.to_string());
            put("error.type", kind.into());
            put("error.message", error.as_str().into());
        }
        if let Some(event) = event {
            put(semconv::EVENT_TYPE, MODEL_REQUEST.into());
            put(semconv::EVENT_DATA, event.into());
        }
        let mut lists = Vec::new();
        let mut hold = |key: String, held: Held| match held {
            Held::Json(json) => {
                attributes.shift_remove(&key);
                lists.push((key, json));
            }
            Held::Value(value) => self::put(&mut attributes, &key, value),
        };
        for (index, Logprobs { content, numbers, .. }) in logprobs.into_iter().enumerate() {
            if index == 0 {
                hold(semconv::LOGPROBS_CONTENT.to_owned(), content);
            }
            hold(format!("{}.{index}.logprobs", name("choices")), numbers);
        }
        if self.kind != Kind::Embeddings {
            let mut put = |key: String, ids: Value| match ids {
                Value::String(list) => hold(key, Held::Json(list)),
                other => hold(key, other.into()),
            };
            // The first choice has the names that 0.3 knows; every one has those.
            put(semconv::RESPONSE_TOKEN_IDS.to_owned(), ids.responses.first().cloned().unwrap_or_default());
            for index in 1..ids.responses.len() {
                if ids.prompt(index) != ids.prompt(0) {
                    put(format!("{}.{index}.prompt_token_ids", name("choices")), ids.prompt(index).clone());
                }
            }
            put(semconv::PROMPT_TOKEN_IDS.to_owned(), ids.take_prompt());
            for (index, ids) in ids.responses.into_iter().enumerate() {
                put(format!("{}.{index}.token_ids", name("choices")), ids);
            }
        }
        let end = self.started + self.latency;
        let trace_id = ids::trace_id(rand::random(), rand::random());
        let mut span = Span::new(semconv::GATEWAY_CALL, trace_id, self.span_id, self.started, end);
        span.attributes = attributes;
        if self.outcome != Outcome::Answered {
            span.status.status_code = StatusCode::Error;
            span.status.description = self.error;
        }
        span.resource.attributes.insert("service.name".to_owned(), "agentlightning-gateway".into());
        Recorded { span, lists }
    }

    fn choices(&self) -> impl Iterator<Item = &Value> {
        self.response["choices"].as_array().map(Vec::as_slice).unwrap_or_default().iter()
    }

    /// Why no training data can be made of this call, if that is so. `ids` and `logprobs` are those of its choices.
    fn untrainable(&self, ids: &Ids, logprobs: &[Logprobs]) -> Option<String> {
        if self.kind == Kind::Embeddings {
            return Some("embeddings have no tokens that a policy chose".to_owned());
        }
        match self.outcome {
            Outcome::Answered => {}
            Outcome::Failed => return Some("the call failed".to_owned()),
            Outcome::BrokenOff => {
                return Some("the model server broke off in the middle of its answer".to_owned());
            }
            Outcome::Disconnected => return Some("the agent left before the end of the answer".to_owned()),
            Outcome::Aborted => return Some("the agent left before its call was sent on".to_owned()),
        }
        if !self.wanted_ids {
            return Some("the model server returns no token ids".to_owned());
        }
        if self.choices().next().is_none() {
            return Some("there is no choice in the answer".to_owned());
        }
        let mut prompt = 0;
        let mut response = 0;
        for (index, (chosen, probabilities)) in ids.responses.iter().zip(logprobs).enumerate() {
            let (Some(prompt_count), Some(count)) = (answer::ids(ids.prompt(index)), answer::ids(chosen))
            else {
                return Some("the model server returned no token ids, although it was asked to".to_owned());
            };
            if index > 0 && ids.prompt(index) != ids.prompt(0) {
                return Some("it has answers to different prompts: send a request for each".to_owned());
            }
            if prompt_count == 0 || count == 0 {
                return Some("the model server returned an empty list of token ids".to_owned());
            }
            if let Some(probabilities) = probabilities.count.filter(|probabilities| *probabilities != count) {
                return Some(format!("there are {count} token ids but {probabilities} log-probs"));
            }
            prompt = prompt_count;
            response += count;
        }
        let counted = |name: &str| self.response["usage"][name].as_u64();
        // Several prompts in one request are counted together.
        let is_one_prompt = self.kind == Kind::Chat;
        match (counted("prompt_tokens"), counted("completion_tokens")) {
            (Some(count), _) if is_one_prompt && count != prompt as u64 => {
                Some(format!("there are {prompt} token ids of the prompt, but usage counts {count}"))
            }
            (_, Some(count)) if count != response as u64 => {
                Some(format!("there are {response} token ids of the response, but usage counts {count}"))
            }
            _ => None,
        }
    }

    fn completion_attributes(&self) -> Attributes {
        let mut attributes = Attributes::new();
        let mut put = |key: &str, value: Value| put(&mut attributes, key, value);
        let (request, response) = (self.request, &self.response);
        put("gen_ai.request.type", "completion".into());
        put("gen_ai.request.streaming", request["stream"].as_bool().unwrap_or(false).into());
        for parameter in ["model", "temperature", "top_p", "max_tokens", "seed"] {
            put(&format!("{}.{parameter}", semconv::GEN_AI_REQUEST), request[parameter].clone());
        }
        put(&format!("{}.0.role", semconv::GEN_AI_PROMPT), "user".into());
        put(&format!("{}.0.content", semconv::GEN_AI_PROMPT), as_text(&request["prompt"]));
        put(semconv::GEN_AI_RESPONSE_ID, response["id"].clone());
        put("gen_ai.response.model", response["model"].clone());
        for (index, choice) in self.choices().enumerate() {
            let prefix = format!("{}.{index}", semconv::GEN_AI_COMPLETION);
            put(&format!("{prefix}.role"), "assistant".into());
            put(&format!("{prefix}.content"), choice["text"].clone());
            put(&format!("{prefix}.finish_reason"), choice["finish_reason"].clone());
        }
        let first = &response["choices"][0];
        // In the shape of a chat's, which adapters read.
        if let (Some(tokens), Some(numbers)) =
            (first["logprobs"]["tokens"].as_array(), first["logprobs"]["token_logprobs"].as_array())
        {
            let content: Vec<Value> = tokens
                .iter()
                .zip(numbers)
                .map(|(token, logprob)| json!({"token": token, "logprob": logprob}))
                .collect();
            put(semconv::LOGPROBS_CONTENT, Value::from(content).to_string().into());
        }
        attributes
    }

    fn embedding_attributes(&self) -> Attributes {
        let mut attributes = Attributes::new();
        let mut put = |key: &str, value: Value| put(&mut attributes, key, value);
        put("gen_ai.request.type", "embedding".into());
        for parameter in ["model", "dimensions", "encoding_format"] {
            put(&format!("{}.{parameter}", semconv::GEN_AI_REQUEST), self.request[parameter].clone());
        }
        put("gen_ai.response.model", self.response["model"].clone());
        put(&format!("{}.input", semconv::GEN_AI_REQUEST), as_text(&self.request["input"]));
        attributes
    }

    /// What 1.0 records of a call.
    fn event(&self) -> Value {
        let is_ok = self.outcome == Outcome::Answered;
        let mut event = json!({
            "model": self.request["model"],
            "model_version": self.model_version.unwrap_or(0),
            "request": self.request,
            "response": answer::spelled_out(&self.response),
            "server": {"model": self.request["model"], "endpoint": self.backend, "version": self.model_version.unwrap_or(0)},
            "latency_ms": rounded(self.latency * 1e3),
            "http_status": self.http_status,
            "status": if is_ok { "ok" } else { "error" },
            "retry_count": self.tries.saturating_sub(1),
            "usage": self.response["usage"],
            "finish_reason": self.response["choices"][0]["finish_reason"],
        });
        if let Some(error) = &self.error {
            event["error"] = error.as_str().into();
        }
        event
    }
}

/// An error text that is not too long to keep.
pub(crate) fn error_text(text: &[u8]) -> String {
    let cut = String::from_utf8_lossy(&text[..text.len().min(LONGEST_ERROR)]);
    if text.len() > LONGEST_ERROR { format!("{cut}…") } else { cut.into_owned() }
}

/// Token ids, as [`answer::ids`] counts them, taken from where the various servers put them.
#[derive(Debug)]
struct Ids {
    /// Those of the prompt, beside the choices.
    shared: Value,
    /// Those of the prompt that are in each choice.
    prompts: Vec<Value>,
    responses: Vec<Value>,
}

impl Ids {
    fn taken_from(response: &mut Value) -> Self {
        let taken = |place: Option<&mut Value>| {
            place.filter(|ids| answer::ids(ids).is_some()).map(Value::take).unwrap_or_default()
        };
        let shared = taken(response.get_mut("prompt_token_ids"));
        let choices = response.get_mut("choices").and_then(Value::as_array_mut);
        let of_choice = |choice: &mut Value| {
            let prompt = taken(choice.get_mut("prompt_token_ids"));
            let ids = taken(choice.get_mut("token_ids"));
            if !ids.is_null() {
                return (prompt, ids);
            }
            (prompt, taken(choice.pointer_mut("/provider_specific_fields/token_ids")))
        };
        let (prompts, responses) = choices.into_iter().flatten().map(of_choice).unzip();
        Self { shared, prompts, responses }
    }

    /// Those of the prompt of a choice.
    fn prompt(&self, index: usize) -> &Value {
        self.prompts.get(index).filter(|ids| !ids.is_null()).unwrap_or(&self.shared)
    }

    /// Those of the first choice's prompt, which are gone then.
    fn take_prompt(&mut self) -> Value {
        match self.prompts.first_mut() {
            Some(ids) if !ids.is_null() => ids.take(),
            _ => self.shared.take(),
        }
    }
}

/// What an attribute is to hold.
#[derive(Debug)]
enum Held {
    Value(Value),
    /// JSON of a plain value, which is long.
    Json(String),
}

impl Default for Held {
    fn default() -> Self {
        Self::Value(Value::Null)
    }
}

impl From<Value> for Held {
    fn from(value: Value) -> Self {
        Self::Value(value)
    }
}

/// The log-probs of a choice.
#[derive(Debug, Default)]
struct Logprobs {
    /// Of a chat the list of them as text.
    content: Held,
    /// The list of their numbers; null when one is missing.
    numbers: Held,
    /// How many numbers there are.
    count: Option<usize>,
}

impl Logprobs {
    /// Those of a choice, of which the list is taken out.
    fn taken_from(choice: &mut Value, short: bool) -> Self {
        let Some(Value::Object(logprobs)) = choice.get_mut("logprobs") else { return Self::default() };
        let content = logprobs.get_mut("content").map(Value::take).unwrap_or_default();
        let numbers: Option<Vec<f64>> = match (&content, logprobs.get("token_logprobs")) {
            (Value::String(list), _) => {
                if let Some(short) = short.then(|| answer::shortened(list)).flatten() {
                    let (content, numbers) = (Held::Json(short.content), Held::Json(short.numbers));
                    return Self { content, numbers, count: Some(short.count) };
                }
                let numbers = answer::numbers(list);
                if numbers.is_none() && serde_json::from_str::<IgnoredAny>(list).is_err() {
                    return Self::default();
                }
                numbers
            }
            (Value::Array(tokens), _) => tokens.iter().map(|token| token["logprob"].as_f64()).collect(),
            (_, Some(Value::Array(numbers))) => numbers.iter().map(Value::as_f64).collect(),
            _ => None,
        };
        let count = numbers.as_ref().map(Vec::len);
        Self { content: content.into(), numbers: numbers.map_or(Value::Null, Value::from).into(), count }
    }
}

fn put(attributes: &mut Attributes, key: &str, value: Value) {
    if !value.is_null() {
        let value = if is_plain_attribute(&value) { value } else { value.to_string().into() };
        attributes.insert(key.to_owned(), value);
    }
}

/// Text and null as they are, anything else as JSON text.
fn as_text(value: &Value) -> Value {
    match value {
        Value::Null | Value::String(_) => value.clone(),
        other => other.to_string().into(),
    }
}

/// To the microsecond.
fn rounded(seconds: f64) -> Value {
    ((seconds * 1e6).round() / 1e6).into()
}
