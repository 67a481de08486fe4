//! One call over HTTP, tried until it is answered or patience is up.

use std::collections::HashMap;
use std::error::Error as _;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use agl_store::Error;
use agl_types::{ApiKey, CLIENT_HEADER};
use bytes::Bytes;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Method, StatusCode, Url};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::runtime::{Handle, Id};

use crate::{ClientOptions, tls};

/// What may stand in a path segment as it is.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// How long a connection is kept that nothing is said on. The server waits for 75 seconds.
const POOL_IDLE: Duration = Duration::from_secs(30);

/// For how many runtimes connections are kept.
const RUNTIMES: usize = 16;

/// The way to the server.
#[derive(Debug)]
pub(crate) struct Transport {
    root: Url,
    options: ClientOptions,
    /// What goes with every request.
    headers: HeaderMap,
    tls: rustls::ClientConfig,
    /// A connection is driven by the runtime that opened it, and stands still when that one does.
    clients: Mutex<HashMap<Id, reqwest::Client>>,
}

/// One call.
struct Request {
    method: Method,
    url: Url,
    body: Option<Bytes>,
    key: Option<HeaderValue>,
}

/// An answer.
#[derive(Debug)]
pub(crate) struct Reply<T> {
    pub(crate) value: T,
    /// Whether an earlier try of this call may have been carried out, although its answer was lost.
    pub(crate) maybe_repeated: bool,
}

/// How one try went wrong.
struct Failure {
    /// What to tell.
    message: String,
    /// Whether the request may have been carried out.
    maybe_done: bool,
    kind: FailureKind,
}

enum FailureKind {
    /// The server cannot be reached or is not well: worth another try for as long as patience lasts.
    Outage,
    /// The server met an error of its own: worth a few tries.
    Server(Error),
    /// The server has decided.
    Final(Error),
}

impl Transport {
    pub(crate) fn new(root: Url, options: ClientOptions) -> Result<Self, Error> {
        let mut headers = HeaderMap::new();
        if let Some(key) = &options.key {
            let bearer = HeaderValue::from_str(&format!("Bearer {}", key.reveal()));
            let mut bearer = bearer.map_err(|_| Error::invalid("key", "the key fits into no HTTP header"))?;
            bearer.set_sensitive(true);
            headers.insert(AUTHORIZATION, bearer);
        }
        let tls = if root.scheme() == "https" {
            tls::trusting(options.ca_file.as_deref())?
        } else {
            tls::unused()?
        };
        Ok(Self { root, options, headers, tls, clients: Mutex::default() })
    }

    pub(crate) fn root(&self) -> &Url {
        &self.root
    }

    pub(crate) fn options(&self) -> &ClientOptions {
        &self.options
    }

