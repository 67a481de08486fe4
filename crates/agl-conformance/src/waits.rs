//! Waiting for rollouts to end.

use std::sync::Arc;
use std::time::Duration;

use agl_types::AttemptStatus::Succeeded;
use agl_types::{Rollout, RolloutStatus, WaitRequest};
use tokio::task::JoinHandle;

use crate::Subject;

/// Long enough to hang a test that waits in vain, and never waited for by one that passes.
const LONG: Option<f64> = Some(60.0);

/// Long enough for a spawned wait to have begun; a wait that has not is no failure.
const A_MOMENT: Duration = Duration::from_millis(50);

async fn wait(s: &Subject, rollout_ids: &[&str], timeout: Option<f64>) -> Vec<String> {
    let rollout_ids = rollout_ids.iter().map(|&id| id.to_owned()).collect();
    let ended = s.store.wait_for_rollouts(WaitRequest { rollout_ids, timeout }).await.unwrap();
    assert!(ended.iter().all(|rollout| rollout.status.is_terminal()));
    ended.into_iter().map(|rollout| rollout.rollout_id).collect()
}

fn spawn_wait(s: &Subject, rollout_ids: Vec<String>) -> JoinHandle<Vec<Rollout>> {
    let store = Arc::clone(&s.store);
    let request = WaitRequest { rollout_ids, timeout: LONG };
    tokio::spawn(async move { store.wait_for_rollouts(request).await.unwrap() })
}

/// There is nothing to wait for.
pub async fn ended_rollouts_are_returned_at_once(s: &Subject) {
    let started = s.start().await;
    s.report(&started.attempt, Succeeded).await;
    let id = started.rollout.rollout_id.as_str();
    for timeout in [None, LONG, Some(0.0), Some(-1.0)] {
        assert_eq!(wait(s, &[id], timeout).await, [id]);
        assert!(wait(s, &[], timeout).await.is_empty());
    }
}

/// An unknown rollout is neither waited for nor returned.
pub async fn unknown_rollouts_are_left_out(s: &Subject) {
    assert!(wait(s, &["nowhere"], LONG).await.is_empty());
    assert!(wait(s, &["nowhere"], None).await.is_empty());
    let started = s.start().await;
    let id = started.rollout.rollout_id.clone();
    let waiting = spawn_wait(s, vec!["nowhere".to_owned(), id.clone()]);
    tokio::time::sleep(A_MOMENT).await;
    assert!(!waiting.is_finished());
    s.report(&started.attempt, Succeeded).await;
    assert_eq!(waiting.await.unwrap()[0].rollout_id, id);
}

/// All of the rollouts must have ended.
pub async fn a_wait_ends_with_the_last_rollout(s: &Subject) {
    let (a, b) = (s.start().await, s.start().await);
    let ids = vec![a.rollout.rollout_id.clone(), b.rollout.rollout_id.clone()];
    let waiting = spawn_wait(s, ids.clone());
    s.report(&b.attempt, Succeeded).await;
    tokio::time::sleep(A_MOMENT).await;
    assert!(!waiting.is_finished());
    s.set_status(&ids[0], RolloutStatus::Cancelled).await;
    let ended: Vec<String> = waiting.await.unwrap().into_iter().map(|rollout| rollout.rollout_id).collect();
    assert_eq!(ended, ids);
}

/// The order of the request, duplicates included, not that of the ends.
pub async fn answers_keep_the_order_asked_for(s: &Subject) {
    let (a, b) = (s.start().await, s.start().await);
    s.report(&b.attempt, Succeeded).await;
    s.report(&a.attempt, Succeeded).await;
    let (a, b) = (a.rollout.rollout_id.as_str(), b.rollout.rollout_id.as_str());
    assert_eq!(wait(s, &[a, b, a], LONG).await, [a, b, a]);
}

/// Once the time is up, those are returned that have ended.
pub async fn a_wait_that_runs_out_returns_what_has_ended(s: &Subject) {
    let (ended, open) = (s.start().await, s.start().await);
    s.report(&ended.attempt, Succeeded).await;
    let (ended, open) = (ended.rollout.rollout_id.as_str(), open.rollout.rollout_id.as_str());
    for timeout in [0.0, -5.0, 0.05] {
        assert_eq!(wait(s, &[open, ended], Some(timeout)).await, [ended]);
    }
}

/// Everybody who waits for a rollout is told.
pub async fn all_waiters_wake(s: &Subject) {
    let started = s.start().await;
    let id = started.rollout.rollout_id.clone();
    let waiting: Vec<_> = (0..10).map(|_| spawn_wait(s, vec![id.clone()])).collect();
    tokio::time::sleep(A_MOMENT).await;
    s.report(&started.attempt, Succeeded).await;
    for waiter in waiting {
        assert_eq!(waiter.await.unwrap()[0].rollout_id, id);
    }
}

/// A rollout that was reopened has not ended.
pub async fn a_reopened_rollout_is_waited_for_again(s: &Subject) {
    let (again, other) = (s.start().await, s.start().await);
    let ids = vec![again.rollout.rollout_id.clone(), other.rollout.rollout_id.clone()];
    let waiting = spawn_wait(s, ids.clone());
    tokio::time::sleep(A_MOMENT).await;
    s.report(&again.attempt, Succeeded).await;
    let second = s.store.start_attempt(&ids[0], None).await.unwrap();
    s.report(&other.attempt, Succeeded).await;
    tokio::time::sleep(A_MOMENT).await;
    assert!(!waiting.is_finished());
    assert_eq!(wait(s, &[&ids[0]], Some(0.05)).await, Vec::<String>::new());
    s.report(&second.attempt, Succeeded).await;
    assert_eq!(waiting.await.unwrap().len(), 2);
}

/// Whoever stops waiting leaves nothing behind that disturbs the others.
pub async fn a_wait_can_be_dropped(s: &Subject) {
    let started = s.start().await;
    let id = started.rollout.rollout_id.clone();
    let (dropped, kept) = (spawn_wait(s, vec![id.clone()]), spawn_wait(s, vec![id.clone()]));
    tokio::time::sleep(A_MOMENT).await;
    dropped.abort();
    assert!(dropped.await.unwrap_err().is_cancelled());
    s.report(&started.attempt, Succeeded).await;
    assert_eq!(kept.await.unwrap()[0].rollout_id, id);
}
