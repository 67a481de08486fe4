//! OTLP over real sockets, with real protobuf bytes.

use std::io::{Read as _, Write as _};
use std::sync::Arc;

use agl_server::ServerOptions;
use agl_store::{MemoryStore, SqliteOptions, SqliteStore, Store};
use agl_types::semconv::{ATTEMPT_ID, ROLLOUT_ID};
use agl_types::{AttemptedRollout, Page, Span, SpanQuery, StartRollout};
use bytes::Bytes;
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::{DeflateEncoder, GzEncoder, ZlibEncoder};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTracePartialSuccess, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::trace::v1::ResourceSpans;
use prost::Message as _;
use reqwest::header::{ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_TYPE};
use reqwest::{Response, StatusCode};
use ruzstd::encoding::{CompressionLevel, compress_to_vec};
use serde_json::{Value, json};

use crate::common::Server;
use crate::json;

struct Setting {
    server: Server,
    store: Arc<dyn Store>,
    rollout: AttemptedRollout,
}

async fn setting() -> Setting {
    setting_over(Arc::new(MemoryStore::new())).await
}

async fn setting_over(store: Arc<dyn Store>) -> Setting {
    let options = ServerOptions { body_limit: 100_000, ..ServerOptions::default() };
    let server = Server::over(Arc::clone(&store), options).await;
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

    /// The spans as OTLP's JSON.
    async fn export_json(&self, spans: &[Span]) -> Response {
        self.post(json::request(spans).to_string(), &[JSON]).await
    }

    async fn stored(&self) -> Page<Span> {
        let rollout_id = self.rollout.rollout.rollout_id.clone();
        self.store.query_spans(SpanQuery { rollout_id, ..SpanQuery::default() }).await.unwrap()
    }
}

const PROTOBUF: (&str, &str) = ("content-type", "application/x-protobuf");
const JSON: (&str, &str) = ("content-type", "application/json");

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
    let message = agl_otlp::Status::decode(response.bytes().await.unwrap()).unwrap().message;
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
    for content_type in ["text/plain; a=b", "application/jsonl", ""] {
        let (status, message) = refusal(setting.post("{}", &[("content-type", content_type)]).await).await;
        assert_eq!(status, StatusCode::BAD_REQUEST);
        let essence = content_type.split(';').next().unwrap();
        let expected = "expected 'application/x-protobuf' or 'application/json'";
        assert_eq!(message, format!("Unsupported Content-Type '{essence}', {expected}"));
    }
    let (status, message) = refusal(setting.post("junk", &[PROTOBUF]).await).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(message.starts_with("Unable to parse OTLP traces payload: "), "{message}");
    for encoding in ["gzip", "deflate", "zstd"] {
        let headers = [PROTOBUF, ("content-encoding", encoding)];
        let (status, message) = refusal(setting.post("\x28\x7f junk", &headers).await).await;
        assert_eq!(status, StatusCode::BAD_REQUEST);
        assert!(message.starts_with(&format!("Unable to decompress the {encoding} payload: ")), "{message}");
    }
    let (status, message) = refusal(setting.post("", &[PROTOBUF, ("content-encoding", "br")]).await).await;
    assert_eq!(status, StatusCode::UNSUPPORTED_MEDIA_TYPE);
    assert_eq!(message, "Unsupported Content-Encoding 'br', expected one of identity, gzip, deflate, zstd");
}

#[tokio::test]
async fn json_is_answered_with_json() {
    let setting = setting().await;
    let answer = async |response: Response| {
        assert_eq!(response.headers()[CONTENT_TYPE], "application/json");
        (response.status(), response.json::<Value>().await.unwrap())
    };
    let stored = answer(setting.export_json(&[setting.span(1)]).await).await;
    assert_eq!(stored, (StatusCode::OK, json!({})));
    let (status, body) =
        answer(setting.export_json(&[setting.span(2), setting.span(3).placed("ro-x", "at-x", 1)]).await)
            .await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(
        body,
        json!({"partialSuccess": {"rejectedSpans": "1", "errorMessage": "1 span: Rollout ro-x not found"}})
    );
    assert_eq!(setting.stored().await.total, 2);

    let headers = [("content-type", "Application/JSON; charset=utf-8"), ("content-encoding", "gzip")];
    let (status, body) = answer(setting.post(gzip(b"{\"resourceSpans\": 1}"), &headers).await).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    let message = "Unable to parse OTLP traces payload: resourceSpans is not a list";
    assert_eq!(body, json!({ "message": message }));
    let (status, _) = answer(setting.post("junk", &headers).await).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    let (status, _) = answer(setting.post(gzip(&[b' '; 200_000]), &headers).await).await;
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
}

