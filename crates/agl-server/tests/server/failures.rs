//! Stores that fail, behind the server.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use agl_client::{Client, ClientOptions};
use agl_server::ServerOptions;
use agl_store::{Clock, MemoryStore, RandomIds, SqliteOptions, SqliteStore, Store, SystemClock};
use agl_types::{EnqueueRolloutRequest, Span};
use async_trait::async_trait;
use prost::Message as _;
use reqwest::StatusCode;
use reqwest::header::{CONTENT_TYPE, RETRY_AFTER};
use serde_json::json;
use tokio::net::TcpListener;

use crate::common::Server;

/// A clock that breaks.
#[derive(Debug, Default)]
struct Broken {
    now: AtomicBool,
}

#[async_trait]
impl Clock for Broken {
    fn now(&self) -> f64 {
        assert!(!self.now.load(Ordering::SeqCst), "the spring is gone");
        SystemClock.now()
    }

    async fn sleep_past(&self, moment: f64) {
        SystemClock.sleep_past(moment).await;
    }
}

#[tokio::test]
async fn a_panic_is_500_and_the_server_goes_on() {
    let clock = Arc::new(Broken::default());
    let store = MemoryStore::with(Arc::clone(&clock) as Arc<dyn Clock>, Arc::new(RandomIds));
    let server = Server::over(Arc::new(store), ServerOptions::default()).await;
    clock.now.store(true, Ordering::SeqCst);
    let expected = json!({"detail": "Internal server error", "error_type": "panic"});
    assert_eq!(
        server.post("/rollouts", json!({"input": 1})).await,
        (StatusCode::INTERNAL_SERVER_ERROR, expected)
    );
    clock.now.store(false, Ordering::SeqCst);
    assert_eq!(server.post("/rollouts", json!({"input": 1})).await.0, StatusCode::CREATED);
}

#[tokio::test]
async fn a_failed_backend_is_500_without_its_secrets() {
    let folder = tempfile::tempdir().unwrap();
    let store = Arc::new(SqliteStore::open(folder.path().join("agl.db"), SqliteOptions::default()).unwrap());
    let server = Server::over(Arc::clone(&store) as Arc<dyn Store>, ServerOptions::default()).await;
    store.close();
    let expected = json!({"detail": "Internal server error", "error_type": "backend"});
    assert_eq!(server.get("/rollouts/any").await, (StatusCode::INTERNAL_SERVER_ERROR, expected));

    // To an exporter, it is a reason to come back.
    let span = Span::new("s", agl_types::ids::trace_id(1, 1), agl_types::ids::span_id(1), 1.0, 2.0);
    let body = agl_otlp::request(&[span.placed("r", "a", 1)]).encode_to_vec();
    let request = reqwest::Client::new().post(server.url("/v1/traces")).body(body);
    let response = request.header(CONTENT_TYPE, "application/x-protobuf").send().await.unwrap();
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(response.headers().contains_key(RETRY_AFTER));
    assert!(!agl_otlp::Status::decode(response.bytes().await.unwrap()).unwrap().message.is_empty());
}

/// A server in front of another store server.
async fn in_front_of(address: std::net::SocketAddr) -> Server {
    let options = ClientOptions { max_outage: Duration::ZERO, ..ClientOptions::default() };
    let client = Client::new(&format!("http://{address}"), options).unwrap();
    Server::over(Arc::new(client), ServerOptions::default()).await
}

#[tokio::test]
async fn a_store_that_cannot_be_reached_is_503() {
    let nowhere = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let server = in_front_of(nowhere).await;
    let (status, body) = server.get("/statistics").await;
    assert_eq!((status, body["error_type"].as_str()), (StatusCode::SERVICE_UNAVAILABLE, Some("unavailable")));
}

#[tokio::test]
async fn what_a_store_does_not_do_is_501() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, axum::Router::new()).await });
    let server = in_front_of(address).await;
    let (status, body) = server.get("/statistics").await;
    assert_eq!((status, body["error_type"].as_str()), (StatusCode::NOT_IMPLEMENTED, Some("unsupported")));
}

/// The largest number leaves none to issue; that is an answer, not a crash.
#[tokio::test]
async fn a_sequence_id_without_a_successor_does_no_harm() {
    let server = Server::start().await;
    let (_, rollout) = server.post("/rollouts", json!({"input": 1})).await;
    let attempt = &rollout["attempt"];
    let span = Span::new("s", agl_types::ids::trace_id(1, 1), agl_types::ids::span_id(1), 1.0, 2.0);
    let (rollout_id, attempt_id) =
        (attempt["rollout_id"].as_str().unwrap(), attempt["attempt_id"].as_str().unwrap());
    let span = span.placed(rollout_id, attempt_id, i64::MAX);
    server.post("/spans", serde_json::to_value(span).unwrap()).await;
    let (status, body) =
        server.post("/spans/next", json!({"rollout_id": rollout_id, "attempt_id": attempt_id})).await;
    assert_ne!(body["error_type"], "panic", "{status}: {body}");
    assert_eq!(server.get(&format!("/rollouts/{rollout_id}")).await.0, StatusCode::OK);
}

