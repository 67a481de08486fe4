//! Idempotency keys as a header.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::common::{Server, answer};

async fn send(server: &Server, method: Method, path: &str, key: &str, body: Value) -> (StatusCode, Value) {
    let request = reqwest::Client::new().request(method, server.url(&format!("/v1/agl{path}")));
    answer(request.header("Idempotency-Key", key).json(&body)).await
}

#[tokio::test]
async fn a_request_sent_twice_is_carried_out_once() {
    let server = Server::start().await;
    let body = json!({"rollouts": [{"input": 1}]});
    let first = send(&server, Method::POST, "/queues/rollouts/enqueue", "k1", body.clone()).await;
    assert_eq!(first.0, StatusCode::CREATED);
    assert_eq!(send(&server, Method::POST, "/queues/rollouts/enqueue", "k1", body).await, first);
    assert_eq!(server.get("/rollouts").await.1["total"], 1);
    let claimed =
        send(&server, Method::POST, "/queues/rollouts/dequeue", "k2", json!({"worker_id": "w"})).await;
    assert_eq!(claimed.1[0]["attempt"]["sequence_id"], 1);
    let again =
        send(&server, Method::POST, "/queues/rollouts/dequeue", "k2", json!({"worker_id": "w"})).await;
    assert_eq!(again, claimed);
}

#[tokio::test]
async fn a_key_with_another_body_path_or_method_is_a_conflict() {
    let server = Server::start().await;
    let rollout = server.post("/rollouts", json!({"input": 1})).await.1;
    let path = format!("/rollouts/{}/attempts/latest", rollout["rollout_id"].as_str().unwrap());
    let body = json!({"status": "running"});
    assert_eq!(send(&server, Method::POST, &path, "k", body.clone()).await.0, StatusCode::OK);
    for (method, path, body) in [
        (Method::POST, path.as_str(), json!({"status": "failed"})),
        (Method::PATCH, path.as_str(), body.clone()),
        (Method::POST, "/workers/w", body.clone()),
    ] {
        let (status, answer) = send(&server, method, path, "k", body).await;
        assert_eq!((status, &answer["error_type"]), (StatusCode::CONFLICT, &json!("conflict")));
        assert!(answer["detail"].as_str().unwrap().contains("take a new one"), "{answer}");
    }
    assert_eq!(server.get("/workers").await.1["total"], 0);
}

#[tokio::test]
async fn a_key_that_is_none_is_refused() {
    let server = Server::start().await;
    for key in [String::new(), "x".repeat(256)] {
        let (status, answer) = send(&server, Method::POST, "/rollouts", &key, json!({"input": 1})).await;
        assert_eq!(status, StatusCode::BAD_REQUEST);
        assert!(answer["detail"].as_str().unwrap().contains("Idempotency-Key"), "{answer}");
    }
    assert_eq!(server.get("/rollouts").await.1["total"], 0);
}
