//! The queue, attempts, and the states of rollouts.

use std::collections::HashSet;
use std::sync::Arc;

use agl_types::AttemptStatus::{Failed, Running, Succeeded, Unresponsive};
use agl_types::{
    Attempt, AttemptEnd, AttemptUpdate, DequeueRequest, EnqueueRolloutRequest, Patch, QueueState,
    RolloutConfig, RolloutMode, RolloutQuery, RolloutStatus, RolloutUpdate, WorkerStatus, semconv,
};
use serde_json::{Value, json};

use crate::{START, Subject, assert_not_found, config, model, object, span};

/// A started rollout is being prepared, with its first attempt, and is not in the queue.
pub async fn start_rollout_skips_the_queue(s: &Subject) {
    let started = s.start().await;
    assert_eq!(started.rollout.status, RolloutStatus::Preparing);
    assert_eq!(started.attempt.sequence_id, 1);
    assert_eq!(started.attempt.status, agl_types::AttemptStatus::Preparing);
    assert_eq!((started.rollout.start_time, started.attempt.start_time), (START, START));
    assert_eq!(started.attempt.rollout_id, started.rollout.rollout_id);
    assert!(started.rollout.rollout_id.starts_with("ro-") && started.rollout.rollout_id.len() == 15);
    assert!(started.attempt.attempt_id.starts_with("at-") && started.attempt.attempt_id.len() == 11);
    assert_eq!(s.dequeue().await, None);
}

/// Metadata becomes an empty object, the config its defaults.
pub async fn enqueue_fills_in_defaults(s: &Subject) {
    let rollout = s.enqueue(json!({"question": 1})).await;
    assert_eq!(rollout.status, RolloutStatus::Queuing);
    assert_eq!(rollout.metadata, Some(object(json!({}))));
    assert_eq!(rollout.config, RolloutConfig::default());
    assert_eq!((rollout.mode, rollout.resources_id.clone(), rollout.end_time), (None, None, None));
    assert_eq!(s.rollout(&rollout.rollout_id).await, rollout);
    assert_eq!(s.store.get_latest_attempt(&rollout.rollout_id).await.unwrap(), None);
}

/// Every item has its own settings, and the queue has the order of the batch.
pub async fn enqueue_many_keeps_order_and_fields(s: &Subject) {
    let requests = (0..5).map(|number| EnqueueRolloutRequest {
        mode: (number % 2 == 0).then_some(RolloutMode::Train),
        config: Some(config(number + 1, &[Failed])),
        metadata: Some(object(json!({"number": number}))),
        ..EnqueueRolloutRequest::new(number)
    });
    let made = s.store.enqueue_many_rollouts(requests.collect()).await.unwrap();
    assert_eq!(made.len(), 5);
    for (number, rollout) in (0_u32..).zip(&made) {
        assert_eq!(rollout.input, json!(number));
        assert_eq!(rollout.config.max_attempts.get(), number + 1);
        assert_eq!(rollout.metadata, Some(object(json!({"number": number}))));
        assert_eq!(rollout.mode, (number % 2 == 0).then_some(RolloutMode::Train));
    }
    for rollout in &made {
        assert_eq!(s.dequeue().await.unwrap().rollout.rollout_id, rollout.rollout_id);
    }
    assert_eq!(s.store.enqueue_many_rollouts(Vec::new()).await.unwrap(), []);
}

/// The queue keeps the order, gives each rollout once, and then nothing.
pub async fn dequeue_is_first_in_first_out(s: &Subject) {
    let (first, second) = (s.enqueue("first").await, s.enqueue("second").await);
    s.clock.advance(5.0);
    let claimed = s.dequeue().await.unwrap();
    assert_eq!(claimed.rollout.rollout_id, first.rollout_id);
    assert_eq!(claimed.rollout.status, RolloutStatus::Preparing);
    assert_eq!((claimed.attempt.sequence_id, claimed.attempt.start_time), (1, START + 5.0));
    assert_eq!(claimed.rollout.start_time, START);
    assert_eq!(s.rollout(&first.rollout_id).await, claimed.rollout);
    assert_eq!(s.latest(&first.rollout_id).await, claimed.attempt);
    assert_eq!(s.dequeue().await.unwrap().rollout.rollout_id, second.rollout_id);
    assert_eq!(s.dequeue().await, None);
}