/// Deflate as HTTP means it, which is zlib, and as some send it.
#[tokio::test]
async fn every_encoding_is_taken() {
    let setting = setting().await;
    let packed = |number: u64, pack: &dyn Fn(&[u8]) -> Vec<u8>| {
        pack(&agl_otlp::request(&[setting.span(number)]).encode_to_vec())
    };
    let zlib = |bytes: &[u8]| {
        let mut encoder = ZlibEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    };
    let raw = |bytes: &[u8]| {
        let mut encoder = DeflateEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    };
    let zstd = |bytes: &[u8]| compress_to_vec(bytes, CompressionLevel::Fastest);
    for (number, (encoding, body)) in [
        ("identity", packed(1, &<[u8]>::to_vec)),
        ("gzip", packed(2, &gzip)),
        ("deflate", packed(3, &zlib)),
        ("Deflate", packed(4, &raw)),
        ("zstd", packed(5, &zstd)),
    ]
    .into_iter()
    .enumerate()
    {
        let response = setting.post(body, &[PROTOBUF, ("content-encoding", encoding)]).await;
        assert_eq!(response.status(), StatusCode::OK, "{encoding}");
        assert_eq!(setting.stored().await.total, i64::try_from(number).unwrap() + 1, "{encoding}");
    }
}

/// A payload that is worth a thread of its own, compressed and not, with spans of unknown places in it.
#[tokio::test]
async fn large_payloads_are_as_good_as_small_ones() {
    let setting = setting().await;
    for offset in [1, 1001] {
        let mut spans: Vec<_> = (0..400).map(|number| setting.span(offset + number)).collect();
        spans.push(setting.span(1).placed("ro-x", "at-x", 1));
        let body = agl_otlp::request(&spans).encode_to_vec();
        assert!(body.len() > 64 << 10, "{}", body.len());
        let (body, encoding) = if offset == 1 { (body, "identity") } else { (gzip(&body), "gzip") };
        let report = partial(setting.post(body, &[PROTOBUF, ("content-encoding", encoding)]).await).await;
        assert_eq!(report.rejected_spans, 1);
    }
    assert_eq!(setting.stored().await.total, 800);
}

/// Through both formats into both stores, and out again: over REST, where a client says that it can read it, and as
/// 0.3's models can read it where it does not.
#[tokio::test]
async fn attributes_of_any_type_survive() {
    let folder = tempfile::tempdir().unwrap();
    let sqlite = SqliteStore::open(folder.path().join("store.db"), SqliteOptions::default()).unwrap();
    let stores: [Arc<dyn Store>; 2] = [Arc::new(MemoryStore::new()), Arc::new(sqlite)];
    for store in stores {
        let setting = setting_over(store).await;
        let sent: Vec<Span> = (0..)
            .zip(agl_conformance::any_attributes(60))
            .map(|(number, attributes)| {
                let mut span = setting.span(number + 1);
                span.resource.attributes.clone_from(&attributes);
                span.attributes.extend(attributes);
                span.sequence_id = i64::try_from(number).unwrap();
                span
            })
            .collect();
        let (protobuf, json) = sent.split_at(30);
        assert!(setting.export(protobuf).await.bytes().await.unwrap().is_empty());
        assert_eq!(setting.export_json(json).await.json::<Value>().await.unwrap(), json!({}));

        let stored = setting.stored().await.items;
        assert_eq!(stored.len(), sent.len());
        for (got, sent) in stored.iter().zip(&sent) {
            for (key, value) in &sent.attributes {
                assert_eq!(got.attributes.get(key), Some(value), "{key:?}");
            }
            assert_eq!(got.resource.attributes, sent.resource.attributes);
        }
        let rollout_id = &setting.rollout.rollout.rollout_id;
        let url = setting.server.url(&format!("/v1/agl/spans?rollout_id={rollout_id}"));
        let ask = async |name: &str| {
            let request = reqwest::Client::new().get(&url).header(name, "1");
            request.send().await.unwrap().json::<Page<Span>>().await.unwrap().items
        };
        assert_eq!(ask("x-agl-client").await, stored);
        let plain = ask("x-somebody-else").await;
        assert_eq!(plain, stored.into_iter().map(Span::into_plain).collect::<Vec<_>>());
        let values =
            plain.iter().flat_map(|span| span.attributes.values().chain(span.resource.attributes.values()));
        assert_eq!(values.filter(|value| !agl_types::is_plain_attribute(value)).count(), 0);
    }
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
