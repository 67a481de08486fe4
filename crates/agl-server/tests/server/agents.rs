//! What an agent may do with the token that it gets in place of the key, and what it may not, however it asks.

use std::io::Write as _;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use agl_gateway::{AttemptGrant, AttemptTokens, Gateway, GatewayOptions, ModelEntry, ModelList};
use agl_server::ServerOptions;
use agl_store::{MemoryStore, Store};
use agl_types::semconv::{ATTEMPT_ID, ROLLOUT_ID, SPAN_SEQUENCE_ID};
use agl_types::{
    ApiKey, Attempt, AttemptQuery, AttemptStatus, AttemptUpdate, Patch, ResourcesQuery, RolloutQuery, Span,
    SpanQuery, StartRollout, WorkerQuery, WorkerUpdate, v1,
};
use axum::Router;
use axum::http::HeaderMap;
use flate2::Compression;
use flate2::write::GzEncoder;
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::common::v1::{AnyValue, ArrayValue, KeyValue};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span as WireSpan};
use prost::Message as _;
use reqwest::StatusCode;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::common::{Server, soon};

/// Bytes and spans that agents may send at once here.
const BODY: usize = 100_000;
const SPANS: usize = 50;
const CALL: &str = "chat/completions";

/// A server that asks for a key, an agent with a token, an attempt at the same rollout that is not the agent's, and
/// somebody else's.
struct Setting {
    server: Server,
    store: Arc<dyn Store>,
    tokens: AttemptTokens,
    own: Attempt,
    earlier: Attempt,
    other: Attempt,
    engine: Engine,
}

/// A model server that counts its calls.
#[derive(Clone, Default)]
struct Engine {
    calls: Arc<AtomicUsize>,
    last: Arc<Mutex<HeaderMap>>,
}

impl Engine {
    async fn start(&self) -> String {
        let engine = self.clone();
        let answer = async move |headers: HeaderMap| {
            engine.calls.fetch_add(1, Ordering::SeqCst);
            *engine.last.lock().unwrap() = headers;
            axum::Json(json!({
                "id": "c-1", "object": "chat.completion", "model": "m", "prompt_token_ids": [1],
                "choices": [{
                    "index": 0, "finish_reason": "stop", "token_ids": [2],
                    "message": {"role": "assistant", "content": "hi"},
                }],
                "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
            }))
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/v1", listener.local_addr().unwrap());
        let app = Router::new().route("/v1/chat/completions", axum::routing::post(answer));
        tokio::spawn(async move { axum::serve(listener, app).await });
        url
    }

    fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }
}

async fn setting() -> Setting {
    // The HTTP client wants one even for plain HTTP; it fails where there is one already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let engine = Engine::default();
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let key = ApiKey::new("the-key").unwrap();
    let entry = ModelEntry { token_ids: Some(true), ..ModelEntry::new("m", engine.start().await) };
    let gateway_options = GatewayOptions { key: Some(key.clone()), ..GatewayOptions::default() };
    let gateway = Gateway::new(Arc::clone(&store), ModelList::new(vec![entry]), gateway_options).unwrap();
    let options = ServerOptions {
        key: Some(key),
        agent_body_limit: BODY,
        agent_spans: SPANS,
        gateway: Some(gateway.clone()),
        ..ServerOptions::default()
    };
    let server = Server::over(Arc::clone(&store), options).await;
    let earlier = store.start_rollout(StartRollout::default()).await.unwrap().attempt;
    let own = store.start_attempt(&earlier.rollout_id, None).await.unwrap().attempt;
    let other = store.start_rollout(StartRollout::default()).await.unwrap().attempt;
    let template = json!({"resource_type": "prompt_template", "template": "t", "engine": "f-string"});
    store.add_resources(serde_json::from_value(json!({"main": template})).unwrap()).await.unwrap();
    store.update_worker("w", WorkerUpdate::default()).await.unwrap();
    let model = v1::Model { model: "r".to_owned(), endpoint: "http://h/v1".to_owned(), version: 0 };
    store.register_models(vec![model]).await.unwrap();
    let rollout = agl_types::EnqueueRolloutRequest::new("waiting in the queue");
    store.enqueue_rollout(rollout).await.unwrap();
    Setting { server, store, tokens: gateway.tokens().clone(), own, earlier, other, engine }
}

impl Setting {
    fn grant(&self) -> AttemptGrant {
        let Attempt { rollout_id, attempt_id, .. } = self.own.clone();
        AttemptGrant { rollout_id, attempt_id, may_reward: false, until: None }
    }

