use agl_store::Error;
use agl_types::{
    AttemptedRollout, EnqueueRolloutRequest, Page, Rollout, RolloutQuery, RolloutUpdate, RolloutView,
    StartRollout,
};
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::attempts::Who;
use super::{Answer, App, check_page};
use crate::error::ApiError;
use crate::extract::{Body, Path, Query};
use crate::openapi::{NotFound, Once};

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(list, start))
        .routes(routes!(search))
        .routes(routes!(by_id, update, delete))
}

/// Starts a rollout at once, past the queue.
#[utoipa::path(
    post,
    path = "/rollouts",
    operation_id = "start_rollout",
    params(Once),
    request_body = StartRollout,
    responses((status = 201, description = "The rollout with its first attempt.", body = AttemptedRollout)),
)]
async fn start(State(app): State<App>, body: Body) -> Result<(StatusCode, Json<AttemptedRollout>), ApiError> {
    // In two steps, because a flattened field could not say where it was refused.
    let rollout: EnqueueRolloutRequest = body.parse()?;
    let Who { worker_id } = body.parse()?;
    let started = body.store(&app).start_rollout(StartRollout { rollout, worker_id }).await?;
    Ok((StatusCode::CREATED, Json(started)))
}

/// Rollouts, a page at a time, each with its latest attempt.
#[utoipa::path(
    get,
    path = "/rollouts",
    operation_id = "query_rollouts",
    params(RolloutQuery),
    responses((status = 200, description = "One page.", body = Page<RolloutView>)),
)]
async fn list(State(app): State<App>, Query(query): Query<RolloutQuery>) -> Answer<Page<RolloutView>> {
    check_page(query.limit, query.offset)?;
    Ok(Json(app.store.query_rollouts(query).await?))
}

/// Rollouts, a page at a time, with the query in the body.
///
/// A list that is null does not count; one that is empty matches nothing.
#[utoipa::path(
    post,
    path = "/rollouts/search",
    operation_id = "search_rollouts",
    request_body = RolloutQuery,
    responses((status = 200, description = "One page.", body = Page<RolloutView>)),
)]
async fn search(State(app): State<App>, body: Body) -> Answer<Page<RolloutView>> {
    list(State(app), Query(body.parse()?)).await
}

/// One rollout with its latest attempt, if there has been one.
#[utoipa::path(
    get,
    path = "/rollouts/{rollout_id}",
    operation_id = "get_rollout",
    params(("rollout_id" = String, Path, description = "The rollout.")),
    responses((status = 200, description = "The rollout.", body = RolloutView), NotFound),
)]
async fn by_id(State(app): State<App>, Path(rollout_id): Path<String>) -> Answer<RolloutView> {
    let found = app.store.get_rollout_by_id(&rollout_id).await?;
    Ok(Json(found.ok_or_else(|| Error::rollout_not_found(&rollout_id))?))
}

/// Changes a rollout.
///
/// What is absent stays as it is; null clears, but `status` and `config` cannot be null.
#[utoipa::path(
    post,
    path = "/rollouts/{rollout_id}",
    operation_id = "update_rollout",
    params(("rollout_id" = String, Path, description = "The rollout."), Once),
    request_body = RolloutUpdate,
    responses((status = 200, description = "The rollout as it is now.", body = Rollout), NotFound),
)]
async fn update(State(app): State<App>, Path(rollout_id): Path<String>, body: Body) -> Answer<Rollout> {
    let update: RolloutUpdate = body.parse_without_nulls(&["status", "config"])?;
    Ok(Json(body.store(&app).update_rollout(&rollout_id, update).await?))
}

/// Deletes a rollout with all that belongs to it.
#[utoipa::path(
    delete,
    path = "/rollouts/{rollout_id}",
    operation_id = "delete_rollout",
    params(("rollout_id" = String, Path, description = "The rollout."), Once),
    responses((status = 204, description = "It is gone."), NotFound),
)]
async fn delete(
    State(app): State<App>,
    Path(rollout_id): Path<String>,
    body: Body,
) -> Result<StatusCode, ApiError> {
    body.store(&app).delete_rollout(&rollout_id).await?;
    Ok(StatusCode::NO_CONTENT)
}
