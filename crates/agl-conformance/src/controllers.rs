//! The 1.0 contract: rollouts that controllers claim by name, and how either contract sees the other's.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use agl_store::IdempotencyKey;
use agl_types::v1::{
    CompletionQuery, Completions, EventCreate, EventsQuery, GRACE, K8sRun, LATEST_ATTEMPT, LocalRun, Model,
    ModelKey, REWARD, Rollout, RolloutConfig, RolloutCreate, RolloutQuery, State, StatusUpdate,
};
use agl_types::{
    AttemptQuery, AttemptStatus, RolloutMode, RolloutStatus, RolloutUpdate, SpanQuery, WaitRequest,
    WorkerStatus,
};
use serde_json::{Value, json};

use crate::{START, Subject, assert_not_found, config, object};

impl Subject {
    async fn create(&self, input: impl Into<Value>) -> Rollout {
        let made = self.store.create_controller_rollouts(vec![RolloutCreate::new(input)]).await.unwrap();
        made.into_iter().next().unwrap()
    }

    async fn patch(&self, rollout: &Rollout, update: StatusUpdate) -> Result<Rollout, agl_store::Error> {
        self.store.update_controller_rollout(&rollout.rollout_id, update).await
    }

    async fn go(&self, rollout: &Rollout, state: State) -> Result<Rollout, agl_store::Error> {
        self.patch(rollout, StatusUpdate::to(state)).await
    }

    async fn claimed(&self) -> Rollout {
        let rollout = self.create("task").await;
        self.go(&rollout, State::Running).await.unwrap()
    }

    async fn seen(&self, rollout_id: &str) -> Rollout {
        self.store.get_controller_rollout(rollout_id).await.unwrap().unwrap().rollout
    }

    async fn listed(&self, states: &[State]) -> Vec<String> {
        let listed = self.store.query_controller_rollouts(RolloutQuery::of(states)).await.unwrap();
        listed.into_iter().map(|rollout| rollout.rollout_id).collect()
    }

    async fn tell(&self, rollout_id: &str, event_type: &str, data: Value) {
        let event = EventCreate { event_type: event_type.to_owned(), data: object(data) };
        self.store.add_event(rollout_id, LATEST_ATTEMPT, event).await.unwrap();
    }

    /// Types and data of the events of a rollout.
    async fn events(&self, rollout_id: &str, event_type: Option<&str>) -> Vec<(String, Value)> {
        let query =
            EventsQuery { rollout_id: rollout_id.to_owned(), event_type: event_type.map(str::to_owned) };
        let events = self.store.query_events(query).await.unwrap();
        events.into_iter().map(|event| (event.event_type, Value::Object(event.data))).collect()
    }

    async fn log(&self, after: i64, limit: i64) -> Completions {
        self.store.query_completions(CompletionQuery { after, limit }).await.unwrap()
    }

    async fn logged(&self) -> Vec<String> {
        self.log(0, 1000).await.items.into_iter().map(|item| item.rollout_id).collect()
    }
}

#[track_caller]
fn assert_conflict<T: std::fmt::Debug>(result: Result<T, agl_store::Error>, part: &str) {
    let error = result.unwrap_err();
    assert_eq!(error.kind(), "conflict", "{error}");
    assert!(error.to_string().contains(part), "{error}");
}

/// A rollout has the fields it was given and the defaults of the rest, in both contracts.
pub async fn controllers_rollouts_round_trip(s: &Subject) {
    let template = "x".repeat(70_000);
    let full = RolloutCreate {
        input: json!({"q": [1, null, 0.1]}),
        is_train: false,
        config: Some(RolloutConfig {
            timeout_seconds: 60,
            local: Some(LocalRun {
                agent_class: "m:Agent".to_owned(),
                env_map: object(json!({"Q": "input.q"})),
            }),
            k8s: Some(K8sRun { job_template: Some(template) }),
        }),
        metadata: Some(object(json!({"batch_idx": 3, "more": {"a": "ä"}}))),
        rollout_id: Some("mine/1".to_owned()),
    };
    let requests = vec![full.clone(), RolloutCreate::new(json!(null))];
    let made = s.store.create_controller_rollouts(requests).await.unwrap();
    let (first, second) = (&made[0], &made[1]);
    assert_eq!((first.rollout_id.as_str(), &first.input, first.is_train), ("mine/1", &full.input, false));
    assert_eq!(Some(&first.config), full.config.as_ref());
    let metadata = json!({"batch_idx": 3, "sample_idx_in_batch": null, "more": {"a": "ä"}});
    assert_eq!(Value::Object(first.metadata.clone()), metadata);
    assert_eq!((second.rollout_id.len(), second.is_train), (32, true));
    assert_eq!(second.config, RolloutConfig::default());
    assert_eq!(
        Value::Object(second.metadata.clone()),
        json!({"batch_idx": null, "sample_idx_in_batch": null})
    );
    for rollout in &made {
        assert_eq!((rollout.status.state, rollout.status.version), (State::Queuing, 1));
        assert_eq!((rollout.status.created_at, rollout.status.updated_at), (START, START));
        assert_eq!(s.seen(&rollout.rollout_id).await, *rollout);
    }
    let theirs = s.rollout("mine/1").await;
    assert_eq!((theirs.status, theirs.mode), (RolloutStatus::Queuing, Some(RolloutMode::Val)));
    assert_eq!((theirs.config.timeout_seconds, theirs.config.max_attempts.get()), (Some(60.0 + GRACE), 1));
    assert_eq!(theirs.metadata, full.metadata);
    assert_eq!(s.store.get_controller_rollout("nope").await.unwrap(), None);
}

