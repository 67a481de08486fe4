//! Memory and SQLite, given the same seeded life, must answer every call alike.
#![expect(clippy::unwrap_used, reason = "a seeded life that breaks off is a failed test")]

use std::sync::Arc;

use agl_store::{
    Error, IdSource, ManualClock, MemoryStore, SeededIds, SpanDraft, SqliteOptions, SqliteStore, Store,
};
use agl_types::{
    AttemptQuery, AttemptStatus, AttemptUpdate, DequeueRequest, EnqueueRolloutRequest, FilterLogic, Llm,
    NamedResources, Patch, Resource, ResourcesQuery, RolloutConfig, RolloutMode, RolloutQuery, RolloutStatus,
    RolloutUpdate, SequenceIdRequest, SortOrder, Span, SpanQuery, StartRollout, WaitRequest, WorkerQuery,
    WorkerUpdate, ids, v1,
};
use serde::Serialize;
use serde_json::{Value, json};

const STEPS: usize = 600;

/// A seeded source of choices.
struct Dice(SeededIds);

impl Dice {
    fn roll(&self, sides: u64) -> u64 {
        self.0.next() % sides
    }

    fn chance(&self, percent: u64) -> bool {
        self.roll(100) < percent
    }

    fn pick<'a, T>(&self, items: &'a [T]) -> &'a T {
        &items[usize::try_from(self.roll(items.len() as u64)).unwrap()]
    }

    fn maybe<T>(&self, percent: u64, make: impl FnOnce() -> T) -> Option<T> {
        self.chance(percent).then(make)
    }

    fn patch<T>(&self, percent: u64, make: impl FnOnce() -> T) -> Patch<T> {
        self.maybe(percent, make).map_or(Patch::Keep, Patch::Set)
    }
}

/// What the life has met so far.
#[derive(Default)]
struct World {
    rollouts: Vec<String>,
    attempts: Vec<(String, String)>,
    resources: Vec<String>,
}

impl World {
    fn rollout(&self, dice: &Dice) -> String {
        if self.rollouts.is_empty() || dice.chance(3) {
            return "ro-nowhere".to_owned();
        }
        dice.pick(&self.rollouts).clone()
    }

    fn attempt(&self, dice: &Dice) -> (String, String) {
        if self.attempts.is_empty() || dice.chance(5) {
            return (self.rollout(dice), "at-nowhere".to_owned());
        }
        // Mostly recent ones, so that something is going on.
        let recent = &self.attempts[self.attempts.len().saturating_sub(6)..];
        dice.pick(if dice.chance(70) { recent } else { &self.attempts }).clone()
    }

    fn learn(&mut self, answer: &Value) {
        match answer {
            Value::Array(items) => items.iter().for_each(|item| self.learn(item)),
            Value::Object(fields) => {
                for (key, known) in
                    [("rollout_id", &mut self.rollouts), ("resources_id", &mut self.resources)]
                {
                    let id = fields.get(key).and_then(Value::as_str).map(str::to_owned);
                    known.extend(id.filter(|id| !known.contains(id)));
                }
                let rollout_id = fields.get("rollout_id").and_then(Value::as_str);
                if let (Some(rollout), Some(attempt)) = (rollout_id, fields.get("attempt")) {
                    let attempt_id = attempt["attempt_id"].as_str().unwrap();
                    let place = (rollout.to_owned(), attempt_id.to_owned());
                    if !self.attempts.contains(&place) {
                        self.attempts.push(place);
                    }
                }
            }
            _ => {}
        }
    }
}

fn json<T: Serialize>(answer: Result<T, Error>) -> Result<Value, Error> {
    answer.map(|answer| serde_json::to_value(answer).unwrap())
}

