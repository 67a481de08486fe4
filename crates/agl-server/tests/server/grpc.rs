//! OTLP over gRPC, over real sockets, as far as exporters go: the Python tests let one of them at it.

use std::io::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;

use agl_gateway::{AttemptGrant, AttemptTokens};
use agl_otlp::ExportTraceServiceRequest;
use agl_server::ServerOptions;
use agl_store::{MemoryStore, Store};
use agl_types::{ApiKey, Span, SpanQuery, StartRollout};
use axum::http::{HeaderMap, Request};
use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceResponse;
use prost::Message as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

const EXPORT: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";

struct Setting {
    address: SocketAddr,
    store: Arc<dyn Store>,
    stop: oneshot::Sender<()>,
    ended: JoinHandle<std::io::Result<()>>,
    span: Span,
}

async fn setting() -> Setting {
    setting_with(ServerOptions { body_limit: 10_000, ..ServerOptions::default() }).await
}

async fn setting_with(options: ServerOptions) -> Setting {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let attempt = store.start_rollout(StartRollout::default()).await.unwrap().attempt;
    let ids = (agl_types::ids::trace_id(1, 1), agl_types::ids::span_id(1));
    let span = Span::new("call", ids.0, ids.1, 1.0, 2.0).placed(&attempt.rollout_id, &attempt.attempt_id, 1);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let served = Arc::clone(&store);
    let ended = tokio::spawn(async move {
        agl_server::serve_grpc(listener, served, &options, async { stopped.await.unwrap() }).await
    });
    Setting { address, store, stop, ended, span }
}

/// What came of a call: the message, and the headers that tell how it went.
struct Outcome {
    message: Option<ExportTraceServiceResponse>,
    status: HeaderMap,
}

impl Outcome {
    fn code(&self) -> &str {
        self.status["grpc-status"].to_str().unwrap()
    }

    fn reason(&self) -> &str {
        self.status["grpc-message"].to_str().unwrap()
    }
}

impl Setting {
    async fn call(&self, path: &str, headers: &[(&str, &str)], body: Vec<u8>) -> Outcome {
        let stream = TcpStream::connect(self.address).await.unwrap();
        let (mut sender, connection) = h2::client::handshake(stream).await.unwrap();
        let connection = tokio::spawn(connection);
        let mut request = Request::post(format!("http://{}{path}", self.address))
            .header("content-type", "application/grpc")
            .header("te", "trailers");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let (response, mut stream) = sender.send_request(request.body(()).unwrap(), false).unwrap();
        stream.send_data(Bytes::from(body), true).unwrap();
        let response = response.await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "application/grpc");
        let (head, mut body) = response.into_parts();
        let mut bytes = Vec::new();
        while let Some(data) = body.data().await {
            bytes.extend(data.unwrap());
        }
        let status = body.trailers().await.unwrap().unwrap_or(head.headers);
        connection.abort();
        let message = (!bytes.is_empty()).then(|| {
            let (prefix, message) = bytes.split_at(5);
            assert_eq!(prefix[0], 0);
            assert_eq!(u32::from_be_bytes(prefix[1..].try_into().unwrap()) as usize, message.len());
            ExportTraceServiceResponse::decode(message).unwrap()
        });
        Outcome { message, status }
    }

    async fn stored(&self) -> i64 {
        let query = SpanQuery { rollout_id: self.span.rollout_id.clone(), ..SpanQuery::default() };
        self.store.query_spans(query).await.unwrap().total
    }
}

fn framed(is_compressed: bool, message: &[u8]) -> Vec<u8> {
    let length = u32::try_from(message.len()).unwrap().to_be_bytes();
    [&[u8::from(is_compressed)], &length[..], message].concat()
}

fn request(spans: &[Span]) -> Vec<u8> {
    agl_otlp::request(spans).encode_to_vec()
}

#[tokio::test]
async fn spans_are_stored_before_the_answer() {
    let setting = setting().await;
    let mut unknown = setting.span.clone();
    unknown.rollout_id = "ro-x".to_owned();
    let outcome = setting.call(EXPORT, &[], framed(false, &request(&[setting.span.clone(), unknown]))).await;
    assert_eq!(outcome.code(), "0");
    let partial = outcome.message.unwrap().partial_success.unwrap();
    assert_eq!(
        (partial.rejected_spans, partial.error_message.as_str()),
        (1, "1 span: Rollout ro-x not found")
    );
    assert_eq!(setting.stored().await, 1);

    let outcome = setting.call(EXPORT, &[], framed(false, &[])).await;
    assert_eq!(outcome.code(), "0");
    assert_eq!(outcome.message, Some(ExportTraceServiceResponse::default()));
}

