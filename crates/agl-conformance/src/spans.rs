//! Spans, their numbers, and the heartbeats that they are.

use std::sync::Arc;

use agl_store::{SpanDraft, WrittenDraft};
use agl_types::AttemptStatus::{Preparing, Running, Succeeded, Timeout, Unresponsive};
use agl_types::{
    AttemptUpdate, Attributes, MAX_ATTRIBUTE_DEPTH, RolloutConfig, RolloutStatus, SequenceIdRequest, Span,
    SpanQuery, StatusCode, WrittenSpan,
};
use serde_json::json;

use crate::{START, Subject, any_attributes, assert_invalid, assert_not_found, config, object, span};

async fn stored(s: &Subject, rollout_id: &str) -> Vec<Span> {
    let query = SpanQuery { rollout_id: rollout_id.to_owned(), ..SpanQuery::default() };
    s.store.query_spans(query).await.unwrap().items
}

/// The span comes back as it is, and attempt and rollout are running.
pub async fn a_span_is_kept_and_is_a_heartbeat(s: &Subject) {
    let started = s.start().await;
    s.clock.advance(2.0);
    let span = span(&started.attempt, 1, 1);
    assert_eq!(s.store.add_span(span.clone()).await.unwrap(), Some(span.clone()));
    assert_eq!(stored(s, &started.rollout.rollout_id).await, [span]);
    let attempt = s.latest(&started.rollout.rollout_id).await;
    assert_eq!((attempt.status, attempt.last_heartbeat_time), (Running, Some(START + 2.0)));
    assert_eq!(s.status(&started.rollout.rollout_id).await, RolloutStatus::Running);
}

/// The span with these attributes wherever a span has attributes.
fn with_attributes(mut span: Span, attributes: &Attributes) -> Span {
    span.events.push(serde_json::from_value(json!({"name": "e", "attributes": attributes})).unwrap());
    span.links
        .push(serde_json::from_value(json!({"context": span.context, "attributes": attributes})).unwrap());
    span.resource.attributes.clone_from(attributes);
    span.attributes.clone_from(attributes);
    span
}

/// Null, maps, lists of anything: what goes in comes out.
pub async fn attributes_of_any_type_are_kept(s: &Subject) {
    let attempt = s.start().await.attempt;
    let spans: Vec<Span> = (1..)
        .zip(any_attributes(64))
        .map(|(number, attributes)| {
            let place = i64::try_from(number).unwrap();
            with_attributes(span(&attempt, number, place), &attributes)
        })
        .collect();
    assert_eq!(s.store.add_many_spans(spans.clone()).await.unwrap(), spans);
    assert_eq!(stored(s, &attempt.rollout_id).await, spans);
}

/// Spans that come written out are kept like others: numbered, once, as they are.
pub async fn written_spans_are_spans(s: &Subject) {
    let attempt = s.start().await.attempt;
    let draft = |span: &Span, has_sequence_id: bool| WrittenDraft {
        span: WrittenSpan::of(span).unwrap(),
        has_sequence_id,
    };
    let (first, second) =
        (span(&attempt, 1, 7), span(&attempt, 2, 0).with_attribute("odd", json!([null, 1])));
    let batch = vec![draft(&first, true), draft(&second, false), draft(&first, true)];
    assert_eq!(s.store.ingest_spans(batch.clone()).await.unwrap(), []);
    assert_eq!(s.store.ingest_spans(batch).await.unwrap(), []);
    let second = Span { sequence_id: 8, ..second };
    assert_eq!(stored(s, &attempt.rollout_id).await, [first.clone(), second.clone()]);
}