/// Fewer come when there are fewer.
pub async fn dequeue_many_takes_up_to_its_limit(s: &Subject) {
    let mut expected = Vec::new();
    for number in 0..5 {
        expected.push(s.enqueue(number).await.rollout_id);
    }
    let mut taken = Vec::new();
    for (limit, count) in [(2, 2), (2, 2), (2, 1), (2, 0)] {
        let request = DequeueRequest { limit, worker_id: None, wait: None };
        let claimed = s.store.dequeue_many_rollouts(request).await.unwrap();
        assert_eq!(claimed.len(), count);
        taken.extend(claimed.into_iter().map(|claim| claim.rollout.rollout_id));
    }
    assert_eq!(taken, expected);
}

/// A limit of zero or less leaves the queue alone.
pub async fn a_limit_of_nothing_takes_nothing(s: &Subject) {
    let rollout = s.enqueue("task").await;
    for limit in [0, -1] {
        let request = DequeueRequest { limit, worker_id: None, wait: None };
        assert_eq!(s.store.dequeue_many_rollouts(request).await.unwrap(), []);
    }
    assert_eq!(s.dequeue().await.unwrap().rollout.rollout_id, rollout.rollout_id);
}

/// One call passes over all rollouts whose status was changed while they waited, and leaves them alone.
pub async fn a_rollout_that_left_the_queue_is_passed_over(s: &Subject) {
    let statuses = [RolloutStatus::Cancelled, RolloutStatus::Succeeded, RolloutStatus::Running];
    let mut gone = Vec::new();
    for status in statuses {
        let rollout_id = s.enqueue("gone").await.rollout_id;
        s.set_status(&rollout_id, status).await;
        gone.push(rollout_id);
    }
    let waiting = s.enqueue("waiting").await;
    assert_eq!(s.dequeue().await.unwrap().rollout.rollout_id, waiting.rollout_id);
    for (rollout_id, status) in gone.iter().zip(statuses) {
        assert_eq!(s.status(rollout_id).await, status);
    }
}

/// A rollout is in the queue at most once, and its second attempt leaves the first one as it is.
pub async fn requeuing_puts_a_rollout_at_the_tail_once(s: &Subject) {
    let first = s.enqueue("first").await;
    let claimed = s.dequeue().await.unwrap();
    let other = s.enqueue("other").await;
    s.set_status(&first.rollout_id, RolloutStatus::Requeuing).await;
    s.set_status(&first.rollout_id, RolloutStatus::Requeuing).await;
    s.set_status(&first.rollout_id, RolloutStatus::Queuing).await;
    assert_eq!(s.dequeue().await.unwrap().rollout.rollout_id, other.rollout_id);
    let again = s.dequeue().await.unwrap();
    assert_eq!((again.rollout.rollout_id, again.attempt.sequence_id), (first.rollout_id.clone(), 2));
    assert_eq!(s.dequeue().await, None);
    let query = agl_types::AttemptQuery { rollout_id: first.rollout_id, ..Default::default() };
    let attempts = s.store.query_attempts(query).await.unwrap().items;
    assert_eq!(attempts, [claimed.attempt, again.attempt]);
}

/// 20 rollouts and 30 concurrent claims make 20 distinct claims.
pub async fn concurrent_dequeues_claim_distinct_rollouts(s: &Subject) {
    for number in 0..20 {
        s.enqueue(number).await;
    }
    let tasks: Vec<_> = (0..30)
        .map(|number| {
            let store = Arc::clone(&s.store);
            tokio::spawn(async move { store.dequeue_rollout(Some(format!("worker-{number}"))).await })
        })
        .collect();
    let mut claimed = HashSet::new();
    let mut empty = 0;
    for task in tasks {
        match task.await.unwrap().unwrap() {
            Some(claim) => assert!(claimed.insert(claim.rollout.rollout_id), "claimed twice"),
            None => empty += 1,
        }
    }
    assert_eq!((claimed.len(), empty), (20, 10));
}

