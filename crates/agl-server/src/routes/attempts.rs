use agl_types::{Attempt, AttemptEnd, AttemptQuery, AttemptUpdate, AttemptedRollout, Page};
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Deserialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::{Answer, App, check_page};
use crate::error::ApiError;
use crate::extract::{Body, Path, Query};
use crate::openapi::{Conflict, NotFound, Once};

/// The word that names the attempt with the highest number.
const LATEST: &str = "latest";

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(list, start))
        .routes(routes!(search))
        .routes(routes!(latest, update_latest, patch_latest))
        .routes(routes!(update, patch))
        .routes(routes!(end))
}

/// Who does something.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(default)]
pub(super) struct Who {
    /// The worker.
    pub(super) worker_id: Option<String>,
}

/// Starts another attempt at a rollout, whatever its status.
#[utoipa::path(
    post,
    path = "/rollouts/{rollout_id}/attempts",
    operation_id = "start_attempt",
    params(("rollout_id" = String, Path, description = "The rollout."), Once),
    request_body = Option<Who>,
    responses((status = 201, description = "The rollout with the new attempt.", body = AttemptedRollout), NotFound, Conflict),
)]
async fn start(
    State(app): State<App>,
    Path(rollout_id): Path<String>,
    body: Body,
) -> Result<(StatusCode, Json<AttemptedRollout>), ApiError> {
    let Who { worker_id } = body.parse_or_default()?;
    let started = body.store(&app).start_attempt(&rollout_id, worker_id).await?;
    Ok((StatusCode::CREATED, Json(started)))
}

/// Attempts at a rollout, a page at a time; none for a rollout that is not there.
#[utoipa::path(
    get,
    path = "/rollouts/{rollout_id}/attempts",
    operation_id = "query_attempts",
    params(("rollout_id" = String, Path, description = "The rollout."), AttemptQuery),
    responses((status = 200, description = "One page.", body = Page<Attempt>)),
)]
async fn list(
    State(app): State<App>,
    Path(rollout_id): Path<String>,
    Query(query): Query<AttemptQuery>,
) -> Answer<Page<Attempt>> {
    check_page(query.limit, query.offset)?;
    Ok(Json(app.store.query_attempts(AttemptQuery { rollout_id, ..query }).await?))
}

/// Attempts at a rollout, a page at a time, with the query in the body.
#[utoipa::path(
    post,
    path = "/rollouts/{rollout_id}/attempts/search",
    operation_id = "search_attempts",
    params(("rollout_id" = String, Path, description = "The rollout.")),
    request_body = AttemptQuery,
    responses((status = 200, description = "One page.", body = Page<Attempt>)),
)]
async fn search(state: State<App>, path: Path<String>, body: Body) -> Answer<Page<Attempt>> {
    list(state, path, Query(body.parse()?)).await
}

/// The latest attempt at a rollout, or null.
#[utoipa::path(
    get,
    path = "/rollouts/{rollout_id}/attempts/latest",
    operation_id = "get_latest_attempt",
    params(("rollout_id" = String, Path, description = "The rollout.")),
    responses((status = 200, description = "The attempt, or null.", body = Option<Attempt>)),
)]
async fn latest(State(app): State<App>, Path(rollout_id): Path<String>) -> Answer<Option<Attempt>> {
    Ok(Json(app.store.get_latest_attempt(&rollout_id).await?))
}

/// Changes the latest attempt at a rollout; null is refused.
#[utoipa::path(
    post,
    path = "/rollouts/{rollout_id}/attempts/latest",
    operation_id = "update_latest_attempt",
    params(("rollout_id" = String, Path, description = "The rollout."), Once),
    request_body = AttemptUpdate,
    responses((status = 200, description = "The attempt as it is now.", body = Attempt), NotFound),
)]
async fn update_latest(state: State<App>, Path(rollout_id): Path<String>, body: Body) -> Answer<Attempt> {
    update(state, Path((rollout_id, LATEST.to_owned())), body).await
}

/// Changes an attempt; null is refused.
///
/// What is absent stays as it is.
#[utoipa::path(
    post,
    path = "/rollouts/{rollout_id}/attempts/{attempt_id}",
    operation_id = "update_attempt",
    params(("rollout_id" = String, Path, description = "The rollout."), ("attempt_id" = String, Path, description = "The attempt, or `latest`."), Once),
    request_body = AttemptUpdate,
    responses((status = 200, description = "The attempt as it is now.", body = Attempt), NotFound),
)]
async fn update(
    State(app): State<App>,
    Path((rollout_id, attempt_id)): Path<(String, String)>,
    body: Body,
) -> Answer<Attempt> {
    let update: AttemptUpdate =
        body.parse_without_nulls(&["status", "worker_id", "last_heartbeat_time", "metadata"])?;
    Ok(Json(body.store(&app).update_attempt(&rollout_id, &attempt_id, update).await?))
}

/// Changes the latest attempt at a rollout; null clears a field.
#[utoipa::path(
    patch,
    path = "/rollouts/{rollout_id}/attempts/latest",
    operation_id = "patch_latest_attempt",
    params(("rollout_id" = String, Path, description = "The rollout."), Once),
    request_body = AttemptUpdate,
    responses((status = 200, description = "The attempt as it is now.", body = Attempt), NotFound),
)]
async fn patch_latest(state: State<App>, Path(rollout_id): Path<String>, body: Body) -> Answer<Attempt> {
    patch(state, Path((rollout_id, LATEST.to_owned())), body).await
}

/// Changes an attempt; null clears a field.
///
/// What is absent stays as it is.
#[utoipa::path(
    patch,
    path = "/rollouts/{rollout_id}/attempts/{attempt_id}",
    operation_id = "patch_attempt",
    params(("rollout_id" = String, Path, description = "The rollout."), ("attempt_id" = String, Path, description = "The attempt, or `latest`."), Once),
    request_body = AttemptUpdate,
    responses((status = 200, description = "The attempt as it is now.", body = Attempt), NotFound),
)]
async fn patch(
    State(app): State<App>,
    Path((rollout_id, attempt_id)): Path<(String, String)>,
    body: Body,
) -> Answer<Attempt> {
    let update: AttemptUpdate = body.parse()?;
    Ok(Json(body.store(&app).update_attempt(&rollout_id, &attempt_id, update).await?))
}

/// Stores the last spans of an attempt and changes the attempt, or neither.
#[utoipa::path(
    post,
    path = "/rollouts/{rollout_id}/attempts/{attempt_id}/end",
    operation_id = "end_attempt",
    params(("rollout_id" = String, Path, description = "The rollout."), ("attempt_id" = String, Path, description = "The attempt."), Once),
    request_body = AttemptEnd,
    responses((status = 200, description = "The attempt as it is now.", body = Attempt), NotFound),
)]
async fn end(
    State(app): State<App>,
    Path((rollout_id, attempt_id)): Path<(String, String)>,
    body: Body,
) -> Answer<Attempt> {
    let end: AttemptEnd = body.parse()?;
    Ok(Json(body.store(&app).end_attempt(&rollout_id, &attempt_id, end).await?))
}
