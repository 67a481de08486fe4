//! Filters, sorting and paging.

use std::fmt::Debug;

use agl_types::AttemptStatus::Running;
use agl_types::{
    Attempt, AttemptQuery, EnqueueRolloutRequest, FilterLogic, ResourcesQuery, Rollout, RolloutMode,
    RolloutQuery, RolloutStatus, SortOrder, Span, SpanQuery, WorkerQuery, WorkerStatus, WorkerUpdate,
};
use serde_json::json;

use crate::{START, Subject, assert_invalid, model, span};

fn ids(rollouts: &[&Rollout]) -> Vec<String> {
    rollouts.iter().map(|rollout| rollout.rollout_id.clone()).collect()
}

/// `and` wants every condition to hold, `or` one of them.
pub async fn conditions_are_anded_or_ored(s: &Subject) {
    let (a, b, c) = (s.enqueue("a").await, s.enqueue("b").await, s.enqueue("c").await);
    s.set_status(&b.rollout_id, RolloutStatus::Cancelled).await;
    s.set_status(&c.rollout_id, RolloutStatus::Cancelled).await;
    let query = |filter_logic| RolloutQuery {
        status_in: Some(vec![RolloutStatus::Cancelled]),
        rollout_id_in: Some(vec![b.rollout_id.clone(), a.rollout_id.clone()]),
        filter_logic,
        ..RolloutQuery::default()
    };
    assert_eq!(s.find(query(FilterLogic::And)).await, (ids(&[&b]), 1));
    assert_eq!(s.find(query(FilterLogic::Or)).await, (ids(&[&a, &b, &c]), 3));
    let query = RolloutQuery {
        status_in: Some(vec![RolloutStatus::Cancelled, RolloutStatus::Queuing]),
        rollout_id_contains: Some(a.rollout_id[3..].to_owned()),
        ..RolloutQuery::default()
    };
    assert_eq!(s.find(query).await, (ids(&[&a]), 1));
    assert_eq!(s.find(RolloutQuery::default()).await, (ids(&[&a, &b, &c]), 3));
}

/// A rollout without a mode is in no list of modes.
pub async fn rollouts_are_found_by_mode(s: &Subject) {
    let request = |mode| EnqueueRolloutRequest { mode, ..EnqueueRolloutRequest::new("task") };
    let modes = [Some(RolloutMode::Train), None, Some(RolloutMode::Val), Some(RolloutMode::Val)];
    let made = s.store.enqueue_many_rollouts(modes.map(request).to_vec()).await.unwrap();
    let query =
        |modes: &[RolloutMode]| RolloutQuery { mode_in: Some(modes.to_vec()), ..RolloutQuery::default() };
    assert_eq!(s.find(query(&[RolloutMode::Val])).await, (ids(&[&made[2], &made[3]]), 2));
    assert_eq!(s.find(query(&[RolloutMode::Train, RolloutMode::Test])).await, (ids(&[&made[0]]), 1));
    assert_eq!(s.find(RolloutQuery { limit: 1, ..query(RolloutMode::ALL) }).await, (ids(&[&made[0]]), 3));
    assert_eq!(s.find(query(&[])).await, (Vec::new(), 0));
}

/// An empty list is a condition that nothing meets, not the lack of one.
pub async fn an_empty_list_matches_nothing(s: &Subject) {
    let rollout = s.enqueue("task").await;
    for filter_logic in [FilterLogic::And, FilterLogic::Or] {
        let query = RolloutQuery { status_in: Some(Vec::new()), filter_logic, ..RolloutQuery::default() };
        assert_eq!(s.find(query).await, (Vec::new(), 0));
        let query = RolloutQuery { rollout_id_in: Some(Vec::new()), filter_logic, ..RolloutQuery::default() };
        assert_eq!(s.find(query).await, (Vec::new(), 0));
    }
    let query = RolloutQuery {
        status_in: Some(Vec::new()),
        rollout_id_contains: Some("ro-".to_owned()),
        filter_logic: FilterLogic::Or,
        ..RolloutQuery::default()
    };
    assert_eq!(s.find(query).await, (ids(&[&rollout]), 1));
}