fn config(dice: &Dice) -> RolloutConfig {
    RolloutConfig {
        timeout_seconds: dice.maybe(40, || 5.0 + dice.roll(20) as f64),
        unresponsive_seconds: dice.maybe(40, || 3.0 + dice.roll(10) as f64),
        max_attempts: u32::try_from(1 + dice.roll(3)).unwrap().try_into().unwrap(),
        retry_condition: AttemptStatus::ALL.iter().copied().filter(|_| dice.chance(40)).collect(),
    }
}

fn worker(dice: &Dice) -> String {
    (*dice.pick(&["w-1", "w-2", "w-3", "W_4%", ""])).to_owned()
}

fn request(dice: &Dice) -> EnqueueRolloutRequest {
    EnqueueRolloutRequest {
        input: json!({"task": dice.roll(1000), "text": "ä\"'%_"}),
        mode: dice.maybe(60, || *dice.pick(RolloutMode::ALL)),
        resources_id: dice.maybe(10, || "rs-explicit".to_owned()),
        config: dice.maybe(80, || config(dice)),
        metadata: dice.maybe(30, || json!({"k": dice.roll(9)}).as_object().unwrap().clone()),
    }
}

fn span(world: &World, dice: &Dice) -> Span {
    let (rollout_id, attempt_id) = world.attempt(dice);
    let trace_id = ids::trace_id(7, dice.roll(5));
    let times = (100.0 + dice.roll(50) as f64, 200.0 + dice.roll(50) as f64);
    let mut span = Span::new(
        *dice.pick(&["llm", "tool", "Reward"]),
        trace_id,
        ids::span_id(dice.roll(40)),
        times.0,
        times.1,
    );
    span.parent_id = dice.maybe(50, || ids::span_id(dice.roll(40)));
    span.end_time = dice.maybe(80, || times.1);
    span.placed(&rollout_id, &attempt_id, i64::try_from(dice.roll(60)).unwrap())
        .with_attribute("n", dice.roll(1_000_000))
}

fn resources(dice: &Dice) -> NamedResources {
    let model = Llm::new("http://h/v1", format!("m{}", dice.roll(100)));
    NamedResources::from_iter([("model".to_owned(), Resource::Llm(model))])
}

fn part(dice: &Dice) -> String {
    (*dice.pick(&["0", "1", "a", "f", "A", "%", "_", "", "-", "0000"])).to_owned()
}

fn order(dice: &Dice) -> SortOrder {
    if dice.chance(50) { SortOrder::Asc } else { SortOrder::Desc }
}

fn logic(dice: &Dice) -> FilterLogic {
    if dice.chance(50) { FilterLogic::And } else { FilterLogic::Or }
}

fn page(dice: &Dice) -> (i64, i64) {
    let numbers = [-1, -1, -1, 0, 1, 3, 10, -2];
    (*dice.pick(&numbers), if dice.chance(60) { 0 } else { *dice.pick(&[1, 2, 50, -1]) })
}

fn sort_by(dice: &Dice, fields: &[&str]) -> Option<String> {
    dice.maybe(70, || (*dice.pick(fields)).to_owned())
}