/// What is there under an id is returned as it stands, whosever it is; also within one call.
pub async fn creating_again_changes_nothing(s: &Subject) {
    let of = |input: &str, id: &str| RolloutCreate {
        rollout_id: Some(id.to_owned()),
        ..RolloutCreate::new(input)
    };
    let queued = s.enqueue("a runner's").await;
    let requests = vec![of("first", "one"), of("second", "one"), of("third", &queued.rollout_id)];
    let made = s.store.create_controller_rollouts(requests).await.unwrap();
    let inputs: Vec<&Value> = made.iter().map(|rollout| &rollout.input).collect();
    assert_eq!(inputs, ["first", "first", "a runner's"]);
    let running = s.go(&made[0], State::Running).await.unwrap();
    let again = s.store.create_controller_rollouts(vec![of("fourth", "one")]).await.unwrap();
    assert_eq!(again, [running]);
    let fresh = s.store.create_controller_rollouts(vec![of("x", ""), of("x", "")]).await.unwrap();
    assert_ne!(fresh[0].rollout_id, fresh[1].rollout_id, "an empty id is none");
    assert_eq!(s.store.create_controller_rollouts(Vec::new()).await.unwrap(), []);
}

/// A claim makes attempt 1, and is made once.
pub async fn controllers_claim_by_name(s: &Subject) {
    let (first, second) = (s.create("first").await, s.create("second").await);
    assert_eq!(s.listed(&[State::Queuing]).await, [first.rollout_id.as_str(), &second.rollout_id]);
    s.clock.advance(2.0);
    let update = StatusUpdate {
        last_attempt_id: Some(LATEST_ATTEMPT.to_owned()).into(),
        k8s_job_name: Some("job".to_owned()).into(),
        ..StatusUpdate::to(State::Running)
    };
    let running = s.patch(&second, update).await.unwrap();
    assert_eq!((running.status.state, running.status.version), (State::Running, 2));
    assert_eq!((running.status.created_at, running.status.updated_at), (START, START + 2.0));
    assert_eq!(running.status.last_attempt_id.as_deref(), Some(LATEST_ATTEMPT));
    assert_eq!(running.status.k8s_job_name.as_deref(), Some("job"));
    assert_eq!(s.listed(&[State::Queuing]).await, [first.rollout_id.as_str()]);
    assert_eq!(s.listed(&[State::Running]).await, [second.rollout_id.as_str()]);

    let attempt = s.latest(&second.rollout_id).await;
    assert_eq!((attempt.sequence_id, attempt.status), (1, AttemptStatus::Preparing));
    assert_eq!((attempt.start_time, attempt.worker_id), (START + 2.0, None));
    assert_eq!(s.status(&second.rollout_id).await, RolloutStatus::Preparing);
    let detail = s.store.get_controller_rollout(&second.rollout_id).await.unwrap().unwrap();
    assert_eq!(detail.attempts, [LATEST_ATTEMPT]);
    assert_eq!(detail.rollout, running);
    let message = format!("Rollout {}: cannot transition running -> running", second.rollout_id);
    assert_conflict(s.go(&second, State::Running).await, &message);
    let unknown = s.store.update_controller_rollout("nope", StatusUpdate::to(State::Running)).await;
    assert_not_found(unknown, "nope");
}

/// Of many who claim a rollout at once, one gets it.
pub async fn concurrent_claims_have_one_winner(s: &Subject) {
    let rollout = s.create("task").await;
    let claims = (0..20).map(|_| {
        let (store, rollout_id) = (Arc::clone(&s.store), rollout.rollout_id.clone());
        let claim = StatusUpdate::to(State::Running);
        tokio::spawn(async move { store.update_controller_rollout(&rollout_id, claim).await })
    });
    let mut winners = 0;
    for claim in claims.collect::<Vec<_>>() {
        match claim.await.unwrap() {
            Ok(_) => winners += 1,
            error => assert_conflict(error, "cannot transition running -> running"),
        }
    }
    let query = AttemptQuery { rollout_id: rollout.rollout_id, ..AttemptQuery::default() };
    assert_eq!((winners, s.store.query_attempts(query).await.unwrap().total), (1, 1));
}

