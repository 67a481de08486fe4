//! Attempts that take too long or fall silent.

use agl_types::AttemptStatus::{Running, Timeout, Unresponsive};
use agl_types::{
    AttemptStatus, RolloutConfig, RolloutQuery, RolloutStatus, RolloutUpdate, WaitRequest, WorkerStatus,
};

use crate::{START, Subject, config};

fn limits(timeout: Option<f64>, silence: Option<f64>, retry: &[AttemptStatus]) -> RolloutConfig {
    RolloutConfig { timeout_seconds: timeout, unresponsive_seconds: silence, ..config(3, retry) }
}

/// Nobody calls the store; who waits is told anyway.
pub async fn a_timeout_fires_by_itself(s: &Subject) {
    let started = s.start_with(limits(Some(10.0), None, &[]), None).await;
    let rollout_ids = vec![started.rollout.rollout_id.clone()];
    let wait = s.store.wait_for_rollouts(WaitRequest { rollout_ids, timeout: Some(60.0) });
    let advance = async {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        s.clock.advance(10.5);
    };
    let (ended, ()) = tokio::join!(wait, advance);
    let ended = ended.unwrap().remove(0);
    assert_eq!((ended.status, ended.end_time), (RolloutStatus::Failed, Some(START + 10.5)));
    let attempt = s.latest(&started.rollout.rollout_id).await;
    assert_eq!((attempt.status, attempt.end_time), (Timeout, Some(START + 10.5)));
}

/// The first call after the deadline sees its consequences, and the retry is in the queue.
pub async fn the_reading_call_shows_a_passed_deadline(s: &Subject) {
    let started = s.start_with(limits(Some(10.0), None, &[Timeout]), None).await;
    s.clock.advance(10.0);
    assert_eq!(s.status(&started.rollout.rollout_id).await, RolloutStatus::Preparing);
    s.clock.advance(0.5);
    let query = RolloutQuery { status_in: Some(vec![RolloutStatus::Requeuing]), ..RolloutQuery::default() };
    let found = s.store.query_rollouts(query).await.unwrap().items.remove(0);
    assert_eq!(found.attempt.unwrap().status, Timeout);
    assert_eq!(s.dequeue().await.unwrap().attempt.sequence_id, 2);
}

/// Every span puts the end of patience off.
pub async fn silence_counts_from_the_last_sign(s: &Subject) {
    let started = s.start_with(limits(None, Some(10.0), &[]), None).await;
    let rollout_id = &started.rollout.rollout_id;
    for number in 1..=3 {
        s.clock.advance(8.0);
        s.add_span(&started.attempt, number, 1).await.unwrap();
    }
    s.clock.advance(10.0);
    assert_eq!(s.status(rollout_id).await, RolloutStatus::Running);
    s.clock.advance(0.5);
    assert_eq!(s.status(rollout_id).await, RolloutStatus::Failed);
    let attempt = s.latest(rollout_id).await;
    assert_eq!((attempt.status, attempt.end_time), (Unresponsive, None));
    let silent = s.start_with(limits(None, Some(10.0), &[]), None).await;
    s.clock.advance(10.5);
    assert_eq!(s.latest(&silent.rollout.rollout_id).await.status, Unresponsive);
}

/// Spans do not put a timeout off.
pub async fn a_timeout_counts_from_the_start(s: &Subject) {
    let started = s.start_with(limits(Some(10.0), None, &[]), None).await;
    for number in 1..=2 {
        s.clock.advance(4.0);
        s.add_span(&started.attempt, number, 1).await.unwrap();
    }
    assert_eq!(s.status(&started.rollout.rollout_id).await, RolloutStatus::Running);
    s.clock.advance(2.5);
    assert_eq!(s.status(&started.rollout.rollout_id).await, RolloutStatus::Failed);
}

/// When both limits have passed, it was a timeout.
pub async fn timeout_wins_over_silence(s: &Subject) {
    let started = s.start_with(limits(Some(10.0), Some(5.0), &[]), None).await;
    s.clock.advance(20.0);
    assert_eq!(s.latest(&started.rollout.rollout_id).await.status, Timeout);
}