/// The calls that one step makes; the same dice make the same call.
async fn step(store: &dyn Store, world: &World, dice: &Dice) -> Result<Value, Error> {
    match dice.roll(32) {
        0 => {
            let requests = (0..dice.roll(4)).map(|_| request(dice)).collect();
            json(store.enqueue_many_rollouts(requests).await)
        }
        1 => {
            let worker_id = dice.maybe(70, || worker(dice));
            json(store.start_rollout(StartRollout { rollout: request(dice), worker_id }).await)
        }
        2..=4 => {
            let request = DequeueRequest {
                limit: i64::try_from(dice.roll(4)).unwrap(),
                worker_id: dice.maybe(80, || worker(dice)),
                wait: None,
            };
            json(store.dequeue_many_rollouts(request).await)
        }
        5 => {
            let worker_id = dice.maybe(70, || worker(dice));
            json(store.start_attempt(&world.rollout(dice), worker_id).await)
        }
        6..=9 => {
            let drafts = (0..dice.roll(6))
                .map(|_| SpanDraft { span: span(world, dice), has_sequence_id: dice.chance(50) })
                .collect();
            json(store.add_span_drafts(drafts).await)
        }
        10..=12 => {
            let (rollout_id, attempt_id) = world.attempt(dice);
            let attempt_id = if dice.chance(20) { "latest".to_owned() } else { attempt_id };
            let update = AttemptUpdate {
                status: dice.patch(70, || *dice.pick(AttemptStatus::ALL)),
                worker_id: dice.patch(20, || dice.maybe(80, || worker(dice))),
                last_heartbeat_time: dice.patch(10, || Some(1000.0 + dice.roll(100) as f64)),
                metadata: dice.patch(20, || Some(json!({"m": dice.roll(9)}).as_object().unwrap().clone())),
            };
            json(store.update_attempt(&rollout_id, &attempt_id, update).await)
        }
        13 => {
            let update = RolloutUpdate {
                input: dice.patch(20, || json!(["changed", dice.roll(9)])),
                mode: dice.patch(20, || dice.maybe(50, || *dice.pick(RolloutMode::ALL))),
                resources_id: dice.patch(10, || None),
                status: dice.patch(40, || *dice.pick(RolloutStatus::ALL)),
                config: dice.patch(30, || config(dice)),
                metadata: dice.patch(20, || None),
            };
            json(store.update_rollout(&world.rollout(dice), update).await)
        }
        14 => {
            let requests = (0..dice.roll(4))
                .map(|_| SequenceIdRequest { rollout_id: world.rollout(dice), attempt_id: "x".to_owned() })
                .collect();
            json(store.get_many_span_sequence_ids(requests).await)
        }
        15 if dice.chance(50) => json(store.add_resources(resources(dice)).await),
        15 => {
            let known = if world.resources.is_empty() || dice.chance(20) {
                "rs-mine"
            } else {
                dice.pick(&world.resources)
            };
            json(store.update_resources(known, resources(dice)).await)
        }
        16 => {
            let stats = dice.patch(50, || json!({"load": dice.roll(9)}).as_object().unwrap().clone());
            json(store.update_worker(&worker(dice), WorkerUpdate { heartbeat_stats: stats }).await)
        }
        17 => {
            let rollout_ids = (0..dice.roll(4)).map(|_| world.rollout(dice)).collect();
            json(store.wait_for_rollouts(WaitRequest { rollout_ids, timeout: Some(0.0) }).await)
        }
        18 | 19 => {
            let (limit, offset) = page(dice);
            let query = RolloutQuery {
                status_in: dice
                    .maybe(40, || RolloutStatus::ALL.iter().copied().filter(|_| dice.chance(40)).collect()),
                mode_in: dice
                    .maybe(20, || RolloutMode::ALL.iter().copied().filter(|_| dice.chance(50)).collect()),
                rollout_id_in: dice.maybe(20, || (0..dice.roll(4)).map(|_| world.rollout(dice)).collect()),
                rollout_id_contains: dice.maybe(20, || part(dice)),
                filter_logic: logic(dice),
                sort_by: sort_by(
                    dice,
                    &["rollout_id", "start_time", "end_time", "mode", "resources_id", "status", "input", "x"],
                ),
                sort_order: order(dice),
                limit,
                offset,
            };
            json(store.query_rollouts(query).await)
        }
        20 | 21 => {
            let (limit, offset) = page(dice);
            let (rollout_id, attempt_id) = world.attempt(dice);
            let query = SpanQuery {
                rollout_id,
                attempt_id: dice.maybe(50, || if dice.chance(50) { attempt_id } else { "latest".to_owned() }),
                trace_id: dice.maybe(10, || ids::trace_id(7, dice.roll(5))),
                trace_id_contains: dice.maybe(10, || part(dice)),
                span_id: dice.maybe(10, || ids::span_id(dice.roll(40))),
                span_id_contains: dice.maybe(10, || part(dice)),
                parent_id: dice.maybe(10, || ids::span_id(dice.roll(40))),
                parent_id_contains: dice.maybe(10, || part(dice)),
                name: dice.maybe(10, || "llm".to_owned()),
                name_contains: dice.maybe(10, || (*dice.pick(&["l", "r", "R"])).to_owned()),
                filter_logic: logic(dice),
                sort_by: sort_by(
                    dice,
                    &[
                        "sequence_id",
                        "trace_id",
                        "span_id",
                        "parent_id",
                        "name",
                        "start_time",
                        "end_time",
                        "attempt_id",
                        "links",
                    ],
                ),
                sort_order: order(dice),
                limit,
                offset,
            };
            json(store.query_spans(query).await)
        }
        22 => {
            let (limit, offset) = page(dice);
            let query = WorkerQuery {
                status_in: dice.maybe(40, || {
                    agl_types::WorkerStatus::ALL.iter().copied().filter(|_| dice.chance(50)).collect()
                }),
                worker_id_contains: dice.maybe(30, || (*dice.pick(&["w", "W", "_", "%"])).to_owned()),
                filter_logic: logic(dice),
                sort_by: sort_by(
                    dice,
                    &[
                        "worker_id",
                        "status",
                        "last_busy_time",
                        "last_idle_time",
                        "current_attempt_id",
                        "heartbeat_stats",
                    ],
                ),
                sort_order: order(dice),
                limit,
                offset,
            };
            json(store.query_workers(query).await)
        }
        24 => {
            let requests = (0..dice.roll(3)).map(|_| v1::RolloutCreate {
                is_train: dice.chance(50),
                config: dice.maybe(70, || v1::RolloutConfig {
                    timeout_seconds: 5 + dice.roll(20),
                    ..v1::RolloutConfig::default()
                }),
                rollout_id: dice.maybe(30, || match dice.roll(2) {
                    0 => format!("mine-{}", dice.roll(9)),
                    _ => world.rollout(dice),
                }),
                ..v1::RolloutCreate::new(json!({"data_id": dice.roll(9)}))
            });
            json(store.create_controller_rollouts(requests.collect()).await)
        }
        25..=27 => {
            let update = v1::StatusUpdate {
                state: dice.patch(80, || *dice.pick(v1::State::ALL)),
                k8s_job_name: dice.patch(20, || dice.maybe(50, || "job".to_owned())),
                last_attempt_id: dice.patch(20, || dice.maybe(70, || v1::LATEST_ATTEMPT.to_owned())),
                error_message: dice.patch(20, || dice.maybe(50, || "why".to_owned())),
            };
            json(store.update_controller_rollout(&world.rollout(dice), update).await)
        }
        28 => {
            let event_type = (*dice.pick(&[v1::REWARD, "note"])).to_owned();
            let data = json!({"value": dice.roll(9)}).as_object().unwrap().clone();
            let (rollout_id, attempt_id) = world.attempt(dice);
            let event = v1::EventCreate { event_type, data };
            match dice.chance(50) {
                true => json(store.add_event(&world.rollout(dice), v1::LATEST_ATTEMPT, event).await),
                false => json(store.add_event(&rollout_id, &attempt_id, event).await),
            }
        }
        29 => {
            let states: Vec<_> = v1::State::ALL.iter().copied().filter(|_| dice.chance(50)).collect();
            let query = v1::RolloutQuery { limit: page(dice).0, ..v1::RolloutQuery::of(states) };
            json(store.query_controller_rollouts(query).await)
        }
        30 => {
            let rollout_id = world.rollout(dice);
            match dice.roll(4) {
                0 => json(store.delete_rollout(&rollout_id).await),
                1 => json(store.get_controller_rollout(&rollout_id).await),
                _ => json(store.query_events(v1::EventsQuery { rollout_id, event_type: None }).await),
            }
        }
        31 => {
            let query = v1::CompletionQuery {
                after: i64::try_from(dice.roll(20)).unwrap(),
                limit: i64::try_from(dice.roll(20)).unwrap(),
            };
            json(store.query_completions(query).await)
        }
        _ => {
            let (limit, offset) = page(dice);
            let query = AttemptQuery {
                rollout_id: world.rollout(dice),
                sort_by: sort_by(
                    dice,
                    &["sequence_id", "attempt_id", "status", "worker_id", "last_heartbeat_time", "end_time"],
                ),
                sort_order: order(dice),
                limit,
                offset,
            };
            json(store.query_attempts(query).await)
        }
    }
}

