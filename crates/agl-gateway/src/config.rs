//! The model list as users write it: TOML, or LiteLLM's form.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use agl_types::{ApiKey, JsonMap};
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use serde::Deserialize;
use serde_json::Value;

use crate::Error;
use crate::upstream::is_of_connection;

/// What a server of models speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Api {
    /// OpenAI's chat completions, completions and embeddings, as nearly every engine does.
    #[default]
    OpenAi,
    /// Anthropic's messages.
    Anthropic,
}

/// One way to one model: what agents ask for, and who answers. Several of one name share its calls.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelEntry {
    /// What agents ask for. One `*` stands for anything.
    pub name: String,
    /// Further names for it.
    #[serde(default)]
    pub aliases: Vec<String>,
    /// The base URL of the server, as an SDK takes it: as a rule it ends in `/v1`. A query is kept.
    pub url: String,
    /// What the server is asked for, by default what the agent asked for. A `*` stands for what that of `name` stood
    /// for.
    #[serde(default)]
    pub model: Option<String>,
    /// What the server speaks.
    #[serde(default)]
    pub api: Api,
    /// The server's key; `api_key_env` or `api_key_file` keep it out of the configuration.
    #[serde(default, deserialize_with = "secret")]
    pub api_key: Option<ApiKey>,
    /// The environment variable that has the server's key.
    #[serde(default)]
    pub api_key_env: Option<String>,
    /// The file that has the server's key.
    #[serde(default)]
    pub api_key_file: Option<PathBuf>,
    /// The header that the key goes into, where that is neither `Authorization: Bearer` nor Anthropic's `x-api-key`.
    #[serde(default)]
    pub api_key_header: Option<String>,
    /// Further headers for all requests, which nobody else is told.
    #[serde(default, deserialize_with = "headers")]
    pub extra_headers: HeaderMap,
    /// Which version of the model this is; it is stamped on every call.
    #[serde(default)]
    pub version: Option<i64>,
    /// Its share of the rollouts, relative to the others of its name.
    #[serde(default = "one")]
    pub weight: f64,
    /// Only for agents that say one of these names in the header `x-agl-agent`; they prefer it to what is for all.
    #[serde(default)]
    pub agents: Vec<String>,
    /// Only for calls that have all of these headers, likewise.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// Only for calls that bring one of these keys, likewise. They do not take the place of the gateway's own key.
    #[serde(default, deserialize_with = "secrets")]
    pub keys: Vec<ApiKey>,
    /// Whether the server returns token ids to those who send `return_token_ids`. Absent, its `/models` is asked
    /// once: vLLM and `agl model serve` do.
    #[serde(default)]
    pub token_ids: Option<bool>,
    /// Whether log-probs are asked for; by default where token ids are.
    #[serde(default)]
    pub logprobs: Option<bool>,
    /// Whether the server speaks OpenAI's responses itself; they are translated otherwise.
    #[serde(default)]
    pub responses: bool,
    /// Whether the server speaks Anthropic's messages itself; they are translated otherwise. Always so with
    /// `api = "anthropic"`.
    #[serde(default)]
    pub messages: bool,
    /// Parameters for requests that have none of the name.
    #[serde(default)]
    pub defaults: JsonMap,
    /// Parameters for all requests.
    #[serde(default)]
    pub set: JsonMap,
    /// Parameters that are taken out of requests.
    #[serde(default)]
    pub drop: Vec<String>,
    /// Whether tools that only a vendor's own servers have (web search and the like) are left out of requests that are
    /// translated; without it, such a request is refused.
    #[serde(default)]
    pub drop_hosted_tools: bool,
    /// Whether chats get back what tools were called with as the model spelled it, where an agent's history spells the same
    /// JSON anew: of an attempt that the agent names, by the ids of the calls.
    #[serde(default = "yes")]
    pub restore_tool_calls: bool,
    /// Parameters for all requests of rollouts that train.
    #[serde(default)]
    pub train: JsonMap,
    /// Parameters for all requests of rollouts that validate.
    #[serde(default)]
    pub val: JsonMap,
    /// How often a call is tried again.
    #[serde(default = "two")]
    pub retries: u32,
    /// Seconds that one try may take until it is answered; a whole answer, or the head of a stream.
    #[serde(default = "ten_minutes")]
    pub timeout: f64,
    /// Seconds that a stream may stand still.
    #[serde(default = "five_minutes")]
    pub stream_timeout: f64,
    /// Calls under way at once; further ones wait.
    #[serde(default)]
    pub max_concurrency: Option<usize>,
    /// Calls begun in a minute; further ones wait.
    #[serde(default)]
    pub requests_per_minute: Option<u32>,
}

