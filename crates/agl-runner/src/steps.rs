use agl_store::{Clock, Error as StoreError, IdSource, SpanDraft, Store};
use agl_types::{
    Attempt, AttemptUpdate, AttemptedRollout, DequeueRequest, ResourcesUpdate, Span, ids, semconv,
};
use serde::Serialize;

use crate::context::state_span;

/// A rollout that was claimed, with what its attempt begins with.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Claim {
    /// The rollout and the attempt at it.
    pub attempted: AttemptedRollout,
    /// The resources that it names, or else the latest; none when there are none.
    pub resources: Option<ResourcesUpdate>,
    /// Whether the resources could be looked for.
    pub has_resources: bool,
    /// Whether the attempt's start could be noted.
    pub has_started: bool,
}

/// Claims a rollout, looks for its resources and notes its start: what a runner begins an attempt with, for runners
/// that are far from the store, or written in another language, in one call.
///
/// # Errors
/// What the store answers to the claim. Should it fail afterwards, the claim says so, for it must not be lost.
pub async fn claim(
    store: &dyn Store,
    worker_id: Option<String>,
    wait: Option<f64>,
    (clock, source): (&dyn Clock, &dyn IdSource),
) -> Result<Option<Claim>, StoreError> {
    let request = DequeueRequest { limit: 1, worker_id, wait };
    let Some(attempted) = store.dequeue_many_rollouts(request).await?.into_iter().next() else {
        return Ok(None);
    };
    let AttemptedRollout { rollout, attempt } = &attempted;
    let (now, trace_id) = (clock.now(), ids::trace_id(source.next(), source.next()));
    let span = Span::new(semconv::AGL_STATE, trace_id, ids::span_id(source.next()), now, now)
        .placed(&rollout.rollout_id, &attempt.attempt_id, 0);
    let started = SpanDraft { span: state_span(span, semconv::STATE_STARTED, None, None), has_sequence_id: false };
    let resources = async {
        match &rollout.resources_id {
            Some(resources_id) => store.get_resources_by_id(resources_id, None).await,
            None => store.get_latest_resources().await,
        }
    };
    let (resources, noted) = tokio::join!(resources, store.add_span_drafts(vec![started]));
    let (has_resources, has_started) = (resources.is_ok(), noted.is_ok());
    Ok(Some(Claim { attempted, resources: resources.ok().flatten(), has_resources, has_started }))
}

/// Stores the last spans of an attempt, numbered in their order, and then reports how it has ended, in one call.
///
/// # Errors
/// What the store answers. The whole may be repeated: a span that was stored is not stored again.
pub async fn finish(
    store: &dyn Store,
    (rollout_id, attempt_id): (&str, &str),
    spans: Vec<Span>,
    update: AttemptUpdate,
) -> Result<Attempt, StoreError> {
    if !spans.is_empty() {
        let draft = |span| SpanDraft { span, has_sequence_id: false };
        store.add_span_drafts(spans.into_iter().map(draft).collect()).await?;
    }
    store.update_attempt(rollout_id, attempt_id, update).await
}
