//! Properties of the lifecycle that hold for every state and event, and the transitions of 0.3 as a table.
#![expect(clippy::unwrap_used, reason = "what cannot be made is a failed test")]

use agl_types::AttemptStatus::{Failed, Preparing, Running, Succeeded, Timeout, Unresponsive};
use agl_types::lifecycle::{
    Effect, Event, State, WorkerEvent, apply, apply_to_worker, create, deadline, overdue, project,
};
use agl_types::{
    Attempt, AttemptStatus, AttemptUpdate, EnqueueRolloutRequest, JsonMap, Patch, Rollout, RolloutConfig,
    RolloutStatus, RolloutUpdate, Worker, WorkerStatus, WorkerUpdate,
};
use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use serde_json::json;

const ENDS: &[RolloutStatus] = &[RolloutStatus::Failed, RolloutStatus::Succeeded, RolloutStatus::Cancelled];

fn config() -> impl Strategy<Value = RolloutConfig> {
    let seconds = || proptest::option::of(0.0..50.0_f64);
    let retry = subsequence(AttemptStatus::ALL.to_vec(), 0..=AttemptStatus::ALL.len());
    (seconds(), seconds(), 1..5_u32, retry).prop_map(|(timeout, silence, max_attempts, retry_condition)| {
        RolloutConfig {
            timeout_seconds: timeout,
            unresponsive_seconds: silence,
            max_attempts: max_attempts.try_into().unwrap(),
            retry_condition,
        }
    })
}

fn worker_id() -> impl Strategy<Value = Option<String>> {
    proptest::option::of(select(vec!["w1", "w2", ""])).prop_map(|id| id.map(str::to_owned))
}

/// Any state that a store may hold.
fn state() -> impl Strategy<Value = State> {
    (tried(), proptest::bool::weighted(0.8))
        .prop_map(|(state, is_tried)| State { attempt: state.attempt.filter(|_| is_tried), ..state })
}

/// A state with an attempt.
fn tried() -> impl Strategy<Value = State> {
    tried_with(RolloutStatus::ALL)
}

/// A state with an attempt, as a store would hold it: end times go with statuses.
fn tried_with(statuses: &'static [RolloutStatus]) -> impl Strategy<Value = State> {
    let times = (0.0..100.0_f64, proptest::option::of(0.0..100.0_f64));
    let parts = (
        select(statuses),
        config(),
        (select(AttemptStatus::ALL), 1..5_u32, times, worker_id()),
        any::<bool>(),
    );
    parts.prop_map(|(status, config, attempt, superseded)| {
        let rollout = Rollout {
            rollout_id: "ro-1".to_owned(),
            input: json!("task"),
            start_time: 0.0,
            end_time: status.is_terminal().then_some(50.0),
            mode: None,
            resources_id: None,
            status,
            config,
            metadata: None,
        };
        let (status, sequence_id, (start_time, heartbeat), worker_id) = attempt;
        let attempt = Some(Attempt {
            rollout_id: "ro-1".to_owned(),
            attempt_id: format!("at-{sequence_id}"),
            sequence_id,
            start_time,
            end_time: status.is_terminal().then_some(start_time),
            status,
            worker_id,
            last_heartbeat_time: heartbeat,
            metadata: None,
        });
        State { rollout, attempt, superseded }
    })
}

fn patch<T: Clone + std::fmt::Debug>(values: impl Strategy<Value = T>) -> impl Strategy<Value = Patch<T>> {
    proptest::option::of(values).prop_map(|value| value.map_or(Patch::Keep, Patch::Set))
}

fn attempt_update() -> impl Strategy<Value = AttemptUpdate> {
    let heartbeat = proptest::option::of(0.0..200.0_f64);
    let metadata = Just(Some(JsonMap::new()));
    (patch(select(AttemptStatus::ALL)), patch(worker_id()), patch(heartbeat), patch(metadata)).prop_map(
        |(status, worker_id, last_heartbeat_time, metadata)| AttemptUpdate {
            status,
            worker_id,
            last_heartbeat_time,
            metadata,
        },
    )
}