fn one() -> f64 {
    1.0
}

fn yes() -> bool {
    true
}

fn two() -> u32 {
    2
}

fn ten_minutes() -> f64 {
    600.0
}

fn five_minutes() -> f64 {
    300.0
}

/// Reads a key without ever repeating it in an error.
fn secret<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<ApiKey>, D::Error> {
    let text =
        Option::<String>::deserialize(deserializer).map_err(|_| serde::de::Error::custom("a key is text"))?;
    text.map(|text| ApiKey::new(&text)).transpose().map_err(serde::de::Error::custom)
}

fn secrets<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<ApiKey>, D::Error> {
    let texts = Vec::<String>::deserialize(deserializer)
        .map_err(|_| serde::de::Error::custom("keys are a list of text"))?;
    texts.iter().map(|text| ApiKey::new(text)).collect::<Result<_, _>>().map_err(serde::de::Error::custom)
}

/// Reads headers without ever repeating their values in an error.
fn headers<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<HeaderMap, D::Error> {
    headers_of(&JsonMap::deserialize(deserializer)?).map_err(serde::de::Error::custom)
}

/// The headers that an object of texts stands for, or what is wrong with it.
fn headers_of(given: &JsonMap) -> Result<HeaderMap, String> {
    let header = |(name, value): (&String, &Value)| {
        let known = HeaderName::from_bytes(name.as_bytes()).ok().filter(|name| !is_of_connection(name));
        let known = known.ok_or_else(|| format!("{name:?} is no header that can be set"))?;
        let value = value.as_str().and_then(|value| HeaderValue::from_str(value).ok());
        let mut value = value.ok_or_else(|| format!("the value of {name:?} is no text for a header"))?;
        value.set_sensitive(true);
        Ok((known, value))
    };
    given.iter().map(header).collect()
}

impl ModelEntry {
    /// A way to `model` at an OpenAI-compatible server, with everything else left to the defaults.
    #[must_use]
    pub fn new(name: impl Into<String>, url: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            aliases: Vec::new(),
            url: url.into(),
            model: None,
            api: Api::OpenAi,
            api_key: None,
            api_key_env: None,
            api_key_file: None,
            api_key_header: None,
            extra_headers: HeaderMap::new(),
            version: None,
            weight: one(),
            agents: Vec::new(),
            headers: BTreeMap::new(),
            keys: Vec::new(),
            token_ids: None,
            logprobs: None,
            responses: false,
            messages: false,
            defaults: JsonMap::new(),
            set: JsonMap::new(),
            drop: Vec::new(),
            drop_hosted_tools: false,
            restore_tool_calls: true,
            train: JsonMap::new(),
            val: JsonMap::new(),
            retries: two(),
            timeout: ten_minutes(),
            stream_timeout: five_minutes(),
            max_concurrency: None,
            requests_per_minute: None,
        }
    }

    /// The key, from wherever it is.
    pub(crate) fn key(&self) -> Result<Option<ApiKey>, Error> {
        let bad = |problem: String| self.wrong("api_key", problem);
        let text = match (&self.api_key, &self.api_key_env, &self.api_key_file) {
            (Some(key), _, _) => return Ok(Some(key.clone())),
            (None, Some(name), _) => {
                std::env::var(name).map_err(|_| bad(format!("the environment variable {name} is not set")))?
            }
            (None, None, Some(path)) => std::fs::read_to_string(path)
                .map_err(|error| bad(format!("cannot read {}: {error}", path.display())))?,
            (None, None, None) => return Ok(None),
        };
        ApiKey::new(&text).map(Some).map_err(|error| bad(error.to_string()))
    }

    /// An error about a field of this entry.
    pub(crate) fn wrong(&self, field: &'static str, problem: impl Into<String>) -> Error {
        Error::Config { place: format!("model {:?}", self.name), field, problem: problem.into() }
    }
}

/// A model list, and what is told to the gateway beside it.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ModelList {
    /// The ways to models.
    pub models: Vec<ModelEntry>,
    /// The model for agents that ask for one which is not there, or for none; without it they get an error.
    pub default_model: Option<String>,
}