/// No wildcards, and upper and lower case differ.
pub async fn contains_is_literal(s: &Subject) {
    for worker_id in ["plain", "per%cent", "under_score", "Upper", "qu'ote\"", "ünïcode"] {
        s.store.update_worker(worker_id, WorkerUpdate::default()).await.unwrap();
    }
    let cases = [
        ("%", vec!["per%cent"]),
        ("_", vec!["under_score"]),
        ("upper", vec![]),
        ("Upp", vec!["Upper"]),
        ("'ote\"", vec!["qu'ote\""]),
        ("ïc", vec!["ünïcode"]),
        ("", vec!["plain", "per%cent", "under_score", "Upper", "qu'ote\"", "ünïcode"]),
    ];
    for (part, expected) in cases {
        let query = WorkerQuery { worker_id_contains: Some(part.to_owned()), ..WorkerQuery::default() };
        let found = s.store.query_workers(query).await.unwrap().items;
        let found: Vec<&str> = found.iter().map(|worker| worker.worker_id.as_str()).collect();
        assert_eq!(found, expected, "containing {part:?}");
    }
}

/// `total` counts all matches; limit and offset are echoed.
pub async fn pages_count_all_matches(s: &Subject) {
    let mut all = Vec::new();
    for number in 0..5 {
        all.push(s.enqueue(number).await.rollout_id);
    }
    for (limit, offset, expected) in [
        (2, 0, &all[..2]),
        (2, 4, &all[4..]),
        (2, 5, &[]),
        (2, 99, &[]),
        (-1, 3, &all[3..]),
        (99, 0, &all[..]),
    ] {
        let query = RolloutQuery { limit, offset, ..RolloutQuery::default() };
        let page = s.store.query_rollouts(query).await.unwrap();
        let found: Vec<String> = page.items.into_iter().map(|view| view.rollout.rollout_id).collect();
        assert_eq!((found.as_slice(), page.total), (expected, 5), "limit {limit} offset {offset}");
        assert_eq!((page.limit, page.offset), (limit, offset));
    }
}

/// Limit 0 gives the total and nothing else.
pub async fn a_limit_of_zero_only_counts(s: &Subject) {
    s.enqueue("task").await;
    let query = RolloutQuery { limit: 0, ..RolloutQuery::default() };
    assert_eq!(s.find(query).await, (Vec::new(), 1));
}

/// Negative offsets and limits below -1 are refused, even where there is nothing to page.
pub async fn bad_pages_are_refused(s: &Subject) {
    let query = |limit, offset| RolloutQuery { limit, offset, ..RolloutQuery::default() };
    assert_invalid(s.store.query_rollouts(query(-2, 0)).await, "-1 for no limit");
    assert_invalid(s.store.query_rollouts(query(-1, -1)).await, "ffset must be greater than or equal to 0");
}

async fn sorted(s: &Subject, sort_by: &str, sort_order: SortOrder) -> Vec<String> {
    let query = RolloutQuery { sort_by: Some(sort_by.to_owned()), sort_order, ..RolloutQuery::default() };
    s.find(query).await.0
}

