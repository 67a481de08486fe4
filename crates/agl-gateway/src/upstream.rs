//! The way to the model servers.

use std::error::Error as _;
use std::path::Path;
use std::time::Duration;

use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use bytes::Bytes;
use reqwest::redirect::Policy;
use serde_json::Value;

use crate::Error;
use crate::config::Api;
use crate::models::Backend;

/// How long setting up a connection may take.
const CONNECT: Duration = Duration::from_secs(10);
/// How long a connection is kept that nothing is said on. uvicorn, which vLLM is served by, closes it after five
/// seconds, and a call that is sent just then would be lost.
const POOL_IDLE: Duration = Duration::from_secs(4);
/// How long the question what a server can do may take.
const PROBE: Duration = Duration::from_secs(5);
/// Bytes of the largest answer that is not a stream.
pub(crate) const LARGEST_ANSWER: usize = 256 << 20;

const ANTHROPIC_VERSION: HeaderName = HeaderName::from_static("anthropic-version");

/// Headers that belong to one connection and never go further (RFC 9110, section 7.6.1).
const HOP_BY_HOP: &[&str] = &[
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// Headers that may go on to a model server. An agent's credentials are not among them.
fn goes_up(name: &HeaderName) -> bool {
    let name = name.as_str();
    matches!(
        name,
        "accept" | "user-agent" | "x-request-id" | "traceparent" | "tracestate" | "idempotency-key"
    ) || ["openai-", "anthropic-", "x-stainless-"].iter().any(|prefix| name.starts_with(prefix))
}

/// What goes along to the model server of what an agent sent.
pub(crate) fn going_up(headers: &HeaderMap) -> HeaderMap {
    let mut sent = HeaderMap::new();
    let named = named_by_connection(headers);
    for (name, value) in headers {
        if goes_up(name) && !named.iter().any(|other| other == name.as_str()) {
            sent.append(name.clone(), value.clone());
        }
    }
    sent.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    // What is compressed cannot be read on its way through.
    sent.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    sent
}

/// What goes along to the agent of what a model server answered.
pub(crate) fn coming_down(headers: &HeaderMap, backend: &Backend) -> HeaderMap {
    let mut kept = HeaderMap::new();
    let named = named_by_connection(headers);
    for (name, value) in headers {
        let text = name.as_str();
        let is_of_the_hop = HOP_BY_HOP.contains(&text) || named.iter().any(|other| other == text);
        let is_ours = matches!(text, "content-length" | "set-cookie" | "date");
        if !is_of_the_hop && !is_ours && !shows_key(value.as_bytes(), backend) {
            kept.append(name.clone(), value.clone());
        }
    }
    kept
}

fn named_by_connection(headers: &HeaderMap) -> Vec<String> {
    let values = headers.get_all(header::CONNECTION).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(|name| name.trim().to_ascii_lowercase()).collect()
}

fn shows_key(text: &[u8], backend: &Backend) -> bool {
    let key = backend.key.as_ref();
    key.is_some_and(|key| memchr::memmem::find(text, key.reveal().as_bytes()).is_some())
}

/// Text without the backend's key, should it have come back in it.
pub(crate) fn without_key(text: Bytes, backend: &Backend) -> Bytes {
    let Some(key) = backend.key.as_ref().filter(|_| shows_key(&text, backend)) else { return text };
    let mut clean = Vec::with_capacity(text.len());
    let mut from = 0;
    for at in memchr::memmem::find_iter(&text, key.reveal().as_bytes()) {
        clean.extend_from_slice(&text[from..at]);
        clean.extend_from_slice(b"***");
        from = at + key.reveal().len();
    }
    clean.extend_from_slice(&text[from..]);
    clean.into()
}

/// Connections to model servers.
#[derive(Debug, Clone)]
pub(crate) struct Client(reqwest::Client);

impl Client {
    pub(crate) fn new(ca_file: Option<&Path>) -> Result<Self, Error> {
        let tls = agl_client::tls::trusting(ca_file).or_else(|error| match ca_file {
            // A machine without certificates can still speak plain HTTP.
            None => agl_client::tls::unused(),
            Some(_) => Err(error),
        });
        let tls = tls.map_err(|error| Error::Client(error.to_string()))?;
        let client = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .connect_timeout(CONNECT)
            .pool_idle_timeout(POOL_IDLE)
            .pool_max_idle_per_host(usize::MAX)
            .redirect(Policy::none())
            .tcp_nodelay(true)
            .no_proxy()
            .build();
        client.map(Self).map_err(|error| Error::Client(error.to_string()))
    }

    /// Sends a call. `headers` are those of [`going_up`].
    pub(crate) async fn post(
        &self,
        backend: &Backend,
        endpoint: &str,
        headers: &HeaderMap,
        body: Bytes,
    ) -> Result<reqwest::Response, reqwest::Error> {
        let mut headers = headers.clone();
        if backend.entry.api == Api::Anthropic {
            headers.entry(ANTHROPIC_VERSION).or_insert(HeaderValue::from_static("2023-06-01"));
        }
        let request = self.0.post(backend.endpoint(endpoint)).headers(headers).body(body);
        authorized(request, backend).send().await
    }

    /// What a backend answers to the question for its models.
    pub(crate) async fn models(&self, backend: &Backend) -> Result<Bytes, String> {
        let request = self.0.get(backend.endpoint("models")).timeout(PROBE);
        let answer = authorized(request, backend).send().await.map_err(|error| cause(&error))?;
        let status = answer.status();
        let bytes = answer.bytes().await.map_err(|error| cause(&error))?;
        if status.is_success() {
            Ok(bytes)
        } else {
            Err(format!("{} answers {status}", backend.endpoint("models")))
        }
    }

    /// Whether a backend returns token ids when asked to. Known once it has answered.
    pub(crate) async fn returns_ids(&self, backend: &Backend) -> bool {
        match (backend.entry.token_ids, backend.entry.api) {
            (Some(said), _) => return said,
            (None, Api::Anthropic) => return false,
            (None, Api::OpenAi) => {}
        }
        let asked = backend.returns_ids.get_or_try_init(|| async {
            let request = self.0.get(backend.endpoint("models")).timeout(PROBE);
            let answer = authorized(request, backend).send().await?;
            let bytes = answer.bytes().await?;
            let models: Value = serde_json::from_slice(&bytes).unwrap_or_default();
            let owners = models["data"].as_array().map(Vec::as_slice).unwrap_or_default();
            Ok::<_, reqwest::Error>(
                owners
                    .iter()
                    .any(|model| matches!(model["owned_by"].as_str(), Some("vllm" | "agentlightning"))),
            )
        });
        // One that cannot be reached is asked again with the next call.
        asked.await.is_ok_and(|returns| *returns)
    }
}

fn authorized(request: reqwest::RequestBuilder, backend: &Backend) -> reqwest::RequestBuilder {
    let Some(key) = &backend.key else { return request };
    let (name, value) = match (&backend.key_header, backend.entry.api) {
        (Some(name), _) => (name.clone(), key.reveal().to_owned()),
        (None, Api::Anthropic) => (HeaderName::from_static("x-api-key"), key.reveal().to_owned()),
        (None, Api::OpenAi) => (header::AUTHORIZATION, format!("Bearer {}", key.reveal())),
    };
    // Keys are printable ASCII.
    let Ok(mut value) = HeaderValue::from_str(&value) else { return request };
    value.set_sensitive(true);
    request.header(name, value)
}

/// Why no answer came, in words that have no secret in them.
pub(crate) fn cause(error: &reqwest::Error) -> String {
    if let Some(problem) = agl_client::tls::problem(error) {
        return problem;
    }
    let mut text = String::new();
    let mut next = error.source();
    while let Some(error) = next {
        let part = error.to_string();
        if !text.ends_with(&part) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&part);
        }
        next = error.source();
    }
    if text.is_empty() { "the connection broke off".to_owned() } else { text }
}