/// From each state only the states that follow can be reached; an end is final.
pub async fn controllers_states_follow_the_rules(s: &Subject) {
    for from in State::ALL {
        for to in State::ALL {
            let rollout = s.create("task").await;
            if *from != State::Queuing {
                s.go(&rollout, State::Running).await.unwrap();
            }
            if from.is_terminal() {
                s.go(&rollout, *from).await.unwrap();
            }
            let before = s.seen(&rollout.rollout_id).await;
            let allowed = matches!(
                (from, to),
                (State::Queuing, State::Running | State::Failed)
                    | (State::Running, State::Succeeded | State::Failed)
            );
            let result = s.go(&rollout, *to).await;
            if allowed {
                assert_eq!(result.unwrap().status.state, *to);
            } else {
                assert_conflict(result, &format!("cannot transition {from} -> {to}"));
                assert_eq!(s.seen(&rollout.rollout_id).await, before, "a refused change changes nothing");
            }
        }
    }
}

/// With the rollout its attempt ends; whoever waits is told.
pub async fn an_end_ends_the_attempt_too(s: &Subject) {
    for (state, status, attempt_status) in [
        (State::Succeeded, RolloutStatus::Succeeded, AttemptStatus::Succeeded),
        (State::Failed, RolloutStatus::Failed, AttemptStatus::Failed),
    ] {
        let rollout = s.claimed().await;
        let store = Arc::clone(&s.store);
        let request = WaitRequest { rollout_ids: vec![rollout.rollout_id.clone()], timeout: Some(30.0) };
        let waiting = tokio::spawn(async move { store.wait_for_rollouts(request).await });
        tokio::task::yield_now().await;
        let now = s.clock_now();
        let why =
            StatusUpdate { error_message: Some("because".to_owned()).into(), ..StatusUpdate::to(state) };
        let ended = s.patch(&rollout, why).await.unwrap();
        assert_eq!(ended.status.error_message.as_deref(), Some("because"));
        assert_eq!(waiting.await.unwrap().unwrap()[0].status, status);
        let (theirs, attempt) = (s.rollout(&rollout.rollout_id).await, s.latest(&rollout.rollout_id).await);
        assert_eq!((theirs.status, theirs.end_time), (status, Some(now)));
        assert_eq!((attempt.status, attempt.end_time), (attempt_status, Some(now)));
        assert_eq!(s.listed(&[state]).await, [rollout.rollout_id.as_str()]);
        assert_eq!(s.listed(&[State::Running]).await, [""; 0]);
    }
}

/// A rollout can fail before anybody has claimed it, and then has no attempt.
pub async fn a_rollout_can_fail_unclaimed(s: &Subject) {
    let rollout = s.create("task").await;
    let failed = s.go(&rollout, State::Failed).await.unwrap();
    assert_eq!(failed.status.state, State::Failed);
    assert_eq!(s.store.get_latest_attempt(&rollout.rollout_id).await.unwrap(), None);
    assert_eq!(s.rollout(&rollout.rollout_id).await.end_time, Some(START));
}

/// Fields are set and cleared without the state, also after the end; nothing said changes nothing.
pub async fn what_controllers_say_is_kept(s: &Subject) {
    let rollout = s.create("task").await;
    assert_eq!(s.patch(&rollout, StatusUpdate::default()).await.unwrap(), rollout);
    s.clock.advance(1.0);
    let named = StatusUpdate { k8s_job_name: Some("job".to_owned()).into(), ..StatusUpdate::default() };
    let named = s.patch(&rollout, named).await.unwrap();
    assert_eq!((named.status.version, named.status.updated_at), (2, START + 1.0));
    assert_eq!((named.status.state, named.status.k8s_job_name.as_deref()), (State::Queuing, Some("job")));
    s.go(&rollout, State::Failed).await.unwrap();
    let late = StatusUpdate {
        k8s_job_name: None.into(),
        error_message: Some("late".to_owned()).into(),
        ..StatusUpdate::default()
    };
    let late = s.patch(&rollout, late).await.unwrap();
    assert_eq!((late.status.version, late.status.k8s_job_name), (4, None));
    assert_eq!((late.status.state, late.status.error_message.as_deref()), (State::Failed, Some("late")));
}

