use agl_store::Error;
use agl_types::{
    AttemptedRollout, EnqueueRolloutRequest, Page, Rollout, RolloutQuery, RolloutUpdate, RolloutView,
    StartRollout,
};
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};

use super::attempts::Who;
use super::{Answer, App, check_page};
use crate::error::ApiError;
use crate::extract::{Body, Path, Query};

pub(super) fn routes() -> Router<App> {
    Router::new()
        .route("/rollouts", get(list).post(start))
        .route("/rollouts/search", post(search))
        .route("/rollouts/{rollout_id}", get(by_id).post(update).delete(delete))
}

async fn start(State(app): State<App>, body: Body) -> Result<(StatusCode, Json<AttemptedRollout>), ApiError> {
    // In two steps, because a flattened field could not say where it was refused.
    let rollout: EnqueueRolloutRequest = body.parse()?;
    let Who { worker_id } = body.parse()?;
    let started = body.store(&app).start_rollout(StartRollout { rollout, worker_id }).await?;
    Ok((StatusCode::CREATED, Json(started)))
}

async fn list(State(app): State<App>, Query(query): Query<RolloutQuery>) -> Answer<Page<RolloutView>> {
    check_page(query.limit, query.offset)?;
    Ok(Json(app.store.query_rollouts(query).await?))
}

async fn search(State(app): State<App>, body: Body) -> Answer<Page<RolloutView>> {
    list(State(app), Query(body.parse()?)).await
}

async fn by_id(State(app): State<App>, Path(rollout_id): Path<String>) -> Answer<RolloutView> {
    let found = app.store.get_rollout_by_id(&rollout_id).await?;
    Ok(Json(found.ok_or_else(|| Error::rollout_not_found(&rollout_id))?))
}

async fn update(State(app): State<App>, Path(rollout_id): Path<String>, body: Body) -> Answer<Rollout> {
    let update: RolloutUpdate = body.parse_without_nulls(&["status", "config"])?;
    Ok(Json(body.store(&app).update_rollout(&rollout_id, update).await?))
}

async fn delete(
    State(app): State<App>,
    Path(rollout_id): Path<String>,
    body: Body,
) -> Result<StatusCode, ApiError> {
    body.store(&app).delete_rollout(&rollout_id).await?;
    Ok(StatusCode::NO_CONTENT)
}
