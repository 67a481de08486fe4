//! The way to the model servers.

use std::error::Error as _;
use std::path::Path;
use std::time::Duration;

use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use bytes::Bytes;
use serde_json::Value;
use url::Url;

use crate::Error;
use crate::config::Api;
use crate::link::{Answer, Broken, Links};
use crate::models::Backend;

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

/// Whether a header is about the connection or the message, which are the gateway's own.
pub(crate) fn is_of_connection(name: &HeaderName) -> bool {
    HOP_BY_HOP.contains(&name.as_str()) || matches!(*name, header::CONTENT_LENGTH | header::HOST)
}

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
    sent.entry(header::ACCEPT).or_insert(HeaderValue::from_static("*/*"));
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
    let Some(key) = &backend.key else { return text };
    let key = key.reveal().as_bytes();
    let mut places = memchr::memmem::find_iter(&text, key).peekable();
    if places.peek().is_none() {
        return text;
    }
    let mut clean = Vec::with_capacity(text.len());
    let mut from = 0;
    for at in places {
        clean.extend_from_slice(&text[from..at]);
        clean.extend_from_slice(b"***");
        from = at + key.len();
    }
    clean.extend_from_slice(&text[from..]);
    clean.into()
}

/// Asks model servers. Redirects are not followed.
#[derive(Debug, Clone)]
pub(crate) struct Client(Links);

impl Client {
    pub(crate) fn new(ca_file: Option<&Path>) -> Result<Self, Error> {
        let tls = agl_client::tls::trusting(ca_file).or_else(|error| match ca_file {
            // A machine without certificates can still speak plain HTTP.
            None => agl_client::tls::unused(),
            Some(_) => Err(error),
        });
        tls.map(|tls| Self(Links::new(tls))).map_err(|error| Error::Client(error.to_string()))
    }

    /// Sends a call. `headers` are those of [`going_up`], `body` is in pieces.
    pub(crate) async fn post(
        &self,
        backend: &Backend,
        endpoint: &str,
        headers: &HeaderMap,
        body: Vec<Bytes>,
    ) -> Result<Answer, Broken> {
        let mut headers = headers.clone();
        if backend.entry.api == Api::Anthropic {
            headers.entry(ANTHROPIC_VERSION).or_insert(HeaderValue::from_static("2023-06-01"));
        }
        authorize(&mut headers, backend);
        self.0.send(Method::POST, &backend.endpoint(endpoint), headers, body).await
    }

    /// The list of a backend's models.
    async fn list(&self, backend: &Backend, url: &Url) -> Result<(StatusCode, Bytes), String> {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, HeaderValue::from_static("application/json"));
        authorize(&mut headers, backend);
        let listed = async {
            let answer = self.0.send(Method::GET, url, headers, Vec::new()).await?;
            Ok((answer.status, answer.whole(LARGEST_ANSWER).await?.unwrap_or_default()))
        };
        let listed = tokio::time::timeout(PROBE, listed).await;
        let listed = listed.map_err(|_| format!("no answer within {} s", PROBE.as_secs()))?;
        listed.map_err(|error: Broken| cause(&error))
    }

    /// What a backend answers to the question for its models.
    pub(crate) async fn models(&self, backend: &Backend) -> Result<Bytes, String> {
        let url = backend.endpoint("models");
        let (status, bytes) = self.list(backend, &url).await?;
        if status.is_success() { Ok(bytes) } else { Err(format!("{url} answers {status}")) }
    }

    /// Whether a backend returns token ids when asked to. Known once it has answered.
    pub(crate) async fn returns_ids(&self, backend: &Backend) -> bool {
        match (backend.entry.token_ids, backend.entry.api) {
            (Some(said), _) => return said,
            (None, Api::Anthropic) => return false,
            (None, Api::OpenAi) => {}
        }
        let asked = backend.returns_ids.get_or_try_init(|| async {
            let (_, bytes) = self.list(backend, &backend.endpoint("models")).await?;
            let models: Value = serde_json::from_slice(&bytes).unwrap_or_default();
            let owners = models["data"].as_array().map(Vec::as_slice).unwrap_or_default();
            Ok::<_, String>(
                owners
                    .iter()
                    .any(|model| matches!(model["owned_by"].as_str(), Some("vllm" | "agentlightning"))),
            )
        });
        // One that cannot be reached is asked again with the next call.
        asked.await.is_ok_and(|returns| *returns)
    }
}

/// Adds what is the gateway's to say: the headers of the entry, and the key.
fn authorize(headers: &mut HeaderMap, backend: &Backend) {
    for (name, value) in &backend.entry.extra_headers {
        headers.insert(name.clone(), value.clone());
    }
    let Some(key) = &backend.key else { return };
    let (name, value) = match (&backend.key_header, backend.entry.api) {
        (Some(name), _) => (name.clone(), key.reveal().to_owned()),
        (None, Api::Anthropic) => (HeaderName::from_static("x-api-key"), key.reveal().to_owned()),
        (None, Api::OpenAi) => (header::AUTHORIZATION, format!("Bearer {}", key.reveal())),
    };
    // Keys are printable ASCII.
    let Ok(mut value) = HeaderValue::from_str(&value) else { return };
    value.set_sensitive(true);
    headers.insert(name, value);
}

/// Why no answer came, in words that have no secret in them.
pub(crate) fn cause(error: &Broken) -> String {
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