/// No runner ever gets a controller's rollout, not even when it is put back.
pub async fn controllers_rollouts_are_never_queued(s: &Subject) {
    let rollout = s.create("task").await;
    assert_eq!(s.dequeue().await, None);
    assert_conflict(s.store.start_attempt(&rollout.rollout_id, None).await, "is a controller's");
    s.go(&rollout, State::Running).await.unwrap();
    for status in [RolloutStatus::Queuing, RolloutStatus::Requeuing] {
        s.go(&rollout, State::Failed).await.unwrap();
        s.set_status(&rollout.rollout_id, status).await;
        assert_eq!(s.dequeue().await, None);
        assert_eq!(s.listed(&[State::Queuing]).await, [rollout.rollout_id.as_str()]);
        s.go(&rollout, State::Running).await.unwrap();
    }
    let detail = s.store.get_controller_rollout(&rollout.rollout_id).await.unwrap().unwrap();
    assert_eq!(detail.attempts.len(), 3);
    assert_eq!(detail.attempts.last().unwrap(), LATEST_ATTEMPT);
    assert!(detail.attempts[0].starts_with("at-"), "{:?}", detail.attempts);
    assert_eq!(s.latest(&rollout.rollout_id).await.sequence_id, 3);
}

/// Retries that were asked for through 0.3 go back to the controllers; an end that a controller tells is one.
pub async fn retries_stay_with_the_controllers(s: &Subject) {
    let rollout = s.claimed().await;
    let retries = RolloutUpdate {
        config: config(3, &[AttemptStatus::Failed, AttemptStatus::Timeout]).into(),
        ..RolloutUpdate::default()
    };
    s.store.update_rollout(&rollout.rollout_id, retries).await.unwrap();
    s.report(&s.latest(&rollout.rollout_id).await, AttemptStatus::Failed).await;
    assert_eq!(s.status(&rollout.rollout_id).await, RolloutStatus::Requeuing);
    assert_eq!(s.dequeue().await, None);
    assert_eq!(s.go(&rollout, State::Running).await.unwrap().status.state, State::Running);
    assert_eq!(s.go(&rollout, State::Failed).await.unwrap().status.state, State::Failed);
    assert_eq!(s.logged().await, [rollout.rollout_id]);
}

/// Runners' rollouts are seen, but a controller is neither offered nor allowed to touch them.
pub async fn controllers_only_look_at_runners_rollouts(s: &Subject) {
    let queued = s.enqueue(json!({"data_id": "d"})).await;
    let started = s.start().await;
    assert_eq!(s.listed(State::ALL).await, [""; 0]);
    let seen = s.seen(&queued.rollout_id).await;
    assert_eq!((seen.status.state, seen.status.version), (State::Queuing, 0));
    assert_eq!((&seen.input, seen.is_train, seen.config.timeout_seconds), (&queued.input, true, 0));
    assert_conflict(s.go(&seen, State::Running).await, "is a runner's");
    assert_eq!(s.dequeue().await.unwrap().rollout.rollout_id, queued.rollout_id);

    let detail = s.store.get_controller_rollout(&started.rollout.rollout_id).await.unwrap().unwrap();
    assert_eq!(detail.rollout.status.state, State::Running);
    assert_eq!(detail.attempts, [started.attempt.attempt_id.as_str()]);
    assert_eq!(detail.rollout.status.last_attempt_id, Some(started.attempt.attempt_id.clone()));
    assert_conflict(s.go(&detail.rollout, State::Failed).await, "is a runner's");
    assert_eq!(s.status(&started.rollout.rollout_id).await, RolloutStatus::Preparing);

    let ours = s.create("ours").await;
    s.go(&ours, State::Failed).await.unwrap();
    s.report(&started.attempt, AttemptStatus::Succeeded).await;
    s.set_status(&queued.rollout_id, RolloutStatus::Cancelled).await;
    assert_eq!(s.listed(&[State::Succeeded]).await, [started.rollout.rollout_id.as_str()]);
    assert_eq!(s.listed(&[State::Failed]).await, [queued.rollout_id.as_str(), &ours.rollout_id]);
    let cancelled = s.seen(&queued.rollout_id).await;
    assert!(cancelled.status.error_message.unwrap().contains("cancelled"));
}

/// Lists come in order of creation, however many states are asked for, and end at the limit.
pub async fn lists_come_in_order_of_creation(s: &Subject) {
    let mut ids = Vec::new();
    for number in 0..6 {
        let rollout = s.create(number).await;
        if number % 3 > 0 {
            s.go(&rollout, State::Running).await.unwrap();
        }
        if number % 3 == 2 {
            s.go(&rollout, State::Succeeded).await.unwrap();
        }
        ids.push(rollout.rollout_id);
    }
    assert_eq!(s.listed(State::ALL).await, ids);
    let twice = [State::Running, State::Queuing, State::Running];
    assert_eq!(s.listed(&twice).await, [&ids[0], &ids[1], &ids[3], &ids[4]].map(String::as_str));
    for (limit, expected) in [(3, 3), (0, 0), (-1, 6), (100, 6)] {
        let query = RolloutQuery { limit, ..RolloutQuery::of(State::ALL) };
        assert_eq!(s.store.query_controller_rollouts(query).await.unwrap().len(), expected, "{limit}");
    }
}

