//! What was acknowledged is there after a kill, and clients ride out the gap.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use agl_client::{Client, ClientOptions};
use agl_store::{SpanDraft, Store as _};
use agl_types::{
    AttemptStatus, AttemptUpdate, EnqueueRolloutRequest, RolloutConfig, RolloutQuery, RolloutStatus, Span,
    SpanQuery, StartRollout, ids,
};
use serde_json::json;

use crate::process::Served;

const PRODUCERS: usize = 3;
const WORKERS: usize = 4;
const SPANS_PER_ATTEMPT: u64 = 5;
const KILLS: usize = 3;
/// How much must have been acknowledged between two kills, so that each hits a server that is at work.
const WORK_BETWEEN_KILLS: usize = 40;

/// What the server has said yes to.
#[derive(Debug, Default)]
struct Acknowledged {
    rollouts: HashSet<String>,
    /// By rollout, the ids of spans.
    spans: HashMap<String, HashSet<String>>,
    succeeded: HashSet<String>,
}

impl Acknowledged {
    fn merge(&mut self, other: Self) {
        self.rollouts.extend(other.rollouts);
        self.succeeded.extend(other.succeeded);
        for (rollout_id, spans) in other.spans {
            self.spans.entry(rollout_id).or_default().extend(spans);
        }
    }
}

fn patient(url: &str) -> Client {
    let options = ClientOptions {
        max_outage: Duration::from_secs(120),
        request_timeout: Duration::from_secs(20),
        first_pause: Duration::from_millis(20),
        longest_pause: Duration::from_millis(200),
        ..ClientOptions::default()
    };
    Client::new(url, options).unwrap()
}