/// Spans of many attempts come by attempt, in the order asked for, with an empty list for those that have none and nothing
/// where they were purged; what is read of them to learn from is the same as what is read of them whole.
pub async fn spans_of_many_attempts(s: &Subject) {
    let mut asked = Vec::new();
    let mut expected = Vec::new();
    for (number, attributes) in any_attributes(5).into_iter().enumerate() {
        let attempt = s.start().await.attempt;
        let ids = json!([1, 22, number]);
        let spans: Vec<Span> = (1..=3)
            .map(|id| {
                let span = span(&attempt, id, 4 - i64::try_from(id).unwrap());
                Span { attributes: attributes.clone(), ..span }
                    .with_attribute("prompt_token_ids", ids.clone())
            })
            .collect();
        s.store.add_many_spans(spans.clone()).await.unwrap();
        asked.push((attempt.rollout_id, attempt.attempt_id));
        expected.push(Some(spans.into_iter().rev().collect::<Vec<_>>()));
    }
    let gone = s.start().await.attempt;
    s.store.add_span(span(&gone, 1, 1)).await.unwrap();
    s.report(&gone, Succeeded).await;
    let purged =
        agl_types::PurgeRequest { rollout_id_in: Some(vec![gone.rollout_id.clone()]), ended_before: None };
    s.store.purge(purged).await.unwrap();
    let bare = s.start().await.attempt;
    let unknown = (asked[0].0.clone(), "at-none".to_owned());
    for (attempt, spans) in [
        ((gone.rollout_id, gone.attempt_id), None),
        ((bare.rollout_id, bare.attempt_id), Some(Vec::new())),
        (unknown, Some(Vec::new())),
    ] {
        asked.insert(1, attempt);
        expected.insert(1, spans);
    }
    let found = s.store.spans_of_attempts(asked.clone()).await.unwrap();
    let lean = |spans: &Option<Vec<agl_store::RawSpan>>| -> Option<Vec<Span>> {
        let parsed = |span: &agl_store::RawSpan| span.parse_lean(agl_store::Lean::Words).unwrap();
        Some(spans.as_ref()?.iter().map(parsed).collect())
    };
    let (reply, answer) = std::sync::mpsc::channel();
    let count = asked.len();
    let look = move |spans: &dyn agl_store::AttemptSpans| {
        let read = |number| spans.read(number, agl_store::Lean::Words).unwrap();
        // One more than there are, which is nobody's.
        reply.send((0..=count).map(read).collect::<Vec<_>>()).unwrap();
    };
    s.store.look_at_spans(asked, Box::new(look)).await.unwrap();
    let at_hand: Vec<Option<Vec<Span>>> = found.iter().map(lean).chain([Some(Vec::new())]).collect();
    assert_eq!(answer.recv().unwrap(), at_hand, "where they are kept they are read alike");
    let whole = |spans: &Option<Vec<agl_store::RawSpan>>| -> Option<Vec<Span>> {
        Some(spans.as_ref()?.iter().map(|span| span.parse().unwrap()).collect())
    };
    assert_eq!(found.iter().map(whole).collect::<Vec<_>>(), expected);
    for (lean, whole) in at_hand.iter().flatten().flatten().zip(expected.iter().flatten().flatten()) {
        let ids = whole.attributes["prompt_token_ids"].to_string();
        let as_text = whole.clone().with_attribute("prompt_token_ids", ids);
        assert_eq!(lean.attributes, as_text.attributes);
        assert_eq!((lean.sequence_id, lean.start_time), (whole.sequence_id, whole.start_time));
    }
}

/// What nobody could read again is refused by name, with the whole batch and wherever in the span it is.
pub async fn attributes_without_end_are_refused(s: &Subject) {
    let attempt = s.start().await.attempt;
    let nested = |levels: usize| {
        let deep = (0..levels).fold(json!(1), |inner, _| json!([inner]));
        object(json!({ "deep": deep }))
    };
    let good = with_attributes(span(&attempt, 1, 1), &nested(MAX_ATTRIBUTE_DEPTH));
    let blank = span(&attempt, 2, 2);
    let bad = with_attributes(blank.clone(), &nested(MAX_ATTRIBUTE_DEPTH + 1));
    for (bad, field) in [
        (Span { attributes: bad.attributes, ..blank.clone() }, "attributes.deep"),
        (Span { events: bad.events, ..blank.clone() }, "events.0.attributes.deep"),
        (Span { links: bad.links, ..blank.clone() }, "links.0.attributes.deep"),
        (Span { resource: bad.resource, ..blank }, "resource.attributes.deep"),
    ] {
        assert_invalid(s.store.add_many_spans(vec![good.clone(), bad]).await, field);
    }
    assert_eq!(stored(s, &attempt.rollout_id).await, []);
    assert_eq!(s.store.add_span(good.clone()).await.unwrap(), Some(good.clone()));
    assert_eq!(stored(s, &attempt.rollout_id).await, [good]);
}

