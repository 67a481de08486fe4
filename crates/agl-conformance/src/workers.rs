//! Workers, as their attempts and heartbeats make them.

use agl_types::AttemptStatus::{Failed, Succeeded, Timeout};
use agl_types::{AttemptUpdate, DequeueRequest, Patch, WorkerStatus, WorkerUpdate};
use serde_json::json;

use crate::{START, Subject, object};

/// Busy with a claim, idle after a result, unknown after being lost.
pub async fn a_worker_follows_its_attempts(s: &Subject) {
    for _ in 0..3 {
        s.enqueue("task").await;
    }
    let first = s.dequeue_as("w").await.unwrap();
    let worker = s.worker("w").await;
    assert_eq!((worker.status, worker.last_dequeue_time), (WorkerStatus::Busy, Some(START)));
    assert_eq!((worker.last_busy_time, worker.last_idle_time), (Some(START), None));
    assert_eq!(worker.current_rollout_id, Some(first.rollout.rollout_id));
    assert_eq!(worker.current_attempt_id.as_ref(), Some(&first.attempt.attempt_id));
    s.clock.advance(1.0);
    s.report(&first.attempt, Succeeded).await;
    let worker = s.worker("w").await;
    assert_eq!((worker.status, worker.last_idle_time), (WorkerStatus::Idle, Some(START + 1.0)));
    assert_eq!((worker.current_rollout_id, worker.current_attempt_id), (None, None));
    for (news, expected) in [(Failed, WorkerStatus::Idle), (Timeout, WorkerStatus::Unknown)] {
        let claim = s.dequeue_as("w").await.unwrap();
        assert_eq!(s.worker("w").await.status, WorkerStatus::Busy);
        s.report(&claim.attempt, news).await;
        let worker = s.worker("w").await;
        assert_eq!((worker.status, worker.current_attempt_id), (expected, None));
    }
    let started = s.start_with(Default::default(), Some("v")).await;
    let worker = s.worker("v").await;
    assert_eq!((worker.status, worker.last_dequeue_time), (WorkerStatus::Busy, None));
    assert_eq!(worker.current_attempt_id, Some(started.attempt.attempt_id));
}

/// A heartbeat makes the worker known and keeps its last snapshot.
pub async fn heartbeats_of_workers_change_no_status(s: &Subject) {
    let stats = object(json!({"cpu": 0.5, "host": "h"}));
    let update = WorkerUpdate { heartbeat_stats: stats.clone().into() };
    let worker = s.store.update_worker("w", update).await.unwrap();
    assert_eq!((worker.status, worker.last_heartbeat_time), (WorkerStatus::Unknown, Some(START)));
    assert_eq!(worker.heartbeat_stats, Some(stats.clone()));
    s.clock.advance(1.0);
    let worker = s.store.update_worker("w", WorkerUpdate::default()).await.unwrap();
    assert_eq!(
        (worker.last_heartbeat_time, &worker.heartbeat_stats),
        (Some(START + 1.0), &Some(stats.clone()))
    );
    s.enqueue("task").await;
    let claim = s.dequeue_as("w").await.unwrap();
    let worker = s.store.update_worker("w", WorkerUpdate::default()).await.unwrap();
    assert_eq!((worker.status, &worker.heartbeat_stats), (WorkerStatus::Busy, &Some(stats.clone())));
    s.report(&claim.attempt, Succeeded).await;
    let worker = s.worker("w").await;
    assert_eq!((worker.status, worker.heartbeat_stats), (WorkerStatus::Idle, Some(stats)));
    assert_eq!(worker.last_heartbeat_time, Some(START + 1.0));
}