impl ModelList {
    /// A list of these ways.
    #[must_use]
    pub fn new(models: Vec<ModelEntry>) -> Self {
        Self { models, default_model: None }
    }

    /// Reads TOML: tables `[[models]]`, and `default_model`.
    ///
    /// # Errors
    /// [`Error::Config`] that says where the text is not as it should be.
    pub fn from_toml(text: &str) -> Result<Self, Error> {
        toml::from_str(text).map_err(|error| {
            // Its own message shows the line, which may have a key on it.
            let line =
                error.span().map_or(1, |span| 1 + text[..span.start.min(text.len())].matches('\n').count());
            Error::Config {
                place: format!("line {line}"),
                field: "models",
                problem: error.message().lines().next().unwrap_or_default().to_owned(),
            }
        })
    }

    /// Reads the TOML file at `path`.
    ///
    /// # Errors
    /// [`Error::Config`] when it cannot be read or is not as it should be.
    pub fn from_file(path: &Path) -> Result<Self, Error> {
        let text = std::fs::read_to_string(path).map_err(|error| Error::Config {
            place: path.display().to_string(),
            field: "config",
            problem: format!("it cannot be read: {error}"),
        })?;
        Self::from_toml(&text).map_err(|error| match error {
            Error::Config { place, field, problem } => {
                Error::Config { place: format!("{}, {place}", path.display()), field, problem }
            }
            other => other,
        })
    }

    /// Reads a model list in LiteLLM's form: `[{"model_name": …, "litellm_params": {"model": "hosted_vllm/…",
    /// "api_base": …, …}}]`.
    ///
    /// # Errors
    /// [`Error::Config`] naming the entry and the field that cannot be used.
    pub fn from_litellm(list: &[Value]) -> Result<Self, Error> {
        let models = list.iter().enumerate().map(|(index, entry)| of_litellm(index, entry));
        Ok(Self::new(models.collect::<Result<_, _>>()?))
    }
}

/// Settings of LiteLLM that say nothing about the request.
const LITELLM_ONLY: &[&str] = &[
    "model",
    "api_base",
    "base_url",
    "api_key",
    "api_version",
    "timeout",
    "stream_timeout",
    "rpm",
    "weight",
    "max_parallel_requests",
    "num_retries",
    "max_retries",
    "drop_params",
    "additional_drop_params",
    "drop_hosted_tools",
    "restore_tool_calls",
    "tpm",
    "order",
    "custom_llm_provider",
    "input_cost_per_token",
    "output_cost_per_token",
    "mock_response",
    "organization",
    "extra_headers",
];

