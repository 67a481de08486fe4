use agl_store::Error;
use agl_types::{AttemptedRollout, Claim, DequeueRequest, EnqueueRequest, QueueState, Rollout, WaitRequest};
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use tokio::sync::OwnedSemaphorePermit;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::{Answer, App};
use crate::admission::Place;
use crate::error::ApiError;
use crate::extract::Body;
use crate::openapi::Once;

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(enqueue))
        .routes(routes!(dequeue))
        .routes(routes!(claim))
        .routes(routes!(wait))
        .routes(routes!(state, set_state))
}

/// Puts rollouts into the queue.
///
/// All of them or, if one is refused, none.
#[utoipa::path(
    post,
    path = "/queues/rollouts/enqueue",
    operation_id = "enqueue_rollouts",
    params(Once),
    request_body = EnqueueRequest,
    responses((status = 201, description = "The rollouts, in the order given.", body = Vec<Rollout>)),
)]
async fn enqueue(State(app): State<App>, body: Body) -> Result<(StatusCode, Json<Vec<Rollout>>), ApiError> {
    let EnqueueRequest { rollouts } = body.parse()?;
    let enqueued = body.store(&app).enqueue_many_rollouts(rollouts).await?;
    Ok((StatusCode::CREATED, Json(enqueued)))
}

/// Claims rollouts from the queue.
///
/// Each is given to one worker, with a new attempt at it. With `wait`, the answer comes as soon as there is
/// something to give; when the server is about to stop, there is nothing.
#[utoipa::path(
    post,
    path = "/queues/rollouts/dequeue",
    operation_id = "dequeue_rollouts",
    params(Once),
    request_body = Option<DequeueRequest>,
    responses((status = 200, description = "What was claimed; at most as many as asked for.", body = Vec<AttemptedRollout>)),
)]
async fn dequeue(State(app): State<App>, place: Place, body: Body) -> Answer<Vec<AttemptedRollout>> {
    let (request, _waiting) = asked(&place, &body)?;
    claimed(&app, body.store(&app).dequeue_many_rollouts(request)).await
}

/// Claims rollouts from the queue, with all that a runner begins with.
///
/// As a dequeue does, and in the same step finds the resources of each rollout and stores the state event that its
/// attempt has started.
#[utoipa::path(
    post,
    path = "/queues/rollouts/claim",
    operation_id = "claim_rollouts",
    params(Once),
    request_body = Option<DequeueRequest>,
    responses((status = 200, description = "What was claimed; at most as many as asked for.", body = Vec<Claim>)),
)]
async fn claim(State(app): State<App>, place: Place, body: Body) -> Answer<Vec<Claim>> {
    let (request, _waiting) = asked(&place, &body)?;
    claimed(&app, body.store(&app).claim_rollouts(request)).await
}

/// What is asked for, and the place among those who wait where it comes to that.
fn asked(place: &Place, body: &Body) -> Result<(DequeueRequest, Option<OwnedSemaphorePermit>), ApiError> {
    let request: DequeueRequest = body.parse_or_default()?;
    let waiting = request.wait.filter(|seconds| *seconds > 0.0).map(|_| place.wait()).transpose()?;
    Ok((request, waiting))
}

/// What a claim gives; nothing when the server is about to stop.
async fn claimed<T>(app: &App, claim: impl Future<Output = Result<Vec<T>, Error>>) -> Answer<Vec<T>> {
    tokio::select! {
        biased;
        claimed = claim => Ok(Json(claimed?)),
        () = app.stopping() => Ok(Json(Vec::new())),
    }
}

/// Whether the queue gives out work.
#[utoipa::path(
    get,
    path = "/queues/rollouts",
    operation_id = "get_queue",
    responses((status = 200, description = "The state.", body = QueueState)),
)]
async fn state(State(app): State<App>) -> Answer<QueueState> {
    Ok(Json(app.store.queue_state().await?))
}

/// Pauses or resumes the queue.
///
/// While it is paused, dequeues are given nothing. What is being worked on goes on, and so do `start_rollout` and
/// controllers. It stays paused after a restart.
#[utoipa::path(
    put,
    path = "/queues/rollouts",
    operation_id = "set_queue",
    params(Once),
    request_body = QueueState,
    responses((status = 200, description = "The state now.", body = QueueState)),
)]
async fn set_state(State(app): State<App>, body: Body) -> Answer<QueueState> {
    let state = body.parse()?;
    Ok(Json(body.store(&app).set_queue_state(state).await?))
}

/// Waits until rollouts have ended.
///
/// Answers as soon as all of them have, or when the time is up; with 503 when the server is about to stop.
#[utoipa::path(
    post,
    path = "/waits/rollouts",
    operation_id = "wait_for_rollouts",
    request_body = WaitRequest,
    responses((status = 200, description = "Those of the rollouts that have ended.", body = Vec<Rollout>)),
)]
async fn wait(State(app): State<App>, place: Place, body: Body) -> Answer<Vec<Rollout>> {
    let request: WaitRequest = body.parse()?;
    let _waiting = place.wait()?;
    tokio::select! {
        ended = app.store.wait_for_rollouts(request) => Ok(Json(ended?)),
        () = app.stopping() => Err(ApiError::shutting_down()),
    }
}