    /// `GET` on the store's API.
    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &[&str]) -> Result<T, Error> {
        self.get_with(path, &[]).await
    }

    /// `GET` on the store's API with a query.
    pub(crate) async fn get_with<T: DeserializeOwned>(
        &self,
        path: &[&str],
        query: &[(&str, String)],
    ) -> Result<T, Error> {
        let mut url = self.url(path);
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        let request = Request { method: Method::GET, url, body: None, key: None };
        Ok(self.call(request, self.options.request_timeout).await?.value)
    }

    /// `POST` on the store's API that changes nothing, and takes the server `longer` than usual.
    pub(crate) async fn post<B, T>(&self, path: &[&str], body: &B, longer: Duration) -> Result<T, Error>
    where
        B: Serialize + ?Sized,
        T: DeserializeOwned,
    {
        let timeout = self.options.request_timeout.saturating_add(longer);
        let request =
            Request { method: Method::POST, url: self.url(path), body: Some(json(body)?), key: None };
        Ok(self.call(request, timeout).await?.value)
    }

    /// `POST` on the store's API that changes nothing, takes the server `longer` than usual, and is answered with bytes
    /// that are no JSON.
    pub(crate) async fn post_for_bytes<B>(
        &self,
        path: &[&str],
        body: &B,
        longer: Duration,
    ) -> Result<Bytes, Error>
    where
        B: Serialize + ?Sized,
    {
        let timeout = self.options.request_timeout.saturating_add(longer);
        let request =
            Request { method: Method::POST, url: self.url(path), body: Some(json(body)?), key: None };
        let mut tries = Tries::new(&self.options);
        loop {
            let answer = match self.send(&request, Some(timeout)).await {
                Ok(response) => {
                    response.bytes().await.map_err(|error| Failure::of_transfer(&error, &request.url))
                }
                Err(failure) => Err(failure),
            };
            match answer {
                Ok(bytes) => return Ok(bytes),
                Err(failure) => tries.pause_after(&request, failure).await?,
            }
        }
    }

    /// A call of the 1.0 API; with a key, one that changes something and is carried out once.
    pub(crate) async fn call_v1<B, T>(
        &self,
        method: Method,
        path: &[&str],
        query: &[(&str, String)],
        body: Option<&B>,
        key: Option<&str>,
    ) -> Result<T, Error>
    where
        B: Serialize + ?Sized,
        T: DeserializeOwned,
    {
        let mut url = self.url_below("/api", path);
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        let body = body.map(json).transpose()?;
        let request = Request { method, url, body, key: key.map(header).transpose()? };
        Ok(self.call(request, self.options.request_timeout).await?.value)
    }

    /// A call that changes something, is carried out once under `key`, and takes the server `longer` than usual.
    pub(crate) async fn change<B, T>(
        &self,
        method: Method,
        path: &[&str],
        body: &B,
        key: &str,
        longer: Duration,
    ) -> Result<Reply<T>, Error>
    where
        B: Serialize + ?Sized,
        T: DeserializeOwned,
    {
        let timeout = self.options.request_timeout.saturating_add(longer);
        let key = Some(header(key)?);
        let request = Request { method, url: self.url(path), body: Some(json(body)?), key };
        self.call(request, timeout).await
    }

    /// Opens a stream of events: an answer whose body does not end.
    pub(crate) async fn open(
        &self,
        path: &[&str],
        query: &[(&str, String)],
    ) -> Result<reqwest::Response, Error> {
        let mut url = self.url(path);
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        let request = Request { method: Method::GET, url, body: None, key: None };
        let mut tries = Tries::new(&self.options);
        loop {
            match self.send(&request, None).await {
                Ok(response) => return Ok(response),
                Err(failure) => tries.pause_after(&request, failure).await?,
            }
        }
    }

    fn url(&self, path: &[&str]) -> Url {
        self.url_below("/v1/agl", path)
    }

    fn url_below(&self, base: &str, path: &[&str]) -> Url {
        let mut url = self.root.clone();
        let mut text = url.path().trim_end_matches('/').to_owned() + base;
        for segment in path {
            text.push('/');
            // A segment of dots alone would be taken for a way up or nowhere.
            match *segment {
                "." => text.push_str("%2E"),
                ".." => text.push_str("%2E%2E"),
                _ => text.extend(utf8_percent_encode(segment, SEGMENT)),
            }
        }
        url.set_path(&text);
        url
    }

    async fn call<T: DeserializeOwned>(
        &self,
        request: Request,
        timeout: Duration,
    ) -> Result<Reply<T>, Error> {
        let mut tries = Tries::new(&self.options);
        loop {
            match self.try_once(&request, timeout).await {
                Ok(value) => return Ok(Reply { value, maybe_repeated: tries.maybe_done }),
                Err(failure) => tries.pause_after(&request, failure).await?,
            }
        }
    }

    /// Sends a request and returns an answer that is no error.
    async fn send(&self, request: &Request, timeout: Option<Duration>) -> Result<reqwest::Response, Failure> {
        let Request { method, url, body, key } = request;
        let client = self.client().map_err(Failure::decided)?;
        let mut builder =
            client.request(method.clone(), url.clone()).header(CLIENT_HEADER, env!("CARGO_PKG_VERSION"));
        if let Some(timeout) = timeout {
            builder = builder.timeout(timeout);
        }
        if let Some(body) = body {
            builder = builder.header(CONTENT_TYPE, "application/json").body(body.clone());
        }
        if let Some(key) = key {
            builder = builder.header(IDEMPOTENCY_KEY, key.clone());
        }
        let response = builder.send().await.map_err(|error| Failure::of_transfer(&error, url))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let bytes = response.bytes().await.map_err(|error| Failure::of_transfer(&error, url))?;
        Err(Failure::of_answer(status, &bytes, url))
    }

    async fn try_once<T: DeserializeOwned>(
        &self,
        request: &Request,
        timeout: Duration,
    ) -> Result<T, Failure> {
        let Request { method, url, .. } = request;
        let response = self.send(request, Some(timeout)).await?;
        let bytes = response.bytes().await.map_err(|error| Failure::of_transfer(&error, url))?;
        // What is answered with nothing in it.
        let content: &[u8] = if bytes.is_empty() { b"null" } else { &bytes };
        serde_json::from_slice(content).map_err(|error| {
            let message = format!("{method} {url} was answered, but not by a store of ours: {error}");
            Failure::decided(Error::backend(message))
        })
    }

    /// The connections of the runtime that we run on.
    fn client(&self) -> Result<reqwest::Client, Error> {
        let runtime = Handle::try_current()
            .map_err(|_| Error::backend("the store client has to be called within a tokio runtime"))?;
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = clients.get(&runtime.id()) {
            return Ok(client.clone());
        }
        if clients.len() >= RUNTIMES {
            // Most of them are of runtimes long gone; the others just connect again.
            clients.clear();
        }
        let client = reqwest::Client::builder()
            .tls_backend_preconfigured(self.tls.clone())
            .default_headers(self.headers.clone())
            .connect_timeout(self.options.connect_timeout)
            // Sooner than the server, so that it does not hang up just when we have something to say.
            .pool_idle_timeout(POOL_IDLE)
            .redirect(reqwest::redirect::Policy::none())
            .tcp_nodelay(true)
            // A proxy for the outside world is not the way to a store.
            .no_proxy()
            .build()
            .map_err(|error| {
                Error::backend(format!("the HTTP client cannot be set up: {}", chain(&error)))
            })?;
        clients.insert(runtime.id(), client.clone());
        Ok(client)
    }
}

