//! What the server says by itself: the feed as server-sent events, and waits.

use std::time::{Duration, Instant};

use agl_client::{Client, ClientOptions};
use agl_store::Store as _;
use agl_types::{DequeueRequest, EnqueueRolloutRequest, EventQuery, FeedItem};
use futures_util::StreamExt as _;
use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::common::Server;

const SOON: Duration = Duration::from_secs(20);

/// A stream of events, as a browser sees it.
struct Stream {
    response: reqwest::Response,
    text: String,
}

impl Stream {
    async fn open(server: &Server, query: &str, last_event_id: Option<&str>) -> Self {
        let mut request = reqwest::Client::new().get(server.url(&format!("/v1/agl/events{query}")));
        if let Some(id) = last_event_id {
            request = request.header("Last-Event-ID", id);
        }
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Self { response, text: String::new() }
    }

    /// The fields of the next event.
    async fn next(&mut self) -> (String, String, Value) {
        loop {
            if let Some((event, rest)) = self.text.split_once("\n\n") {
                let field = |name: &str| {
                    event
                        .lines()
                        .find_map(|line| line.strip_prefix(name))
                        .unwrap_or_default()
                        .trim()
                        .to_owned()
                };
                let found = (field("id:"), field("event:"), serde_json::from_str(&field("data:")).unwrap());
                self.text = rest.to_owned();
                return found;
            }
            let chunk = tokio::time::timeout(SOON, self.response.chunk()).await.expect("nothing came");
            self.text.push_str(std::str::from_utf8(&chunk.unwrap().expect("the stream ended")).unwrap());
        }
    }
}

#[tokio::test]
async fn events_come_as_they_happen_and_resume() {
    let server = Server::start().await;
    let mut stream = Stream::open(&server, "?kind_in=rollout&kind_in=span", None).await;
    assert_eq!(stream.next().await.1, "start");
    let rollout = server.post("/rollouts", json!({"input": 1, "mode": "val"})).await.1;
    let (first, name, data) = stream.next().await;
    assert_eq!(name, "rollout");
    let expected =
        json!({"kind": "rollout", "rollout_id": rollout["rollout_id"], "status": "queuing", "mode": "val"});
    assert_eq!(data, expected);
    let (_, _, second) = stream.next().await;
    assert_eq!(second["status"], "preparing");
    let mut resumed = Stream::open(&server, "?kind_in=rollout&after=ffffffff-7", Some(&first)).await;
    assert_eq!(resumed.next().await.2, second);
}

#[tokio::test]
async fn filters_that_make_no_sense_are_refused() {
    let server = Server::start().await;
    let (status, answer) = server.get("/events?kind_in=planet").await;
    assert_eq!(
        (status, &answer["detail"][0]["loc"]),
        (StatusCode::UNPROCESSABLE_ENTITY, &json!(["query", "kind_in", 0]))
    );
    let (status, answer) = server.get("/events?after=yesterday").await;
    assert_eq!((status, &answer["field"]), (StatusCode::BAD_REQUEST, &json!("after")));
}

#[tokio::test]
async fn a_server_that_stops_ends_streams_and_waits() {
    let server = Server::start().await;
    let mut stream = Stream::open(&server, "", None).await;
    stream.next().await;
    let url = server.url("/v1/agl/queues/rollouts/dequeue");
    let body = json!({"worker_id": "w", "wait": 600});
    let waiting =
        tokio::spawn(async move { reqwest::Client::new().post(url).json(&body).send().await.unwrap() });
    while server.get("/workers/w").await.1.is_null() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    tokio::time::timeout(SOON, server.stop()).await.expect("the server did not stop");
    assert_eq!(waiting.await.unwrap().text().await.unwrap(), "[]");
    while let Ok(Some(_)) = stream.response.chunk().await {}
}

/// Through the client too, an idle worker has its work well before it would have looked again.
#[tokio::test]
async fn work_is_pushed_through_the_client() {
    let server = Server::start().await;
    let client = Client::new(&server.url(""), ClientOptions::default()).unwrap();
    let idle = client.clone();
    let waiting = tokio::spawn(async move {
        let request = DequeueRequest { limit: 1, worker_id: Some("w".to_owned()), wait: Some(600.0) };
        (idle.dequeue_many_rollouts(request).await.unwrap(), Instant::now())
    });
    while client.get_worker_by_id("w").await.unwrap().is_none() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    client.enqueue_rollout(EnqueueRolloutRequest::new(1)).await.unwrap();
    let (claims, _) = tokio::time::timeout(SOON, waiting).await.expect("the worker slept on").unwrap();
    assert_eq!(claims.len(), 1);
}

/// A feed whose server goes away goes on with the next one, and says that something may be missing.
#[tokio::test]
async fn the_client_follows_through_a_restart() {
    let server = Server::start().await;
    let address = server.address;
    let options = ClientOptions { first_pause: Duration::from_millis(20), ..ClientOptions::default() };
    let client = Client::new(&server.url(""), options).unwrap();
    let mut feed = client.subscribe(EventQuery::default()).await.unwrap();
    assert!(matches!(feed.next().await, Some(Ok(FeedItem::Start { .. }))));
    server.stop().await;
    let listener = tokio::net::TcpListener::bind(address).await.unwrap();
    let store: std::sync::Arc<dyn agl_store::Store> = std::sync::Arc::new(agl_store::MemoryStore::new());
    let served = std::sync::Arc::clone(&store);
    tokio::spawn(async move {
        agl_server::serve(listener, served, &agl_server::ServerOptions::default(), std::future::pending())
            .await
    });
    let gap = tokio::time::timeout(SOON, feed.next()).await.expect("nothing came");
    assert!(matches!(gap, Some(Ok(FeedItem::Gap(_)))), "{gap:?}");
    assert!(matches!(feed.next().await, Some(Ok(FeedItem::Start { .. }))));
    store.enqueue_rollout(EnqueueRolloutRequest::new(1)).await.unwrap();
    assert!(matches!(feed.next().await, Some(Ok(FeedItem::Event { .. }))));
}