/// Queues rollouts until told to stop.
async fn produce(client: Client, stop: Arc<AtomicBool>, done: Arc<AtomicUsize>) -> Acknowledged {
    let mut acknowledged = Acknowledged::default();
    while !stop.load(Ordering::SeqCst) {
        // A claim whose answer the kill swallowed has to come back: by silence, soon.
        let config = RolloutConfig {
            unresponsive_seconds: Some(2.0),
            max_attempts: 20.try_into().unwrap(),
            retry_condition: vec![AttemptStatus::Unresponsive],
            ..RolloutConfig::default()
        };
        let request = EnqueueRolloutRequest { config: Some(config), ..EnqueueRolloutRequest::new("task") };
        for rollout in client.enqueue_many_rollouts(vec![request.clone(), request]).await.unwrap() {
            acknowledged.rollouts.insert(rollout.rollout_id);
            done.fetch_add(1, Ordering::SeqCst);
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    acknowledged
}

/// Takes rollouts on, records spans and reports success, until the queue has stayed empty after the producers ended.
async fn work(client: Client, name: String, seed: u64, drained: Arc<AtomicBool>) -> Acknowledged {
    let mut acknowledged = Acknowledged::default();
    let mut number = seed;
    loop {
        let Some(claimed) = client.dequeue_rollout(Some(name.clone())).await.unwrap() else {
            if drained.load(Ordering::SeqCst) {
                return acknowledged;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        let (rollout_id, attempt_id) = (&claimed.rollout.rollout_id, &claimed.attempt.attempt_id);
        for _ in 0..SPANS_PER_ATTEMPT {
            number += 1;
            let span = Span::new("step", ids::trace_id(seed, 1), ids::span_id(number), 1.0, 2.0)
                .placed(rollout_id, attempt_id, 0)
                .with_attribute("n", number);
            let draft = SpanDraft { span, has_sequence_id: false };
            let stored = client.add_span_drafts(vec![draft]).await.unwrap();
            assert_eq!(stored.len(), 1, "a span of our own came back as a duplicate");
            let spans = acknowledged.spans.entry(rollout_id.clone()).or_default();
            spans.extend(stored.into_iter().map(|span| span.span_id));
        }
        let update = AttemptUpdate { status: AttemptStatus::Succeeded.into(), ..AttemptUpdate::default() };
        let attempt = client.update_attempt(rollout_id, attempt_id, update).await.unwrap();
        assert_eq!(attempt.status, AttemptStatus::Succeeded);
        acknowledged.succeeded.insert(rollout_id.clone());
    }
}

/// A free port that the system gives to nobody by itself: neither to another test nor, while the server is down, to
/// a connection of the client's.
fn free_port() -> u16 {
    let first = 20_000 + u16::try_from(std::process::id() % 10_000).unwrap();
    let mut candidates = first..32_000;
    candidates.find(|port| std::net::TcpListener::bind(("127.0.0.1", *port)).is_ok()).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_acknowledged_survives_kills_and_the_clients_ride_them_out() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("agl.db");
    let port = free_port();
    let mut server = Served::sqlite(&path, port);
    let url = server.url.clone();
    assert_eq!(server.line, format!("store listening on {url} (sqlite {})\n", path.display()));

    let stop = Arc::new(AtomicBool::new(false));
    let drained = Arc::new(AtomicBool::new(false));
    let done = Arc::new(AtomicUsize::new(0));
    let client = patient(&url);
    let producers: Vec<_> = (0..PRODUCERS)
        .map(|_| tokio::spawn(produce(client.clone(), Arc::clone(&stop), Arc::clone(&done))))
        .collect();
    let workers: Vec<_> = (0..WORKERS)
        .map(|worker| {
            let seed = (u64::try_from(worker).unwrap() + 1) << 32;
            tokio::spawn(work(client.clone(), format!("w{worker}"), seed, Arc::clone(&drained)))
        })
        .collect();

    for _ in 0..KILLS {
        let before = done.load(Ordering::SeqCst);
        while done.load(Ordering::SeqCst) < before + WORK_BETWEEN_KILLS {
            assert!(!producers.iter().any(tokio::task::JoinHandle::is_finished), "a producer gave up");
            assert!(!workers.iter().any(tokio::task::JoinHandle::is_finished), "a worker gave up");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        server.kill();
        tokio::time::sleep(Duration::from_millis(300)).await;
        server = Served::sqlite(&path, port);
    }
    stop.store(true, Ordering::SeqCst);
    let mut acknowledged = Acknowledged::default();
    for producer in producers {
        acknowledged.merge(producer.await.unwrap());
    }
    // The rest gets done, also what came back to the queue because its claim was lost.
    loop {
        let query = RolloutQuery { limit: 1, ..RolloutQuery::default() };
        let total = client.query_rollouts(query.clone()).await.unwrap().total;
        let ended = RolloutQuery { status_in: Some(vec![RolloutStatus::Succeeded]), ..query };
        if client.query_rollouts(ended).await.unwrap().total == total {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    drained.store(true, Ordering::SeqCst);
    for worker in workers {
        acknowledged.merge(worker.await.unwrap());
    }

    // Seen by a server that has read it all from the file.
    server.kill();
    let server = Served::sqlite(&path, port);
    let held = client.query_rollouts(RolloutQuery::default()).await.unwrap();
    let held: HashMap<String, RolloutStatus> =
        held.items.into_iter().map(|view| (view.rollout.rollout_id, view.rollout.status)).collect();
    assert!(acknowledged.rollouts.len() >= KILLS * WORK_BETWEEN_KILLS);
    for rollout_id in &acknowledged.rollouts {
        assert!(held.contains_key(rollout_id), "rollout {rollout_id} was acknowledged and is gone");
    }
    for rollout_id in &acknowledged.succeeded {
        assert_eq!(held.get(rollout_id), Some(&RolloutStatus::Succeeded), "{rollout_id}");
    }
    assert!(!acknowledged.spans.is_empty());
    for (rollout_id, span_ids) in &acknowledged.spans {
        let query = SpanQuery { rollout_id: rollout_id.clone(), ..SpanQuery::default() };
        let stored = client.query_spans(query).await.unwrap().items;
        let stored_ids: HashSet<&str> = stored.iter().map(|span| span.span_id.as_str()).collect();
        for span_id in span_ids {
            assert!(
                stored_ids.contains(span_id.as_str()),
                "span {span_id} of {rollout_id} was acknowledged and is gone"
            );
        }
        assert_eq!(stored_ids.len(), stored.len(), "a span was stored twice");
        let numbers: HashSet<i64> = stored.iter().map(|span| span.sequence_id).collect();
        assert_eq!(numbers.len(), stored.len(), "a sequence id was issued twice");
    }

    server.signal("TERM");
    assert_eq!(server.ended().code(), Some(0));
}

#[tokio::test]
async fn sigterm_finishes_requests_in_flight_and_ends_with_0() {
    let folder = tempfile::tempdir().unwrap();
    for signal in ["TERM", "INT"] {
        let path = folder.path().join("agl.db");
        let server = Served::sqlite(&path, 0);
        let client = patient(&server.url);
        let before = client.statistics().await.unwrap().total_rollouts;
        let large = "x".repeat(4 << 20);
        let requests = (0..8).map(|_| {
            let (client, input) = (client.clone(), json!(large.clone()));
            let options = ClientOptions { max_outage: Duration::ZERO, ..client.options().clone() };
            let once = Client::new(client.address(), options).unwrap();
            let rollout = EnqueueRolloutRequest::new(input);
            tokio::spawn(async move { once.start_rollout(StartRollout { rollout, worker_id: None }).await })
        });
        let requests: Vec<_> = requests.collect();
        tokio::time::sleep(Duration::from_millis(20)).await;
        server.signal(signal);
        assert_eq!(server.ended().code(), Some(0), "SIG{signal}");
        let mut acknowledged = 0;
        for request in requests {
            acknowledged += u64::from(request.await.unwrap().is_ok());
        }

        let server = Served::sqlite(&path, 0);
        let held = patient(&server.url).statistics().await.unwrap().total_rollouts;
        assert!(
            held >= before + acknowledged,
            "{acknowledged} were acknowledged, {} are there",
            held - before
        );
        server.kill();
    }
}

#[tokio::test]
async fn a_memory_store_says_so() {
    let server = Served::start(&["store", "--backend", "memory", "--port", "0"]);
    assert_eq!(server.line, format!("store listening on {} (memory)\n", server.url));
    let statistics = patient(&server.url).statistics().await.unwrap();
    assert_eq!(statistics.name, "InMemoryLightningStore");
    server.signal("TERM");
    assert_eq!(server.ended().code(), Some(0));
}
