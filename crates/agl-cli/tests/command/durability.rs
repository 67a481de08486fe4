//! What was acknowledged is there after a kill, and clients ride out the gap.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use agl_client::{Client, ClientOptions};
use agl_store::{Error, IdSource as _, RandomIds, SpanDraft, Store as _};
use agl_types::v1::{self, State, StatusUpdate};
use agl_types::{
    AttemptQuery, AttemptStatus, AttemptUpdate, DequeueRequest, EnqueueRolloutRequest, Llm, NamedResources,
    Resource, RolloutQuery, RolloutStatus, Span, SpanQuery, StartRollout, ids,
};
use serde_json::json;

use crate::process::Served;

const PRODUCERS: usize = 2;
const WORKERS: usize = 4;
const CONTROLLERS: usize = 2;
const SPANS_PER_ATTEMPT: u64 = 4;
const KILLS: usize = 20;
/// How much must have been acknowledged between two kills, so that each hits a server that is at work.
const WORK_BETWEEN_KILLS: usize = 10;

/// What the server has said yes to.
#[derive(Debug, Default)]
struct Acknowledged {
    /// The task of each rollout.
    rollouts: HashMap<String, String>,
    /// Who was given which attempt.
    claims: Vec<(String, String)>,
    /// By rollout, the ids of spans and their numbers.
    spans: HashMap<String, BTreeMap<String, i64>>,
    succeeded: HashSet<String>,
    /// Versions of the one resources id that everybody updates.
    versions: Vec<u32>,
    /// Rollouts of the other lane that a controller was given.
    controlled: Vec<String>,
}

