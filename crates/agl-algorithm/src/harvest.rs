use agl_store::{Error as StoreError, Store};
use agl_trace::{TripletOptions, find_final_reward, spans_to_triplets};
use agl_types::{AttemptQuery, Rollout, SpanQuery, Triplet, semconv};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// What a rollout that has ended left behind.
///
/// ```
/// use agl_algorithm::RolloutReport;
///
/// fn was_perfect(report: &RolloutReport) -> bool {
///     report.reward == Some(1.0) && report.attempts == 1
/// }
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RolloutReport {
    /// The rollout as it ended.
    pub rollout: Rollout,
    /// How many attempts were made.
    pub attempts: u64,
    /// Spans of all attempts, state events left out.
    pub spans: u64,
    /// The final reward of the latest attempt.
    pub reward: Option<f64>,
    /// The LLM calls of the latest attempt.
    pub triplets: Vec<Triplet>,
    /// Tokens that the model read in these calls.
    pub prompt_tokens: u64,
    /// Tokens that the model wrote in these calls.
    pub response_tokens: u64,
}

/// Reads what a rollout left behind. Spans that make no trace (none at all, parents in circles) make no triplets.
///
/// # Errors
/// What the store answers.
pub async fn harvest(
    store: &dyn Store,
    rollout: Rollout,
    options: &TripletOptions,
) -> Result<RolloutReport, StoreError> {
    let rollout_id = || rollout.rollout_id.clone();
    let attempts = store
        .query_attempts(AttemptQuery { rollout_id: rollout_id(), ..AttemptQuery::default() })
        .await?
        .items;
    let mut spans =
        store.query_spans(SpanQuery { rollout_id: rollout_id(), ..SpanQuery::default() }).await?.items;
    // What the runner notes of an attempt is no part of what the agent has done.
    spans.retain(|span| span.name != semconv::AGL_STATE);
    let all_spans = spans.len() as u64;
    if let Some(latest) = attempts.iter().max_by_key(|attempt| attempt.sequence_id) {
        spans.retain(|span| span.attempt_id == latest.attempt_id);
    }
    let triplets = spans_to_triplets(&spans, options).unwrap_or_else(|error| {
        tracing::debug!(%error, rollout_id = rollout.rollout_id, "the rollout has no triplets");
        Vec::new()
    });
    Ok(RolloutReport {
        attempts: attempts.len() as u64,
        spans: all_spans,
        reward: find_final_reward(&spans),
        prompt_tokens: triplets.iter().map(|triplet| token_count(&triplet.prompt)).sum(),
        response_tokens: triplets.iter().map(|triplet| token_count(&triplet.response)).sum(),
        triplets,
        rollout,
    })
}

fn token_count(side: &Value) -> u64 {
    side["token_ids"].as_array().map_or(0, |ids| ids.len() as u64)
}