/// A run whose controller is gone ends by itself, though not before the controller has had its chance.
pub async fn a_deadline_fails_what_its_controller_left(s: &Subject) {
    let brief = RolloutConfig { timeout_seconds: 5, ..RolloutConfig::default() };
    let request = RolloutCreate { config: Some(brief), ..RolloutCreate::new("task") };
    let made = s.store.create_controller_rollouts(vec![request]).await.unwrap();
    s.clock.advance(600.0);
    assert_eq!(s.seen(&made[0].rollout_id).await.status.state, State::Queuing, "waiting takes no time");
    s.go(&made[0], State::Running).await.unwrap();
    s.clock.advance(6.0);
    assert_eq!(s.seen(&made[0].rollout_id).await.status.state, State::Running);
    s.clock.advance(GRACE);
    let failed = s.seen(&made[0].rollout_id).await;
    assert_eq!((failed.status.state, failed.status.updated_at), (State::Failed, START + 606.0 + GRACE));
    assert_eq!(failed.status.error_message.as_deref(), Some("the attempt timed out"));
    assert_eq!(s.dequeue().await, None);
    assert_eq!(s.logged().await.len(), 1);
}

/// Events come back as they were told, and are spans of the attempt to 0.3.
pub async fn events_are_spans(s: &Subject) {
    let rollout = s.claimed().await;
    let id = rollout.rollout_id.as_str();
    s.clock.advance(1.5);
    let data = json!({"n": 0.1, "deep": [{"x": null}], "text": "ä\""});
    let event = EventCreate { event_type: "hello".to_owned(), data: object(data.clone()) };
    let told = s.store.add_event(id, LATEST_ATTEMPT, event.clone()).await.unwrap();
    assert_eq!((told.event_type.as_str(), told.rollout_id.as_str()), ("hello", id));
    assert_eq!((told.attempt_id.as_str(), told.timestamp), (LATEST_ATTEMPT, START + 1.5));
    assert_eq!(Value::Object(told.data.clone()), data);
    s.tell(id, REWARD, json!({"value": 0.5, "reason": "good"})).await;
    let attempt = s.latest(id).await;
    s.store.add_event(id, &attempt.attempt_id, event).await.unwrap();

    let query = EventsQuery { rollout_id: id.to_owned(), event_type: None };
    let events = s.store.query_events(query).await.unwrap();
    assert_eq!(
        events.iter().map(|event| event.event_type.as_str()).collect::<Vec<_>>(),
        ["hello", REWARD, "hello"]
    );
    assert_eq!(events[0], told);
    assert!(events.iter().all(|event| event.attempt_id == LATEST_ATTEMPT));
    let rewards = s.events(id, Some(REWARD)).await;
    assert_eq!(rewards, [(REWARD.to_owned(), json!({"value": 0.5, "reason": "good"}))]);
    assert_eq!(s.events(id, Some("other")).await, []);

    assert_eq!(s.status(id).await, RolloutStatus::Running, "an event is a sign of life");
    assert_eq!(attempt.last_heartbeat_time, Some(START + 1.5));
    let query =
        SpanQuery { rollout_id: id.to_owned(), attempt_id: Some(attempt.attempt_id), ..SpanQuery::default() };
    let spans = s.store.query_spans(query).await.unwrap().items;
    assert_eq!(spans.iter().map(|span| span.sequence_id).collect::<Vec<_>>(), [1, 2, 3]);
    let values: Vec<Option<f64>> =
        spans.iter().map(|span| span.attributes.get("agentlightning.reward.0.value")?.as_f64()).collect();
    assert_eq!(values, [None, Some(0.5), None]);
    assert_eq!(spans.iter().map(|span| &span.span_id).collect::<HashSet<_>>().len(), 3);
}

/// Rewards that 0.3's emitters wrote are events too; other spans are none.
pub async fn rewards_of_runners_are_events(s: &Subject) {
    let started = s.start().await;
    let id = started.rollout.rollout_id.as_str();
    let reward = crate::span(&started.attempt, 2, 20)
        .with_attribute("agentlightning.reward.0.name", "primary")
        .with_attribute("agentlightning.reward.0.value", 0.25);
    s.store.add_span(reward).await.unwrap();
    s.add_span(&started.attempt, 1, 10).await;
    s.tell(id, "note", json!({})).await;
    let query = EventsQuery { rollout_id: id.to_owned(), event_type: None };
    let events = s.store.query_events(query).await.unwrap();
    assert!(events.iter().all(|event| event.attempt_id == started.attempt.attempt_id));
    let expected = [(REWARD.to_owned(), json!({"value": 0.25})), ("note".to_owned(), json!({}))];
    assert_eq!(s.events(id, None).await, expected);
}

