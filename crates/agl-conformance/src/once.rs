//! Idempotency keys: a call that is sent again is not carried out again.

use std::sync::Arc;

use agl_store::{IdempotencyKey, Store};
use agl_types::{
    AttemptEnd, AttemptStatus, AttemptUpdate, DequeueRequest, EnqueueRolloutRequest, QueueState,
    RolloutQuery, RolloutUpdate, StartRollout, WorkerUpdate,
};

use crate::{Subject, model, span};

/// The store for calls under `key` that ask for `what`.
fn once(s: &Subject, key: &str, what: u8) -> Arc<dyn Store> {
    s.store.once(IdempotencyKey { key: key.into(), fingerprint: [what; 16] }).unwrap()
}

/// Making rollouts and claims under a key makes them once, and answers the same.
pub async fn making_something_twice_makes_it_once(s: &Subject) {
    let request = || vec![EnqueueRolloutRequest::new("a"), EnqueueRolloutRequest::new("b")];
    let store = once(s, "enqueue", 1);
    let made = store.enqueue_many_rollouts(request()).await.unwrap();
    assert_eq!(store.enqueue_many_rollouts(request()).await.unwrap(), made);
    let other = once(s, "enqueue 2", 1).enqueue_many_rollouts(request()).await.unwrap();
    assert_ne!(other, made);
    assert_eq!(s.find(RolloutQuery::default()).await.1, 4);

    let store = once(s, "start", 2);
    let start = StartRollout { rollout: EnqueueRolloutRequest::new("c"), worker_id: Some("w".to_owned()) };
    let started = store.start_rollout(start.clone()).await.unwrap();
    assert_eq!(store.start_rollout(start).await.unwrap(), started);

    let id = started.rollout.rollout_id.as_str();
    let store = once(s, "attempt", 3);
    let again = store.start_attempt(id, None).await.unwrap();
    assert_eq!(store.start_attempt(id, None).await.unwrap(), again);
    assert_eq!(again.attempt.sequence_id, 2);

    let store = once(s, "resources", 4);
    let added = store.add_resources(model("m")).await.unwrap();
    assert_eq!(store.add_resources(model("m")).await.unwrap(), added);
    let store = once(s, "resources 2", 5);
    assert_eq!(store.update_resources("rs", model("m")).await.unwrap().version, 1);
    assert_eq!(store.update_resources("rs", model("m")).await.unwrap().version, 1);
    assert_eq!(s.store.update_resources("rs", model("m")).await.unwrap().version, 2);

    let store = once(s, "sequence", 6);
    let issued = store.get_next_span_sequence_id(id, "latest").await.unwrap();
    assert_eq!(store.get_next_span_sequence_id(id, "latest").await.unwrap(), issued);
    assert_eq!(s.store.get_next_span_sequence_id(id, "latest").await.unwrap(), issued + 1);
}

/// A claim whose answer was lost is handed out again to whoever asks under its key, and to nobody else.
pub async fn a_retried_dequeue_returns_the_same_claim(s: &Subject) {
    for task in ["a", "b", "c"] {
        s.enqueue(task).await;
    }
    let request = DequeueRequest { limit: 2, worker_id: Some("w".to_owned()), wait: None };
    let store = once(s, "claim", 1);
    let claimed = store.dequeue_many_rollouts(request.clone()).await.unwrap();
    assert_eq!(claimed.len(), 2);
    assert_eq!(store.dequeue_many_rollouts(request.clone()).await.unwrap(), claimed);
    assert_eq!(s.dequeue().await.unwrap().rollout.input, "c");
    // What found nothing has nothing to repeat.
    let store = once(s, "later", 1);
    assert_eq!(store.dequeue_many_rollouts(request.clone()).await.unwrap(), []);
    let late = s.enqueue("d").await;
    let claimed = store.dequeue_many_rollouts(request).await.unwrap();
    assert_eq!(claimed[0].rollout.rollout_id, late.rollout_id);
}

/// The same goes for a claim with all that a runner begins with, and for a runner's last word.
pub async fn a_retried_claim_and_end_happen_once(s: &Subject) {
    let resources = s.store.update_resources("rs", model("m")).await.unwrap();
    for task in ["a", "b"] {
        s.enqueue(task).await;
    }
    let store = once(s, "claim", 1);
    let request = DequeueRequest { worker_id: Some("w".to_owned()), ..DequeueRequest::default() };
    let claims = store.claim_rollouts(request.clone()).await.unwrap();
    let again = store.claim_rollouts(request).await.unwrap();
    let attempt = &claims[0].attempted.attempt;
    assert_eq!(again.len(), 1);
    assert_eq!(again[0].attempted.attempt.attempt_id, attempt.attempt_id);
    assert_eq!(again[0].resources.as_ref(), Some(&resources));

    let store = once(s, "end", 2);
    let update = AttemptUpdate { status: AttemptStatus::Failed.into(), ..AttemptUpdate::default() };
    let end = AttemptEnd { spans: vec![span(attempt, 7, 0)], update };
    let ended = store.end_attempt(&attempt.rollout_id, &attempt.attempt_id, end.clone()).await.unwrap();
    assert_eq!(store.end_attempt(&attempt.rollout_id, &attempt.attempt_id, end).await.unwrap(), ended);
    assert_eq!(s.spans(&attempt.rollout_id).await.len(), 2);
    assert_eq!(s.dequeue().await.unwrap().rollout.input, "b");
}