/// An enqueued rollout that is started by hand is not handed out as well.
pub async fn start_attempt_takes_a_rollout_out_of_the_queue(s: &Subject) {
    let rollout = s.enqueue("task").await;
    let started = s.store.start_attempt(&rollout.rollout_id, None).await.unwrap();
    assert_eq!((started.attempt.sequence_id, started.rollout.status), (1, RolloutStatus::Preparing));
    assert_eq!(s.dequeue().await, None);
}

/// Only automatic retries are bounded; attempts made by hand count on.
pub async fn start_attempt_may_exceed_max_attempts(s: &Subject) {
    let rollout = s.start().await.rollout;
    for sequence_id in 2..=4 {
        let started = s.store.start_attempt(&rollout.rollout_id, None).await.unwrap();
        assert_eq!(started.attempt.sequence_id, sequence_id);
    }
}

/// A new attempt at an ended rollout reopens it and clears its end.
pub async fn start_attempt_reopens_what_has_ended(s: &Subject) {
    let started = s.start().await;
    s.report(&started.attempt, Succeeded).await;
    let again = s.store.start_attempt(&started.rollout.rollout_id, None).await.unwrap();
    assert_eq!((again.rollout.status, again.rollout.end_time), (RolloutStatus::Preparing, None));
    s.report(&again.attempt, Failed).await;
    assert_eq!(s.status(&started.rollout.rollout_id).await, RolloutStatus::Failed);
}

/// A late result is kept with its attempt; the rollout follows the latest one and is not queued.
pub async fn news_of_an_old_attempt_changes_nothing_else(s: &Subject) {
    let first = s.start_with(config(5, &[Failed]), Some("old")).await;
    let second = s.store.start_attempt(&first.rollout.rollout_id, Some("new".to_owned())).await.unwrap();
    for status in [Failed, Succeeded] {
        assert_eq!(s.report(&first.attempt, status).await.status, status);
        assert_eq!(s.rollout(&first.rollout.rollout_id).await, second.rollout);
    }
    assert_eq!(s.dequeue().await, None);
    assert_eq!(s.worker("new").await.current_attempt_id, Some(second.attempt.attempt_id));
}

/// A failure that the retry condition names puts the rollout back into the queue, as long as attempts are left.
pub async fn failure_leads_to_a_retry_while_attempts_are_left(s: &Subject) {
    let rollout_id = s.enqueue_with(config(3, &[Failed])).await.rollout_id;
    for sequence_id in 1..=3 {
        let claimed = s.dequeue().await.unwrap();
        assert_eq!(
            (claimed.rollout.rollout_id, claimed.attempt.sequence_id),
            (rollout_id.clone(), sequence_id)
        );
        s.report(&claimed.attempt, Failed).await;
        let expected = if sequence_id < 3 { RolloutStatus::Requeuing } else { RolloutStatus::Failed };
        assert_eq!(s.status(&rollout_id).await, expected);
    }
    assert_eq!(s.dequeue().await, None);
}

/// Attempts that are left do not matter when the retry condition does not name the failure.
pub async fn failure_outside_the_retry_condition_is_final(s: &Subject) {
    let started = s.start_with(config(3, &[Unresponsive]), None).await;
    s.report(&started.attempt, Failed).await;
    assert_eq!(s.status(&started.rollout.rollout_id).await, RolloutStatus::Failed);
    assert_eq!(s.dequeue().await, None);
}

/// An end time is there if and only if the attempt or rollout has ended.
pub async fn ends_have_times(s: &Subject) {
    let started = s.start().await;
    s.clock.advance(1.0);
    assert_eq!(s.report(&started.attempt, Running).await.end_time, None);
    assert_eq!(s.rollout(&started.rollout.rollout_id).await.end_time, None);
    s.clock.advance(1.0);
    assert_eq!(s.report(&started.attempt, Succeeded).await.end_time, Some(START + 2.0));
    assert_eq!(s.rollout(&started.rollout.rollout_id).await.end_time, Some(START + 2.0));
}

