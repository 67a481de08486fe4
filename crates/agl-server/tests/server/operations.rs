//! What a server tells those who look after it. Other tests of this process count into the same figures.

use std::sync::Arc;

use agl_server::ServerOptions;
use agl_store::{SqliteOptions, SqliteStore, Store};
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
