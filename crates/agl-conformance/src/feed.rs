//! The feed of events, and waits that end the moment there is something.

use std::sync::Arc;
use std::time::{Duration, Instant};

use agl_store::Subscription;
use agl_types::{
    AttemptStatus, DequeueRequest, EventKind, EventQuery, FeedItem, QueueState, RolloutStatus, StoreEvent,
    WorkerStatus,
};
use futures_util::StreamExt as _;

use crate::{Subject, model, span};

/// Longer than anything here takes on a machine that is busy.
const SOON: Duration = Duration::from_secs(20);

async fn next(subscription: &mut Subscription) -> FeedItem {
    let item = tokio::time::timeout(SOON, subscription.next()).await;
    item.expect("nothing came").expect("the feed ended").unwrap()
}

async fn event(subscription: &mut Subscription) -> (String, StoreEvent) {
    match next(subscription).await {
        FeedItem::Event { id, event } => (id, event),
        other => panic!("{other:?}"),
    }
}

/// Follows a query from now on.
async fn follow(s: &Subject, query: EventQuery) -> (String, Subscription) {
    let mut subscription = s.store.subscribe(query).await.unwrap();
    match next(&mut subscription).await {
        FeedItem::Start { id } => (id, subscription),
        other => panic!("{other:?}"),
    }
}

/// Whatever changes is told, in the order in which it happened.
pub async fn every_change_is_told_in_order(s: &Subject) {
    let (_, mut feed) = follow(s, EventQuery::default()).await;
    s.store.add_resources(model("m")).await.unwrap();
    let rollout_id = s.enqueue("task").await.rollout_id;
    let attempt = s.dequeue_as("w").await.unwrap().attempt;
    s.store.add_span(span(&attempt, 1, 7)).await.unwrap();
    for paused in [true, true, false] {
        s.store.set_queue_state(QueueState { paused }).await.unwrap();
    }
    s.report(&attempt, AttemptStatus::Succeeded).await;

    let mut seen = Vec::new();
    while seen.last()
        != Some(&StoreEvent::Worker {
            worker_id: "w".to_owned(),
            status: WorkerStatus::Idle,
            rollout_id: None,
            attempt_id: None,
        })
    {
        seen.push(event(&mut feed).await.1);
    }
    let short: Vec<String> = seen
        .iter()
        .map(|event| match event {
            StoreEvent::Rollout { rollout_id: id, status, .. } => {
                assert_eq!(*id, rollout_id);
                format!("rollout {}", status.map_or("-", RolloutStatus::as_str))
            }
            StoreEvent::Attempt { status, worker_id, .. } => {
                format!("attempt {status} {}", worker_id.as_deref().unwrap_or("-"))
            }
            StoreEvent::Span { name, sequence_id, span_id, .. } => {
                assert_eq!(*span_id, agl_types::ids::span_id(1));
                format!("span {name} {sequence_id}")
            }
            StoreEvent::Resources { version, .. } => format!("resources {version}"),
            StoreEvent::Worker { worker_id, status, .. } => format!("worker {worker_id} {status}"),
            StoreEvent::Queue { paused } => format!("queue paused {paused}"),
        })
        .collect();
    assert_eq!(
        short,
        [
            "resources 1",
            "rollout queuing",
            "rollout preparing",
            "attempt preparing w",
            "worker w busy",
            "span step 7",
            "rollout running",
            "attempt running w",
            "queue paused true",
            "queue paused false",
            "rollout succeeded",
            "attempt succeeded w",
            "worker w idle",
        ]
    );
}

/// Conditions on kind, rollout and span name all have to hold.
pub async fn the_feed_is_filtered(s: &Subject) {
    let (first, second) = (s.start().await.attempt, s.start().await.attempt);
    let query = EventQuery {
        kind_in: Some(vec![EventKind::Span, EventKind::Attempt]),
        rollout_id_in: Some(vec![first.rollout_id.clone(), "ro-other".to_owned()]),
        ..EventQuery::default()
    };
    let (_, mut of_first) = follow(s, query).await;
    let query = EventQuery { span_name: Some("special".to_owned()), ..EventQuery::default() };
    let (_, mut special) = follow(s, query).await;
    s.store.add_span(span(&second, 1, 1)).await.unwrap();
    s.store.add_span(span(&first, 2, 1)).await.unwrap();
    let named = agl_types::Span { name: "special".to_owned(), ..span(&second, 3, 2) };
    s.store.add_span(named).await.unwrap();
    assert_eq!(event(&mut of_first).await.1.kind(), EventKind::Span);
    assert!(
        matches!(event(&mut of_first).await.1, StoreEvent::Attempt { rollout_id, .. } if rollout_id == first.rollout_id)
    );
    assert!(matches!(event(&mut special).await.1, StoreEvent::Span { name, .. } if name == "special"));
}