/// The first span of an id stays as it was.
pub async fn a_duplicate_is_refused_and_is_no_heartbeat(s: &Subject) {
    let started = s.start().await;
    let first = s.add_span(&started.attempt, 1, 1).await.unwrap();
    s.clock.advance(3.0);
    let mut again = span(&started.attempt, 1, 7);
    again.name = "another".to_owned();
    assert_eq!(s.store.add_span(again).await.unwrap(), None);
    assert_eq!(stored(s, &started.rollout.rollout_id).await, [first]);
    assert_eq!(s.latest(&started.rollout.rollout_id).await.last_heartbeat_time, Some(START));
}

/// The new spans of a batch are stored, returned and a heartbeat, whatever else is in it.
pub async fn a_partly_duplicate_batch_keeps_the_new_spans(s: &Subject) {
    let started = s.start().await;
    let known = s.add_span(&started.attempt, 1, 1).await.unwrap();
    s.clock.advance(3.0);
    let (new, newer) = (span(&started.attempt, 2, 2), span(&started.attempt, 3, 3));
    let batch = vec![new.clone(), known.clone(), newer.clone()];
    assert_eq!(s.store.add_many_spans(batch).await.unwrap(), [new.clone(), newer.clone()]);
    assert_eq!(stored(s, &started.rollout.rollout_id).await, [known, new, newer]);
    assert_eq!(s.latest(&started.rollout.rollout_id).await.last_heartbeat_time, Some(START + 3.0));
    assert_eq!(s.store.add_many_spans(Vec::new()).await.unwrap(), []);
}

/// Of two spans with one id in a batch the first one is stored.
pub async fn duplicates_within_a_batch_are_stored_once(s: &Subject) {
    let attempt = s.start().await.attempt;
    let (first, mut second) = (span(&attempt, 1, 1), span(&attempt, 1, 2));
    second.name = "second".to_owned();
    let added = s.store.add_many_spans(vec![first.clone(), second]).await.unwrap();
    assert_eq!(added, stored(s, &attempt.rollout_id).await);
    assert_eq!(added, [first]);
}

/// Another attempt of the same rollout, and another rollout, may have a span of the same id.
pub async fn span_ids_are_unique_within_an_attempt_only(s: &Subject) {
    let first = s.start().await.attempt;
    let second = s.store.start_attempt(&first.rollout_id, None).await.unwrap().attempt;
    let other = s.start().await.attempt;
    for attempt in [&first, &second, &other] {
        assert!(s.add_span(attempt, 1, 1).await.is_some());
        assert!(s.add_span(attempt, 1, 1).await.is_none());
    }
    assert_eq!(stored(s, &first.rollout_id).await.len(), 2);
    assert_eq!(stored(s, &other.rollout_id).await.len(), 1);
}

async fn next(s: &Subject, rollout_id: &str, attempt_id: &str) -> i64 {
    s.store.get_next_span_sequence_id(rollout_id, attempt_id).await.unwrap()
}

/// Issued ids and those of spans that bring none come from one counter a rollout, whatever the attempt.
pub async fn one_counter_serves_all_attempts(s: &Subject) {
    let attempt = s.start().await.attempt;
    let (rollout_id, attempt_id) = (attempt.rollout_id.clone(), attempt.attempt_id.clone());
    assert_eq!(next(s, &rollout_id, &attempt_id).await, 1);
    for (span_id, expected) in [(1, 2), (2, 4)] {
        let span = span(&attempt, span_id, 0);
        let added = s.store.add_otel_span(&rollout_id, &attempt_id, span, None).await.unwrap().unwrap();
        assert_eq!(added.sequence_id, expected);
        if span_id == 1 {
            assert_eq!(next(s, &rollout_id, &attempt_id).await, 3);
        }
    }
    assert_eq!(next(s, &rollout_id, "at-bogus").await, 5);
    assert_eq!(next(s, &rollout_id, "latest").await, 6);
}

