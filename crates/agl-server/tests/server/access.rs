//! Who gets in.

use std::sync::Arc;
use std::time::Duration;

use agl_client::{Client, ClientOptions};
use agl_server::{CorsOrigins, ServerOptions};
use agl_store::{Error, MemoryStore, Store as _};
use agl_types::{ApiKey, EnqueueRolloutRequest};
use prost::Message as _;
use reqwest::header::{
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_REQUEST_HEADERS, ACCESS_CONTROL_REQUEST_METHOD, CONTENT_TYPE,
    ORIGIN, WWW_AUTHENTICATE,
};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::common::Server;

/// A server that asks for the key `s3cret`.
async fn locked() -> Server {
    let options = ServerOptions {
        key: Some(ApiKey::new("s3cret").unwrap()),
        cors: CorsOrigins::Any,
        ..ServerOptions::default()
    };
    Server::over(Arc::new(MemoryStore::new()), options).await
}

#[tokio::test]
async fn nobody_gets_in_without_the_key() {
    let server = locked().await;
    let http = reqwest::Client::new();
    for (method, path) in [
        (Method::GET, "/v1/agl/rollouts"),
        (Method::POST, "/v1/agl/rollouts"),
        (Method::GET, "/v1/agl/statistics"),
        (Method::GET, "/api/rollouts"),
        (Method::GET, "/metrics"),
        (Method::GET, "/v1/prometheus/"),
        (Method::GET, "/nothing"),
        (Method::DELETE, "/v1/agl/rollouts"),
    ] {
        let asked = || http.request(method.clone(), server.url(path));
        for wrong in [asked(), asked().bearer_auth("secret"), asked().header("x-api-key", "s3cre")] {
            let response = wrong.header(ORIGIN, "http://page").send().await.unwrap();
            assert_eq!(response.status(), StatusCode::UNAUTHORIZED, "{path}");
            assert_eq!(response.headers()[WWW_AUTHENTICATE], "Bearer");
            assert_eq!(response.headers()[ACCESS_CONTROL_ALLOW_ORIGIN], "*", "a page has to see why");
            assert_eq!(
                response.json::<Value>().await.unwrap(),
                json!({"detail": "Invalid or missing API key"})
            );
        }
        for right in [asked().bearer_auth("s3cret"), asked().header("x-api-key", "s3cret")] {
            assert_ne!(right.send().await.unwrap().status(), StatusCode::UNAUTHORIZED, "{path}");
        }
    }
    // Those who look after the server need none.
    for path in ["/v1/agl/health", "/v1/agl/ready", "/healthz"] {
        assert_eq!(reqwest::get(server.url(path)).await.unwrap().status(), StatusCode::OK, "{path}");
    }
}

/// A browser asks whether it may send the key, and cannot send it with the question.
#[tokio::test]
async fn a_preflight_needs_no_key() {
    let server = locked().await;
    let request = reqwest::Client::new().request(Method::OPTIONS, server.url("/v1/agl/rollouts"));
    let asked = request
        .header(ORIGIN, "http://page")
        .header(ACCESS_CONTROL_REQUEST_METHOD, "POST")
        .header(ACCESS_CONTROL_REQUEST_HEADERS, "authorization");
    assert_eq!(asked.send().await.unwrap().status(), StatusCode::OK);
}

#[tokio::test]
async fn exporters_are_refused_in_their_own_form() {
    let server = locked().await;
    let refused = async |content_type: &str| {
        let request = reqwest::Client::new().post(server.url("/v1/traces")).body(Vec::new());
        let response = request.header(CONTENT_TYPE, content_type).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
        assert_eq!(response.headers()[WWW_AUTHENTICATE], "Bearer");
        assert_eq!(response.headers()[CONTENT_TYPE], content_type);
        response.bytes().await.unwrap()
    };
    let status = agl_otlp::Status::decode(refused("application/x-protobuf").await).unwrap();
    assert_eq!(status.message, "Invalid or missing API key");
    let status: Value = serde_json::from_slice(&refused("application/json").await).unwrap();
    assert_eq!(status["message"], "Invalid or missing API key");
}

#[tokio::test]
async fn a_client_sends_its_key_and_knows_when_it_is_wrong() {
    let server = locked().await;
    let client = |key: Option<&str>| {
        let key = key.map(|key| ApiKey::new(key).unwrap());
        let options = ClientOptions { key, max_outage: Duration::from_secs(60), ..ClientOptions::default() };
        Client::new(&server.url(""), options).unwrap()
    };
    let task = || EnqueueRolloutRequest::new("a task");
    for wrong in [None, Some("other")] {
        // At once, for trying again would not help.
        let refused = client(wrong).enqueue_rollout(task()).await.unwrap_err();
        assert!(matches!(refused, Error::Unauthorized { .. }), "{refused:?}");
        assert!(refused.to_string().contains("AGL_KEY"), "{refused}");
        assert!(!refused.to_string().contains("other"), "{refused}");
    }
    let right = client(Some("s3cret"));
    right.enqueue_rollout(task()).await.unwrap();
    assert!(!format!("{right:?}").contains("s3cret"), "keys are never shown");
}