/// Who names the last event seen gets everything since, once.
pub async fn the_feed_resumes(s: &Subject) {
    let (start, mut feed) = follow(s, EventQuery::default()).await;
    let ids = [s.enqueue(1).await.rollout_id, s.enqueue(2).await.rollout_id, s.enqueue(3).await.rollout_id];
    let (seen, _) = event(&mut feed).await;
    drop(feed);
    for (after, expected) in [(start, &ids[..]), (seen, &ids[1..])] {
        let query = EventQuery { after: Some(after), ..EventQuery::default() };
        let mut feed = s.store.subscribe(query).await.unwrap();
        for rollout_id in expected {
            assert_eq!(event(&mut feed).await.1.rollout_id(), Some(rollout_id.as_str()));
        }
    }
    let query = EventQuery { after: Some("no id".to_owned()), ..EventQuery::default() };
    crate::assert_invalid(s.store.subscribe(query).await.map(|_| ()), "after");
    let query = EventQuery { after: Some("00000000-1".to_owned()), ..EventQuery::default() };
    let mut feed = s.store.subscribe(query).await.unwrap();
    assert!(matches!(next(&mut feed).await, FeedItem::Gap(_)));
}

/// A waiting worker is given work the moment there is some, and each of several their own.
pub async fn waiting_workers_are_woken_by_work(s: &Subject) {
    let wait_for_one = |worker: usize| {
        let store = Arc::clone(&s.store);
        tokio::spawn(async move {
            let worker_id = Some(format!("w{worker}"));
            let request = DequeueRequest { limit: 1, worker_id, wait: Some(SOON.as_secs_f64() * 10.0) };
            store.dequeue_many_rollouts(request).await.unwrap()
        })
    };
    let waiting: Vec<_> = (0..3).map(wait_for_one).collect();
    // Once each of them has found the queue empty, they wait.
    for worker in 0..3 {
        while s.store.get_worker_by_id(&format!("w{worker}")).await.unwrap().is_none() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    let mut made = Vec::new();
    for task in 0..3 {
        made.push(s.enqueue(task).await.rollout_id);
    }
    let mut claimed = Vec::new();
    for worker in waiting {
        let claims = tokio::time::timeout(SOON, worker).await.expect("a worker slept on").unwrap();
        claimed.extend(claims.into_iter().map(|claim| claim.rollout.rollout_id));
    }
    claimed.sort();
    made.sort();
    assert_eq!(claimed, made);
}

/// A wait that runs out comes back with nothing; one for nothing does not begin.
pub async fn a_wait_for_work_runs_out(s: &Subject) {
    let started = Instant::now();
    let request = DequeueRequest { limit: 1, worker_id: None, wait: Some(0.2) };
    assert_eq!(s.store.dequeue_many_rollouts(request).await.unwrap(), []);
    assert!(started.elapsed() >= Duration::from_millis(200));
    for wait in [Some(0.0), Some(-1.0), None] {
        let request = DequeueRequest { limit: 1, worker_id: None, wait };
        let answer = tokio::time::timeout(SOON, s.store.dequeue_many_rollouts(request)).await;
        assert_eq!(answer.expect("it waited").unwrap(), []);
    }
}

/// A paused queue gives out nothing; what waits at it is given its work the moment it is resumed.
pub async fn a_paused_queue_keeps_waiting_workers_waiting(s: &Subject) {
    s.store.set_queue_state(QueueState { paused: true }).await.unwrap();
    let store = Arc::clone(&s.store);
    let waiting = tokio::spawn(async move {
        let request = DequeueRequest { limit: 2, worker_id: Some("w".to_owned()), wait: Some(200.0) };
        store.dequeue_many_rollouts(request).await.unwrap()
    });
    while s.store.get_worker_by_id("w").await.unwrap().is_none() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let (first, second) = (s.enqueue(1).await.rollout_id, s.enqueue(2).await.rollout_id);
    assert_eq!(s.dequeue().await, None);
    assert_eq!(s.status(&first).await, RolloutStatus::Queuing);
    assert!(!waiting.is_finished());
    s.store.set_queue_state(QueueState { paused: false }).await.unwrap();
    let claims = tokio::time::timeout(SOON, waiting).await.expect("the worker slept on").unwrap();
    let ids: Vec<String> = claims.into_iter().map(|claim| claim.rollout.rollout_id).collect();
    assert_eq!(ids, [first, second]);
}

/// Work that comes back after a failure wakes a waiting worker too.
pub async fn a_retry_wakes_a_waiting_worker(s: &Subject) {
    let attempt = s.start_with(crate::config(2, &[AttemptStatus::Failed]), None).await.attempt;
    let store = Arc::clone(&s.store);
    let waiting = tokio::spawn(async move {
        let request = DequeueRequest { limit: 1, worker_id: Some("w".to_owned()), wait: Some(200.0) };
        store.dequeue_many_rollouts(request).await.unwrap()
    });
    while s.store.get_worker_by_id("w").await.unwrap().is_none() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    s.report(&attempt, AttemptStatus::Failed).await;
    let claims = tokio::time::timeout(SOON, waiting).await.expect("the worker slept on").unwrap();
    assert_eq!(claims[0].attempt.sequence_id, 2);
}