/// A time that is null is later than all others; another value that is null is smaller than all others.
pub async fn nulls_have_their_place(s: &Subject) {
    let with_mode =
        |mode| EnqueueRolloutRequest { mode, resources_id: None, ..EnqueueRolloutRequest::new("task") };
    let open = s.store.enqueue_rollout(with_mode(Some(RolloutMode::Val))).await.unwrap();
    let ended = s.store.enqueue_rollout(with_mode(None)).await.unwrap();
    s.clock.advance(1.0);
    s.set_status(&ended.rollout_id, RolloutStatus::Cancelled).await;
    let later = s.store.enqueue_rollout(with_mode(Some(RolloutMode::Train))).await.unwrap();
    s.clock.advance(1.0);
    s.set_status(&later.rollout_id, RolloutStatus::Cancelled).await;
    assert_eq!(sorted(s, "end_time", SortOrder::Asc).await, ids(&[&ended, &later, &open]));
    assert_eq!(sorted(s, "end_time", SortOrder::Desc).await, ids(&[&open, &later, &ended]));
    assert_eq!(sorted(s, "mode", SortOrder::Asc).await, ids(&[&ended, &later, &open]));
    assert_eq!(sorted(s, "mode", SortOrder::Desc).await, ids(&[&open, &later, &ended]));
}

/// Equals come in the order of insertion, in either direction.
pub async fn ties_keep_insertion_order(s: &Subject) {
    let (a, b) = (s.enqueue("a").await, s.enqueue("b").await);
    s.clock.advance(1.0);
    let (c, d) = (s.enqueue("c").await, s.enqueue("d").await);
    assert_eq!(sorted(s, "start_time", SortOrder::Asc).await, ids(&[&a, &b, &c, &d]));
    assert_eq!(sorted(s, "start_time", SortOrder::Desc).await, ids(&[&c, &d, &a, &b]));
    assert_eq!(sorted(s, "status", SortOrder::Desc).await, ids(&[&a, &b, &c, &d]));
    assert_eq!(sorted(s, "resources_id", SortOrder::Desc).await, ids(&[&a, &b, &c, &d]));
}

/// A field that is not declared, or has no order, is refused even when there is nothing to sort.
pub async fn unknown_sort_fields_are_named(s: &Subject) {
    let query = RolloutQuery { sort_by: Some("duration".to_owned()), ..RolloutQuery::default() };
    let part = "Invalid sort_by: duration, allowed fields are: rollout_id, input, start_time, end_time, mode, \
                resources_id, status, config, metadata";
    assert_invalid(s.store.query_rollouts(query).await, part);
    for field in ["input", "config", "metadata"] {
        let query = RolloutQuery { sort_by: Some(field.to_owned()), ..RolloutQuery::default() };
        assert_invalid(s.store.query_rollouts(query).await, &format!("Invalid sort_by: {field}"));
    }
    let query = AttemptQuery { sort_by: Some("x".to_owned()), ..AttemptQuery::default() };
    assert_invalid(s.store.query_attempts(query).await, "rollout_id, attempt_id, sequence_id");
    let query = SpanQuery { sort_by: Some("duration".to_owned()), ..SpanQuery::default() };
    assert_invalid(s.store.query_spans(query).await, "trace_id, span_id, parent_id, name");
    let query = WorkerQuery { sort_by: Some("x".to_owned()), ..WorkerQuery::default() };
    assert_invalid(s.store.query_workers(query).await, "worker_id, status, heartbeat_stats");
    let query = ResourcesQuery { sort_by: Some("x".to_owned()), ..ResourcesQuery::default() };
    assert_invalid(s.store.query_resources(query).await, "resources_id, create_time, update_time, version");
}

/// A rollout is shown with its latest attempt, or without any when there has been none.
pub async fn views_carry_the_latest_attempt(s: &Subject) {
    let queued = s.enqueue("queued").await;
    let started = s.start().await;
    let second = s.store.start_attempt(&started.rollout.rollout_id, None).await.unwrap();
    let items = s.store.query_rollouts(RolloutQuery::default()).await.unwrap().items;
    assert_eq!((&items[0].rollout, &items[0].attempt), (&queued, &None));
    assert_eq!(items[1], second.clone().into());
    let view = s.store.get_rollout_by_id(&started.rollout.rollout_id).await.unwrap();
    assert_eq!(view, Some(second.into()));
    assert_eq!(items.len(), 2);
}