/// Everything that the store holds, the queue last, which empties it.
async fn dump(store: &dyn Store, world: &World) -> Vec<Value> {
    let mut all = vec![
        json(store.query_rollouts(RolloutQuery::default()).await).unwrap(),
        json(store.query_workers(WorkerQuery::default()).await).unwrap(),
        json(store.get_latest_resources().await).unwrap(),
    ];
    for all_versions in [false, true] {
        let query = ResourcesQuery { all_versions, ..ResourcesQuery::default() };
        all.push(json(store.query_resources(query).await).unwrap());
    }
    for rollout_id in &world.rollouts {
        let query = AttemptQuery { rollout_id: rollout_id.clone(), ..AttemptQuery::default() };
        all.push(json(store.query_attempts(query).await).unwrap());
        let query = SpanQuery { rollout_id: rollout_id.clone(), sort_by: None, ..SpanQuery::default() };
        all.push(json(store.query_spans(query).await).unwrap());
        all.push(json!(store.get_next_span_sequence_id(rollout_id, "x").await.unwrap()));
    }
    let everything = v1::RolloutQuery { limit: -1, ..v1::RolloutQuery::of(v1::State::ALL) };
    all.push(json(store.query_controller_rollouts(everything).await).unwrap());
    let log = v1::CompletionQuery { after: 0, limit: 100_000 };
    all.push(json(store.query_completions(log).await).unwrap());
    let mut statistics = store.statistics().await.unwrap();
    statistics.name.clear();
    all.push(json(Ok(statistics)).unwrap());
    let queue = DequeueRequest { limit: 100_000, worker_id: None, wait: None };
    all.push(json(store.dequeue_many_rollouts(queue).await).unwrap());
    all
}