/// An event needs a rollout, and an attempt to belong to.
pub async fn events_need_an_attempt(s: &Subject) {
    let event = EventCreate { event_type: "x".to_owned(), data: object(json!({})) };
    assert_not_found(s.store.add_event("nope", LATEST_ATTEMPT, event.clone()).await, "nope");
    assert_not_found(
        s.store.query_events(EventsQuery { rollout_id: "nope".to_owned(), event_type: None }).await,
        "nope",
    );
    let rollout = s.create("task").await;
    let id = rollout.rollout_id.as_str();
    assert_conflict(s.store.add_event(id, LATEST_ATTEMPT, event.clone()).await, "claim it first");
    assert_eq!(s.events(id, None).await, []);
    s.go(&rollout, State::Running).await.unwrap();
    assert_not_found(s.store.add_event(id, "at-nope", event.clone()).await, "at-nope");
    s.go(&rollout, State::Succeeded).await.unwrap();
    s.store.add_event(id, LATEST_ATTEMPT, event).await.unwrap();
    assert_eq!(s.events(id, None).await.len(), 1, "late events are kept");
    assert_eq!(s.seen(id).await.status.state, State::Succeeded);
}

/// Events are those of the attempt that the controller named last, or of the latest.
pub async fn events_are_of_one_attempt(s: &Subject) {
    let rollout = s.claimed().await;
    let id = rollout.rollout_id.as_str();
    s.tell(id, "first", json!({})).await;
    let first = s.latest(id).await;
    s.go(&rollout, State::Failed).await.unwrap();
    s.set_status(id, RolloutStatus::Queuing).await;
    s.go(&rollout, State::Running).await.unwrap();
    assert_eq!(s.events(id, None).await, []);
    s.tell(id, "second", json!({})).await;
    assert_eq!(s.events(id, None).await[0].0, "second");
    for (named, expected) in [(first.attempt_id.as_str(), "first"), (LATEST_ATTEMPT, "second")] {
        let update =
            StatusUpdate { last_attempt_id: Some(named.to_owned()).into(), ..StatusUpdate::default() };
        s.patch(&rollout, update).await.unwrap();
        let events =
            s.store.query_events(EventsQuery { rollout_id: id.to_owned(), event_type: None }).await.unwrap();
        assert_eq!(events.len(), 1);
        assert_eq!((events[0].event_type.as_str(), events[0].attempt_id.as_str()), (expected, named));
    }
    let nowhere = StatusUpdate { last_attempt_id: Some("x".to_owned()).into(), ..StatusUpdate::default() };
    s.patch(&rollout, nowhere).await.unwrap();
    assert_eq!(s.events(id, None).await, []);
}

/// The log has every rollout that ended, in this order, and is read in parts.
pub async fn completions_come_in_order(s: &Subject) {
    assert_eq!(s.log(0, 10).await, Completions { items: vec![], next_after: 0, total_terminal: 0 });
    let inputs = [json!({"data_id": "d", "instance_id": "i"}), json!({"instance_id": 7}), json!("plain")];
    let mut made = Vec::new();
    for input in inputs {
        made.push(s.create(input).await);
    }
    let theirs = s.enqueue(json!({"data_id": ""})).await;
    for (number, state) in [(2, State::Failed), (0, State::Succeeded), (1, State::Succeeded)] {
        if state == State::Succeeded {
            s.go(&made[number], State::Running).await.unwrap();
        }
        s.go(&made[number], state).await.unwrap();
    }
    let claimed = s.dequeue().await.unwrap();
    s.report(&claimed.attempt, AttemptStatus::Failed).await;

    let all = s.log(0, 1000).await;
    let items: Vec<_> =
        all.items.iter().map(|item| (item.rollout_id.as_str(), item.state, item.data_id.as_str())).collect();
    let expected = [
        (made[2].rollout_id.as_str(), State::Failed, ""),
        (made[0].rollout_id.as_str(), State::Succeeded, "d"),
        (made[1].rollout_id.as_str(), State::Succeeded, "7"),
        (theirs.rollout_id.as_str(), State::Failed, ""),
    ];
    assert_eq!(items, expected);
    assert_eq!((all.next_after, all.total_terminal), (4, 4));
    let mut after = 0;
    let mut parts = Vec::new();
    while after < all.total_terminal {
        let part = s.log(after, 3).await;
        assert!(part.next_after > after);
        after = part.next_after;
        parts.extend(part.items);
    }
    assert_eq!(parts, all.items);
    assert_eq!(s.log(99, 10).await, Completions { items: vec![], next_after: 99, total_terminal: 4 });
    assert_eq!(s.log(-5, 0).await.items.len(), 1, "a limit is at least 1");
}

