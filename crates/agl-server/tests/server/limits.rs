//! How much a server takes on at once.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use agl_server::{CorsOrigins, ServerOptions};
use agl_store::MemoryStore;
use reqwest::header::{ACCESS_CONTROL_ALLOW_ORIGIN, ORIGIN, RETRY_AFTER};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use crate::common::{Server, answer, soon};

async fn limited(options: ServerOptions) -> Server {
    Server::over(Arc::new(MemoryStore::new()), options).await
}

/// A request whose body does not come.
async fn half_a_request(address: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let head = b"POST /v1/agl/rollouts HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n";
    stream.write_all(head).await.unwrap();
    stream
}

/// Everything that comes until the other side hangs up.
async fn rest_of(mut stream: TcpStream) -> String {
    let mut text = String::new();
    // A reset is an end too.
    let _ = soon(stream.read_to_string(&mut text)).await;
    text
}

/// Asks until the answer has this status.
async fn until(server: &Server, path: &str, status: StatusCode) -> Value {
    let asked = async {
        loop {
            let (found, body) = server.get(path).await;
            if found == status {
                return body;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    soon(asked).await
}

/// A request that waits for its answer. One that meets another under way is answered at once, and sent again.
async fn begun<T>(send: &impl Fn() -> JoinHandle<T>) -> JoinHandle<T> {
    let mut one = send();
    let waits = async {
        loop {
            tokio::time::sleep(Duration::from_millis(100)).await;
            if !one.is_finished() {
                return;
            }
            one = send();
        }
    };
    soon(waits).await;
    one
}

#[tokio::test]
async fn requests_beyond_the_limit_are_asked_to_come_back() {
    let options = ServerOptions { max_requests: 1, cors: CorsOrigins::Any, ..ServerOptions::default() };
    let server = limited(options).await;
    let half = half_a_request(server.address).await;
    let body = until(&server, "/rollouts", StatusCode::SERVICE_UNAVAILABLE).await;
    assert!(body["detail"].as_str().unwrap().contains("too many requests"), "{body}");
    let request = reqwest::Client::new().get(server.url("/v1/agl/rollouts")).header(ORIGIN, "http://page");
    let refused = request.send().await.unwrap();
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(refused.headers()[RETRY_AFTER], "1");
    assert_eq!(refused.headers()[ACCESS_CONTROL_ALLOW_ORIGIN], "*");
    // Those who look after the server still get in.
    for path in ["/v1/agl/health", "/v1/agl/ready", "/metrics"] {
        assert_eq!(reqwest::get(server.url(path)).await.unwrap().status(), StatusCode::OK, "{path}");
    }
    drop(half);
    until(&server, "/rollouts", StatusCode::OK).await;
}

/// Those who wait have a bound of their own, and take no place of those who do not.
#[tokio::test]
async fn waits_leave_room_for_the_rest() {
    let server = limited(ServerOptions { max_requests: 1, max_waits: 2, ..ServerOptions::default() }).await;
    let (_, rollout) = server.post("/rollouts", json!({"input": 1})).await;
    let ask = json!({"rollout_ids": [rollout["rollout_id"]], "timeout": 600});
    let wait = || {
        let request = reqwest::Client::new().post(server.url("/v1/agl/waits/rollouts")).json(&ask);
        tokio::spawn(answer(request))
    };
    let waiting = [begun(&wait).await, begun(&wait).await];
    until(&server, "/rollouts", StatusCode::OK).await;
    let (status, body) = soon(wait()).await.unwrap();
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(body["detail"].as_str().unwrap().contains("too many waits"), "{body}");

    let done = json!({"status": "succeeded"});
    let path = format!("/rollouts/{}", rollout["rollout_id"].as_str().unwrap());
    server.send(Method::POST, &path, Some(done)).await;
    for one in waiting {
        assert_eq!(soon(one).await.unwrap().0, StatusCode::OK);
    }
    assert_eq!(soon(wait()).await.unwrap().0, StatusCode::OK, "there is room again");
}

/// So do streams of events and those who wait for work, for as long as they are there.
#[tokio::test]
async fn streams_and_waits_for_work_have_a_place_among_those_who_wait() {
    let server = limited(ServerOptions { max_requests: 1, max_waits: 1, ..ServerOptions::default() }).await;
    let stream = reqwest::get(server.url("/v1/agl/events")).await.unwrap();
    assert_eq!(stream.status(), StatusCode::OK);
    for _ in 0..3 {
        assert_eq!(server.get("/rollouts").await.0, StatusCode::OK);
        let (status, body) = server.post("/queues/rollouts/dequeue", json!({"wait": 600})).await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{body}");
        // Who does not wait needs no such place.
        assert_eq!(server.post("/queues/rollouts/dequeue", json!({"wait": 0})).await.0, StatusCode::OK);
    }
    drop(stream);
    let waiting = begun(&|| {
        let request = reqwest::Client::new().post(server.url("/v1/agl/queues/rollouts/dequeue"));
        tokio::spawn(answer(request.json(&json!({"wait": 600}))))
    })
    .await;
    let refused = reqwest::get(server.url("/v1/agl/events")).await.unwrap();
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    server.post("/queues/rollouts/enqueue", json!({"rollouts": [{"input": 1}]})).await;
    assert_eq!(soon(waiting).await.unwrap().1.as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn connections_beyond_the_limit_wait() {
    let server = limited(ServerOptions { max_connections: 1, ..ServerOptions::default() }).await;
    let first = TcpStream::connect(server.address).await.unwrap();
    let url = server.url("/v1/agl/health");
    let second = tokio::spawn(async move { reqwest::get(url).await.unwrap().status() });
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!second.is_finished());
    drop(first);
    assert_eq!(soon(second).await.unwrap(), StatusCode::OK);
}

#[tokio::test]
async fn a_connection_that_says_nothing_is_closed() {
    let options = ServerOptions { idle_timeout: Duration::from_millis(300), ..ServerOptions::default() };
    let server = limited(options).await;
    let mut slow = TcpStream::connect(server.address).await.unwrap();
    slow.write_all(b"GET /v1/agl/health HTTP/1.1\r\nhost: ").await.unwrap();
    assert_eq!(rest_of(slow).await, "");

    let mut quick = TcpStream::connect(server.address).await.unwrap();
    quick.write_all(b"GET /v1/agl/health HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    assert!(rest_of(quick).await.starts_with("HTTP/1.1 200"), "closed after the answer only");
}

#[tokio::test]
async fn a_body_that_stands_still_is_given_up() {
    let options = ServerOptions { body_timeout: Duration::from_millis(300), ..ServerOptions::default() };
    let server = limited(options).await;
    let answered = rest_of(half_a_request(server.address).await).await;
    assert!(answered.starts_with("HTTP/1.1 408"), "{answered}");
}

#[tokio::test]
async fn a_head_beyond_the_limit_is_431() {
    let server = Server::start().await;
    let get = |bytes: usize| {
        reqwest::Client::new().get(server.url("/v1/agl/health")).header("x-long", "x".repeat(bytes)).send()
    };
    assert_eq!(get(60_000).await.unwrap().status(), StatusCode::OK);
    assert_eq!(get(70_000).await.unwrap().status(), StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
}

/// A connection that is kept for later does not hold up the end.
#[tokio::test]
async fn idle_connections_are_closed_at_the_end() {
    let server = limited(ServerOptions { drain: Duration::from_secs(600), ..ServerOptions::default() }).await;
    let mut kept = TcpStream::connect(server.address).await.unwrap();
    kept.write_all(b"GET /v1/agl/health HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut start = [0; 12];
    kept.read_exact(&mut start).await.unwrap();
    assert_eq!(&start, b"HTTP/1.1 200");
    let silent = TcpStream::connect(server.address).await.unwrap();
    server.stop().await;
    rest_of(kept).await;
    assert_eq!(rest_of(silent).await, "");
}