    fn token(&self) -> String {
        self.tokens.issue(&self.grant())
    }

    /// All that the store holds.
    async fn holds(&self) -> Value {
        let store = &self.store;
        let rollouts = store.query_rollouts(RolloutQuery::default()).await.unwrap().items;
        let mut attempts = Vec::new();
        let mut spans = Vec::new();
        for view in &rollouts {
            let rollout_id = view.rollout.rollout_id.clone();
            let query = AttemptQuery { rollout_id: rollout_id.clone(), ..AttemptQuery::default() };
            attempts.push(store.query_attempts(query).await.unwrap().items);
            spans.push(self.spans_of(&rollout_id).await);
        }
        json!({
            "rollouts": rollouts, "attempts": attempts, "spans": spans,
            "resources": store.query_resources(ResourcesQuery::default()).await.unwrap().items,
            "workers": store.query_workers(WorkerQuery::default()).await.unwrap().items,
            "models": store.query_models().await.unwrap(),
            "queue": store.queue_state().await.unwrap(),
        })
    }

    async fn spans_of(&self, rollout_id: &str) -> Vec<Span> {
        let query = SpanQuery { rollout_id: rollout_id.to_owned(), ..SpanQuery::default() };
        self.store.query_spans(query).await.unwrap().items
    }

    async fn own_spans(&self) -> Vec<Span> {
        self.spans_of(&self.own.rollout_id).await
    }

