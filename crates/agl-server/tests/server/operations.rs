//! What a server tells those who look after it. Other tests of this process count into the same figures.

use std::sync::Arc;

use agl_server::ServerOptions;
use agl_store::{SqliteOptions, SqliteStore, Store};
use agl_types::{Span, ids};
use reqwest::header::CONTENT_TYPE;
use reqwest::{Method, StatusCode};
use serde_json::json;

use crate::common::{Server, soon};

async fn figures(server: &Server) -> String {
    let response = reqwest::get(server.url("/metrics")).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(response.headers()[CONTENT_TYPE], "text/plain; version=0.0.4; charset=utf-8");
    response.text().await.unwrap()
}

/// The number in the line that begins with `series` and a blank.
fn value(text: &str, series: &str) -> f64 {
    let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    line.map_or(0.0, |number| number.parse().unwrap())
}

#[tokio::test]
async fn requests_are_counted_by_route() {
    let server = Server::start().await;
    let series = |path: &str, method: &str, status: &str| {
        format!("{{path=\"{path}\",method=\"{method}\",status=\"{status}\"}}")
    };
    // Found nowhere else in these tests.
    let teapot = series("/v1/agl/rollouts/{rollout_id}/attempts", "DELETE", "405");
    let stray = series("unmatched", "other", "404");
    let before = figures(&server).await;
    for id in ["one", "two", "three"] {
        server.send(Method::DELETE, &format!("/rollouts/{id}/attempts"), None).await;
        server.send(Method::from_bytes(b"BREW").unwrap(), &format!("/pots/{id}"), None).await;
    }
    let after = figures(&server).await;
    for labels in [&teapot, &stray] {
        let total = format!("agl_http_total{labels}");
        assert_eq!(value(&after, &total) - value(&before, &total), 3.0, "{total}");
        let count = format!("agl_http_latency_count{labels}");
        assert_eq!(value(&after, &count) - value(&before, &count), 3.0, "{count}");
    }
    let bucket =
        |bound: &str| format!("agl_http_latency_bucket{},le=\"{bound}\"}}", teapot.trim_end_matches('}'));
    assert!(after.contains(&bucket("1e-06")) && after.contains(&bucket("300.0")), "0.3's bounds");
    assert!(after.contains("# TYPE agl_http_latency histogram\n"));
    assert!(after.contains("# HELP agl_http_total Counter agl.http.total\n"));
    assert!(!after.contains("\"/pots") && !after.contains("BREW"), "what clients make up is no label");
    assert!(value(&after, "agl_http_connections") >= 1.0);

    let path_of_0_3 = reqwest::get(server.url("/v1/prometheus/")).await.unwrap();
    assert!(path_of_0_3.text().await.unwrap().contains("agl_http_total"));
}

/// What the store does is counted under 0.3's names and labels, and ours. Other tests count too, so: at least.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_store_does_is_counted() {
    let folder = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(folder.path().join("agl.db"), SqliteOptions::default()).unwrap();
    let server = Server::over(Arc::new(store), ServerOptions::default()).await;
    let call = |name: &str, status: &str| {
        format!("{{method=\"{name}\",store_pubmeth=\"{name}\",status=\"{status}\"}}")
    };
    let transaction = |name: &str, operation: &str| {
        format!(
            "{{store_pubmeth=\"{name}\",operation=\"{operation}\",collection=\"router\",\
             store_privmeth=\"{name}\",status=\"OK\"}}"
        )
    };
    let ended = "{status=\"succeeded\",mode=\"test\"}";
    let series = [
        format!("agl_store_total{}", call("enqueue_many_rollouts", "OK")),
        format!("agl_store_latency_count{}", call("update_attempt", "not_found")),
        format!("agl_collections_total{}", transaction("enqueue_many_rollouts", "atomic")),
        format!("agl_collections_latency_count{}", transaction("query_rollouts", "query")),
        format!("agl_rollouts_total{ended}"),
        format!("agl_rollouts_duration_count{ended}"),
        "agl_queue_wait_count".to_owned(),
        "agl_commit_operations_count".to_owned(),
        "agl_commit_latency_count".to_owned(),
        "agl_span_bytes_count".to_owned(),
    ];
    let before = figures(&server).await;
    let (_, rollout) =
        server.post("/queues/rollouts/enqueue", json!({"rollouts": [{"input": 1, "mode": "test"}]})).await;
    let (_, claimed) = server.post("/queues/rollouts/dequeue", json!({})).await;
    let (rollout_id, attempt_id) =
        (claimed[0]["rollout_id"].as_str().unwrap(), claimed[0]["attempt"]["attempt_id"].as_str().unwrap());
    assert_eq!(rollout[0]["rollout_id"], rollout_id);
    let span =
        Span::new("work", ids::trace_id(1, 1), ids::span_id(1), 1.0, 2.0).placed(rollout_id, attempt_id, 1);
    assert_eq!(server.post("/spans", json!(span)).await.0, StatusCode::CREATED);
    let attempt = format!("/rollouts/{rollout_id}/attempts/{attempt_id}");
    assert_eq!(server.post(&attempt, json!({"status": "succeeded"})).await.0, StatusCode::OK);
    assert_eq!(
        server.post("/rollouts/none/attempts/none", json!({"status": "failed"})).await.0,
        StatusCode::NOT_FOUND
    );
    server.get("/rollouts").await;
    let after = figures(&server).await;
    for series in series {
        assert!(value(&after, &series) - value(&before, &series) >= 1.0, "{series}\n{after}");
    }
    assert!(after.contains("# HELP agl_collections_latency Histogram agl.collections.latency\n"));
}

#[tokio::test]
async fn a_client_that_leaves_is_counted() {
    let server = Server::start().await;
    let gone = "agl_http_total{path=\"/v1/agl/waits/rollouts\",method=\"POST\",status=\"499\"}";
    let before = value(&figures(&server).await, gone);
    let (_, rollout) = server.post("/rollouts", json!({"input": 1})).await;
    let ask = json!({"rollout_ids": [rollout["rollout_id"]], "timeout": 600});
    let request = reqwest::Client::new().post(server.url("/v1/agl/waits/rollouts")).json(&ask);
    let patience = std::time::Duration::from_millis(200);
    assert!(tokio::time::timeout(patience, request.send()).await.is_err());
    let counted = async {
        while value(&figures(&server).await, gone) < before + 1.0 {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    };
    soon(counted).await;
}

#[tokio::test]
async fn a_server_without_its_store_is_not_ready() {
    let folder = tempfile::tempdir().unwrap();
    let store = Arc::new(SqliteStore::open(folder.path().join("agl.db"), SqliteOptions::default()).unwrap());
    let server = Server::over(Arc::clone(&store) as Arc<dyn Store>, ServerOptions::default()).await;
    assert_eq!(server.get("/ready").await, (StatusCode::OK, json!({"status": "ready"})));
    store.close();
    let (status, body) = server.get("/ready").await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(body["detail"].as_str().unwrap().contains("the store failed"), "{body}");
    assert_eq!(server.get("/health").await.0, StatusCode::OK, "the server itself is well");
}
