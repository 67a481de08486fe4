use agl_store::Error;
use agl_types::v1::{
    CompletionQuery, Completions, Rollout, RolloutCreate, RolloutDetail, RolloutPatch, RolloutQuery,
};
use axum::Json;
use axum::extract::{OriginalUri, State};
use axum::http::StatusCode;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::error::ApiError;
use crate::extract::{Body, Path, Query, parse_value, query_object};
use crate::openapi::{Conflict, NotFound, Once};
use crate::routes::{Answer, App};

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(list, create))
        .routes(routes!(terminal))
        .routes(routes!(by_id, update, delete))
}

/// Makes rollouts for a controller to claim.
///
/// One that is there already under its id is left as it is, and answered so.
#[utoipa::path(
    post,
    path = "/rollouts",
    operation_id = "create_controller_rollouts",
    params(Once),
    request_body = Vec<RolloutCreate>,
    responses((status = 201, description = "The rollouts, in the order given.", body = Vec<Rollout>)),
)]
async fn create(State(app): State<App>, body: Body) -> Result<(StatusCode, Json<Vec<Rollout>>), ApiError> {
    let requests: Vec<RolloutCreate> = body.parse_list()?;
    Ok((StatusCode::CREATED, Json(body.store(&app).create_controller_rollouts(requests).await?)))
}

/// Rollouts in some states, in order of creation.
///
/// Those that are queuing or running are listed only where they are a controller's.
#[utoipa::path(
    get,
    path = "/rollouts",
    operation_id = "query_controller_rollouts",
    params(RolloutQuery),
    responses((status = 200, description = "The rollouts.", body = Vec<Rollout>)),
)]
async fn list(State(app): State<App>, Query(query): Query<RolloutQuery>) -> Answer<Vec<Rollout>> {
    Ok(Json(app.store.query_controller_rollouts(query).await?))
}

/// Rollouts in the order in which they ended.
#[utoipa::path(
    get,
    path = "/rollouts/terminal",
    operation_id = "query_completions",
    params(CompletionQuery),
    responses((status = 200, description = "A part of the log, and where to go on.", body = Completions)),
)]
async fn terminal(State(app): State<App>, OriginalUri(uri): OriginalUri) -> Answer<Completions> {
    let mut query = query_object(uri.query().unwrap_or_default());
    // Elsewhere it is text.
    if let Some(after) = query.get_mut("after")
        && let Some(place) = after.as_str().and_then(|text| text.parse::<i64>().ok())
    {
        *after = place.into();
    }
    let query: CompletionQuery = parse_value("query", &query)?;
    Ok(Json(app.store.query_completions(query).await?))
}

/// One rollout with the names of its attempts.
#[utoipa::path(
    get,
    path = "/rollouts/{rollout_id}",
    operation_id = "get_controller_rollout",
    params(("rollout_id" = String, Path, description = "The rollout.")),
    responses((status = 200, description = "The rollout.", body = RolloutDetail), NotFound),
)]
async fn by_id(State(app): State<App>, Path(rollout_id): Path<String>) -> Answer<RolloutDetail> {
    let found = app.store.get_controller_rollout(&rollout_id).await?;
    Ok(Json(found.ok_or_else(|| Error::rollout_not_found(&rollout_id))?))
}

/// Changes the status of a rollout; going on to `running` is a claim.
#[utoipa::path(
    patch,
    path = "/rollouts/{rollout_id}",
    operation_id = "update_controller_rollout",
    params(("rollout_id" = String, Path, description = "The rollout."), Once),
    request_body = RolloutPatch,
    responses((status = 200, description = "The rollout as it is now.", body = Rollout), NotFound, Conflict),
)]
async fn update(State(app): State<App>, Path(rollout_id): Path<String>, body: Body) -> Answer<Rollout> {
    let RolloutPatch { status } = body.parse()?;
    Ok(Json(body.store(&app).update_controller_rollout(&rollout_id, status).await?))
}

/// Deletes a rollout, whether it is there or not.
#[utoipa::path(
    delete,
    path = "/rollouts/{rollout_id}",
    operation_id = "delete_controller_rollout",
    params(("rollout_id" = String, Path, description = "The rollout."), Once),
    responses((status = 204, description = "It is not there any more.")),
)]
async fn delete(
    State(app): State<App>,
    Path(rollout_id): Path<String>,
    body: Body,
) -> Result<StatusCode, ApiError> {
    match body.store(&app).delete_rollout(&rollout_id).await {
        Ok(()) | Err(Error::NotFound { .. }) => Ok(StatusCode::NO_CONTENT),
        Err(error) => Err(error.into()),
    }
}