/// What must hold in any store at any time.
async fn check_invariants(store: &dyn Store) {
    let mut waiting = Vec::new();
    let mut waiting_for_controllers = Vec::new();
    let mut ended = Vec::new();
    for view in store.query_rollouts(RolloutQuery::default()).await.unwrap().items {
        let rollout = view.rollout;
        assert_eq!(rollout.end_time.is_some(), rollout.status.is_terminal(), "{rollout:?}");
        let seen = store.get_controller_rollout(&rollout.rollout_id).await.unwrap().unwrap().rollout;
        assert_eq!(seen.status.state, v1::State::from(rollout.status));
        let is_controlled = seen.status.version > 0;
        match (rollout.status.is_queuing(), is_controlled) {
            (true, true) => waiting_for_controllers.push(rollout.rollout_id.clone()),
            (true, false) => waiting.push(rollout.rollout_id.clone()),
            _ => {}
        }
        if rollout.status.is_terminal() {
            ended.push(rollout.rollout_id.clone());
        }
        let query = AttemptQuery { rollout_id: rollout.rollout_id, ..AttemptQuery::default() };
        let attempts = store.query_attempts(query).await.unwrap().items;
        for (number, attempt) in (1..).zip(&attempts) {
            assert_eq!(attempt.sequence_id, number);
        }
        assert_eq!(view.attempt.as_ref(), attempts.last());
    }
    let query = v1::RolloutQuery { limit: -1, ..v1::RolloutQuery::of([v1::State::Queuing]) };
    let listed = store.query_controller_rollouts(query).await.unwrap();
    let listed: Vec<String> = listed.into_iter().map(|rollout| rollout.rollout_id).collect();
    assert_eq!(listed, waiting_for_controllers, "controllers see what waits for them, in order of creation");
    let log = v1::CompletionQuery { after: 0, limit: 100_000 };
    let log = store.query_completions(log).await.unwrap();
    let mut logged: Vec<String> = log.items.into_iter().map(|item| item.rollout_id).collect();
    logged.sort();
    ended.sort();
    assert_eq!(logged, ended, "the completion log holds exactly the rollouts that have ended, each once");
    let everything = DequeueRequest { limit: 100_000, worker_id: None, wait: None };
    let queue = store.dequeue_many_rollouts(everything).await.unwrap();
    let mut queued: Vec<String> = queue.into_iter().map(|claim| claim.rollout.rollout_id).collect();
    queued.sort();
    waiting.sort();
    assert_eq!(queued, waiting, "the queue holds exactly the runners' rollouts that wait");
}

