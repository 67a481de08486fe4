use agl_types::{Attempt, AttemptQuery, AttemptUpdate, AttemptedRollout, Page};
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;

use super::{Answer, App, check_page};
use crate::error::ApiError;
use crate::extract::{Body, Path, Query};

/// The word that names the attempt with the highest number.
const LATEST: &str = "latest";

pub(super) fn routes() -> Router<App> {
    Router::new()
        .route("/rollouts/{rollout_id}/attempts", get(list).post(start))
        .route("/rollouts/{rollout_id}/attempts/search", post(search))
        .route("/rollouts/{rollout_id}/attempts/latest", get(latest).post(update_latest).patch(patch_latest))
        .route("/rollouts/{rollout_id}/attempts/{attempt_id}", post(update).patch(patch))
}

/// Who does something.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Who {
    pub(super) worker_id: Option<String>,
}

async fn start(
    State(app): State<App>,
    Path(rollout_id): Path<String>,
    body: Body,
) -> Result<(StatusCode, Json<AttemptedRollout>), ApiError> {
    let Who { worker_id } = body.parse_or_default()?;
    let started = body.store(&app).start_attempt(&rollout_id, worker_id).await?;
    Ok((StatusCode::CREATED, Json(started)))
}

async fn list(
    State(app): State<App>,
    Path(rollout_id): Path<String>,
    Query(query): Query<AttemptQuery>,
) -> Answer<Page<Attempt>> {
    check_page(query.limit, query.offset)?;
    Ok(Json(app.store.query_attempts(AttemptQuery { rollout_id, ..query }).await?))
}

async fn search(state: State<App>, path: Path<String>, body: Body) -> Answer<Page<Attempt>> {
    list(state, path, Query(body.parse()?)).await
}

async fn latest(State(app): State<App>, Path(rollout_id): Path<String>) -> Answer<Option<Attempt>> {
    Ok(Json(app.store.get_latest_attempt(&rollout_id).await?))
}

async fn update_latest(state: State<App>, Path(rollout_id): Path<String>, body: Body) -> Answer<Attempt> {
    update(state, Path((rollout_id, LATEST.to_owned())), body).await
}

async fn update(
    State(app): State<App>,
    Path((rollout_id, attempt_id)): Path<(String, String)>,
    body: Body,
) -> Answer<Attempt> {
    let update: AttemptUpdate =
        body.parse_without_nulls(&["status", "worker_id", "last_heartbeat_time", "metadata"])?;
    Ok(Json(body.store(&app).update_attempt(&rollout_id, &attempt_id, update).await?))
}

async fn patch_latest(state: State<App>, Path(rollout_id): Path<String>, body: Body) -> Answer<Attempt> {
    patch(state, Path((rollout_id, LATEST.to_owned())), body).await
}

/// Like [`update`], but null clears a field.
async fn patch(
    State(app): State<App>,
    Path((rollout_id, attempt_id)): Path<(String, String)>,
    body: Body,
) -> Answer<Attempt> {
    let update: AttemptUpdate = body.parse()?;
    Ok(Json(body.store(&app).update_attempt(&rollout_id, &attempt_id, update).await?))
}