/// Attempts come by their number; an unknown rollout has none.
pub async fn attempts_come_in_order(s: &Subject) {
    let rollout_id = s.start().await.rollout.rollout_id;
    for _ in 0..2 {
        s.store.start_attempt(&rollout_id, None).await.unwrap();
    }
    s.start().await;
    let query =
        |sort_order| AttemptQuery { rollout_id: rollout_id.clone(), sort_order, ..AttemptQuery::default() };
    let numbers = |items: Vec<Attempt>| items.iter().map(|item| item.sequence_id).collect::<Vec<u32>>();
    let page = s.store.query_attempts(query(SortOrder::Asc)).await.unwrap();
    assert_eq!((numbers(page.items), page.total), (vec![1, 2, 3], 3));
    let latest_first = AttemptQuery { limit: 2, ..query(SortOrder::Desc) };
    let page = s.store.query_attempts(latest_first).await.unwrap();
    assert_eq!((numbers(page.items), page.total), (vec![3, 2], 3));
    let query = AttemptQuery { rollout_id: "nowhere".to_owned(), ..AttemptQuery::default() };
    assert_eq!(s.store.query_attempts(query).await.unwrap().total, 0);
}

fn named(attempt: &Attempt, number: u64, name: &str, parent_id: Option<&str>) -> Span {
    let mut span = span(attempt, number, i64::try_from(number).unwrap());
    span.name = name.to_owned();
    span.parent_id = parent_id.map(str::to_owned);
    span
}

async fn names(s: &Subject, query: SpanQuery) -> Vec<String> {
    let page = s.store.query_spans(query).await.unwrap();
    if page.limit < 0 {
        assert_eq!(page.total, i64::try_from(page.items.len()).unwrap());
    }
    page.items.into_iter().map(|span| span.name).collect()
}

/// Conditions are put together within one rollout and attempt; `or` never leaks what is outside.
pub async fn spans_are_filtered_within_their_rollout(s: &Subject) {
    let first = s.start().await.attempt;
    let second = s.store.start_attempt(&first.rollout_id, None).await.unwrap().attempt;
    let other = s.start().await.attempt;
    let spans = vec![
        named(&first, 1, "llm.call", None),
        named(&first, 2, "tool.call", Some("abc")),
        named(&second, 3, "llm.call", Some("abd")),
        named(&second, 4, "reward", None),
        named(&other, 5, "llm.call", Some("abc")),
    ];
    s.store.add_many_spans(spans).await.unwrap();
    let text = |text: &str| Some(text.to_owned());
    let all = || SpanQuery { rollout_id: first.rollout_id.clone(), ..SpanQuery::default() };
    assert_eq!(names(s, all()).await, ["llm.call", "tool.call", "llm.call", "reward"]);
    assert_eq!(names(s, SpanQuery { attempt_id: text("latest"), ..all() }).await, ["llm.call", "reward"]);
    let of_first = SpanQuery { attempt_id: text(&first.attempt_id), ..all() };
    assert_eq!(names(s, of_first).await, ["llm.call", "tool.call"]);
    let named_call = SpanQuery { name: text("llm.call"), ..all() };
    assert_eq!(names(s, named_call.clone()).await, ["llm.call", "llm.call"]);
    let both = SpanQuery { parent_id_contains: text("ab"), ..named_call.clone() };
    assert_eq!(names(s, both.clone()).await, ["llm.call"]);
    let either = SpanQuery { filter_logic: FilterLogic::Or, ..both };
    assert_eq!(names(s, either.clone()).await, ["llm.call", "tool.call", "llm.call"]);
    let latest = SpanQuery { attempt_id: text("latest"), ..either };
    assert_eq!(names(s, latest).await, ["llm.call"]);
    let two_on_one_field =
        SpanQuery { name_contains: text("tool"), filter_logic: FilterLogic::Or, ..named_call };
    assert_eq!(names(s, two_on_one_field).await, ["llm.call", "tool.call", "llm.call"]);
    let span_id = agl_types::ids::span_id(2);
    assert_eq!(names(s, SpanQuery { span_id: Some(span_id), ..all() }).await, ["tool.call"]);
    let trace_id = agl_types::ids::trace_id(1, 4);
    assert_eq!(names(s, SpanQuery { trace_id: Some(trace_id), ..all() }).await, ["reward"]);
    assert_eq!(names(s, SpanQuery { parent_id: text("abc"), ..all() }).await, ["tool.call"]);
    assert_eq!(names(s, SpanQuery { span_id_contains: text("000000000004"), ..all() }).await, ["reward"]);
    assert_eq!(names(s, SpanQuery { trace_id_contains: text("00000003"), ..all() }).await, ["llm.call"]);
}

