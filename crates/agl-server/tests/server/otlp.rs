//! OTLP over real sockets, with real protobuf bytes.

use std::io::{Read as _, Write as _};
use std::sync::Arc;

use agl_server::ServerOptions;
use agl_store::{MemoryStore, Store};
use agl_types::semconv::{ATTEMPT_ID, ROLLOUT_ID};
use agl_types::{AttemptedRollout, Page, Span, SpanQuery, StartRollout};
use bytes::Bytes;
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTracePartialSuccess, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::trace::v1::ResourceSpans;
use prost::Message as _;
use reqwest::header::{ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_TYPE};
use reqwest::{Response, StatusCode};

use crate::common::Server;

struct Setting {
    server: Server,
    store: Arc<MemoryStore>,
    rollout: AttemptedRollout,
}

async fn setting() -> Setting {
    let store = Arc::new(MemoryStore::new());
    let shared: Arc<dyn Store> = Arc::clone(&store) as Arc<dyn Store>;
    let server =
        Server::over(shared, ServerOptions { body_limit: 100_000, ..ServerOptions::default() }).await;
    let rollout = store.start_rollout(StartRollout::default()).await.unwrap();
    Setting { server, store, rollout }
}

impl Setting {
    fn span(&self, number: u64) -> Span {
        let attempt = &self.rollout.attempt;
        let (trace, own) = (agl_types::ids::trace_id(1, 1), agl_types::ids::span_id(number));
        Span::new("call", trace, own, 1.0, 2.0).placed(&attempt.rollout_id, &attempt.attempt_id, 0)
    }

    async fn post(&self, body: impl Into<Bytes>, headers: &[(&str, &str)]) -> Response {
        let mut request = reqwest::Client::new().post(self.server.url("/v1/traces")).body(body.into());
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.send().await.unwrap()
    }

    async fn export(&self, spans: &[Span]) -> Response {
        self.post(agl_otlp::request(spans).encode_to_vec(), &[PROTOBUF]).await
    }

    async fn stored(&self) -> Page<Span> {
        let rollout_id = self.rollout.rollout.rollout_id.clone();
        self.store.query_spans(SpanQuery { rollout_id, ..SpanQuery::default() }).await.unwrap()
    }
}

const PROTOBUF: (&str, &str) = ("content-type", "application/x-protobuf");

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

async fn partial(response: Response) -> ExportTracePartialSuccess {
    assert_eq!(response.status(), StatusCode::OK);
    ExportTraceServiceResponse::decode(response.bytes().await.unwrap()).unwrap().partial_success.unwrap()
}

async fn refusal(response: Response) -> (StatusCode, String) {
    assert_eq!(response.headers()[CONTENT_TYPE], "application/x-protobuf");
    let status = response.status();
    let message = agl_otlp::parse_error_status(&response.bytes().await.unwrap()).unwrap().message;
    (status, message)
}

#[tokio::test]
async fn spans_are_stored_before_the_answer() {
    let setting = setting().await;
    let response = setting.export(&[setting.span(1), setting.span(2)]).await;
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(response.headers()[CONTENT_TYPE], "application/x-protobuf");
    assert!(response.bytes().await.unwrap().is_empty(), "full success is no bytes");
    assert_eq!(setting.stored().await.total, 2);
}

#[tokio::test]
async fn missing_sequence_ids_are_issued_in_payload_order() {
    let setting = setting().await;
    let mut request = agl_otlp::request(&[setting.span(7), setting.span(3)]);
    for span in request.resource_spans.iter_mut().flat_map(|group| &mut group.scope_spans[0].spans) {
        span.attributes.retain(|pair| pair.key == ROLLOUT_ID || pair.key == ATTEMPT_ID);
    }
    setting.post(request.encode_to_vec(), &[PROTOBUF]).await;
    let stored = setting.stored().await;
    let got: Vec<_> = stored.items.iter().map(|span| (span.sequence_id, span.span_id.clone())).collect();
    assert_eq!(got, [(1, agl_types::ids::span_id(7)), (2, agl_types::ids::span_id(3))]);
}