/// Asking in vain makes a worker idle and frees it of what it held; asking again does not move its idle time.
pub async fn an_empty_queue_makes_a_worker_idle(s: &Subject) {
    assert_eq!(s.dequeue_as("w").await, None);
    let worker = s.worker("w").await;
    assert_eq!((worker.status, worker.last_idle_time), (WorkerStatus::Idle, Some(START)));
    s.clock.advance(1.0);
    assert_eq!(s.dequeue_as("w").await, None);
    let worker = s.worker("w").await;
    assert_eq!((worker.last_dequeue_time, worker.last_idle_time), (Some(START + 1.0), Some(START)));
    s.enqueue("task").await;
    s.dequeue_as("w").await.unwrap();
    s.clock.advance(1.0);
    assert_eq!(s.dequeue_as("w").await, None);
    let worker = s.worker("w").await;
    assert_eq!((worker.status, worker.last_idle_time), (WorkerStatus::Idle, Some(START + 2.0)));
    assert_eq!((worker.current_rollout_id, worker.current_attempt_id), (None, None));
}

/// Of several claims in one call, the worker shows the last.
pub async fn the_last_claim_of_many_is_shown(s: &Subject) {
    for number in 0..3 {
        s.enqueue(number).await;
    }
    let request = DequeueRequest { limit: 3, worker_id: Some("w".to_owned()), wait: None };
    let claimed = s.store.dequeue_many_rollouts(request).await.unwrap();
    let worker = s.worker("w").await;
    assert_eq!(worker.current_attempt_id.as_ref(), Some(&claimed[2].attempt.attempt_id));
    s.report(&claimed[0].attempt, Succeeded).await;
    assert_eq!(s.worker("w").await, worker);
}

/// The empty string is kept in the attempt and makes no worker.
pub async fn an_empty_worker_id_names_nobody(s: &Subject) {
    let started = s.start_with(Default::default(), Some("w")).await;
    let update = AttemptUpdate { worker_id: Some(String::new()).into(), ..AttemptUpdate::default() };
    let attempt = s
        .store
        .update_attempt(&started.rollout.rollout_id, &started.attempt.attempt_id, update)
        .await
        .unwrap();
    assert_eq!(attempt.worker_id.as_deref(), Some(""));
    assert_eq!(s.latest(&started.rollout.rollout_id).await.worker_id.as_deref(), Some(""));
    s.report(&started.attempt, Succeeded).await;
    assert_eq!(s.dequeue_as("").await, None);
    assert_eq!(s.store.query_workers(Default::default()).await.unwrap().total, 1);
}

/// An attempt that goes to another worker frees the one that had it.
pub async fn handing_over_frees_the_first_worker(s: &Subject) {
    let started = s.start_with(Default::default(), Some("first")).await;
    let update = AttemptUpdate { worker_id: Some("second".to_owned()).into(), ..AttemptUpdate::default() };
    s.store.update_attempt(&started.rollout.rollout_id, "latest", update).await.unwrap();
    assert_eq!(s.worker("first").await.status, WorkerStatus::Idle);
    let second = s.worker("second").await;
    assert_eq!(
        (second.status, second.current_attempt_id),
        (WorkerStatus::Busy, Some(started.attempt.attempt_id))
    );
    let update = AttemptUpdate { worker_id: Patch::Set(None), ..AttemptUpdate::default() };
    s.store.update_attempt(&started.rollout.rollout_id, "latest", update).await.unwrap();
    assert_eq!(s.worker("second").await.status, WorkerStatus::Idle);
}

/// Every attempt that one call claims carries the worker.
pub async fn the_worker_is_on_every_attempt(s: &Subject) {
    for number in 0..3 {
        s.enqueue(number).await;
    }
    let request = DequeueRequest { limit: 9, worker_id: Some("w".to_owned()), wait: None };
    let claimed = s.store.dequeue_many_rollouts(request).await.unwrap();
    assert_eq!(claimed.len(), 3);
    assert!(claimed.iter().all(|claim| claim.attempt.worker_id.as_deref() == Some("w")));
    let again = s.store.start_attempt(&claimed[0].rollout.rollout_id, Some("v".to_owned())).await.unwrap();
    assert_eq!(again.attempt.worker_id.as_deref(), Some("v"));
}