/// Spans that a first call has stored are the answer of the second too, and those that were there before are not.
pub async fn retried_spans_are_answered_as_new(s: &Subject) {
    let attempt = s.start().await.attempt;
    s.store.add_span(span(&attempt, 1, 1)).await.unwrap();
    let batch = || vec![span(&attempt, 1, 1), span(&attempt, 2, 2), span(&attempt, 3, 3)];
    let store = once(s, "spans", 1);
    let added = store.add_many_spans(batch()).await.unwrap();
    assert_eq!(added.len(), 2);
    assert_eq!(store.add_many_spans(batch()).await.unwrap(), added);
    assert_eq!(s.store.statistics().await.unwrap().total_spans, 3);
}

/// Changes are made once: what has happened since is not undone by a retry.
pub async fn a_retried_update_does_not_undo_what_came_after(s: &Subject) {
    let claimed = s.start_with(crate::config(1, &[]), Some("w")).await;
    let (rollout_id, attempt_id) = (&claimed.rollout.rollout_id, &claimed.attempt.attempt_id);
    let update = AttemptUpdate { status: AttemptStatus::Running.into(), ..AttemptUpdate::default() };
    let store = once(s, "running", 1);
    store.update_attempt(rollout_id, attempt_id, update.clone()).await.unwrap();
    s.report(&claimed.attempt, AttemptStatus::Succeeded).await;
    let answer = store.update_attempt(rollout_id, attempt_id, update).await.unwrap();
    assert_eq!(answer.status, AttemptStatus::Succeeded);

    let update = RolloutUpdate { mode: Some(agl_types::RolloutMode::Val).into(), ..RolloutUpdate::default() };
    let store = once(s, "mode", 2);
    store.update_rollout(rollout_id, update.clone()).await.unwrap();
    let later = RolloutUpdate { mode: Some(agl_types::RolloutMode::Test).into(), ..RolloutUpdate::default() };
    s.store.update_rollout(rollout_id, later).await.unwrap();
    let answer = store.update_rollout(rollout_id, update).await.unwrap();
    assert_eq!(answer.mode, Some(agl_types::RolloutMode::Test));

    let (store, pause) = (once(s, "pause", 4), QueueState { paused: true });
    store.set_queue_state(pause).await.unwrap();
    s.store.set_queue_state(QueueState { paused: false }).await.unwrap();
    assert!(!store.set_queue_state(pause).await.unwrap().paused);

    let store = once(s, "beat", 3);
    store.update_worker("w", WorkerUpdate::default()).await.unwrap();
    s.clock.advance(5.0);
    let answer = store.update_worker("w", WorkerUpdate::default()).await.unwrap();
    assert_eq!(answer.last_heartbeat_time, Some(crate::START));
}

/// A key that was used for something else is a conflict, and nothing happens. What failed has used no key up.
pub async fn a_key_stands_for_one_request(s: &Subject) {
    once(s, "key", 1).enqueue_rollout(EnqueueRolloutRequest::new("a")).await.unwrap();
    let error = once(s, "key", 2).enqueue_rollout(EnqueueRolloutRequest::new("b")).await.unwrap_err();
    assert_eq!(error.kind(), "conflict", "{error}");
    assert!(error.to_string().contains("key"), "{error}");
    assert_eq!(s.find(RolloutQuery::default()).await.1, 1);

    let store = once(s, "attempt", 3);
    crate::assert_not_found(store.start_attempt("ro-none", None).await, "ro-none");
    crate::assert_not_found(store.start_attempt("ro-none", None).await, "ro-none");
}

/// A day later a key is as good as new.
pub async fn keys_are_kept_for_a_day(s: &Subject) {
    let store = once(s, "key", 1);
    let first = store.enqueue_rollout(EnqueueRolloutRequest::new("a")).await.unwrap();
    s.clock.advance(23.0 * 3600.0);
    s.store.housekeep(&agl_store::Retention::default()).await.unwrap();
    assert_eq!(store.enqueue_rollout(EnqueueRolloutRequest::new("a")).await.unwrap(), first);
    s.clock.advance(2.0 * 3600.0);
    s.store.housekeep(&agl_store::Retention::default()).await.unwrap();
    assert_ne!(store.enqueue_rollout(EnqueueRolloutRequest::new("a")).await.unwrap(), first);
}

/// Of callers who send the same at the same moment, all get the one thing that was made.
pub async fn concurrent_retries_share_one_answer(s: &Subject) {
    let store = once(s, "key", 1);
    let calls = (0..8).map(|_| {
        let store = Arc::clone(&store);
        tokio::spawn(async move { store.enqueue_rollout(EnqueueRolloutRequest::new("a")).await.unwrap() })
    });
    let mut ids = std::collections::HashSet::new();
    for call in calls.collect::<Vec<_>>() {
        ids.insert(call.await.unwrap().rollout_id);
    }
    assert_eq!(ids.len(), 1);
    assert_eq!(s.find(RolloutQuery::default()).await.1, 1);
}
