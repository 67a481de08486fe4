//! One store call by name: JSON in, JSON out. The structs of agl-types say what the JSON looks like.

use agl_store::{SpanDraft, Store};
use agl_types::{
    AttemptEnd, AttemptQuery, AttemptUpdate, DequeueRequest, EnqueueRequest, NamedResources, RolloutUpdate,
    SequenceIdRequest, Span, WorkerUpdate,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::completion::Outcome;
use crate::failure::Failure;

#[derive(Deserialize)]
struct ById {
    id: String,
}

#[derive(Deserialize)]
struct StartAttempt {
    rollout_id: String,
    worker_id: Option<String>,
}

#[derive(Deserialize)]
struct OtelSpan {
    rollout_id: String,
    attempt_id: String,
    span: Span,
    sequence_id: Option<i64>,
}

#[derive(Deserialize)]
struct ResourcesVersion {
    resources_id: String,
    version: Option<u32>,
}

#[derive(Deserialize)]
struct UpdateResources {
    resources_id: String,
    resources: NamedResources,
}

#[derive(Deserialize)]
struct UpdateRollout {
    rollout_id: String,
    update: RolloutUpdate,
}

#[derive(Deserialize)]
struct UpdateAttempt {
    rollout_id: String,
    attempt_id: String,
    update: AttemptUpdate,
}

#[derive(Deserialize)]
struct EndAttempt {
    rollout_id: String,
    attempt_id: String,
    #[serde(flatten)]
    end: AttemptEnd,
}

#[derive(Deserialize)]
struct UpdateWorker {
    worker_id: String,
    update: WorkerUpdate,
}

/// Reads JSON from Python; a failure names the field.
pub(crate) fn read<T: DeserializeOwned>(json: &[u8]) -> Result<T, Failure> {
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let field = error.path().to_string();
        let reason = error.inner().to_string();
        // Where in our own JSON it is says nothing to the caller.
        let reason = reason.rsplit_once(" at line ").map_or(reason.as_str(), |(reason, _)| reason);
        if field == "." {
            Failure::invalid(None, reason)
        } else {
            let message = format!("{field}: {reason}");
            Failure::invalid(Some(field), message)
        }
    })
}

/// Writes JSON for Python.
pub(crate) fn reply<T: Serialize + ?Sized>(answer: &T) -> Outcome {
    serde_json::to_vec(answer).map_err(|error| Failure::backend(format!("the answer has no JSON: {error}")))
}

/// Calls the store's method of that name.
pub(crate) async fn dispatch(store: &dyn Store, method: &str, json: &[u8]) -> Outcome {
    match method {
        "statistics" => reply(&store.statistics().await?),
        "start_rollout" => reply(&store.start_rollout(read(json)?).await?),
        "enqueue_rollout" => reply(&store.enqueue_rollout(read(json)?).await?),
        "enqueue_many_rollouts" => {
            let EnqueueRequest { rollouts } = read(json)?;
            reply(&store.enqueue_many_rollouts(rollouts).await?)
        }
        "dequeue_rollout" => {
            let request = DequeueRequest { limit: 1, ..read(json)? };
            reply(&store.dequeue_many_rollouts(request).await?.into_iter().next())
        }
        "dequeue_many_rollouts" => reply(&store.dequeue_many_rollouts(read(json)?).await?),
        "claim_rollout" => {
            let request = DequeueRequest { limit: 1, ..read(json)? };
            reply(&store.claim_rollouts(request).await?.into_iter().next())
        }
        "end_attempt" => {
            let EndAttempt { rollout_id, attempt_id, end } = read(json)?;
            reply(&store.end_attempt(&rollout_id, &attempt_id, end).await?)
        }
        "start_attempt" => {
            let StartAttempt { rollout_id, worker_id } = read(json)?;
            reply(&store.start_attempt(&rollout_id, worker_id).await?)
        }
        // Python has the spans already: the answers only say which of them are new.
        "add_span" => reply(&store.add_span(read(json)?).await?.is_some()),
        "add_many_spans" => {
            let added = store.add_many_spans(read(json)?).await?;
            let keys: Vec<_> =
                added.iter().map(|span| (&span.rollout_id, &span.attempt_id, &span.span_id)).collect();
            reply(&keys)
        }
        "append_spans" => {
            let spans: Vec<Span> = read(json)?;
            let drafts = spans.into_iter().map(|span| SpanDraft { span, has_sequence_id: false }).collect();
            let added = store.add_span_drafts(drafts).await?;
            let places: Vec<_> = added
                .iter()
                .map(|span| (&span.rollout_id, &span.attempt_id, &span.span_id, span.sequence_id))
                .collect();
            reply(&places)
        }
        "add_otel_span" => {
            let OtelSpan { rollout_id, attempt_id, span, sequence_id } = read(json)?;
            let added = store.add_otel_span(&rollout_id, &attempt_id, span, sequence_id).await?;
            reply(&added.map(|span| span.sequence_id))
        }
        "query_rollouts" => reply(&store.query_rollouts(read(json)?).await?),
        "query_attempts" => reply(&store.query_attempts(read::<AttemptQuery>(json)?).await?),
        "get_rollout_by_id" => reply(&store.get_rollout_by_id(&read::<ById>(json)?.id).await?),
        "get_latest_attempt" => reply(&store.get_latest_attempt(&read::<ById>(json)?.id).await?),
        "query_resources" => reply(&store.query_resources(read(json)?).await?),
        "get_resources_by_id" => {
            let ResourcesVersion { resources_id, version } = read(json)?;
            reply(&store.get_resources_by_id(&resources_id, version).await?)
        }
        "get_latest_resources" => reply(&store.get_latest_resources().await?),
        "add_resources" => reply(&store.add_resources(read(json)?).await?),
        "update_resources" => {
            let UpdateResources { resources_id, resources } = read(json)?;
            reply(&store.update_resources(&resources_id, resources).await?)
        }
        "get_next_span_sequence_id" => {
            let SequenceIdRequest { rollout_id, attempt_id } = read(json)?;
            reply(&store.get_next_span_sequence_id(&rollout_id, &attempt_id).await?)
        }
        "get_many_span_sequence_ids" => reply(&store.get_many_span_sequence_ids(read(json)?).await?),
        "wait_for_rollouts" => reply(&store.wait_for_rollouts(read(json)?).await?),
        "query_spans" => reply(&store.query_spans(read(json)?).await?),
        "update_rollout" => {
            let UpdateRollout { rollout_id, update } = read(json)?;
            reply(&store.update_rollout(&rollout_id, update).await?)
        }
        "update_attempt" => {
            let UpdateAttempt { rollout_id, attempt_id, update } = read(json)?;
            reply(&store.update_attempt(&rollout_id, &attempt_id, update).await?)
        }
        "query_workers" => reply(&store.query_workers(read(json)?).await?),
        "get_worker_by_id" => reply(&store.get_worker_by_id(&read::<ById>(json)?.id).await?),
        "update_worker" => {
            let UpdateWorker { worker_id, update } = read(json)?;
            reply(&store.update_worker(&worker_id, update).await?)
        }
        "delete_rollout" => reply(&store.delete_rollout(&read::<ById>(json)?.id).await?),
        "queue_state" => reply(&store.queue_state().await?),
        "set_queue_state" => reply(&store.set_queue_state(read(json)?).await?),
        "purge" => reply(&store.purge(read(json)?).await?),
        other => Err(Failure::invalid(None, format!("a store has no method {other:?}"))),
    }
}