#[tokio::test]
async fn a_key_is_asked_for() {
    let key = Some(ApiKey::new("s3cret").unwrap());
    let setting = setting_with(ServerOptions { key, ..ServerOptions::default() }).await;
    let body = framed(false, &request(std::slice::from_ref(&setting.span)));
    for wrong in [&[][..], &[("authorization", "Bearer secret")]] {
        let outcome = setting.call(EXPORT, wrong, body.clone()).await;
        assert_eq!((outcome.code(), outcome.reason()), ("16", "Invalid or missing API key"));
    }
    // Agents send theirs over HTTP, where it is looked into.
    let Span { rollout_id, attempt_id, .. } = setting.span.clone();
    let grant = AttemptGrant { rollout_id, attempt_id, may_reward: true, until: None };
    let token = AttemptTokens::new(Some(&ApiKey::new("s3cret").unwrap())).issue(&grant);
    assert_eq!(setting.call(EXPORT, &[("x-api-key", &token)], body.clone()).await.code(), "7");
    assert_eq!(setting.stored().await, 0);
    for right in [("authorization", "Bearer s3cret"), ("x-api-key", "s3cret")] {
        assert_eq!(setting.call(EXPORT, &[right], body.clone()).await.code(), "0");
    }
    assert_eq!(setting.stored().await, 1);
}

#[tokio::test]
async fn requests_beyond_the_limit_are_asked_to_come_back() {
    let setting = setting_with(ServerOptions { max_requests: 0, ..ServerOptions::default() }).await;
    let outcome = setting.call(EXPORT, &[], framed(false, &[])).await;
    assert_eq!(outcome.code(), "14");
}

#[tokio::test]
async fn compressed_messages_are_taken() {
    let setting = setting().await;
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    gzip.write_all(&request(std::slice::from_ref(&setting.span))).unwrap();
    let body = framed(true, &gzip.finish().unwrap());
    let outcome = setting.call(EXPORT, &[("grpc-encoding", "gzip")], body.clone()).await;
    assert_eq!(outcome.code(), "0");
    assert_eq!(setting.stored().await, 1);

    let outcome = setting.call(EXPORT, &[("grpc-encoding", "snappy")], body.clone()).await;
    assert_eq!(outcome.code(), "12");
    assert_eq!(outcome.status["grpc-accept-encoding"], "identity, gzip, deflate, zstd");
    assert_eq!(setting.call(EXPORT, &[], body).await.code(), "13");
}

#[tokio::test]
async fn what_cannot_be_taken_is_told_by_a_code() {
    let setting = setting().await;
    let large = setting.call(EXPORT, &[], framed(false, &[0; 20_000])).await;
    assert_eq!((large.code(), large.reason().contains("10000 bytes")), ("8", true));
    let junk = setting.call(EXPORT, &[], framed(false, b"\x0a\xff")).await;
    assert_eq!(junk.code(), "3");
    assert!(junk.reason().starts_with("Unable to parse OTLP traces payload: "), "{}", junk.reason());
    let other = "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export";
    assert_eq!(setting.call(other, &[], framed(false, &[])).await.code(), "12");
    let whole = framed(false, &ExportTraceServiceRequest::default().encode_to_vec());
    for body in
        [vec![], b"\0\0\0\0".to_vec(), framed(false, b"12")[..6].to_vec(), [whole.clone(), whole].concat()]
    {
        assert_eq!(setting.call(EXPORT, &[], body.clone()).await.code(), "13", "{body:?}");
    }
}

#[tokio::test]
async fn the_server_stops_in_order() {
    let setting = setting().await;
    assert_eq!(setting.call(EXPORT, &[], framed(false, &[])).await.code(), "0");
    setting.stop.send(()).unwrap();
    setting.ended.await.unwrap().unwrap();
    assert!(TcpStream::connect(setting.address).await.is_err());
}