/// A file system of its own and small size; none where this user may not mount one.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount(size: &str) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let mut mount = std::process::Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"]).arg(folder.path());
        mount.output().is_ok_and(|output| output.status.success()).then(|| Self(folder))
    }

    /// Makes it `ro` or `rw`; no file may be open.
    fn remount(&self, mode: &str) {
        let mut mount = std::process::Command::new("mount");
        mount.args(["-o", &format!("remount,{mode}")]).arg(self.0.path());
        assert!(mount.status().unwrap().success());
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily, for the store may not have let go of its file yet.
        let _ = std::process::Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

/// A full disk is 503 with the reason, loses nothing that was acknowledged, and is over when there is room again.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_503_until_there_is_room() {
    let Some(disk) = SmallDisk::mount("4m") else {
        eprintln!("skipped: no file system can be mounted here");
        return;
    };
    let ballast = disk.0.path().join("ballast");
    std::fs::write(&ballast, vec![1; 2 << 20]).unwrap();
    let store = SqliteStore::open(disk.0.path().join("agl.db"), SqliteOptions::default()).unwrap();
    let server = Server::over(Arc::new(store), ServerOptions::default()).await;
    let mut acknowledged = Vec::new();
    let refusal = loop {
        let (status, answer) = server.post("/rollouts", json!({"input": "x".repeat(20_000)})).await;
        if status != StatusCode::CREATED {
            break (status, answer);
        }
        acknowledged.push(answer["rollout_id"].clone());
        assert!(acknowledged.len() < 1_000, "the disk does not fill up");
    };
    assert!(!acknowledged.is_empty());
    assert_eq!(refusal.0, StatusCode::SERVICE_UNAVAILABLE, "{}", refusal.1);
    assert_eq!(refusal.1["error_type"], "unwritable");
    assert!(refusal.1["detail"].as_str().unwrap().contains("the disk is full"), "{}", refusal.1);
    assert_eq!(server.get("/rollouts?limit=1").await.1["total"], acknowledged.len());
    std::fs::remove_file(&ballast).unwrap();
    let (status, answer) = server.post("/rollouts", json!({"input": "x".repeat(20_000)})).await;
    assert_eq!(status, StatusCode::CREATED, "{answer}");
    for rollout_id in &acknowledged {
        assert_eq!(
            server.get(&format!("/rollouts/{}", rollout_id.as_str().unwrap())).await.0,
            StatusCode::OK
        );
    }
}

/// Another program that writes to the file is waited for, and then named as the reason.
#[tokio::test(flavor = "multi_thread")]
async fn a_file_held_by_another_program_is_503_until_it_is_let_go() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("agl.db");
    let store = SqliteStore::open(&path, SqliteOptions::default()).unwrap();
    let server = Server::over(Arc::new(store), ServerOptions::default()).await;
    let other = rusqlite::Connection::open(&path).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let (status, answer) = server.post("/rollouts", json!({"input": 1})).await;
    assert_eq!((status, &answer["error_type"]), (StatusCode::SERVICE_UNAVAILABLE, &json!("unwritable")));
    assert!(answer["detail"].as_str().unwrap().contains("another program"), "{answer}");
    assert_eq!(server.get("/rollouts").await.0, StatusCode::OK);
    other.execute_batch("ROLLBACK").unwrap();
    assert_eq!(server.post("/rollouts", json!({"input": 1})).await.0, StatusCode::CREATED);
}

/// A store on a disk that is read-only is not opened, with the reason, and is there again when it is writable.
#[tokio::test(flavor = "multi_thread")]
async fn a_read_only_disk_is_named_and_nothing_is_lost() {
    let Some(disk) = SmallDisk::mount("16m") else {
        eprintln!("skipped: no file system can be mounted here");
        return;
    };
    let path = disk.0.path().join("agl.db");
    let store = SqliteStore::open(&path, SqliteOptions::default()).unwrap();
    store.enqueue_many_rollouts(vec![EnqueueRolloutRequest::new(1)]).await.unwrap();
    drop(store);
    disk.remount("ro");
    let error = SqliteStore::open(&path, SqliteOptions::default()).unwrap_err();
    assert!(error.to_string().contains("ead-only"), "{error}");
    disk.remount("rw");
    let store = SqliteStore::open(&path, SqliteOptions::default()).unwrap();
    let server = Server::over(Arc::new(store), ServerOptions::default()).await;
    assert_eq!(server.get("/rollouts").await.1["total"], 1);
    assert_eq!(server.post("/rollouts", json!({"input": 2})).await.0, StatusCode::CREATED);
}
