//! What an endpoint can do, found out by asking it.

use std::time::Duration;

use agl_types::ApiKey;
use axum::http::HeaderMap;
use bytes::Bytes;
use serde::Serialize;
use serde_json::{Value, json};

use crate::Error;
use crate::answer::Outline;
use crate::assemble::Assembly;
use crate::config::{Api, ModelEntry};
use crate::models::Backend;
use crate::sse::Events;
use crate::upstream::{self, Client, LARGEST_ANSWER, cause};

/// How long one question may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Something that an endpoint can do, or not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was asked for.
    pub what: &'static str,
    /// Whether it is there.
    pub is_there: bool,
    /// What was seen.
    pub seen: String,
    /// What to do about it, or what follows from it, where it is not there.
    pub fix: &'static str,
}

/// Asks an endpoint what it can do, with a handful of small calls.
///
/// `url` is as an SDK takes it; without `model` the first of its list is asked. When it cannot be reached, that is the only
/// finding.
///
/// # Errors
/// [`Error`] for a URL that is none.
pub async fn examine(url: &str, key: Option<ApiKey>, model: Option<&str>) -> Result<Vec<Finding>, Error> {
    let api = if url.contains("api.anthropic.com") { Api::Anthropic } else { Api::OpenAi };
    let backend = Backend::new(ModelEntry { api_key: key, api, ..ModelEntry::new("*", url) })?;
    let asked = Asked { client: Client::new(None)?, backend };
    let mut findings = Vec::new();
    let listed = asked.models().await;
    let names = match &listed {
        Ok(models) => models.as_array().map(Vec::as_slice).unwrap_or_default(),
        Err(problem) => {
            findings.push(Finding {
                what: "models",
                is_there: false,
                seen: problem.clone(),
                fix: "start the server, or mend the URL (as an SDK takes it, it ends in /v1) or the key",
            });
            return Ok(findings);
        }
    };
    let model = model.or_else(|| names.first()?["id"].as_str()).unwrap_or_default().to_owned();
    findings.push(Finding {
        what: "models",
        is_there: !names.is_empty(),
        seen: format!("{} listed; asking {model:?}", names.len()),
        fix: "name one with --model",
    });
    findings.extend(asked.chat(&model).await);
    for (what, endpoint, body, fix) in [
        (
            "completions",
            "completions",
            json!({"prompt": "1 2", "max_tokens": 1}),
            "only agents that speak completions need it",
        ),
        (
            "responses",
            "responses",
            json!({"input": "hi", "max_output_tokens": 16}),
            "the gateway translates it; if it is there, set responses = true",
        ),
        (
            "messages",
            "messages",
            json!({"max_tokens": 1, "messages": [{"role": "user", "content": "hi"}]}),
            "the gateway translates it; if it is there, set messages = true",
        ),
        ("embeddings", "embeddings", json!({"input": "hi"}), "have another server on the list for them"),
    ] {
        let mut body = body;
        body["model"] = model.as_str().into();
        let answer = asked.post(endpoint, &body).await;
        let (is_there, seen) = match answer {
            Ok(_) => (true, "answered".to_owned()),
            Err(problem) => (false, problem),
        };
        findings.push(Finding { what, is_there, seen, fix });
    }
    Ok(findings)
}

struct Asked {
    client: Client,
    backend: Backend,
}

impl Asked {
    async fn models(&self) -> Result<Value, String> {
        let bytes = self.client.models(&self.backend).await?;
        let answer: Value =
            serde_json::from_slice(&bytes).map_err(|_| "the list of models is not JSON".to_owned())?;
        Ok(answer["data"].clone())
    }

    async fn post(&self, endpoint: &str, body: &Value) -> Result<Bytes, String> {
        let headers = upstream::going_up(&HeaderMap::new());
        let call = async {
            let sent =
                self.client.post(&self.backend, endpoint, &headers, vec![body.to_string().into()]).await;
            let answer = sent.map_err(|error| cause(&error))?;
            let status = answer.status;
            let bytes =
                answer.whole(LARGEST_ANSWER).await.map_err(|error| cause(&error))?.unwrap_or_default();
            let bytes = upstream::without_key(bytes, &self.backend);
            if status.is_success() {
                return Ok(bytes);
            }
            let text: String = String::from_utf8_lossy(&bytes).chars().take(120).collect();
            Err(format!("{status} {}", text.replace('\n', " ")))
        };
        let late = |_| Err(format!("no answer within {} s", PATIENCE.as_secs()));
        tokio::time::timeout(PATIENCE, call).await.unwrap_or_else(late)
    }