/// Spans, news of the attempt and its metadata move nothing out of a terminal status.
pub async fn terminal_statuses_stick(s: &Subject) {
    for status in [RolloutStatus::Cancelled, RolloutStatus::Failed, RolloutStatus::Succeeded] {
        let started = s.start_with(config(5, &[Failed]), None).await;
        let ended = s.set_status(&started.rollout.rollout_id, status).await;
        s.clock.advance(1.0);
        assert!(s.add_span(&started.attempt, 1, 1).await.is_some());
        assert_eq!(s.latest(&started.rollout.rollout_id).await.status, Running);
        assert_eq!(s.rollout(&started.rollout.rollout_id).await, ended);
        let update =
            AttemptUpdate { metadata: Some(object(json!({"a": 1}))).into(), ..AttemptUpdate::default() };
        s.store.update_attempt(&started.rollout.rollout_id, "latest", update).await.unwrap();
        assert_eq!(s.rollout(&started.rollout.rollout_id).await, ended);
        for news in [Succeeded, Failed, Running] {
            s.report(&started.attempt, news).await;
            assert_eq!(s.rollout(&started.rollout.rollout_id).await, ended);
        }
        assert_eq!(s.dequeue().await, None);
    }
}

/// An explicit change of status leaves a terminal one, and the end with it.
pub async fn reopening_clears_the_end(s: &Subject) {
    let rollout_id = s.start().await.rollout.rollout_id;
    assert_eq!(s.set_status(&rollout_id, RolloutStatus::Cancelled).await.end_time, Some(START));
    let reopened = s.set_status(&rollout_id, RolloutStatus::Queuing).await;
    assert_eq!((reopened.status, reopened.end_time), (RolloutStatus::Queuing, None));
    assert_eq!(s.dequeue().await.unwrap().attempt.sequence_id, 2);
}

/// Absent fields stay, null clears, and metadata is replaced as a whole.
pub async fn updates_touch_only_what_they_name(s: &Subject) {
    let request = EnqueueRolloutRequest {
        mode: Some(RolloutMode::Val),
        resources_id: Some("rs-chosen".to_owned()),
        metadata: Some(object(json!({"a": 1, "b": 2}))),
        ..EnqueueRolloutRequest::new("task")
    };
    let made = s.store.enqueue_rollout(request).await.unwrap();
    let update = RolloutUpdate { metadata: Some(object(json!({"c": 3}))).into(), ..RolloutUpdate::default() };
    let updated = s.store.update_rollout(&made.rollout_id, update).await.unwrap();
    let mut expected = made.clone();
    expected.metadata = Some(object(json!({"c": 3})));
    assert_eq!(updated, expected);
    let update = RolloutUpdate {
        input: json!(["new"]).into(),
        mode: Patch::Set(None),
        resources_id: Patch::Set(None),
        config: config(7, &[Failed]).into(),
        ..RolloutUpdate::default()
    };
    let updated = s.store.update_rollout(&made.rollout_id, update).await.unwrap();
    assert_eq!((updated.mode, updated.resources_id.clone()), (None, None));
    assert_eq!((&updated.input, updated.config.max_attempts.get()), (&json!(["new"]), 7));
    assert_eq!((updated.status, updated.metadata.clone()), (RolloutStatus::Queuing, expected.metadata));
    assert_eq!(s.rollout(&made.rollout_id).await, updated);
    assert_eq!(s.dequeue().await.unwrap().rollout.rollout_id, made.rollout_id);
}

/// What is not there is named in the words that 0.3's callers match on.
pub async fn unknown_ids_are_not_found(s: &Subject) {
    let queued = s.enqueue("task").await.rollout_id;
    let started = s.start().await.rollout.rollout_id;
    let update = || AttemptUpdate { status: Succeeded.into(), ..AttemptUpdate::default() };
    assert_not_found(s.store.start_attempt("nowhere", None).await, "Rollout nowhere not found");
    assert_not_found(s.store.update_attempt("nowhere", "a", update()).await, "Rollout nowhere not found");
    let part = format!("No attempts found for rollout {queued}");
    assert_not_found(s.store.update_attempt(&queued, "at-none", update()).await, &part);
    assert_not_found(s.store.update_attempt(&queued, "latest", update()).await, &part);
    let part = format!("Attempt at-none not found for rollout {started}");
    assert_not_found(s.store.update_attempt(&started, "at-none", update()).await, &part);
    let result = s.store.update_rollout("nowhere", RolloutUpdate::default()).await;
    assert_not_found(result, "does not exist");
    let result = s.store.update_rollout("nowhere", RolloutUpdate::default()).await;
    assert_not_found(result, "Item");
}