#[tokio::test]
async fn gzip_is_taken_and_given() {
    let setting = setting().await;
    let body = gzip(&agl_otlp::request(&[setting.span(1)]).encode_to_vec());
    let headers =
        [PROTOBUF, (CONTENT_ENCODING.as_str(), "GZIP"), (ACCEPT_ENCODING.as_str(), "br, gzip;q=0.5")];
    let response = setting.post(body, &headers).await;
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(response.headers()[CONTENT_ENCODING], "gzip");
    let mut inflated = Vec::new();
    GzDecoder::new(response.bytes().await.unwrap().as_ref()).read_to_end(&mut inflated).unwrap();
    assert!(inflated.is_empty());
    assert_eq!(setting.stored().await.total, 1);

    let response = setting.post("junk", &headers).await;
    assert_eq!(
        (response.status(), &response.headers()[CONTENT_ENCODING]),
        (StatusCode::BAD_REQUEST, &"gzip".parse().unwrap())
    );
}

#[tokio::test]
async fn spans_without_a_place_are_reported_and_the_others_stored() {
    let setting = setting().await;
    let unknown_rollout = setting.span(2).placed("ro-x", "at-x", 1);
    let unknown_attempt = setting.span(3).placed(&setting.rollout.rollout.rollout_id, "at-x", 1);
    let nowhere = setting.span(4).placed("", "", 1);
    let report = partial(
        setting.export(&[setting.span(1), unknown_rollout, unknown_attempt, nowhere, setting.span(5)]).await,
    )
    .await;
    assert_eq!(report.rejected_spans, 3);
    for part in ["Rollout ro-x not found", "Attempt at-x not found", "no agentlightning.rollout_id"] {
        assert!(report.error_message.contains(part), "{}", report.error_message);
    }
    let stored = setting.stored().await;
    assert_eq!(stored.total, 2);
    // Duplicates are nothing to worry an exporter with.
    assert!(setting.export(&[setting.span(1)]).await.bytes().await.unwrap().is_empty());
}

#[tokio::test]
async fn an_empty_body_is_an_empty_request() {
    let setting = setting().await;
    let response = setting.post("", &[PROTOBUF]).await;
    assert_eq!(response.status(), StatusCode::OK);
    let empty_group = agl_otlp::ExportTraceServiceRequest { resource_spans: vec![ResourceSpans::default()] };
    assert_eq!(setting.post(empty_group.encode_to_vec(), &[PROTOBUF]).await.status(), StatusCode::OK);
}

#[tokio::test]
async fn what_cannot_be_read_is_refused_with_a_status() {
    let setting = setting().await;
    let (status, message) =
        refusal(setting.post("{}", &[("content-type", "application/json; a=b")]).await).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert_eq!(message, "Unsupported Content-Type 'application/json', expected 'application/x-protobuf'");
    let (status, message) = refusal(setting.post("junk", &[PROTOBUF]).await).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(message.starts_with("Unable to parse OTLP traces payload: "), "{message}");
    let (status, message) =
        refusal(setting.post("junk", &[PROTOBUF, ("content-encoding", "gzip")]).await).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(message.starts_with("Unable to decompress"), "{message}");
    let (status, message) =
        refusal(setting.post("", &[PROTOBUF, ("content-encoding", "deflate")]).await).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(message.contains("deflate"), "{message}");
}

#[tokio::test]
async fn payloads_beyond_the_limit_are_refused_also_when_they_unpack_to_it() {
    let setting = setting().await;
    let large = vec![0; 200_000];
    let (status, message) =
        refusal(setting.post(gzip(&large), &[PROTOBUF, ("content-encoding", "gzip")]).await).await;
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
    assert!(message.contains("100000 bytes"), "{message}");
    let (status, _) = refusal(setting.post(large, &[PROTOBUF]).await).await;
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
}

#[tokio::test]
async fn other_signals_are_not_taken() {
    let setting = setting().await;
    for path in ["/v1/metrics", "/v1/logs", "/v1/development/profiles"] {
        let response = reqwest::Client::new().post(setting.server.url(path)).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::NOT_IMPLEMENTED);
        assert!(response.bytes().await.unwrap().is_empty());
    }
}