/// A rollout that is taken up again leaves the log, and comes back to its end; so the cursor misses nothing.
pub async fn completions_follow_what_ends_again(s: &Subject) {
    let (first, second) = (s.claimed().await, s.claimed().await);
    for rollout in [&first, &second] {
        s.go(rollout, State::Failed).await.unwrap();
    }
    let seen = s.log(0, 1000).await;
    s.set_status(&first.rollout_id, RolloutStatus::Queuing).await;
    assert_eq!(s.logged().await, [second.rollout_id.as_str()]);
    s.go(&first, State::Running).await.unwrap();
    s.go(&first, State::Succeeded).await.unwrap();
    assert_eq!(s.logged().await, [second.rollout_id.as_str(), &first.rollout_id]);
    let news = s.log(seen.next_after, 1000).await;
    assert_eq!(news.items.len(), 1);
    assert_eq!((news.items[0].state, news.next_after, news.total_terminal), (State::Succeeded, 3, 3));

    // A place is never given twice, so that nobody who was there misses what comes.
    s.store.delete_rollout(&first.rollout_id).await.unwrap();
    assert_eq!(s.logged().await, [second.rollout_id.as_str()]);
    assert_eq!(s.log(0, 1000).await.next_after, 3);
    let third = s.claimed().await;
    s.go(&third, State::Failed).await.unwrap();
    assert_eq!(s.log(3, 1000).await.items[0].rollout_id, third.rollout_id);
}

/// Nothing of a deleted rollout is left, and nobody is kept by it.
pub async fn deleting_leaves_nothing(s: &Subject) {
    let started = s.start_with(config(1, &[]), Some("w")).await;
    let id = started.rollout.rollout_id.as_str();
    s.add_span(&started.attempt, 1, 5).await;
    let kept = s.start().await;
    s.add_span(&kept.attempt, 1, 1).await;
    let store = Arc::clone(&s.store);
    let request = WaitRequest { rollout_ids: vec![id.to_owned()], timeout: None };
    let waiting = tokio::spawn(async move { store.wait_for_rollouts(request).await });
    tokio::time::sleep(Duration::from_millis(20)).await;
    s.store.delete_rollout(id).await.unwrap();

    assert_eq!(waiting.await.unwrap().unwrap(), [], "it will not end any more");
    let worker = s.worker("w").await;
    assert_eq!((worker.status, worker.current_rollout_id), (WorkerStatus::Idle, None));
    assert_eq!(s.store.get_rollout_by_id(id).await.unwrap(), None);
    assert_eq!(s.store.get_controller_rollout(id).await.unwrap(), None);
    assert_eq!(s.store.get_latest_attempt(id).await.unwrap(), None);
    let spans_of = |id: &str| SpanQuery { rollout_id: id.to_owned(), ..SpanQuery::default() };
    assert_eq!(s.store.query_spans(spans_of(id)).await.unwrap().items, []);
    assert_eq!(s.store.query_spans(spans_of(&kept.rollout.rollout_id)).await.unwrap().items.len(), 1);
    assert_eq!(s.store.get_next_span_sequence_id(id, "x").await.unwrap(), 1, "its counter is gone");
    assert_not_found(s.store.add_span(crate::span(&started.attempt, 2, 6)).await, id);
    assert_not_found(s.store.delete_rollout(id).await, id);
}

/// What is deleted is in no list: not in the queue, not with the controllers, not among the deadlines.
pub async fn what_is_deleted_is_in_no_list(s: &Subject) {
    let (queued, ours) = (s.enqueue("queued").await, s.create("ours").await);
    let ended = s.create("ended").await;
    s.go(&ended, State::Failed).await.unwrap();
    let limits =
        agl_types::RolloutConfig { timeout_seconds: Some(5.0), ..config(2, &[AttemptStatus::Timeout]) };
    let limited = s.start_with(limits, Some("w")).await;
    for id in [&queued.rollout_id, &ours.rollout_id, &ended.rollout_id, &limited.rollout.rollout_id] {
        s.store.delete_rollout(id).await.unwrap();
    }
    s.clock.advance(60.0);
    assert_eq!(s.dequeue().await, None);
    assert_eq!(s.listed(State::ALL).await, [""; 0]);
    assert_eq!(s.logged().await, [""; 0]);
    assert_eq!(s.find(agl_types::RolloutQuery::default()).await, (vec![], 0));
    assert_eq!(s.worker("w").await.status, WorkerStatus::Idle);

    let again = RolloutCreate { rollout_id: Some(ours.rollout_id.clone()), ..RolloutCreate::new("new") };
    let made = s.store.create_controller_rollouts(vec![again]).await.unwrap();
    assert_eq!((&made[0].input, made[0].status.version), (&json!("new"), 1), "its id is free");
}