/// What was called off is not tried again, although attempts are left; what was cancelled stays so.
pub async fn a_cancelled_attempt_is_not_tried_again(s: &Subject) {
    let update = |metadata: Value| AttemptUpdate {
        status: Failed.into(),
        metadata: Some(object(metadata)).into(),
        ..AttemptUpdate::default()
    };
    let attempts = [
        (json!({"reason": "cancelled"}), RolloutStatus::Failed),
        (json!({"reason": "error"}), RolloutStatus::Requeuing),
        (json!({"cancelled": true}), RolloutStatus::Requeuing),
    ];
    for (metadata, expected) in attempts {
        let started = s.start_with(config(2, &[Failed]), None).await;
        let Attempt { rollout_id, attempt_id, .. } = &started.attempt;
        s.store.update_attempt(rollout_id, attempt_id, update(metadata)).await.unwrap();
        assert_eq!(s.status(rollout_id).await, expected);
    }
    let started = s.start_with(config(2, &[Failed]), None).await;
    let Attempt { rollout_id, attempt_id, .. } = &started.attempt;
    s.set_status(rollout_id, RolloutStatus::Cancelled).await;
    let ended = s.store.update_attempt(rollout_id, attempt_id, update(json!({"reason": "cancelled"}))).await;
    assert_eq!(ended.unwrap().status, Failed);
    assert_eq!(s.status(rollout_id).await, RolloutStatus::Cancelled);
}

/// A pause holds for everybody who asks for work, until it is over.
pub async fn a_pause_holds_until_it_is_over(s: &Subject) {
    let set = async |paused: bool| s.store.set_queue_state(QueueState { paused }).await.unwrap().paused;
    let rollout_id = s.enqueue("task").await.rollout_id;
    assert!(!s.store.queue_state().await.unwrap().paused);
    for _ in 0..2 {
        assert!(set(true).await);
        assert!(s.store.queue_state().await.unwrap().paused);
    }
    assert_eq!(s.dequeue_as("w").await, None);
    assert_eq!(s.worker("w").await.status, WorkerStatus::Idle);
    // Past the queue, work goes on.
    let started = s.start().await;
    s.report(&started.attempt, Succeeded).await;
    assert!(!set(false).await);
    assert_eq!(s.dequeue().await.unwrap().rollout.rollout_id, rollout_id);
}

/// A claim is a dequeue that brings the resources of the rollout, or else the latest, and leaves a state event.
pub async fn a_claim_brings_resources_and_notes_the_start(s: &Subject) {
    let bare = s.enqueue("bare").await;
    let early = s.enqueue("early").await;
    let resources = s.store.update_resources("rs", model("m")).await.unwrap();
    let pinned =
        EnqueueRolloutRequest { resources_id: Some("rs".to_owned()), ..EnqueueRolloutRequest::new("pinned") };
    let pinned = s.store.enqueue_rollout(pinned).await.unwrap();
    let request = |limit| DequeueRequest { limit, worker_id: Some("w".to_owned()), wait: None };
    assert_eq!(s.store.claim_rollouts(request(0)).await.unwrap(), []);

    let first = s.store.claim_rollouts(request(1)).await.unwrap();
    let newer = s.store.add_resources(model("newer")).await.unwrap();
    let others = s.store.claim_rollouts(request(9)).await.unwrap();
    assert_eq!(s.store.claim_rollouts(request(1)).await.unwrap(), []);
    let claims: Vec<_> = first.iter().chain(&others).collect();
    let expected = [(&bare, &resources), (&early, &newer), (&pinned, &resources)];
    assert_eq!(claims.len(), expected.len());
    for (claim, (rollout, resources)) in claims.into_iter().zip(expected) {
        assert_eq!(claim.attempted.rollout.rollout_id, rollout.rollout_id);
        assert_eq!(claim.attempted.attempt.worker_id.as_deref(), Some("w"));
        assert_eq!(claim.resources.as_ref(), Some(resources));
        let spans = s.spans(&rollout.rollout_id).await;
        let [started] = spans.as_slice() else { panic!("{spans:?}") };
        assert_eq!((started.name.as_str(), started.sequence_id), (semconv::AGL_STATE, 1));
        assert_eq!(started.attempt_id, claim.attempted.attempt.attempt_id);
        assert_eq!(started.attributes[semconv::STATE_EVENT], semconv::STATE_STARTED);
        assert_eq!(s.status(&rollout.rollout_id).await, RolloutStatus::Running);
    }
}

