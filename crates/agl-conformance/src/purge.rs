//! Removing spans that are of no more use.

use agl_types::{AttemptStatus, PurgeReport, PurgeRequest, SpanQuery};

use crate::{Subject, span};

fn spans_of(rollout_id: &str) -> SpanQuery {
    SpanQuery { rollout_id: rollout_id.to_owned(), ..SpanQuery::default() }
}

/// An attempt with so many spans, and whether it has ended.
async fn attempt_with(s: &Subject, spans: u64, ended: bool) -> agl_types::Attempt {
    let attempt = s.start().await.attempt;
    let batch = (1..=spans).map(|number| span(&attempt, number, i64::try_from(number).unwrap()));
    s.store.add_many_spans(batch.collect()).await.unwrap();
    if ended {
        s.report(&attempt, AttemptStatus::Succeeded).await;
    }
    attempt
}

/// The spans of ended rollouts that are named go; those of others stay, and the rollouts themselves do too.
pub async fn named_rollouts_lose_their_spans(s: &Subject) {
    let (used, unused) = (attempt_with(s, 3, true).await, attempt_with(s, 2, true).await);
    let running = attempt_with(s, 4, false).await;
    let ids = vec![used.rollout_id.clone(), running.rollout_id.clone(), "ro-none".to_owned()];
    let request = PurgeRequest { rollout_id_in: Some(ids), ended_before: None };
    let report = s.store.purge(request.clone()).await.unwrap();
    assert_eq!(report, PurgeReport { rollouts: 1, spans: 3 });
    let error = s.store.query_spans(spans_of(&used.rollout_id)).await.unwrap_err();
    assert_eq!(error.kind(), "gone", "{error}");
    assert!(error.to_string().contains(&used.rollout_id), "{error}");
    assert_eq!(s.store.query_spans(spans_of(&unused.rollout_id)).await.unwrap().total, 2);
    assert_eq!(s.store.query_spans(spans_of(&running.rollout_id)).await.unwrap().total, 4);
    assert_eq!(s.latest(&used.rollout_id).await.status, AttemptStatus::Succeeded);
    assert_eq!(s.store.statistics().await.unwrap().total_spans, 6);
    assert_eq!(s.store.purge(request).await.unwrap().spans, 0);
}

/// What ended long enough ago goes, however much it is.
pub async fn old_rollouts_lose_their_spans(s: &Subject) {
    let old = [attempt_with(s, 2_500, true).await, attempt_with(s, 1, true).await];
    s.clock.advance(100.0);
    let new = attempt_with(s, 1, true).await;
    let request = PurgeRequest { rollout_id_in: None, ended_before: Some(crate::START + 50.0) };
    assert_eq!(s.store.purge(request).await.unwrap(), PurgeReport { rollouts: 2, spans: 2_501 });
    for attempt in &old {
        assert_eq!(s.store.query_spans(spans_of(&attempt.rollout_id)).await.unwrap_err().kind(), "gone");
    }
    assert_eq!(s.store.query_spans(spans_of(&new.rollout_id)).await.unwrap().total, 1);
}

/// Spans that come after a purge are kept like any others, also those with the ids of purged ones.
pub async fn spans_after_a_purge_are_kept(s: &Subject) {
    let attempt = attempt_with(s, 2, true).await;
    let by_id = || PurgeRequest { rollout_id_in: Some(vec![attempt.rollout_id.clone()]), ended_before: None };
    s.store.purge(by_id()).await.unwrap();
    assert!(s.store.add_span(span(&attempt, 1, 9)).await.unwrap().is_some());
    assert_eq!(s.store.query_spans(spans_of(&attempt.rollout_id)).await.unwrap().total, 1);
    let none = SpanQuery { name: Some("no such name".to_owned()), ..spans_of(&attempt.rollout_id) };
    assert_eq!(s.store.query_spans(none).await.unwrap().total, 0);
    assert_eq!(s.store.purge(by_id()).await.unwrap().spans, 1);
}

/// Without a condition everything would go.
pub async fn a_purge_needs_a_condition(s: &Subject) {
    crate::assert_invalid(s.store.purge(PurgeRequest::default()).await, "rollout_id_in");
}