/// The counter never falls behind a span.
pub async fn explicit_ids_push_the_counter(s: &Subject) {
    let attempt = s.start().await.attempt;
    let placed = span(&attempt, 1, 0);
    let added =
        s.store.add_otel_span(&attempt.rollout_id, &attempt.attempt_id, placed, Some(100)).await.unwrap();
    assert_eq!(added.unwrap().sequence_id, 100);
    assert_eq!(next(s, &attempt.rollout_id, &attempt.attempt_id).await, 101);
    s.add_span(&attempt, 2, 50).await.unwrap();
    assert_eq!(next(s, &attempt.rollout_id, &attempt.attempt_id).await, 102);
    s.add_span(&attempt, 3, 200).await.unwrap();
    assert_eq!(next(s, &attempt.rollout_id, &attempt.attempt_id).await, 201);
}

/// Anything has a counter, and each thing its own.
pub async fn counters_need_no_rollout(s: &Subject) {
    assert_eq!(next(s, "nowhere", "x").await, 1);
    assert_eq!(next(s, "elsewhere", "x").await, 1);
    assert_eq!(next(s, "nowhere", "y").await, 2);
}

/// A request for many is answered in its order.
pub async fn ids_are_issued_in_the_order_asked_for(s: &Subject) {
    let request = |rollout: &str, attempt: &str| SequenceIdRequest {
        rollout_id: rollout.into(),
        attempt_id: attempt.into(),
    };
    let requests = vec![request("A", "1"), request("B", "1"), request("A", "2"), request("A", "1")];
    assert_eq!(s.store.get_many_span_sequence_ids(requests).await.unwrap(), [1, 1, 2, 3]);
    assert!(s.store.get_many_span_sequence_ids(Vec::new()).await.unwrap().is_empty());
}

/// Missing numbers of a batch are issued in its order, across rollouts, past the explicit ones.
pub async fn drafts_are_numbered_in_order(s: &Subject) {
    let (a, b) = (s.start().await.attempt, s.start().await.attempt);
    let draft = |attempt, span_id, sequence_id: Option<i64>| SpanDraft {
        span: span(attempt, span_id, sequence_id.unwrap_or(-1)),
        has_sequence_id: sequence_id.is_some(),
    };
    let drafts = vec![
        draft(&a, 1, None),
        draft(&b, 1, None),
        draft(&a, 2, Some(10)),
        draft(&b, 2, None),
        draft(&a, 3, None),
    ];
    let added = s.store.add_span_drafts(drafts).await.unwrap();
    let numbers: Vec<i64> = added.iter().map(|span| span.sequence_id).collect();
    assert_eq!(numbers, [1, 10, 11, 1, 2]);
    assert_eq!(next(s, &a.rollout_id, "x").await, 12);
    assert_eq!(next(s, &b.rollout_id, "x").await, 3);
}

/// 30 concurrent spans without numbers get 1 to 30.
pub async fn concurrent_spans_get_consecutive_ids(s: &Subject) {
    let attempt = s.start().await.attempt;
    let tasks: Vec<_> = (1..=30)
        .map(|span_id| {
            let (store, attempt) = (Arc::clone(&s.store), attempt.clone());
            tokio::spawn(async move {
                let span = span(&attempt, span_id, 0);
                store.add_otel_span(&attempt.rollout_id, &attempt.attempt_id, span, None).await
            })
        })
        .collect();
    let mut numbers = Vec::new();
    for task in tasks {
        numbers.push(task.await.unwrap().unwrap().unwrap().sequence_id);
    }
    numbers.sort_unstable();
    assert_eq!(numbers, (1..=30).collect::<Vec<i64>>());
}