/// The last spans of an attempt are stored before its end shows, under the next sequence ids, whatever they say.
pub async fn an_end_stores_the_last_spans_first(s: &Subject) {
    let attempt = s.start().await.attempt;
    s.add_span(&attempt, 1, 4).await.unwrap();
    let update = AttemptUpdate { status: Succeeded.into(), ..AttemptUpdate::default() };
    let elsewhere = Attempt { attempt_id: "at-none".to_owned(), ..attempt.clone() };
    let spans = vec![span(&elsewhere, 3, 1), span(&attempt, 2, 9)];
    let end = AttemptEnd { spans, update };
    let unknown = s.store.end_attempt(&attempt.rollout_id, "at-none", end.clone()).await;
    assert_not_found(unknown, "at-none");
    assert_eq!(s.spans(&attempt.rollout_id).await.len(), 1);

    let ended = s.store.end_attempt(&attempt.rollout_id, &attempt.attempt_id, end).await.unwrap();
    assert_eq!((ended.status, ended.end_time), (Succeeded, Some(START)));
    assert_eq!(s.status(&attempt.rollout_id).await, RolloutStatus::Succeeded);
    let spans = s.spans(&attempt.rollout_id).await;
    let numbers: Vec<_> = spans.iter().map(|span| (span.span_id.as_str(), span.sequence_id)).collect();
    let id = agl_types::ids::span_id;
    assert_eq!(numbers, [(id(1).as_str(), 4), (id(3).as_str(), 5), (id(2).as_str(), 6)]);
    assert!(spans.iter().all(|span| span.attempt_id == attempt.attempt_id));
}

/// Nothing but a status or a worker says anything about the state.
pub async fn metadata_of_an_attempt_changes_no_status(s: &Subject) {
    let started = s.start().await;
    let update = AttemptUpdate {
        metadata: Some(object(json!({"step": 3}))).into(),
        last_heartbeat_time: Some(START + 9.0).into(),
        ..AttemptUpdate::default()
    };
    let updated = s
        .store
        .update_attempt(&started.rollout.rollout_id, &started.attempt.attempt_id, update)
        .await
        .unwrap();
    assert_eq!(updated.metadata, Some(object(json!({"step": 3}))));
    assert_eq!(updated.last_heartbeat_time, Some(START + 9.0));
    assert_eq!(updated.status, agl_types::AttemptStatus::Preparing);
    assert_eq!(s.latest(&started.rollout.rollout_id).await, updated);
    assert_eq!(s.rollout(&started.rollout.rollout_id).await, started.rollout);
}

/// `latest` is the attempt with the highest number.
pub async fn latest_names_the_highest_attempt(s: &Subject) {
    let rollout_id = s.start().await.rollout.rollout_id;
    let second = s.store.start_attempt(&rollout_id, None).await.unwrap().attempt;
    let update = AttemptUpdate { status: Succeeded.into(), ..AttemptUpdate::default() };
    let updated = s.store.update_attempt(&rollout_id, "latest", update).await.unwrap();
    assert_eq!((updated.attempt_id, updated.sequence_id), (second.attempt_id, 2));
    assert_eq!(s.status(&rollout_id).await, RolloutStatus::Succeeded);
}

/// Inputs of every JSON kind come back as they were, key order and numbers included.
pub async fn rollouts_round_trip(s: &Subject) {
    let inputs = [
        json!(null),
        json!(true),
        json!(-1),
        json!(0.1),
        json!(1e300),
        json!(9_007_199_254_740_993_i64),
        json!("zwölf 猫 \u{0} \" \\"),
        json!([1, [2, {"z": null, "a": {}}]]),
        json!({"z": 1, "a": 2, "m": {"y": [], "b": 0.30000000000000004}}),
    ];
    for input in inputs {
        let made = s.enqueue(input.clone()).await;
        let kept = s.rollout(&made.rollout_id).await;
        assert_eq!(kept.input.to_string(), input.to_string());
    }
    let query = RolloutQuery { limit: 1, ..RolloutQuery::default() };
    assert_eq!(s.find(query).await.1, 9);
}