/// The tries of one call that have failed so far.
struct Tries<'a> {
    options: &'a ClientOptions,
    /// When the try under way began.
    started: Instant,
    /// When the first try that failed began.
    failing_since: Option<Instant>,
    failed: u32,
    pause: Duration,
    /// Whether one of them may have been carried out.
    maybe_done: bool,
}

impl<'a> Tries<'a> {
    fn new(options: &'a ClientOptions) -> Self {
        Self {
            options,
            started: Instant::now(),
            failing_since: None,
            failed: 0,
            pause: options.first_pause,
            maybe_done: false,
        }
    }

    /// Waits for the moment to try again; the error when that is over.
    async fn pause_after(&mut self, request: &Request, failure: Failure) -> Result<(), Error> {
        let Request { method, url, .. } = request;
        self.failed += 1;
        self.maybe_done |= failure.maybe_done;
        let failing_for = self.failing_since.get_or_insert(self.started).elapsed();
        let patience_is_up = failing_for >= self.options.max_outage;
        match failure.kind {
            FailureKind::Final(error) => return Err(error),
            FailureKind::Server(error)
                if patience_is_up || self.failed >= self.options.server_error_tries =>
            {
                return Err(error);
            }
            FailureKind::Outage if patience_is_up => {
                let times =
                    if self.failed == 1 { "once".to_owned() } else { format!("{} times", self.failed) };
                let message = format!("{method} {url} was tried {times}, last: {}", failure.message);
                return Err(Error::Unavailable { message, elapsed: failing_for });
            }
            FailureKind::Server(_) | FailureKind::Outage => {}
        }
        if self.failed == 1 {
            tracing::warn!("{method} {url}: {}; trying again", failure.message);
        } else {
            tracing::debug!("{method} {url}: {} (try {})", failure.message, self.failed);
        }
        let left = self.options.max_outage.saturating_sub(failing_for);
        tokio::time::sleep(jittered(self.pause).min(left)).await;
        self.pause = (self.pause * 2).min(self.options.longest_pause);
        self.started = Instant::now();
        Ok(())
    }
}

impl Failure {
    fn decided(error: Error) -> Self {
        Self { message: error.to_string(), maybe_done: false, kind: FailureKind::Final(error) }
    }

    /// No answer came.
    fn of_transfer(error: &reqwest::Error, url: &Url) -> Self {
        if let Some(problem) = tls::problem(error) {
            return Self::decided(Error::invalid(
                "address",
                format!("cannot speak TLS with {url}: {problem}"),
            ));
        }
        Self { message: chain(error), maybe_done: !error.is_connect(), kind: FailureKind::Outage }
    }