/// Every key of the wire comes back, further keys and nulls included.
pub async fn every_field_of_a_span_survives(s: &Subject) {
    let attempt = s.start().await.attempt;
    let context = json!({
        "trace_id": "0af7651916cd43dd8448eb211c80319c", "span_id": "00f067aa0ba902b7", "is_remote": true,
        "trace_state": {"vendor": "x"}, "flags": 1,
    });
    let wire = json!({
        "rollout_id": attempt.rollout_id, "attempt_id": attempt.attempt_id, "sequence_id": 5,
        "trace_id": "0af7651916cd43dd8448eb211c80319c", "span_id": "b7ad6b7169203331", "parent_id": null,
        "name": "openai.chat.completion",
        "status": {"status_code": "ERROR", "description": "rate limited", "code": 2},
        "attributes": {
            "z.last": "ö", "a.first": [1, 2, 3], "logprobs": [-0.1, -1e-17], "flag": true, "big": 9007199254740993_i64,
        },
        "events": [{"name": "exception", "attributes": {"exception.type": "X"}, "timestamp": 1.5, "level": "high"}],
        "links": [{"context": context, "attributes": null, "kind": "follows"}],
        "start_time": null, "end_time": 1700000000.123456,
        "context": context, "parent": context,
        "resource": {"attributes": {"service.name": "s"}, "schema_url": "https://example.org/1"},
        "kind": "CLIENT", "extra": {"nested": [null]},
    });
    let span: Span = serde_json::from_value(wire.clone()).unwrap();
    s.store.add_span(span).await.unwrap().unwrap();
    let kept = stored(s, &attempt.rollout_id).await.remove(0);
    assert_eq!(serde_json::to_value(&kept).unwrap(), wire);
    assert_eq!(kept.status.status_code, StatusCode::Error);
    assert_eq!(serde_json::to_string(&kept.attributes).unwrap(), wire["attributes"].to_string());
}

/// Every new span moves the heartbeat, also that of an attempt which has ended.
pub async fn heartbeats_move_forward(s: &Subject) {
    let started = s.start().await;
    for number in 1..=3 {
        s.clock.advance(1.0);
        s.add_span(&started.attempt, number, 1).await.unwrap();
        let heartbeat = s.latest(&started.rollout.rollout_id).await.last_heartbeat_time.unwrap();
        assert_eq!(heartbeat, s.clock_now());
    }
    s.report(&started.attempt, Succeeded).await;
    s.clock.advance(1.0);
    s.add_span(&started.attempt, 9, 9).await.unwrap();
    let attempt = s.latest(&started.rollout.rollout_id).await;
    assert_eq!((attempt.status, attempt.last_heartbeat_time), (Succeeded, Some(START + 4.0)));
    assert_eq!(s.status(&started.rollout.rollout_id).await, RolloutStatus::Succeeded);
}

/// The answer lists the spans of one attempt after the other, in order of first appearance.
pub async fn a_batch_is_grouped_by_attempt(s: &Subject) {
    let (a, b) = (s.start().await.attempt, s.start().await.attempt);
    let batch = vec![span(&b, 1, 1), span(&a, 1, 1), span(&b, 2, 2), span(&a, 2, 2)];
    let added = s.store.add_many_spans(batch).await.unwrap();
    let places: Vec<(&str, i64)> =
        added.iter().map(|span| (span.rollout_id.as_str(), span.sequence_id)).collect();
    let (a, b) = (a.rollout_id.as_str(), b.rollout_id.as_str());
    assert_eq!(places, [(b, 1), (b, 2), (a, 1), (a, 2)]);
    assert_eq!(s.status(a).await, RolloutStatus::Running);
    assert_eq!(s.status(b).await, RolloutStatus::Running);
}

/// A batch with one unknown place stores nothing at all.
pub async fn spans_of_unknown_places_are_refused(s: &Subject) {
    let attempt = s.start().await.attempt;
    let queued = s.enqueue("task").await.rollout_id;
    let good = span(&attempt, 1, 1);
    let lost = good.clone().placed("nonexistent", "at-x", 1);
    assert_not_found(s.store.add_span(lost.clone()).await, "Rollout nonexistent not found");
    let missing = good.clone().placed(&attempt.rollout_id, "attempt-missing", 1);
    assert_not_found(s.store.add_span(missing).await, "Attempt attempt-missing not found");
    let early = good.clone().placed(&queued, "at-x", 1);
    assert_not_found(s.store.add_span(early).await, "Attempt at-x not found");
    assert_not_found(s.store.add_many_spans(vec![good, lost]).await, "Rollout nonexistent not found");
    assert_eq!(stored(s, &attempt.rollout_id).await, []);
    assert_eq!(s.latest(&attempt.rollout_id).await, attempt);
}