fn rollout_update() -> impl Strategy<Value = RolloutUpdate> {
    (patch(select(RolloutStatus::ALL)), patch(config()), patch(Just(json!("new")))).prop_map(
        |(status, config, input)| RolloutUpdate { status, config, input, ..RolloutUpdate::default() },
    )
}

fn implicit_event() -> impl Strategy<Value = Event> {
    prop_oneof![
        Just(Event::SpanReceived),
        Just(Event::DeadlinePassed),
        attempt_update().prop_map(Event::AttemptUpdated),
    ]
}

fn explicit_event() -> impl Strategy<Value = Event> {
    prop_oneof![
        (1..9_u32, worker_id()).prop_map(|(sequence_id, worker_id)| Event::AttemptStarted {
            attempt_id: format!("at-new-{sequence_id}"),
            sequence_id,
            worker_id,
        }),
        rollout_update().prop_map(Event::RolloutUpdated),
    ]
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![2 => implicit_event(), 1 => explicit_event()]
}

fn is_consistent(state: &State) -> bool {
    let rollout = state.rollout.end_time.is_some() == state.rollout.status.is_terminal();
    let attempt = state.attempt.as_ref().is_none_or(|a| a.end_time.is_some() == a.status.is_terminal());
    rollout && attempt
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    /// No span, deadline, or news of an attempt moves a rollout out of a terminal status.
    #[test]
    fn implicit_events_move_nothing_out_of_a_terminal_status(
        state in tried_with(ENDS), events in prop::collection::vec(implicit_event(), 1..6),
    ) {
        let before = state.rollout.clone();
        let mut state = state;
        for (step, event) in (0_u32..).zip(&events) {
            let transition = apply(state, event, 100.0 + f64::from(step)).unwrap();
            prop_assert_eq!(&transition.state.rollout, &before);
            let only_workers = transition.effects.iter().all(|effect| matches!(effect, Effect::Worker { .. }));
            prop_assert!(only_workers, "{:?}", transition.effects);
            state = transition.state;
        }
    }

    /// News of a superseded attempt changes nothing of the rollout, and queues nothing.
    #[test]
    fn a_superseded_attempt_changes_nothing_else(state in tried(), event in implicit_event()) {
        let state = State { superseded: true, ..state };
        let transition = apply(state.clone(), &event, 100.0).unwrap();
        prop_assert_eq!(transition.state.rollout, state.rollout);
        let only_workers = transition.effects.iter().all(|effect| matches!(effect, Effect::Worker { .. }));
        prop_assert!(only_workers, "{:?}", transition.effects);
        let claims = transition.effects.iter().any(|effect| matches!(
            effect, Effect::Worker { event: WorkerEvent::Claimed { .. }, .. }
        ));
        prop_assert!(!claims, "nobody is kept from newer work");
    }

    /// End times are there if and only if the status is terminal, and say when it became so.
    #[test]
    fn end_times_go_with_terminal_statuses(state in state(), events in prop::collection::vec(event(), 1..8)) {
        let mut state = state;
        prop_assert!(is_consistent(&state));
        for (step, event) in (0_u32..).zip(&events) {
            let now = 100.0 + f64::from(step);
            let before = state.rollout.status;
            let Ok(transition) = apply(state.clone(), event, now) else { continue };
            state = transition.state;
            prop_assert!(is_consistent(&state), "{event:?} made {state:?}");
            if state.rollout.status != before && state.rollout.status.is_terminal() {
                prop_assert_eq!(state.rollout.end_time, Some(now));
            }
        }
    }

    /// The effects keep a queue whose members are exactly the rollouts that wait, each once.
    #[test]
    fn effects_keep_the_queue(state in state(), events in prop::collection::vec(event(), 1..8)) {
        let mut state = state;
        let mut queued = i32::from(state.rollout.status.is_queuing());
        for event in &events {
            let Ok(transition) = apply(state.clone(), event, 100.0) else { continue };
            state = transition.state;
            for effect in &transition.effects {
                match effect {
                    Effect::Enqueue => queued += 1,
                    Effect::Unqueue => queued -= 1,
                    Effect::Finished => prop_assert!(state.rollout.status.is_terminal()),
                    Effect::Worker { worker_id, .. } => prop_assert!(!worker_id.is_empty()),
                }
            }
            prop_assert_eq!(queued, i32::from(state.rollout.status.is_queuing()));
        }
    }

    /// Whoever waits for the end is told whenever it comes.
    #[test]
    fn an_end_is_announced(state in state(), event in event()) {
        let was_terminal = state.rollout.status.is_terminal();
        let Ok(transition) = apply(state, &event, 100.0) else { return Ok(()) };
        if transition.state.rollout.status.is_terminal() && !was_terminal {
            prop_assert!(transition.effects.contains(&Effect::Finished));
        }
    }

    /// A rollout asks for another attempt only while attempts are left and the failure is one to retry.
    #[test]
    fn retries_are_bounded(state in tried(), event in implicit_event()) {
        let before = state.rollout.status;
        let transition = apply(state, &event, 100.0).unwrap();
        let State { rollout, attempt, .. } = transition.state;
        let attempt = attempt.unwrap();
        if rollout.status == RolloutStatus::Requeuing && before != RolloutStatus::Requeuing {
            prop_assert!(attempt.sequence_id < rollout.config.max_attempts.get());
            prop_assert!(rollout.config.retry_condition.contains(&attempt.status));
        }
    }

    /// Before its deadline an attempt is not overdue, just after it is, and acting upon it removes it.
    #[test]
    fn deadlines_are_exact(state in tried(), now in 0.0..200.0_f64) {
        let attempt = state.attempt.as_ref().unwrap();
        let at = deadline(&state.rollout, attempt);
        let late = overdue(&state.rollout, attempt, now);
        prop_assert_eq!(late.is_some(), at.is_some_and(|at| now > at));
        if let Some(status) = late {
            prop_assert!(matches!(status, Timeout | Unresponsive));
            let state = State { superseded: false, ..state };
            let after = apply(state, &Event::DeadlinePassed, now).unwrap().state;
            let attempt = after.attempt.unwrap();
            prop_assert_eq!(attempt.status, status);
            prop_assert_eq!(deadline(&after.rollout, &attempt), None);
            prop_assert!(matches!(after.rollout.status, RolloutStatus::Failed | RolloutStatus::Requeuing));
        } else {
            let before = state.clone();
            prop_assert_eq!(apply(state, &Event::DeadlinePassed, now).unwrap().state, before);
        }
    }

    /// An update changes exactly the fields it names, the status and the end apart.
    #[test]
    fn rollout_updates_touch_what_they_name(state in state(), update in rollout_update()) {
        let before = state.rollout.clone();
        let after = apply(state, &Event::RolloutUpdated(update.clone()), 100.0).unwrap().state.rollout;
        let expected_input = update.input.as_set().unwrap_or(&before.input);
        prop_assert_eq!(&after.input, expected_input);
        prop_assert_eq!(&after.config, update.config.as_set().unwrap_or(&before.config));
        prop_assert_eq!(after.status, *update.status.as_set().unwrap_or(&before.status));
        prop_assert_eq!((after.mode, &after.metadata), (before.mode, &before.metadata));
        if update.status.is_keep() {
            prop_assert_eq!(after.end_time, before.end_time);
        }
    }

    /// A claim can be made from any status, beyond any limit.
    #[test]
    fn a_claim_is_always_possible(state in state(), sequence_id in 1..100_u32) {
        let event = Event::AttemptStarted {
            attempt_id: "at-new".to_owned(), sequence_id, worker_id: Some("w".to_owned()),
        };
        let transition = apply(state, &event, 100.0).unwrap();
        prop_assert_eq!(transition.state.rollout.status, RolloutStatus::Preparing);
        prop_assert_eq!(transition.state.rollout.end_time, None);
        let attempt = transition.state.attempt.unwrap();
        prop_assert_eq!((attempt.sequence_id, attempt.status, attempt.start_time), (sequence_id, Preparing, 100.0));
        let claimed = WorkerEvent::Claimed { rollout_id: "ro-1".to_owned(), attempt_id: "at-new".to_owned() };
        let effect = Effect::Worker { worker_id: "w".to_owned(), event: claimed };
        prop_assert!(transition.effects.contains(&effect));
    }

    /// A worker that holds one attempt does not hear about the end of another.
    #[test]
    fn workers_ignore_what_they_no_longer_hold(is_lost in any::<bool>(), now in 0.0..9.0_f64) {
        let mut worker = Worker::new("w");
        let claim = WorkerEvent::Claimed { rollout_id: "r".to_owned(), attempt_id: "new".to_owned() };
        apply_to_worker(&mut worker, &claim, 1.0);
        let before = worker.clone();
        let attempt_id = "old".to_owned();
        let news = if is_lost { WorkerEvent::Lost { attempt_id } } else { WorkerEvent::Released { attempt_id } };
        apply_to_worker(&mut worker, &news, now);
        prop_assert_eq!(worker, before);
    }
}