fn of_litellm(index: usize, entry: &Value) -> Result<ModelEntry, Error> {
    let wrong = |field: &'static str, problem: &str| Error::Config {
        place: format!("model_list[{index}]"),
        field,
        problem: problem.to_owned(),
    };
    let name = entry["model_name"].as_str().ok_or_else(|| wrong("model_name", "it has to be text"))?;
    let params = entry["litellm_params"]
        .as_object()
        .ok_or_else(|| wrong("litellm_params", "it has to be an object with at least \"model\""))?;
    let text = |key: &str| params.get(key).and_then(Value::as_str);
    let number = |key: &str| params.get(key).and_then(Value::as_f64);
    let whole = |key: &str| params.get(key).and_then(Value::as_u64);
    let named = text("model").ok_or_else(|| wrong("litellm_params.model", "it has to be text"))?;
    let (provider, model) = match text("custom_llm_provider") {
        Some(provider) => (provider, named.strip_prefix(&format!("{provider}/")).unwrap_or(named)),
        None => named.split_once('/').unwrap_or(("openai", named)),
    };
    let given = text("api_base").or_else(|| text("base_url")).map(|url| url.trim_end_matches('/').to_owned());
    let usual = match provider {
        "openai" => Some("https://api.openai.com/v1"),
        "anthropic" => Some("https://api.anthropic.com/v1"),
        "openrouter" => Some("https://openrouter.ai/api/v1"),
        "ollama" | "ollama_chat" => Some("http://127.0.0.1:11434/v1"),
        _ => None,
    };
    let mut url = given.or_else(|| usual.map(str::to_owned)).ok_or_else(|| {
        wrong("litellm_params.api_base", &format!("the server of {named} is not known without it"))
    })?;
    let mut resolved = ModelEntry::new(name, "");
    resolved.model = Some(model.to_owned());
    match provider {
        "anthropic" => {
            resolved.api = Api::Anthropic;
            if !url.ends_with("/v1") {
                url.push_str("/v1");
            }
        }
        "hosted_vllm" => resolved.token_ids = Some(true),
        "ollama" | "ollama_chat" if !url.ends_with("/v1") => url.push_str("/v1"),
        "azure" => {
            let version = text("api_version").unwrap_or("2024-10-21");
            url = format!("{url}/openai/deployments/{model}?api-version={version}");
            resolved.api_key_header = Some("api-key".to_owned());
        }
        _ => {}
    }
    resolved.url = url;
    if let Some(key) = text("api_key") {
        match key.strip_prefix("os.environ/") {
            Some(variable) => resolved.api_key_env = Some(variable.to_owned()),
            None => {
                let key =
                    ApiKey::new(key).map_err(|error| wrong("litellm_params.api_key", &error.to_string()))?;
                resolved.api_key = Some(key);
            }
        }
    }
    if let Some(given) = params.get("extra_headers") {
        let given = given.as_object().ok_or_else(|| "it has to be an object".to_owned());
        resolved.extra_headers =
            given.and_then(headers_of).map_err(|problem| wrong("litellm_params.extra_headers", &problem))?;
    }
    if let Some(organization) = text("organization") {
        let value = HeaderValue::from_str(organization)
            .map_err(|_| wrong("litellm_params.organization", "it has to be text for a header"))?;
        resolved.extra_headers.entry("openai-organization").or_insert(value);
    }
    resolved.weight = number("weight").unwrap_or(resolved.weight);
    resolved.timeout = number("timeout").unwrap_or(resolved.timeout);
    resolved.stream_timeout = number("stream_timeout").unwrap_or(resolved.stream_timeout);
    resolved.requests_per_minute = whole("rpm").and_then(|count| u32::try_from(count).ok());
    resolved.max_concurrency = whole("max_parallel_requests").and_then(|count| usize::try_from(count).ok());
    let retries = whole("num_retries").or_else(|| whole("max_retries"));
    resolved.retries = retries.and_then(|count| u32::try_from(count).ok()).unwrap_or(resolved.retries);
    resolved.drop = params
        .get("additional_drop_params")
        .and_then(Value::as_array)
        .map(|names| names.iter().filter_map(|name| name.as_str().map(str::to_owned)).collect())
        .unwrap_or_default();
    let flag = |key: &str, field: &'static str| match params.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Bool(flag)) => Ok(Some(*flag)),
        Some(_) => Err(wrong(field, "it has to be true or false")),
    };
    resolved.drop_hosted_tools =
        flag("drop_hosted_tools", "litellm_params.drop_hosted_tools")?.unwrap_or(resolved.drop_hosted_tools);
    resolved.restore_tool_calls = flag("restore_tool_calls", "litellm_params.restore_tool_calls")?
        .unwrap_or(resolved.restore_tool_calls);
    for (key, value) in params.iter().filter(|(key, _)| !LITELLM_ONLY.contains(&key.as_str())) {
        if key == "extra_body" {
            resolved.set.extend(value.as_object().cloned().unwrap_or_default());
        } else {
            resolved.defaults.insert(key.clone(), value.clone());
        }
    }
    Ok(resolved)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn toml_says_who_answers_what() {
        let list = ModelList::from_toml(
            r#"
            default_model = "policy"
            [[models]]
            name = "policy"
            url = "http://127.0.0.1:8000/v1"
            model = "Qwen/Qwen3-8B"
            version = 3
            train = { temperature = 1.0 }
            headers = { x-role = "critic" }
            keys = ["the-agents-own"]
            extra_headers = { X-Title = "t" }
            [[models]]
            name = "claude-*"
            url = "https://api.anthropic.com/v1"
            api = "anthropic"
            api_key_env = "SOME_KEY"
            "#,
        )
        .unwrap();
        assert_eq!(list.default_model.as_deref(), Some("policy"));
        assert_eq!(list.models[0].extra_headers["x-title"], "t");
        assert_eq!(list.models[0].train, json!({"temperature": 1.0}).as_object().cloned().unwrap());
        assert_eq!(list.models[0].headers["x-role"], "critic");
        assert_eq!(list.models[0].keys, [ApiKey::new("the-agents-own").unwrap()]);
        assert!(!format!("{list:?}").contains("the-agents-own"));
        assert_eq!((list.models[1].api, list.models[1].retries), (Api::Anthropic, 2));
    }

    #[test]
    fn what_is_wrong_is_named_and_keys_are_not_repeated() {
        let text = "[[models]]\nname = \"m\"\nurl = \"http://h/v1\"\napi_key = \"two words\"\n";
        let error = ModelList::from_toml(text).unwrap_err().to_string();
        assert!(!error.contains("two words"), "{error}");
        let error = ModelList::from_toml(&text.replace("api_key = \"two words\"", "keys = [\"two words\"]"));
        let error = error.unwrap_err().to_string();
        assert!(error.contains("line ") && !error.contains("two words"), "{error}");
        let error = ModelList::from_toml("[[models]]\nname = \"m\"\nurk = \"x\"").unwrap_err().to_string();
        assert!(error.contains("line ") && error.contains("urk"), "{error}");
    }

    fn of(params: &Value) -> Result<ModelEntry, Error> {
        let list = ModelList::from_litellm(&[json!({"model_name": "m", "litellm_params": params})])?;
        Ok(list.models[0].clone())
    }

    #[test]
    fn litellms_form_is_understood() {
        let vllm = json!({
            "model": "hosted_vllm/Qwen/Qwen3-8B", "api_base": "http://h:1/v1/", "temperature": 0.5, "rpm": 60,
            "extra_body": {"top_k": 5},
        });
        let vllm = of(&vllm).unwrap();
        assert_eq!((vllm.url.as_str(), vllm.model.as_deref()), ("http://h:1/v1", Some("Qwen/Qwen3-8B")));
        assert_eq!((vllm.token_ids, vllm.requests_per_minute), (Some(true), Some(60)));
        assert_eq!(Value::Object(vllm.defaults), json!({"temperature": 0.5}));
        assert_eq!(Value::Object(vllm.set), json!({"top_k": 5}));
        assert!(!vllm.drop_hosted_tools && vllm.restore_tool_calls);
        let kept = json!({"model": "m", "api_base": "http://h", "restore_tool_calls": false});
        assert!(!of(&kept).unwrap().restore_tool_calls);
        let dropping = json!({"model": "m", "api_base": "http://h", "drop_hosted_tools": true});
        let dropping = of(&dropping).unwrap();
        assert!(dropping.drop_hosted_tools && dropping.defaults.is_empty());
        let wrong =
            of(&json!({"model": "m", "api_base": "http://h", "drop_hosted_tools": "yes"})).unwrap_err();
        assert!(wrong.to_string().contains("litellm_params.drop_hosted_tools"), "{wrong}");
        let openai = of(&json!({"model": "gpt-5", "api_key": "os.environ/OPENAI_API_KEY"})).unwrap();
        assert_eq!(openai.url, "https://api.openai.com/v1");
        assert_eq!(openai.api_key_env.as_deref(), Some("OPENAI_API_KEY"));
        let claude = of(&json!({"model": "anthropic/claude", "api_base": "http://h"})).unwrap();
        assert_eq!((claude.api, claude.url.as_str()), (Api::Anthropic, "http://h/v1"));
        let azure =
            of(&json!({"model": "azure/d", "api_base": "https://x.test", "api_version": "v"})).unwrap();
        assert_eq!(azure.url, "https://x.test/openai/deployments/d?api-version=v");
        assert_eq!(azure.api_key_header.as_deref(), Some("api-key"));
        let routed = json!({
            "model": "openrouter/x", "organization": "o", "extra_headers": {"X-Title": "two words"},
        });
        let routed = of(&routed).unwrap();
        assert_eq!(routed.extra_headers["x-title"], "two words");
        assert_eq!(routed.extra_headers["openai-organization"], "o");
        assert!(routed.defaults.is_empty() && !format!("{routed:?}").contains("two words"));
        for (headers, reason) in [
            (json!({"a b": "s3cret"}), "\"a b\""),
            (json!({"a": "s3cret\r\nb: c"}), "the value of \"a\""),
            (json!({"Content-Length": "s3cret"}), "Content-Length"),
            (json!("s3cret"), "an object"),
        ] {
            let error = of(&json!({"model": "m", "extra_headers": headers})).unwrap_err().to_string();
            assert!(error.contains("extra_headers") && error.contains(reason), "{error}");
            assert!(!error.contains("s3cret"), "{error}");
        }
        let error = of(&json!({"model": "bedrock/x"})).unwrap_err().to_string();
        assert!(error.contains("litellm_params.api_base"), "{error}");
    }
}