/// `or` over no conditions is no condition.
pub async fn or_without_conditions_matches_all(s: &Subject) {
    let attempt = s.start().await.attempt;
    s.add_span(&attempt, 1, 1).await.unwrap();
    let query =
        SpanQuery { rollout_id: attempt.rollout_id, filter_logic: FilterLogic::Or, ..SpanQuery::default() };
    assert_eq!(s.store.query_spans(query).await.unwrap().total, 1);
    let query = RolloutQuery { filter_logic: FilterLogic::Or, ..RolloutQuery::default() };
    assert_eq!(s.find(query).await.1, 1);
}

/// An unknown rollout or attempt has no spans, and neither has the latest attempt of none.
pub async fn unknown_places_have_no_spans(s: &Subject) {
    let attempt = s.start().await.attempt;
    s.add_span(&attempt, 1, 1).await.unwrap();
    let queued = s.enqueue("task").await.rollout_id;
    let places = [
        ("nowhere", None),
        ("nowhere", Some("latest")),
        (queued.as_str(), Some("latest")),
        (attempt.rollout_id.as_str(), Some("at-none")),
    ];
    for (rollout_id, attempt_id) in places {
        let query = SpanQuery {
            rollout_id: rollout_id.to_owned(),
            attempt_id: attempt_id.map(str::to_owned),
            ..SpanQuery::default()
        };
        let page = s.store.query_spans(query).await.unwrap();
        assert_eq!((page.items, page.total), (Vec::new(), 0));
    }
}

/// Spans sort by any plain field, with paging, nulls where they belong and ties in order of insertion.
pub async fn spans_are_sorted_by_any_field(s: &Subject) {
    let attempt = s.start().await.attempt;
    let mut spans = vec![
        named(&attempt, 3, "b", Some("p")),
        named(&attempt, 1, "a", None),
        named(&attempt, 2, "c", Some("o")),
        named(&attempt, 2, "c", None),
    ];
    spans[3].span_id = agl_types::ids::span_id(9);
    spans[3].name = "d".to_owned();
    spans[0].end_time = None;
    spans[2].end_time = Some(START - 5.0);
    s.store.add_many_spans(spans).await.unwrap();
    let cases = [
        ("sequence_id", SortOrder::Asc, ["a", "c", "d", "b"]),
        ("sequence_id", SortOrder::Desc, ["b", "c", "d", "a"]),
        ("name", SortOrder::Desc, ["d", "c", "b", "a"]),
        ("parent_id", SortOrder::Asc, ["a", "d", "c", "b"]),
        ("parent_id", SortOrder::Desc, ["b", "c", "a", "d"]),
        ("end_time", SortOrder::Asc, ["c", "a", "d", "b"]),
        ("end_time", SortOrder::Desc, ["b", "a", "d", "c"]),
        ("attempt_id", SortOrder::Desc, ["b", "a", "c", "d"]),
    ];
    for (field, sort_order, expected) in cases {
        let query = SpanQuery {
            rollout_id: attempt.rollout_id.clone(),
            sort_by: Some(field.to_owned()),
            sort_order,
            ..SpanQuery::default()
        };
        assert_eq!(names(s, query.clone()).await, expected, "{field} {sort_order:?}");
        let page = SpanQuery { limit: 2, offset: 1, ..query };
        assert_eq!(names(s, page).await, expected[1..3], "{field} {sort_order:?}");
    }
}