fn rollout(status: RolloutStatus, config: RolloutConfig) -> Rollout {
    let request = EnqueueRolloutRequest { config: Some(config), ..EnqueueRolloutRequest::new("task") };
    Rollout { status, ..create(request, "ro-1".to_owned(), None, 0.0) }
}

fn attempt(status: AttemptStatus, sequence_id: u32) -> Attempt {
    Attempt {
        rollout_id: "ro-1".to_owned(),
        attempt_id: format!("at-{sequence_id}"),
        sequence_id,
        start_time: 0.0,
        end_time: None,
        status,
        worker_id: None,
        last_heartbeat_time: None,
        metadata: None,
    }
}

/// Another name frees the worker that had the attempt, and so does none; the empty name tells nobody anything.
#[test]
fn a_new_name_on_an_attempt() {
    let released = Effect::Worker {
        worker_id: "w".to_owned(),
        event: WorkerEvent::Released { attempt_id: "at-1".to_owned() },
    };
    let claimed = Effect::Worker {
        worker_id: "v".to_owned(),
        event: WorkerEvent::Claimed { rollout_id: "ro-1".to_owned(), attempt_id: "at-1".to_owned() },
    };
    let table = [(Some(""), vec![]), (None, vec![released.clone()]), (Some("v"), vec![released, claimed])];
    for (name, effects) in table {
        let state = State {
            rollout: rollout(RolloutStatus::Running, RolloutConfig::default()),
            attempt: Some(Attempt { worker_id: Some("w".to_owned()), ..attempt(Running, 1) }),
            superseded: false,
        };
        let worker_id = Patch::Set(name.map(str::to_owned));
        let update = AttemptUpdate { worker_id, ..AttemptUpdate::default() };
        let transition = apply(state, &Event::AttemptUpdated(update), 1.0).unwrap();
        assert_eq!(transition.state.attempt.unwrap().worker_id.as_deref(), name);
        assert_eq!(transition.effects, effects, "{name:?}");
    }
}