/// Attempts that are left do not matter when the retry condition does not name silence.
pub async fn silence_outside_the_retry_condition_is_final(s: &Subject) {
    let started = s.start_with(limits(None, Some(5.0), &[Timeout]), None).await;
    s.clock.advance(6.0);
    assert_eq!(s.status(&started.rollout.rollout_id).await, RolloutStatus::Failed);
    assert_eq!(s.dequeue().await, None);
}

/// Waiting in the queue is no attempt.
pub async fn nothing_in_the_queue_times_out(s: &Subject) {
    let rollout_id = s.enqueue_with(limits(Some(5.0), Some(5.0), &[])).await.rollout_id;
    s.clock.advance(100.0);
    assert_eq!(s.status(&rollout_id).await, RolloutStatus::Queuing);
    s.dequeue().await.unwrap();
    s.clock.advance(5.0);
    assert_eq!(s.status(&rollout_id).await, RolloutStatus::Preparing);
}

/// A retry has the whole time again; its predecessor's deadline is gone.
pub async fn each_attempt_has_its_own_clock(s: &Subject) {
    let started = s.start_with(limits(Some(10.0), None, &[]), None).await;
    s.clock.advance(8.0);
    s.store.start_attempt(&started.rollout.rollout_id, None).await.unwrap();
    s.clock.advance(8.0);
    assert_eq!(s.status(&started.rollout.rollout_id).await, RolloutStatus::Preparing);
    s.clock.advance(2.5);
    assert_eq!(s.status(&started.rollout.rollout_id).await, RolloutStatus::Failed);
    let query = agl_types::AttemptQuery { rollout_id: started.rollout.rollout_id, ..Default::default() };
    let attempts = s.store.query_attempts(query).await.unwrap().items;
    assert_eq!((attempts[0].status, attempts[1].status), (AttemptStatus::Preparing, Timeout));
}

/// A change of the config takes effect on the attempt under way, in either direction.
pub async fn limits_can_be_set_later(s: &Subject) {
    let started = s.start().await;
    let rollout_id = &started.rollout.rollout_id;
    let set = async |config: RolloutConfig| {
        let update = RolloutUpdate { config: config.into(), ..RolloutUpdate::default() };
        s.store.update_rollout(rollout_id, update).await.unwrap()
    };
    set(limits(Some(10.0), None, &[])).await;
    s.clock.advance(9.0);
    set(limits(Some(20.0), None, &[])).await;
    s.clock.advance(9.0);
    assert_eq!(s.status(rollout_id).await, RolloutStatus::Preparing);
    s.clock.advance(3.0);
    assert_eq!(s.status(rollout_id).await, RolloutStatus::Failed);
}

/// More deadlines than one transaction takes on, and one rollout that is not concerned.
pub async fn many_deadlines_pass_at_once(s: &Subject) {
    let ended = s.start_with(limits(Some(5.0), None, &[]), None).await;
    s.report(&ended.attempt, AttemptStatus::Succeeded).await;
    for _ in 0..300 {
        s.start_with(limits(Some(10.0), None, &[]), None).await;
    }
    let patient = s.start_with(limits(Some(50.0), None, &[]), None).await;
    s.report(&patient.attempt, Running).await;
    s.clock.advance(11.0);
    let query =
        RolloutQuery { status_in: Some(vec![RolloutStatus::Failed]), limit: 1, ..RolloutQuery::default() };
    assert_eq!(s.find(query).await.1, 300);
    assert_eq!(s.status(&ended.rollout.rollout_id).await, RolloutStatus::Succeeded);
    assert_eq!(s.status(&patient.rollout.rollout_id).await, RolloutStatus::Running);
}

/// Who held the attempt is unknown from then on, unless it holds another one.
pub async fn a_deadline_loses_the_worker(s: &Subject) {
    s.start_with(limits(Some(10.0), None, &[]), Some("lost")).await;
    s.start_with(limits(Some(10.0), None, &[]), Some("moved")).await;
    let current = s.start_with(RolloutConfig::default(), Some("moved")).await;
    s.clock.advance(11.0);
    let lost = s.worker("lost").await;
    assert_eq!((lost.status, lost.current_attempt_id), (WorkerStatus::Unknown, None));
    assert_eq!(lost.last_idle_time, Some(START + 11.0));
    let moved = s.worker("moved").await;
    assert_eq!(moved.status, WorkerStatus::Busy);
    assert_eq!(moved.current_attempt_id, Some(current.attempt.attempt_id));
}