/// Workers are looked for like rollouts.
pub async fn workers_are_filtered_and_sorted(s: &Subject) {
    for worker_id in ["w-b", "w-a", "x-c"] {
        s.store.update_worker(worker_id, WorkerUpdate::default()).await.unwrap();
    }
    s.enqueue("task").await;
    s.dequeue_as("w-a").await.unwrap();
    s.dequeue_as("x-c").await;
    let find = async |query| -> Vec<String> {
        let page = s.store.query_workers(query).await.unwrap();
        page.items.into_iter().map(|worker| worker.worker_id).collect()
    };
    assert_eq!(find(WorkerQuery::default()).await, ["w-b", "w-a", "x-c"]);
    let by_id = WorkerQuery { sort_by: Some("worker_id".to_owned()), ..WorkerQuery::default() };
    assert_eq!(find(by_id).await, ["w-a", "w-b", "x-c"]);
    let by_dequeue = WorkerQuery { sort_by: Some("last_dequeue_time".to_owned()), ..WorkerQuery::default() };
    assert_eq!(find(by_dequeue).await, ["w-a", "x-c", "w-b"]);
    let either = WorkerQuery {
        status_in: Some(vec![WorkerStatus::Busy]),
        worker_id_contains: Some("x".to_owned()),
        filter_logic: FilterLogic::Or,
        ..WorkerQuery::default()
    };
    assert_eq!(find(either.clone()).await, ["w-a", "x-c"]);
    assert!(find(WorkerQuery { filter_logic: FilterLogic::And, ..either }).await.is_empty());
    let idle = WorkerQuery { status_in: Some(vec![WorkerStatus::Idle]), ..WorkerQuery::default() };
    assert_eq!(find(idle).await, ["x-c"]);
}

fn assert_none<T: Debug>(found: &Result<Option<T>, agl_store::Error>) {
    assert!(matches!(found, Ok(None)), "{found:?}");
}

/// Looking one thing up that is not there is no error.
pub async fn missing_things_are_none(s: &Subject) {
    assert_none(&s.store.get_rollout_by_id("missing").await);
    assert_none(&s.store.get_latest_attempt("missing").await);
    assert_none(&s.store.get_worker_by_id("missing").await);
    assert_none(&s.store.get_resources_by_id("missing", None).await);
    assert_none(&s.store.get_resources_by_id("missing", Some(1)).await);
    assert_none(&s.store.get_latest_resources().await);
}

/// The statistics count everything, resources by their ids.
pub async fn statistics_count(s: &Subject) {
    let empty = s.store.statistics().await.unwrap();
    assert!(empty.name.ends_with("LightningStore"), "{}", empty.name);
    assert_eq!(empty.total_rollouts + empty.total_attempts + empty.total_spans, 0);
    assert_eq!(empty.total_resources + empty.total_workers, 0);
    let attempt = s.start_with(Default::default(), Some("w")).await.attempt;
    s.enqueue("task").await;
    s.store.start_attempt(&attempt.rollout_id, None).await.unwrap();
    for number in [1, 2, 2] {
        s.add_span(&attempt, number, 1).await;
    }
    let resources_id = s.store.add_resources(model("a")).await.unwrap().resources_id;
    s.store.update_resources(&resources_id, model("b")).await.unwrap();
    s.clock.advance(2.0);
    s.report(&attempt, Running).await;
    let full = s.store.statistics().await.unwrap();
    let counts = (full.total_rollouts, full.total_attempts, full.total_spans);
    assert_eq!((counts, full.total_resources, full.total_workers), ((2, 2, 2), 1, 1));
    assert!(full.uptime >= 2.0, "{}", full.uptime);
    assert_eq!(full.extra.get("queued_rollouts"), Some(&json!(1)));
}