/// The projection of an attempt onto its rollout, for every status, with and without attempts left.
#[test]
fn projections() {
    let patient = RolloutConfig {
        max_attempts: 2.try_into().unwrap(),
        retry_condition: vec![Failed, Timeout, Unresponsive],
        ..RolloutConfig::default()
    };
    let table = [
        (Preparing, RolloutStatus::Preparing, RolloutStatus::Preparing),
        (Running, RolloutStatus::Running, RolloutStatus::Running),
        (Succeeded, RolloutStatus::Succeeded, RolloutStatus::Succeeded),
        (Failed, RolloutStatus::Requeuing, RolloutStatus::Failed),
        (Timeout, RolloutStatus::Requeuing, RolloutStatus::Failed),
        (Unresponsive, RolloutStatus::Requeuing, RolloutStatus::Failed),
    ];
    for (status, first, last) in table {
        assert_eq!(project(status, 1, &patient), first);
        assert_eq!(project(status, 2, &patient), last);
        assert_eq!(project(status, 1, &RolloutConfig::default()), last);
    }
}

/// What a span does to an attempt, and to its rollout.
#[test]
fn spans() {
    let table = [
        (Preparing, Running),
        (Running, Running),
        (Unresponsive, Running),
        (Timeout, Timeout),
        (Failed, Failed),
        (Succeeded, Succeeded),
    ];
    for (before, after) in table {
        let state = State {
            rollout: rollout(RolloutStatus::Requeuing, RolloutConfig::default()),
            attempt: Some(attempt(before, 1)),
            superseded: false,
        };
        let state = apply(state, &Event::SpanReceived, 7.0).unwrap().state;
        let attempt = state.attempt.unwrap();
        assert_eq!((attempt.status, attempt.last_heartbeat_time), (after, Some(7.0)));
        let expected = if after == Running { RolloutStatus::Running } else { RolloutStatus::Requeuing };
        assert_eq!(state.rollout.status, expected, "{before}");
    }
}