    /// Sends a request whose target goes out as it is, which HTTP clients would tidy up.
    async fn raw(
        &self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> (StatusCode, Value) {
        let mut stream = TcpStream::connect(self.server.address).await.unwrap();
        let mut head = format!(
            "{method} {target} HTTP/1.1\r\nhost: h\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {}\r\n",
            body.len()
        );
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        stream.write_all(format!("{head}\r\n{body}").as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        soon(stream.read_to_end(&mut answer)).await.unwrap();
        let text = String::from_utf8(answer).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, serde_json::from_str(body).unwrap_or(Value::Null))
    }

    async fn export(&self, token: &str, request: &ExportTraceServiceRequest) -> reqwest::Response {
        let body = request.encode_to_vec();
        self.export_bytes(token, body, None).await
    }

    async fn export_bytes(&self, token: &str, body: Vec<u8>, encoding: Option<&str>) -> reqwest::Response {
        let request =
            reqwest::Client::new().post(self.server.url("/v1/traces")).bearer_auth(token).body(body);
        let request = request.header("content-type", "application/x-protobuf");
        let request = match encoding {
            Some(encoding) => request.header("content-encoding", encoding),
            None => request,
        };
        request.send().await.unwrap()
    }
}

fn chat() -> String {
    json!({"model": "m", "messages": [{"role": "user", "content": "a"}]}).to_string()
}

fn bearer(token: &str) -> String {
    format!("Bearer {token}")
}

/// Every byte of a text, percent-encoded.
fn encoded(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

/// Of every route that there is, with every way of naming whom it is about, in every place that keys are read from.
#[tokio::test]
async fn a_token_opens_no_route_but_those_for_agents() {
    let setting = setting().await;
    let token = setting.token();
    let document: Value =
        reqwest::get(setting.server.url("/openapi.json")).await.unwrap().json().await.unwrap();
    let before = setting.holds().await;
    let (own, other) = (&setting.own, &setting.other);
    let whose = [
        (own.rollout_id.as_str(), own.attempt_id.as_str()),
        (other.rollout_id.as_str(), other.attempt_id.as_str()),
        (own.rollout_id.as_str(), other.attempt_id.as_str()),
        (other.rollout_id.as_str(), "0"),
    ];
    let mut tried = 0;
    for (path, item) in document["paths"].as_object().unwrap() {
        for method in ["get", "post", "put", "patch", "delete"] {
            let operation = &item[method];
            let is_open = |operation: &Value| operation["security"].is_null();
            // What is for agents is looked at below.
            let is_for_agents = match operation["operationId"].as_str() {
                Some("add_event" | "export_traces") => true,
                Some(id) => {
                    operation["tags"][0] == "gateway" && !id.ends_with("_gateway") && id != "gateway_state"
                }
                None => item.as_object().unwrap().values().all(is_open),
            };
            let is_there = operation.is_object();
            if is_for_agents || (is_there && is_open(operation)) {
                continue;
            }
            for (rollout_id, attempt_id) in whose {
                let path = path
                    .replace("{rollout_id}", rollout_id)
                    .replace("{attempt_id}", attempt_id)
                    .replace("{worker_id}", "w")
                    .replace("{endpoint}", CALL)
                    .replace(['{', '}'], "");
                for (name, value) in [
                    ("authorization", bearer(&token)),
                    ("x-api-key", token.clone()),
                    ("api-key", token.clone()),
                ] {
                    let body = if method == "get" { "" } else { "{}" };
                    let method = method.to_uppercase();
                    let (status, answer) = setting.raw(&method, &path, &[(name, &value)], body).await;
                    let is_refused = status == StatusCode::FORBIDDEN
                        || (!is_there && [404, 405].contains(&status.as_u16()));
                    assert!(is_refused, "{method} {path}: {status} {answer}");
                    // OTLP and Anthropic's SDKs have forms of their own.
                    let reason = [&answer["detail"], &answer["message"], &answer["error"]["message"]];
                    assert!(reason.iter().any(|reason| reason.is_string()), "{method} {path}: {answer}");
                    tried += 1;
                }
            }
        }
    }
    assert!(tried > 1500, "{tried}");
    assert_eq!(setting.holds().await, before);
    assert_eq!(setting.engine.calls(), 0);
}

#[tokio::test]
async fn a_token_calls_models_for_its_own_attempt() {
    let setting = setting().await;
    let token = setting.token();
    let Attempt { rollout_id, attempt_id, .. } = &setting.own;
    let other = &setting.other;
    let authorization = bearer(&token);
    for (target, headers) in [
        (
            format!("/rollout/{rollout_id}/attempt/{attempt_id}/v1/{CALL}"),
            vec![("authorization", authorization.as_str())],
        ),
        (format!("/rollout/{rollout_id}/attempt/{attempt_id}/{CALL}"), vec![("x-api-key", token.as_str())]),
        (
            format!("/rollout/{}/attempt/{attempt_id}/v1/{CALL}", encoded(rollout_id)),
            vec![("api-key", token.as_str())],
        ),
        (
            format!("/proxy/rollout/{rollout_id}/attempt/{attempt_id}/mode/train/openai/v1/{CALL}"),
            vec![("authorization", authorization.as_str())],
        ),
        (
            format!("/proxy/rollout/{rollout_id}/attempt/0/mode/val/openai/v1/{CALL}"),
            vec![("authorization", authorization.as_str())],
        ),
        (format!("/v1/{CALL}"), vec![("authorization", authorization.as_str())]),
        // Whom headers name counts only where the path names nobody.
        (
            format!("/rollout/{rollout_id}/attempt/{attempt_id}/v1/{CALL}"),
            vec![
                ("authorization", authorization.as_str()),
                ("x-rollout-id", other.rollout_id.as_str()),
                ("x-attempt-id", other.attempt_id.as_str()),
            ],
        ),
        // Nobody is sent to the host of a request.
        (
            format!("http://elsewhere.test/rollout/{rollout_id}/attempt/{attempt_id}/v1/{CALL}"),
            vec![("authorization", authorization.as_str())],
        ),
        // The order of spans is not the agent's to say.
        (
            format!("/v1/{CALL}"),
            vec![
                ("authorization", authorization.as_str()),
                ("x-rollout-id", rollout_id.as_str()),
                ("x-attempt-id", attempt_id.as_str()),
                ("x-sequence-id", "9223372036854775807"),
            ],
        ),
    ] {
        let (status, answer) = setting.raw("POST", &target, &headers, &chat()).await;
        assert_eq!(status, StatusCode::OK, "{target}: {answer}");
        let seen = setting.engine.last.lock().unwrap().clone();
        assert!(!format!("{seen:?}").contains(&token), "a token goes no further");
        assert!(seen.keys().all(|name| !name.as_str().starts_with("x-")), "{seen:?}");
    }
    let spans = setting.own_spans().await;
    assert_eq!(spans.iter().map(|span| span.sequence_id).collect::<Vec<_>>(), (1..=9).collect::<Vec<_>>());
    assert!(setting.spans_of(&other.rollout_id).await.is_empty());
    let (status, models) = setting.raw("GET", "/v1/models", &[("authorization", &authorization)], "").await;
    assert_eq!((status, &models["data"][0]["id"]), (StatusCode::OK, &json!("m")));
}

#[tokio::test]
async fn a_token_calls_no_models_for_others() {
    let setting = setting().await;
    let token = setting.token();
    let Attempt { rollout_id: own, attempt_id: own_attempt, .. } = &setting.own;
    let Attempt { rollout_id: other, attempt_id: other_attempt, .. } = &setting.other;
    let earlier = &setting.earlier.attempt_id;
    let before = setting.holds().await;
    let theirs = format!("rollout/{other}/attempt/{other_attempt}/v1/{CALL}");
    let targets = [
        format!("/{theirs}"),
        format!("/rollout/{other}/attempt/{other_attempt}/{CALL}"),
        format!("//{theirs}"),
        format!("/./{theirs}"),
        format!("/{theirs}?rollout_id={own}"),
        format!("http://h/{theirs}"),
        format!("/rollout/{other}/attempt/{own_attempt}/v1/{CALL}"),
        format!("/rollout/{own}/attempt/{other_attempt}/v1/{CALL}"),
        format!("/rollout/{own}/attempt/{earlier}/v1/{CALL}"),
        format!("/proxy/rollout/{own}/attempt/{earlier}/mode/train/openai/v1/{CALL}"),
        format!("/rollout/{}/attempt/{}/v1/{CALL}", encoded(other), encoded(other_attempt)),
        format!("/proxy/rollout/{other}/attempt/{other_attempt}/mode/train/openai/v1/{CALL}"),
        format!("/proxy/rollout/{other}/attempt/0/mode/train/openai/v1/{CALL}"),
        format!("/proxy/{theirs}"),
        format!("/rollout/{own}/attempt/{own_attempt}/../../../{theirs}"),
        format!("/rollout/{own}/attempt/{own_attempt}/v1/../../../../{theirs}"),
        format!("/rollout/{own}/attempt/{own_attempt}/%2e%2e/%2e%2e/%2e%2e/{theirs}"),
        format!("/rollout/{own}%2F..%2F{other}/attempt/{other_attempt}/v1/{CALL}"),
        format!(
            "/rollout/{own}/attempt/{own_attempt}%2F..%2F..%2F..%2Frollout%2F{other}%2Fattempt%2F{other_attempt}/v1/{CALL}"
        ),
        format!("/rollout/{own}%00/attempt/{own_attempt}/v1/{CALL}"),
        format!("/rollout/{own}%0d%0ax-rollout-id:%20{other}/attempt/{own_attempt}/v1/{CALL}"),
        format!("/rollout/{own};{other}/attempt/{own_attempt}/v1/{CALL}"),
        // Nothing beyond the endpoints there are, however it is spelled.
        format!("/rollout/{own}/attempt/{own_attempt}/v1/../../files"),
        format!("/rollout/{own}/attempt/{own_attempt}/v1/chat%2Fcompletions/../../files"),
        format!("/rollout/{own}/attempt/{own_attempt}/v1/files"),
        format!("/rollout/{own}/attempt/{own_attempt}/v1/fine_tuning/jobs"),
        "/v1/files".to_owned(),
    ];
    let authorization = bearer(&token);
    for target in &targets {
        let (status, answer) =
            setting.raw("POST", target, &[("authorization", &authorization)], &chat()).await;
        let is_refused = status == StatusCode::FORBIDDEN || status == StatusCode::NOT_FOUND;
        assert!(is_refused && answer.is_object(), "{target}: {status} {answer}");
    }
    // Nobody learns whether somebody else's rollout is there.
    let answer_to = async |target: String, named: &[(&str, &str)]| {
        let headers = [&[("authorization", authorization.as_str())], named].concat();
        setting.raw("POST", &target, &headers, &chat()).await
    };
    for (there, not_there) in [
        (
            format!("/rollout/{other}/attempt/{other_attempt}/{CALL}"),
            format!("/rollout/ro-x/attempt/at-x/{CALL}"),
        ),
        (
            format!("/proxy/rollout/{other}/attempt/0/mode/val/openai/v1/{CALL}"),
            format!("/proxy/rollout/ro-x/attempt/0/mode/val/openai/v1/{CALL}"),
        ),
    ] {
        assert_eq!(answer_to(there, &[]).await, answer_to(not_there, &[]).await);
    }
    let named = [("x-rollout-id", other.as_str()), ("x-attempt-id", other_attempt.as_str())];
    let unknown = [("x-rollout-id", "ro-x"), ("x-attempt-id", "at-x")];
    let target = format!("/v1/{CALL}");
    assert_eq!(answer_to(target.clone(), &named).await, answer_to(target, &unknown).await);
    let headers = [&named[..], &[("authorization", &authorization)]].concat();
    let (status, answer) = setting.raw("POST", &format!("/v1/{CALL}"), &headers, &chat()).await;
    assert_eq!((status, &answer["error"]["type"]), (StatusCode::FORBIDDEN, &json!("permission_error")));
    let named = [("x-rollout-id", own.as_str()), ("x-attempt-id", earlier.as_str())];
    assert_eq!(answer_to(format!("/v1/{CALL}"), &named).await.0, StatusCode::FORBIDDEN);
    // The latest attempt is not that of the bearer of an earlier one's token.
    let grant = AttemptGrant { attempt_id: earlier.clone(), ..setting.grant() };
    let old = bearer(&setting.tokens.issue(&grant));
    let latest = format!("/proxy/rollout/{own}/attempt/0/mode/train/openai/v1/{CALL}");
    let (status, answer) = setting.raw("POST", &latest, &[("authorization", &old)], &chat()).await;
    assert_eq!(status, StatusCode::FORBIDDEN, "{answer}");
    // Anthropic's SDK is told in its own form.
    let (status, answer) = setting
        .raw("POST", &format!("/rollout/{other}/attempt/{other_attempt}/v1/messages"), &headers, &chat())
        .await;
    assert_eq!((status, &answer["type"]), (StatusCode::FORBIDDEN, &json!("error")));
    assert_eq!(setting.holds().await, before);
    assert_eq!(setting.engine.calls(), 0);
}

#[tokio::test]
async fn nothing_is_smuggled_in_headers() {
    let setting = setting().await;
    let authorization = bearer(&setting.token());
    let call = async |name: &str, value: &str| {
        let headers = [("authorization", authorization.as_str()), (name, value)];
        setting.raw("POST", &format!("/v1/{CALL}"), &headers, &chat()).await
    };
    for (name, value) in [
        ("x-request-id", "a\rb: c"),
        ("x-request-id", "a\0b"),
        ("x-request-id", "a\r\n folded: b"),
        ("x-request-id\0", "a"),
        ("x request id", "a"),
        ("x-rollout-id", "\x01"),
    ] {
        let (status, _) = call(name, value).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{name:?}: {value:?}");
    }
    assert_eq!(setting.engine.calls(), 0);
    // What a second line makes of a header is a header like others, and goes no further than those do.
    for (name, value) in [
        ("x-request-id", "a\r\nauthorization: Bearer the-key\r\nx-api-key: the-key"),
        ("connection", "authorization, x-request-id, host, content-type"),
        ("accept", "text/plain\r\nhost: elsewhere.test\r\ncookie: a=b\r\nx-forwarded-for: 1.2.3.4"),
    ] {
        let (status, answer) = call(name, value).await;
        assert_eq!(status, StatusCode::OK, "{name}: {answer}");
        let seen = format!("{:?}", setting.engine.last.lock().unwrap());
        for part in ["the-key", "elsewhere", "cookie", "forwarded", "authorization"] {
            assert!(!seen.contains(part), "{part}: {seen}");
        }
    }
    assert_eq!(setting.own_spans().await.len(), 3);
}

#[tokio::test]
async fn what_is_no_token_of_this_server_is_nothing() {
    let setting = setting().await;
    let token = setting.token();
    let AttemptGrant { rollout_id, attempt_id, .. } = setting.grant();
    let past = Some(1);
    let other = setting.tokens.issue(&AttemptGrant { may_reward: true, ..setting.grant() });
    let (claim, _) = other.rsplit_once('.').unwrap();
    let (_, seal) = token.rsplit_once('.').unwrap();
    let cut: Vec<String> = (0..token.len()).step_by(7).map(|end| token[..end].to_owned()).collect();
    let forged = [
        AttemptTokens::new(None).issue(&setting.grant()),
        AttemptTokens::new(Some(&ApiKey::new("guessed").unwrap())).issue(&setting.grant()),
        setting.tokens.issue(&AttemptGrant { until: past, ..setting.grant() }),
        format!("{claim}.{seal}"),
        format!("{token}A"),
        format!(".{token}"),
        token.to_uppercase(),
        "none".to_owned(),
    ];
    let before = setting.holds().await;
    let calls = format!("/rollout/{rollout_id}/attempt/{attempt_id}/v1/{CALL}");
    let events = format!("/api/rollouts/{rollout_id}/attempt/{attempt_id}/events");
    let event = json!({"event_type": "note", "data": {}}).to_string();
    let traces = "/v1/traces".to_owned();
    for forged in forged.iter().chain(&cut) {
        for (target, body) in [(&calls, &chat()), (&events, &event), (&traces, &"{}".to_owned())] {
            for (name, value) in [
                ("authorization", bearer(forged)),
                ("x-api-key", forged.clone()),
                ("api-key", forged.clone()),
            ] {
                let (status, answer) = setting.raw("POST", target, &[(name, &value)], body).await;
                assert_eq!(status, StatusCode::UNAUTHORIZED, "{target} {name} {forged}");
                assert!(answer.is_object(), "{target} {answer}");
            }
        }
    }
    // A good one in a place that nobody reads.
    for (suffix, headers) in [
        (format!("?key={token}"), vec![]),
        (format!("?api_key={token}&access_token={token}"), vec![]),
        (String::new(), vec![("cookie", format!("key={token}"))]),
        (String::new(), vec![("authorization", token.clone())]),
        (String::new(), vec![("authorization", format!("Basic {token}"))]),
        (String::new(), vec![("proxy-authorization", bearer(&token))]),
        (String::new(), vec![("x-goog-api-key", token.clone())]),
    ] {
        let headers: Vec<(&str, &str)> =
            headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let (status, _) = setting.raw("POST", &format!("{calls}{suffix}"), &headers, &chat()).await;
        assert_eq!(status, StatusCode::UNAUTHORIZED, "{suffix} {headers:?}");
    }
    // Of a key and a token beside it the token counts.
    let both = [("authorization", bearer("the-key")), ("x-api-key", token)];
    let both: Vec<(&str, &str)> = both.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let (status, _) = setting.raw("GET", "/v1/agl/rollouts", &both, "").await;
    assert_eq!(status, StatusCode::FORBIDDEN);
    assert_eq!(setting.holds().await, before);
    assert_eq!(setting.engine.calls(), 0);
}

#[tokio::test]
async fn a_token_records_events_of_its_own_attempt() {
    let setting = setting().await;
    let Attempt { rollout_id: own, attempt_id: own_attempt, .. } = &setting.own;
    let Attempt { rollout_id: other, attempt_id: other_attempt, .. } = &setting.other;
    let send = async |token: &str, target: &str, kind: &str| {
        let event = json!({"event_type": kind, "data": {"value": 1.0}}).to_string();
        setting.raw("POST", target, &[("authorization", &bearer(token))], &event).await.0
    };
    let before = setting.holds().await;
    let token = setting.token();
    let path = |rollout: &str, attempt: &str| format!("/api/rollouts/{rollout}/attempt/{attempt}/events");
    for target in [
        path(other, other_attempt),
        path(own, other_attempt),
        path(own, &setting.earlier.attempt_id),
        path(other, own_attempt),
        path(own, "0"),
        path(other, "0"),
        path(&encoded(other), &encoded(other_attempt)),
        path(&format!("{own}/attempt/{own_attempt}/../../../{other}"), other_attempt),
        format!("{}/", path(own, own_attempt)),
        format!("/{}", path(own, own_attempt)),
    ] {
        assert_eq!(send(&token, &target, "note").await, StatusCode::FORBIDDEN, "{target}");
    }
    let target = path(own, own_attempt);
    for kind in ["reward", "model_request"] {
        assert_eq!(send(&token, &target, kind).await, StatusCode::FORBIDDEN, "{kind}");
    }
    for method in ["GET", "PUT", "PATCH", "DELETE"] {
        for target in [target.as_str(), "/v1/traces"] {
            let (status, _) = setting.raw(method, target, &[("authorization", &bearer(&token))], "").await;
            assert_eq!(status, StatusCode::FORBIDDEN, "{method} {target}");
        }
    }
    let long = json!({"event_type": "note", "data": {"text": "x".repeat(BODY)}}).to_string();
    let (status, _) = setting.raw("POST", &target, &[("authorization", &bearer(&token))], &long).await;
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(setting.holds().await, before);

    assert_eq!(send(&token, &target, "note").await, StatusCode::OK);
    assert_eq!(send(&token, &path(&encoded(own), own_attempt), "note").await, StatusCode::OK);
    assert_eq!(agl_trace::find_final_reward(&setting.own_spans().await), None);
    let trusted = setting.tokens.issue(&AttemptGrant { may_reward: true, ..setting.grant() });
    assert_eq!(send(&trusted, &target, "reward").await, StatusCode::OK);
    assert_eq!(send(&trusted, &target, "model_request").await, StatusCode::FORBIDDEN);
    assert_eq!(send(&trusted, &path(other, other_attempt), "reward").await, StatusCode::FORBIDDEN);
    assert_eq!(agl_trace::find_final_reward(&setting.own_spans().await), Some(1.0));
}

fn pair(key: &str, value: &str) -> KeyValue {
    let value = Some(AnyValue { value: Some(Any::StringValue(value.to_owned())) });
    KeyValue { key: key.to_owned(), value, ..KeyValue::default() }
}

/// A span whose resource names one attempt, and which itself names another, if any.
fn spans(
    resource: &Attempt,
    named: Option<&Attempt>,
    name: &str,
    attributes: &[(&str, &str)],
) -> ExportTraceServiceRequest {
    let place = |attempt: &Attempt| {
        vec![pair(ROLLOUT_ID, &attempt.rollout_id), pair(ATTEMPT_ID, &attempt.attempt_id)]
    };
    let mut own = named.map(place).unwrap_or_default();
    own.extend(attributes.iter().map(|(key, value)| pair(key, value)));
    let span = WireSpan {
        trace_id: vec![1; 16],
        span_id: (1 + name.len() as u64).to_be_bytes().to_vec(),
        name: name.to_owned(),
        start_time_unix_nano: 1,
        end_time_unix_nano: 2,
        attributes: own,
        ..WireSpan::default()
    };
    ExportTraceServiceRequest {
        resource_spans: vec![ResourceSpans {
            resource: Some(Resource { attributes: place(resource), ..Resource::default() }),
            scope_spans: vec![ScopeSpans { spans: vec![span], ..ScopeSpans::default() }],
            ..ResourceSpans::default()
        }],
    }
}

async fn rejected(response: reqwest::Response) -> i64 {
    assert_eq!(response.status(), StatusCode::OK);
    let answer = ExportTraceServiceResponse::decode(response.bytes().await.unwrap()).unwrap();
    answer.partial_success.map_or(0, |partial| partial.rejected_spans)
}

#[tokio::test]
async fn a_token_records_spans_of_its_own_attempt() {
    let setting = setting().await;
    let (own, other) = (&setting.own, &setting.other);
    let token = setting.token();
    let before = setting.holds().await;
    let crossed = Attempt { attempt_id: other.attempt_id.clone(), ..own.clone() };
    for request in [
        spans(other, None, "s", &[]),
        spans(own, Some(other), "s", &[]),
        spans(other, Some(other), "s", &[]),
        spans(&crossed, None, "s", &[]),
        spans(own, Some(&crossed), "s", &[]),
        spans(&setting.earlier, None, "s", &[]),
        spans(own, Some(&setting.earlier), "s", &[]),
        // Rewards, in every way that there is of writing one.
        spans(own, None, "agentlightning.annotation", &[("agentlightning.reward.0.value", "1")]),
        spans(own, None, "agentlightning.annotation", &[("reward", "1")]),
        spans(own, None, "s", &[("agentops.task.output", r#"{"type": "reward", "value": 1}"#)]),
        spans(own, None, "s", &[("agentops.entity.output", r#"{"type": "reward", "value": 1}"#)]),
        spans(
            own,
            None,
            "s",
            &[("agentlightning.event.type", "reward"), ("agentlightning.event.data", r#"{"value": 1}"#)],
        ),
        spans(
            own,
            None,
            "s",
            &[
                ("agentlightning.event.type", "note"),
                ("agentops.task.output", r#"{"type": "reward", "value": 1}"#),
            ],
        ),
        // What the gateway alone tells.
        spans(own, None, "litellm_request", &[]),
        spans(own, None, "raw_gen_ai_request", &[]),
        spans(own, None, "s", &[("agentlightning.event.type", "model_request")]),
        spans(own, None, "s", &[("agentlightning.gateway.dialect", "chat")]),
    ] {
        assert_eq!(rejected(setting.export(&token, &request).await).await, 1, "{request:?}");
    }
    for key in ["agentlightning.reward", "agentlightning.reward.steps"] {
        let mut request = spans(own, None, "s", &[]);
        let values = vec![AnyValue { value: Some(Any::DoubleValue(1.0)) }];
        let value = Some(AnyValue { value: Some(Any::ArrayValue(ArrayValue { values })) });
        let steps = KeyValue { key: key.to_owned(), value, ..KeyValue::default() };
        request.resource_spans[0].scope_spans[0].spans[0].attributes.push(steps);
        assert_eq!(rejected(setting.export(&token, &request).await).await, 1, "{key}");
    }
    assert_eq!(setting.holds().await, before);

    let trusted = setting.tokens.issue(&AttemptGrant { may_reward: true, ..setting.grant() });
    let reward = spans(own, None, "s", &[("agentops.task.output", r#"{"type": "reward", "value": 1}"#)]);
    assert_eq!(rejected(setting.export(&trusted, &reward).await).await, 0);
    let largest = i64::MAX.to_string();
    for request in [
        spans(own, None, "one", &[(SPAN_SEQUENCE_ID, &largest)]),
        spans(other, Some(own), "three", &[]),
        spans(own, Some(own), "eleven and more", &[("gen_ai.request.model", "m")]),
    ] {
        assert_eq!(rejected(setting.export(&token, &request).await).await, 0);
    }
    let kept = setting.own_spans().await;
    let kept: Vec<(i64, &str)> = kept.iter().map(|span| (span.sequence_id, span.name.as_str())).collect();
    assert_eq!(kept, [(1, "s"), (2, "one"), (3, "three"), (4, "eleven and more")]);
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[tokio::test]
async fn an_agent_sends_no_more_spans_at_once_than_it_may() {
    let setting = setting().await;
    let token = setting.token();
    let before = setting.holds().await;
    let long = "x".repeat(BODY);
    let large = spans(&setting.own, None, "s", &[("text", &long)]).encode_to_vec();
    let many = |count: usize, text: &str| {
        let mut request = spans(&setting.own, None, "s", &[]);
        let group = &mut request.resource_spans[0];
        group.resource.as_mut().unwrap().attributes.push(pair("text", text));
        let span = group.scope_spans[0].spans.remove(0);
        group.scope_spans[0].spans = (0..count as u64)
            .map(|number| WireSpan { span_id: (number + 1).to_be_bytes().to_vec(), ..span.clone() })
            .collect();
        request.encode_to_vec()
    };
    // Each of them would be stored with its own copy of that.
    let swelling = many(SPANS, &"x".repeat(BODY / 4));
    assert!(swelling.len() < BODY);
    for (body, encoding, reason) in [
        (large.clone(), None, "100000 bytes"),
        (gzip(&large), Some("gzip"), "100000 bytes"),
        (gzip(&vec![0; 100 * BODY]), Some("gzip"), "100000 bytes"),
        (many(SPANS + 1, ""), None, "50 spans"),
        (gzip(&many(SPANS + 1, "")), Some("gzip"), "50 spans"),
        (swelling, None, "200000 bytes of spans"),
    ] {
        let response = setting.export_bytes(&token, body, encoding).await;
        assert_eq!(response.status(), StatusCode::PAYLOAD_TOO_LARGE, "{reason}");
        let status = agl_otlp::Status::decode(response.bytes().await.unwrap()).unwrap();
        assert!(status.message.contains(reason), "{}", status.message);
    }
    assert_eq!(setting.holds().await, before);
    // Those with the key may.
    let response = setting.export_bytes("the-key", many(SPANS + 1, &"x".repeat(BODY / 4)), None).await;
    assert_eq!(rejected(response).await, 0);
    assert_eq!(setting.own_spans().await.len(), SPANS + 1);
}

#[tokio::test]
async fn a_token_calls_no_models_once_its_attempt_has_ended() {
    let setting = setting().await;
    let token = setting.token();
    let Attempt { rollout_id, attempt_id, .. } = &setting.own;
    let targets = [
        format!("/v1/{CALL}"),
        format!("/rollout/{rollout_id}/attempt/{attempt_id}/v1/{CALL}"),
        format!("/proxy/rollout/{rollout_id}/attempt/0/mode/train/openai/v1/{CALL}"),
    ];
    let call = async |target: &str, token: &str| {
        setting.raw("POST", target, &[("authorization", &bearer(token))], &chat()).await
    };
    assert_eq!(call(&targets[1], &token).await.0, StatusCode::OK);
    let update = AttemptUpdate { status: Patch::Set(AttemptStatus::Succeeded), ..AttemptUpdate::default() };
    setting.store.update_attempt(rollout_id, attempt_id, update).await.unwrap();
    // It may have been seen to go on just before.
    soon(async {
        while call(&targets[1], &token).await.0 == StatusCode::OK {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    for target in &targets {
        let (status, answer) = call(target, &token).await;
        assert_eq!(status, StatusCode::FORBIDDEN, "{target}");
        assert!(answer["error"]["message"].as_str().unwrap().contains("has ended"), "{answer}");
    }
    // What is on its way at the end is kept, and the key still opens everything.
    assert_eq!(rejected(setting.export(&token, &spans(&setting.own, None, "late", &[])).await).await, 0);
    assert_eq!(call(&targets[1], "the-key").await.0, StatusCode::OK);
}