/// Other rollouts keep their order when one before them is deleted.
pub async fn deleting_keeps_the_order_of_the_others(s: &Subject) {
    let mut made = Vec::new();
    for number in 0..5 {
        made.push(s.enqueue(number).await.rollout_id);
    }
    for number in [3, 0] {
        s.store.delete_rollout(&made[number]).await.unwrap();
        made.remove(number);
    }
    made.push(s.enqueue("last").await.rollout_id);
    assert_eq!(s.find(agl_types::RolloutQuery::default()).await.0, made);
    for id in &made {
        assert_eq!(s.dequeue().await.unwrap().rollout.rollout_id, *id);
    }
}

/// Models are known by name and endpoint.
pub async fn models_are_registered_and_removed(s: &Subject) {
    let model = |model: &str, endpoint: &str, version| Model {
        model: model.to_owned(),
        endpoint: endpoint.to_owned(),
        version,
    };
    assert_eq!(s.store.query_models().await.unwrap(), []);
    let given = vec![model("m", "http://b/v1", 0), model("m", "http://a/v1", 3)];
    assert_eq!(s.store.register_models(given.clone()).await.unwrap(), given);
    let newer = vec![model("m", "http://b/v1", 4), model("n", "http://b/v1", 1)];
    assert_eq!(s.store.register_models(newer.clone()).await.unwrap(), newer);
    assert_eq!(s.store.query_models().await.unwrap(), [newer[0].clone(), given[1].clone(), newer[1].clone()]);
    let key = |model: &Model| ModelKey { model: model.model.clone(), endpoint: model.endpoint.clone() };
    s.store.delete_models(Some(key(&newer[0]))).await.unwrap();
    s.store.delete_models(Some(key(&newer[0]))).await.unwrap();
    assert_eq!(s.store.query_models().await.unwrap(), [given[1].clone(), newer[1].clone()]);
    s.store.delete_models(None).await.unwrap();
    assert_eq!(s.store.query_models().await.unwrap(), []);
}

/// A retry of a call that was carried out changes nothing and is answered like the first.
pub async fn retried_calls_of_controllers_count_once(s: &Subject) {
    let once = |name: &str| s.store.once(IdempotencyKey { key: name.into(), fingerprint: [0; 16] }).unwrap();
    let (mut made, mut claims, mut told) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..2 {
        made.push(once("make").create_controller_rollouts(vec![RolloutCreate::new(1)]).await.unwrap());
    }
    assert_eq!(made[0], made[1]);
    let id = made[0][0].rollout_id.as_str();
    for _ in 0..2 {
        let claim = once("claim").update_controller_rollout(id, StatusUpdate::to(State::Running)).await;
        claims.push(claim.unwrap());
    }
    assert_eq!(claims[0], claims[1]);
    assert_conflict(s.go(&claims[0], State::Running).await, "running -> running");
    for _ in 0..2 {
        let event = EventCreate { event_type: "x".to_owned(), data: object(json!({"a": 1})) };
        told.push(once("tell").add_event(id, LATEST_ATTEMPT, event).await.unwrap());
    }
    assert_eq!(told[0], told[1]);
    assert_eq!(s.events(id, None).await.len(), 1);
    for _ in 0..2 {
        once("delete").delete_rollout(id).await.unwrap();
    }
    assert_not_found(s.store.delete_rollout(id).await, id);
}

/// Deletion takes what it deletes out of the statistics, however many spans there are.
pub async fn deleting_is_counted(s: &Subject) {
    let (kept, gone) = (s.start().await, s.start().await);
    s.add_span(&kept.attempt, 1, 1).await;
    let spans = (0..2_500).map(|number| crate::span(&gone.attempt, number, 1)).collect();
    s.store.add_many_spans(spans).await.unwrap();
    let queued = s.enqueue("queued").await;
    for id in [&gone.rollout.rollout_id, &queued.rollout_id] {
        s.store.delete_rollout(id).await.unwrap();
    }
    let statistics = s.store.statistics().await.unwrap();
    let totals = [statistics.total_rollouts, statistics.total_attempts, statistics.total_spans];
    assert_eq!((totals, &statistics.extra["queued_rollouts"]), ([1, 1, 1], &json!(0)));
}