    /// The answer was an error.
    fn of_answer(status: StatusCode, body: &[u8], url: &Url) -> Self {
        let body: Value = serde_json::from_slice(body).unwrap_or_default();
        let detail = detail(&body).unwrap_or_else(|| status.to_string());
        let error_type = body.get("error_type").and_then(Value::as_str).unwrap_or_default();
        let field = body.get("field").and_then(Value::as_str);
        let error = match status {
            StatusCode::UNAUTHORIZED => Error::Unauthorized {
                message: format!(
                    "the server at {url} does not let us in ({detail}): set {} to its key",
                    ApiKey::VARIABLE
                ),
            },
            StatusCode::NOT_FOUND if error_type == "not_found" => Error::NotFound { message: detail.clone() },
            StatusCode::METHOD_NOT_ALLOWED => Error::Unsupported {
                message: format!("the server at {url} does not know this call ({status}): use a newer one"),
            },
            StatusCode::NOT_FOUND => Error::Unsupported {
                message: format!("the server has nothing at {url} ({status}): is it a store of ours?"),
            },
            StatusCode::NOT_IMPLEMENTED => Error::Unsupported { message: detail.clone() },
            StatusCode::CONFLICT => Error::Conflict { message: detail.clone() },
            StatusCode::GONE => Error::Gone { message: detail.clone() },
            StatusCode::BAD_REQUEST => Error::invalid(field.unwrap_or("request"), detail.clone()),
            StatusCode::UNPROCESSABLE_ENTITY => {
                Error::invalid(refused_field(&body).unwrap_or_default(), detail.clone())
            }
            StatusCode::PAYLOAD_TOO_LARGE => Error::invalid("body", detail.clone()),
            _ => Error::backend(format!("{url} was answered {status}: {detail}")),
        };
        let message = format!("{status}: {detail}");
        let kind = match status {
            StatusCode::NOT_IMPLEMENTED => FailureKind::Final(error),
            StatusCode::INTERNAL_SERVER_ERROR => FailureKind::Server(error),
            StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => FailureKind::Outage,
            other if other.is_server_error() => FailureKind::Outage,
            _ => FailureKind::Final(error),
        };
        Self { message, maybe_done: status.is_server_error(), kind }
    }
}

fn json(body: &(impl Serialize + ?Sized)) -> Result<Bytes, Error> {
    serde_json::to_vec(body)
        .map(Bytes::from)
        .map_err(|error| Error::invalid("body", format!("the request cannot be written as JSON: {error}")))
}

fn header(key: &str) -> Result<HeaderValue, Error> {
    HeaderValue::from_str(key)
        .map_err(|_| Error::invalid("key", format!("an idempotency key must be ASCII, unlike {key:?}")))
}

/// What an error answer says, in one line.
fn detail(body: &Value) -> Option<String> {
    match body.get("detail")? {
        Value::String(text) => Some(text.clone()),
        Value::Array(issues) => {
            let lines = issues.iter().map(|issue| {
                let message = issue.get("msg").and_then(Value::as_str).unwrap_or_default();
                format!("{}: {message}", location(issue))
            });
            Some(lines.collect::<Vec<_>>().join("; "))
        }
        other => Some(other.to_string()),
    }
}

/// The first field that a 422 answer names.
fn refused_field(body: &Value) -> Option<String> {
    body.get("detail")?.get(0).map(location)
}

fn location(issue: &Value) -> String {
    let parts = issue.get("loc").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let texts =
        parts.iter().skip(1).map(|part| part.as_str().map_or_else(|| part.to_string(), str::to_owned));
    texts.collect::<Vec<_>>().join(".")
}

/// An error with what caused it; HTTP libraries keep the part that matters at the bottom.
fn chain(error: &reqwest::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let part = error.to_string();
        if !text.contains(&part) {
            text = format!("{text}: {part}");
        }
        cause = error.source();
    }
    text
}

fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(0.5 + rand::random::<f64>() / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_escaped_in_paths() {
        let transport =
            Transport::new(Url::parse("http://h:1/base/").unwrap(), ClientOptions::default()).unwrap();
        let url = transport.url(&["workers", "a/b c?ü"]);
        assert_eq!(url.as_str(), "http://h:1/base/v1/agl/workers/a%2Fb%20c%3F%C3%BC");
    }

    #[test]
    fn pauses_are_cut_by_half_at_most() {
        for _ in 0..100 {
            let pause = jittered(Duration::from_millis(100));
            assert!((50..=100).contains(&pause.as_millis()), "{pause:?}");
        }
    }
}