    async fn chat(&self, model: &str) -> Vec<Finding> {
        let body = |more: Value| {
            let mut body = json!({"model": model, "max_tokens": 4, "messages": [{"role": "user", "content": "Say hi."}]});
            if let (Value::Object(body), Value::Object(more)) = (&mut body, more) {
                body.extend(more);
            }
            body
        };
        let ask = async |more: Value| {
            let bytes = self.post("chat/completions", &body(more)).await?;
            serde_json::from_slice::<Value>(&bytes).map_err(|_| "the answer is not JSON".to_owned())
        };
        let told = |what, found: Result<String, String>, fix| {
            let is_there = found.is_ok();
            Finding { what, is_there, seen: found.unwrap_or_else(|problem| problem), fix }
        };
        let plain = ask(json!({})).await;
        let mut findings = vec![told(
            "chat completions",
            plain.map(|answer| {
                format!("{:?}", answer["choices"][0]["message"]["content"].as_str().unwrap_or_default())
            }),
            "nothing can be captured without: mend the model's name or the server",
        )];
        if !findings[0].is_there {
            return findings;
        }
        let ids = ask(json!({"return_token_ids": true})).await.and_then(|answer| ids_seen(&answer));
        findings.push(told(
            "token ids",
            ids,
            "calls will not be trainable: serve with vLLM 0.10.2 or newer, or agl model serve",
        ));
        let logprobs = ask(json!({"logprobs": true})).await.and_then(|answer| {
            let content = answer["choices"][0]["logprobs"]["content"].as_array();
            content
                .map(|list| format!("{} of them", list.len()))
                .ok_or_else(|| "none in the answer".to_owned())
        });
        findings.push(told(
            "log-probs",
            logprobs,
            "set logprobs = false, and train without the sampler's probabilities",
        ));
        let stream = self
            .post(
                "chat/completions",
                &body(json!({"stream": true, "stream_options": {"include_usage": true}})),
            )
            .await;
        findings.push(told(
            "streams",
            stream.and_then(|bytes| stream_seen(&bytes)),
            "agents that stream will fail",
        ));
        let tool = json!({"type": "function", "function": {"name": "now", "description": "The time.", "parameters": {"type": "object", "properties": {}}}});
        let tools = ask(json!({"tools": [tool]})).await.map(|_| "taken".to_owned());
        findings.push(told(
            "tools",
            tools,
            "vLLM: serve with --enable-auto-tool-choice and --tool-call-parser",
        ));
        findings
    }
}

fn ids_seen(answer: &Value) -> Result<String, String> {
    let count = |value: &Value| value.as_array().map(Vec::len);
    let prompt = count(&answer["prompt_token_ids"]);
    let Some((prompt, response)) = prompt.zip(count(&answer["choices"][0]["token_ids"])) else {
        return Err("none in the answer".to_owned());
    };
    let usage = |name: &str| answer["usage"][name].as_u64();
    match (usage("prompt_tokens"), usage("completion_tokens")) {
        (Some(asked), Some(said)) if (asked, said) != (prompt as u64, response as u64) => {
            Err(format!("{prompt} and {response} of them, but usage counts {asked} and {said}"))
        }
        _ => Ok(format!("{prompt} of the prompt, {response} of the response")),
    }
}

fn stream_seen(bytes: &[u8]) -> Result<String, String> {
    let mut events = Events::default();
    events.feed(bytes);
    let mut assembly = Assembly::default();
    let (mut chunks, mut is_done) = (0, false);
    while let Ok(Some(event)) = events.next() {
        let data = event.data();
        match Outline::of(&data) {
            Some(outline) => {
                chunks += 1;
                assembly.add(&data, &outline);
            }
            None => is_done |= data.trim_ascii() == b"[DONE]",
        }
    }
    let usage = assembly.finish("chat.completion")["usage"].is_object();
    match (chunks, is_done) {
        (0, _) => Err("there is no event in it".to_owned()),
        (_, false) => Err(format!("{chunks} events, but no end")),
        (_, true) => Ok(format!("{chunks} events{}", if usage { ", with usage" } else { ", without usage" })),
    }
}