async fn live(seed: u64) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("agl.db");
    let clocks = [ManualClock::at(1000.0), ManualClock::at(1000.0)];
    let ids = Arc::new(SeededIds::new(seed));
    let memory = MemoryStore::with(Arc::new(clocks[0].clone()), Arc::new(SeededIds::new(seed)));
    let options =
        || SqliteOptions { clock: Arc::new(clocks[1].clone()), ids: ids.clone(), ..SqliteOptions::default() };
    let mut sqlite = SqliteStore::open(&path, options()).unwrap();
    let mut world = World::default();
    let dice = Dice(SeededIds::new(seed ^ 0xd1ce));
    for number in 0..STEPS {
        if dice.chance(20) {
            // Deadlines are acted upon now, whichever thread comes first; otherwise at which moment would be left to
            // chance. The last step may have set one that had passed already.
            let _ = (memory.statistics().await.unwrap(), sqlite.statistics().await.unwrap());
            let seconds = dice.roll(6) as f64 * 0.75;
            for clock in &clocks {
                clock.advance(seconds);
            }
            let (left, right) = (memory.statistics().await.unwrap(), sqlite.statistics().await.unwrap());
            assert_eq!(left.total_attempts, right.total_attempts);
        }
        if dice.chance(1) {
            drop(sqlite);
            sqlite = SqliteStore::open(&path, options()).unwrap();
        }
        let choice = dice.0.next();
        let left = step(&memory, &world, &Dice(SeededIds::new(choice))).await;
        let right = step(&sqlite, &world, &Dice(SeededIds::new(choice))).await;
        assert_eq!(left, right, "seed {seed}, step {number}");
        if let Ok(answer) = left {
            world.learn(&answer);
        }
    }
    assert!(world.attempts.len() > 20, "seed {seed} led a dull life");
    let (mut left, mut right) = (dump(&memory, &world).await, dump(&sqlite, &world).await);
    for statistics in left.iter_mut().chain(&mut right).filter_map(Value::as_object_mut) {
        // A store that was reopened starts anew, and only one of them takes up room on a disk.
        statistics.shift_remove("uptime");
        statistics.shift_remove("store_bytes");
    }
    assert_eq!(left, right, "seed {seed}, at the end");
}

/// Twelve lives; a failure names its seed.
#[tokio::test]
async fn memory_and_sqlite_live_alike() {
    for seed in 0..12 {
        live(seed).await;
    }
}

/// The invariants hold after a random life.
#[tokio::test]
async fn invariants_hold_after_any_life() {
    for seed in 100..140 {
        let clock = ManualClock::at(1000.0);
        let store = MemoryStore::with(Arc::new(clock.clone()), Arc::new(SeededIds::new(seed)));
        let mut world = World::default();
        let dice = Dice(SeededIds::new(seed));
        for _ in 0..STEPS {
            if dice.chance(20) {
                clock.advance(dice.roll(6) as f64);
            }
            if let Ok(answer) = step(&store, &world, &Dice(SeededIds::new(dice.0.next()))).await {
                world.learn(&answer);
            }
        }
        check_invariants(&store).await;
    }
}
