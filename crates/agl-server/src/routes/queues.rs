use agl_types::{AttemptedRollout, DequeueRequest, EnqueueRequest, Rollout, WaitRequest};
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use axum::{Json, Router};

use super::{Answer, App};
use crate::error::ApiError;
use crate::extract::Body;

pub(super) fn routes() -> Router<App> {
    Router::new()
        .route("/queues/rollouts/enqueue", post(enqueue))
        .route("/queues/rollouts/dequeue", post(dequeue))
        .route("/waits/rollouts", post(wait))
}

async fn enqueue(State(app): State<App>, body: Body) -> Result<(StatusCode, Json<Vec<Rollout>>), ApiError> {
    let EnqueueRequest { rollouts } = body.parse()?;
    let enqueued = body.store(&app).enqueue_many_rollouts(rollouts).await?;
    Ok((StatusCode::CREATED, Json(enqueued)))
}

/// Waits as long as asked to for something to hand out; when the server is about to stop, there is nothing.
async fn dequeue(State(app): State<App>, body: Body) -> Answer<Vec<AttemptedRollout>> {
    let request: DequeueRequest = body.parse_or_default()?;
    let store = body.store(&app);
    tokio::select! {
        biased;
        claimed = store.dequeue_many_rollouts(request) => Ok(Json(claimed?)),
        () = app.stopping() => Ok(Json(Vec::new())),
    }
}

/// Waits as long as asked to, unless the server is about to stop: the caller is then better served elsewhere.
async fn wait(State(app): State<App>, body: Body) -> Answer<Vec<Rollout>> {
    let request: WaitRequest = body.parse()?;
    tokio::select! {
        ended = app.store.wait_for_rollouts(request) => Ok(Json(ended?)),
        () = app.stopping() => Err(ApiError::shutting_down()),
    }
}