/// Both limits: whichever comes first is the deadline, and a timeout wins when both have passed.
#[test]
fn limits() {
    let config = RolloutConfig {
        timeout_seconds: Some(10.0),
        unresponsive_seconds: Some(4.0),
        ..RolloutConfig::default()
    };
    let rollout = rollout(RolloutStatus::Running, config);
    let mut attempt = attempt(Running, 1);
    assert_eq!(deadline(&rollout, &attempt), Some(4.0));
    assert_eq!(overdue(&rollout, &attempt, 4.0), None);
    assert_eq!(overdue(&rollout, &attempt, 4.1), Some(Unresponsive));
    assert_eq!(overdue(&rollout, &attempt, 10.1), Some(Timeout));
    attempt.last_heartbeat_time = Some(8.0);
    assert_eq!(deadline(&rollout, &attempt), Some(10.0));
    for status in [Failed, Succeeded, Timeout, Unresponsive] {
        attempt.status = status;
        assert_eq!(deadline(&rollout, &attempt), None, "{status}");
    }
}

/// Events about an attempt need one.
#[test]
fn an_attempt_is_needed() {
    let state = State {
        rollout: rollout(RolloutStatus::Queuing, RolloutConfig::default()),
        attempt: None,
        superseded: false,
    };
    for event in [Event::SpanReceived, Event::AttemptUpdated(AttemptUpdate::default()), Event::DeadlinePassed]
    {
        assert!(apply(state.clone(), &event, 1.0).is_err(), "{event:?}");
    }
}

/// A worker's whole life: asked in vain, claimed, released, lost, and heartbeats in between.
#[test]
fn a_workers_life() {
    let mut worker = Worker::new("w");
    assert_eq!(worker.status, WorkerStatus::Unknown);
    apply_to_worker(&mut worker, &WorkerEvent::Dequeued { got_work: false }, 1.0);
    assert_eq!(
        (worker.status, worker.last_dequeue_time, worker.last_idle_time),
        (WorkerStatus::Idle, Some(1.0), Some(1.0))
    );
    apply_to_worker(&mut worker, &WorkerEvent::Dequeued { got_work: true }, 2.0);
    let claim = |id: &str| WorkerEvent::Claimed { rollout_id: "r".to_owned(), attempt_id: id.to_owned() };
    apply_to_worker(&mut worker, &claim("a"), 2.0);
    assert_eq!(
        (worker.status, worker.last_dequeue_time, worker.last_busy_time),
        (WorkerStatus::Busy, Some(2.0), Some(2.0))
    );
    let stats: JsonMap = [("cpu".to_owned(), json!(1))].into_iter().collect();
    let beat = WorkerEvent::Heartbeat(WorkerUpdate { heartbeat_stats: stats.clone().into() });
    apply_to_worker(&mut worker, &beat, 3.0);
    apply_to_worker(&mut worker, &WorkerEvent::Heartbeat(WorkerUpdate::default()), 4.0);
    assert_eq!(
        (worker.status, worker.last_heartbeat_time, worker.heartbeat_stats.clone()),
        (WorkerStatus::Busy, Some(4.0), Some(stats))
    );
    apply_to_worker(&mut worker, &WorkerEvent::Released { attempt_id: "a".to_owned() }, 5.0);
    assert_eq!(
        (worker.status, worker.last_idle_time, worker.current_attempt_id.clone()),
        (WorkerStatus::Idle, Some(5.0), None)
    );
    apply_to_worker(&mut worker, &claim("b"), 6.0);
    apply_to_worker(&mut worker, &WorkerEvent::Lost { attempt_id: "b".to_owned() }, 7.0);
    assert_eq!((worker.status, worker.current_rollout_id), (WorkerStatus::Unknown, None));
}