/// A span of the latest attempt takes its rollout out of the queue: the worker is alive after all.
pub async fn a_span_brings_a_queued_rollout_back(s: &Subject) {
    for status in [RolloutStatus::Requeuing, RolloutStatus::Queuing] {
        let started = s.start().await;
        s.set_status(&started.rollout.rollout_id, status).await;
        s.add_span(&started.attempt, 1, 1).await.unwrap();
        assert_eq!(s.status(&started.rollout.rollout_id).await, RolloutStatus::Running);
        assert_eq!(s.dequeue().await, None);
    }
}

/// A timeout stands; the heartbeat is noted.
pub async fn a_span_does_not_bring_back_a_timeout(s: &Subject) {
    let started = s.start_with(config(2, &[Timeout]), None).await;
    s.report(&started.attempt, Timeout).await;
    s.clock.advance(1.0);
    s.add_span(&started.attempt, 1, 1).await.unwrap();
    let attempt = s.latest(&started.rollout.rollout_id).await;
    assert_eq!((attempt.status, attempt.last_heartbeat_time), (Timeout, Some(START + 1.0)));
    assert_eq!(s.status(&started.rollout.rollout_id).await, RolloutStatus::Requeuing);
    assert_eq!(s.dequeue().await.unwrap().attempt.sequence_id, 2);
}

/// An attempt that speaks again goes on, and decides the rollout if nobody else has taken it.
pub async fn a_span_brings_back_an_unresponsive_attempt(s: &Subject) {
    let started = s.start_with(config(2, &[Unresponsive]), Some("w")).await;
    let rollout_id = &started.rollout.rollout_id;
    s.report(&started.attempt, Unresponsive).await;
    assert_eq!(s.status(rollout_id).await, RolloutStatus::Requeuing);
    s.add_span(&started.attempt, 1, 1).await.unwrap();
    assert_eq!(s.latest(rollout_id).await.status, Running);
    assert_eq!(s.status(rollout_id).await, RolloutStatus::Running);
    assert_eq!(s.worker("w").await.current_attempt_id.as_ref(), Some(&started.attempt.attempt_id));
    assert_eq!(s.dequeue().await, None);
    s.report(&started.attempt, agl_types::AttemptStatus::Failed).await;
    assert_eq!(s.status(rollout_id).await, RolloutStatus::Failed);
    assert_eq!(s.dequeue().await, None);
}

/// Once another attempt is under way, the old one speaks for itself alone.
pub async fn late_spans_of_an_old_attempt_leave_the_rollout_alone(s: &Subject) {
    let first = s.start_with(config(2, &[Unresponsive]), None).await;
    s.report(&first.attempt, Unresponsive).await;
    let second = s.dequeue().await.unwrap();
    assert_eq!(second.attempt.sequence_id, 2);
    s.add_span(&first.attempt, 1, 1).await.unwrap();
    assert_eq!(s.rollout(&first.rollout.rollout_id).await, second.rollout);
    let query = agl_types::AttemptQuery { rollout_id: first.rollout.rollout_id, ..Default::default() };
    let attempts = s.store.query_attempts(query).await.unwrap().items;
    assert_eq!((attempts[0].status, attempts[1].status), (Running, Preparing));
}

/// Heartbeats write nothing but what they are about.
pub async fn spans_and_updates_do_not_overwrite_each_other(s: &Subject) {
    let started = s.start_with(RolloutConfig::default(), None).await;
    let attempt = started.attempt;
    let spans = {
        let (store, attempt) = (Arc::clone(&s.store), attempt.clone());
        tokio::spawn(async move {
            for number in 1..=20 {
                store.add_span(span(&attempt, number, 1)).await.unwrap();
            }
        })
    };
    for number in 1..=20 {
        let metadata = Some(object(json!({"number": number})));
        let update = AttemptUpdate { metadata: metadata.into(), ..AttemptUpdate::default() };
        s.store.update_attempt(&attempt.rollout_id, &attempt.attempt_id, update).await.unwrap();
    }
    spans.await.unwrap();
    let kept = s.latest(&attempt.rollout_id).await;
    assert_eq!((kept.status, kept.metadata), (Running, Some(object(json!({"number": 20})))));
    assert_eq!(stored(s, &attempt.rollout_id).await.len(), 20);
}