impl Acknowledged {
    fn merge(&mut self, other: Self) {
        self.rollouts.extend(other.rollouts);
        self.claims.extend(other.claims);
        self.succeeded.extend(other.succeeded);
        self.versions.extend(other.versions);
        self.controlled.extend(other.controlled);
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

fn resources(number: usize) -> NamedResources {
    let llm = Llm::new("http://localhost:1/v1", format!("model {number}"));
    NamedResources::from_iter([("main".to_owned(), Resource::Llm(llm))])
}

/// Queues rollouts of both lanes, and writes resources, until told to stop.
async fn produce(client: Client, name: usize, stop: Arc<AtomicBool>, done: Arc<AtomicUsize>) -> Acknowledged {
    let mut acknowledged = Acknowledged::default();
    let mut number = 0;
    while !stop.load(Ordering::SeqCst) {
        let tasks = [format!("{name}-{number}-a"), format!("{name}-{number}-b")];
        let requests = tasks.iter().map(|task| EnqueueRolloutRequest::new(task.as_str())).collect();
        for (rollout, task) in client.enqueue_many_rollouts(requests).await.unwrap().into_iter().zip(tasks) {
            acknowledged.rollouts.insert(rollout.rollout_id, task);
            done.fetch_add(1, Ordering::SeqCst);
        }
        acknowledged
            .versions
            .push(client.update_resources("rs-shared", resources(number)).await.unwrap().version);
        let create: v1::RolloutCreate =
            serde_json::from_value(json!({"input": number, "rollout_id": format!("c{name}x{number}")}))
                .unwrap();
        client.create_controller_rollouts(vec![create]).await.unwrap();
        number += 1;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    acknowledged
}

/// Takes rollouts on, records spans and reports success, until the queue has stayed empty after the producers ended.
async fn work(client: Client, name: String, seed: u64, drained: Arc<AtomicBool>) -> Acknowledged {
    let mut acknowledged = Acknowledged::default();
    let mut number = seed;
    loop {
        let request = DequeueRequest { limit: 1, worker_id: Some(name.clone()), wait: Some(0.1) };
        let Some(claimed) = client.dequeue_many_rollouts(request).await.unwrap().pop() else {
            if drained.load(Ordering::SeqCst) {
                return acknowledged;
            }
            continue;
        };
        let (rollout_id, attempt_id) = (&claimed.rollout.rollout_id, &claimed.attempt.attempt_id);
        acknowledged.claims.push((rollout_id.clone(), attempt_id.clone()));
        for _ in 0..SPANS_PER_ATTEMPT {
            number += 1;
            let span = Span::new("step", ids::trace_id(seed, 1), ids::span_id(number), 1.0, 2.0)
                .placed(rollout_id, attempt_id, 0)
                .with_attribute("n", number);
            let draft = SpanDraft { span, has_sequence_id: false };
            let stored = client.add_span_drafts(vec![draft]).await.unwrap();
            assert_eq!(stored.len(), 1, "a span of our own came back as a duplicate");
            let spans = acknowledged.spans.entry(rollout_id.clone()).or_default();
            spans.extend(stored.into_iter().map(|span| (span.span_id, span.sequence_id)));
        }
        let update = AttemptUpdate { status: AttemptStatus::Succeeded.into(), ..AttemptUpdate::default() };
        let attempt = client.update_attempt(rollout_id, attempt_id, update).await.unwrap();
        assert_eq!(attempt.status, AttemptStatus::Succeeded);
        acknowledged.succeeded.insert(rollout_id.clone());
    }
}

/// Claims rollouts of the other lane, each of which others are after too, and ends them.
async fn control(client: Client, drained: Arc<AtomicBool>) -> Acknowledged {
    let mut acknowledged = Acknowledged::default();
    loop {
        let query: v1::RolloutQuery =
            serde_json::from_value(json!({"state_in": ["queuing"], "limit": 5})).unwrap();
        let waiting = client.query_controller_rollouts(query).await.unwrap();
        if waiting.is_empty() && drained.load(Ordering::SeqCst) {
            return acknowledged;
        }
        for rollout in waiting {
            let claim = StatusUpdate::to(State::Running);
            let claimed = client.update_controller_rollout(&rollout.rollout_id, claim).await;
            if matches!(claimed, Err(Error::Conflict { .. })) {
                continue;
            }
            acknowledged.controlled.push(claimed.unwrap().rollout_id);
            let end = StatusUpdate::to(State::Succeeded);
            client.update_controller_rollout(&rollout.rollout_id, end).await.unwrap();
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A free port that the system gives to nobody by itself: neither to another test nor, while the server is down, to
/// a connection of the client's.
fn free_port() -> u16 {
    let first = 20_000 + u16::try_from(std::process::id() % 10_000).unwrap();
    let mut candidates = first..32_000;
    candidates.find(|port| std::net::TcpListener::bind(("127.0.0.1", *port)).is_ok()).unwrap()
}

/// Kills a server that is at work again and again, at moments of chance, and then compares every answer that came with
/// what is there. No retries are allowed and nothing times out: each rollout has exactly one attempt, by the one worker
/// that was told of it, however often an answer was lost on the way.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_acknowledged_survives_kills_once() {
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
        .map(|name| tokio::spawn(produce(client.clone(), name, Arc::clone(&stop), Arc::clone(&done))))
        .collect();
    let mut others: Vec<_> = (0..WORKERS)
        .map(|worker| {
            let seed = (u64::try_from(worker).unwrap() + 1) << 32;
            tokio::spawn(work(client.clone(), format!("w{worker}"), seed, Arc::clone(&drained)))
        })
        .collect();
    others.extend((0..CONTROLLERS).map(|_| tokio::spawn(control(client.clone(), Arc::clone(&drained)))));

    let up_to = |millis: u64| Duration::from_millis(RandomIds.next() % millis);
    for _ in 0..KILLS {
        let before = done.load(Ordering::SeqCst);
        while done.load(Ordering::SeqCst) < before + WORK_BETWEEN_KILLS {
            assert!(!producers.iter().any(tokio::task::JoinHandle::is_finished), "a producer gave up");
            assert!(!others.iter().any(tokio::task::JoinHandle::is_finished), "a worker gave up");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        tokio::time::sleep(up_to(50)).await;
        server.kill();
        tokio::time::sleep(up_to(200)).await;
        server = Served::sqlite(&path, port);
    }
    stop.store(true, Ordering::SeqCst);
    let mut acknowledged = Acknowledged::default();
    for producer in producers {
        acknowledged.merge(producer.await.unwrap());
    }
    drained.store(true, Ordering::SeqCst);
    for other in others {
        acknowledged.merge(other.await.unwrap());
    }

    // Seen by a server that has read it all from the file.
    server.kill();
    let server = Served::sqlite(&path, port);
    compare(&client, &acknowledged).await;
    server.signal("TERM");
    assert_eq!(server.ended().code(), Some(0));
}

/// Holds what was acknowledged against what is there.
async fn compare(client: &Client, acknowledged: &Acknowledged) {
    assert!(acknowledged.rollouts.len() >= KILLS * WORK_BETWEEN_KILLS);
    let held = client.query_rollouts(RolloutQuery::default()).await.unwrap().items;
    let by_id: HashMap<&str, _> = held.iter().map(|view| (view.rollout.rollout_id.as_str(), view)).collect();
    for (rollout_id, task) in &acknowledged.rollouts {
        let view = by_id.get(rollout_id.as_str());
        assert!(view.is_some(), "{rollout_id} is gone");
        let view = view.unwrap();
        assert_eq!(view.rollout.input, json!(task), "{rollout_id}");
        // Every rollout was claimed, worked on and reported: nothing got stuck with a lost answer.
        assert_eq!(view.rollout.status, RolloutStatus::Succeeded, "{rollout_id}");
        assert!(acknowledged.succeeded.contains(rollout_id), "{rollout_id} was reported by nobody");
    }
    // One rollout a task, one attempt a rollout, one claimant an attempt.
    let tasks = held.iter().filter_map(|view| view.rollout.input.as_str());
    let count = tasks.clone().count();
    assert_eq!(
        (tasks.collect::<HashSet<_>>().len(), count),
        (acknowledged.rollouts.len(), acknowledged.rollouts.len())
    );
    let claimed: HashSet<&str> =
        acknowledged.claims.iter().map(|(rollout_id, _)| rollout_id.as_str()).collect();
    assert_eq!(
        (claimed.len(), acknowledged.claims.len()),
        (acknowledged.rollouts.len(), acknowledged.rollouts.len())
    );
    for (rollout_id, attempt_id) in &acknowledged.claims {
        let query = AttemptQuery { rollout_id: rollout_id.clone(), ..AttemptQuery::default() };
        let attempts = client.query_attempts(query).await.unwrap().items;
        let ids: Vec<&str> = attempts.iter().map(|attempt| attempt.attempt_id.as_str()).collect();
        assert_eq!(ids, [attempt_id], "{rollout_id}");
    }
    for (rollout_id, spans) in &acknowledged.spans {
        let query = SpanQuery { rollout_id: rollout_id.clone(), ..SpanQuery::default() };
        let stored = client.query_spans(query).await.unwrap().items;
        let ids: BTreeMap<String, i64> =
            stored.iter().map(|span| (span.span_id.clone(), span.sequence_id)).collect();
        assert_eq!(ids, *spans, "{rollout_id}");
        assert_eq!(stored.len(), spans.len(), "a span of {rollout_id} was stored twice");
        let numbers: HashSet<i64> = stored.iter().map(|span| span.sequence_id).collect();
        assert_eq!(numbers.len(), stored.len(), "a sequence id of {rollout_id} was issued twice");
    }
    let mut versions = acknowledged.versions.clone();
    versions.sort_unstable();
    let expected: Vec<u32> = (1..).take(versions.len()).collect();
    assert_eq!(versions, expected, "a version was lost or made twice");
    assert!(client.get_resources_by_id("rs-shared", expected.last().copied()).await.unwrap().is_some());
    let controlled: HashSet<&str> = acknowledged.controlled.iter().map(String::as_str).collect();
    assert_eq!(controlled.len(), acknowledged.controlled.len(), "a controller's rollout was claimed twice");
    for rollout_id in controlled {
        assert_eq!(by_id[rollout_id].rollout.status, RolloutStatus::Succeeded, "{rollout_id}");
    }
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

/// A disk that refuses to write is 503 with the reason, loses nothing that was acknowledged, and passes. Here it is the
/// system that refuses, because files must not get larger.
#[tokio::test]
async fn a_disk_that_refuses_is_told_and_ridden_out() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("agl.db");
    let server = Served::run(ignoring_xfsz(&path));
    let once = ClientOptions { max_outage: Duration::ZERO, ..patient(&server.url).options().clone() };
    let once = Client::new(&server.url, once).unwrap();
    once.enqueue_many_rollouts(vec![EnqueueRolloutRequest::new("before")]).await.unwrap();
    server.limit_files("1");
    let error = once.enqueue_many_rollouts(vec![EnqueueRolloutRequest::new("during")]).await.unwrap_err();
    assert!(error.to_string().contains("the disk refuses"), "{error}");
    let kept = once.query_rollouts(RolloutQuery::default()).await.unwrap();
    assert_eq!(kept.total, 1);
    // A patient client waits until the disk is back.
    let client = patient(&server.url);
    let waiting = tokio::spawn(async move {
        client.enqueue_many_rollouts(vec![EnqueueRolloutRequest::new("after")]).await.unwrap()
    });
    tokio::time::sleep(Duration::from_millis(100)).await;
    server.limit_files("unlimited");
    waiting.await.unwrap();
    let kept = once.query_rollouts(RolloutQuery::default()).await.unwrap();
    let inputs: Vec<_> = kept.items.into_iter().map(|view| view.rollout.input).collect();
    assert_eq!(inputs, [json!("before"), json!("after")]);
}

/// `agl store` on this file, with a failed write where the system would end a process whose file gets too large.
fn ignoring_xfsz(path: &Path) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", r#"trap "" XFSZ; exec "$0" store --port 0 --path "$1""#]);
    command.arg(env!("CARGO_BIN_EXE_agl")).arg(path).stdin(Stdio::null()).env_remove("AGL_KEY");
    command
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
