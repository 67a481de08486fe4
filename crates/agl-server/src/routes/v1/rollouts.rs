use agl_store::Error;
use agl_types::v1::{
    CompletionQuery, Completions, Rollout, RolloutCreate, RolloutDetail, RolloutPatch, RolloutQuery,
};
use axum::extract::{OriginalUri, State};
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};

use crate::error::ApiError;
use crate::extract::{Body, Path, Query, parse_value, query_object};
use crate::routes::{Answer, App};

pub(super) fn routes() -> Router<App> {
    Router::new()
        .route("/rollouts", get(list).post(create))
        .route("/rollouts/terminal", get(terminal))
        .route("/rollouts/{rollout_id}", get(by_id).patch(update).delete(delete))
}

async fn create(State(app): State<App>, body: Body) -> Result<(StatusCode, Json<Vec<Rollout>>), ApiError> {
    let requests: Vec<RolloutCreate> = body.parse_list()?;
    Ok((StatusCode::CREATED, Json(body.store(&app).create_controller_rollouts(requests).await?)))
}

async fn list(State(app): State<App>, Query(query): Query<RolloutQuery>) -> Answer<Vec<Rollout>> {
    Ok(Json(app.store.query_controller_rollouts(query).await?))
}

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

async fn by_id(State(app): State<App>, Path(rollout_id): Path<String>) -> Answer<RolloutDetail> {
    let found = app.store.get_controller_rollout(&rollout_id).await?;
    Ok(Json(found.ok_or_else(|| Error::rollout_not_found(&rollout_id))?))
}

async fn update(State(app): State<App>, Path(rollout_id): Path<String>, body: Body) -> Answer<Rollout> {
    let RolloutPatch { status } = body.parse()?;
    Ok(Json(body.store(&app).update_controller_rollout(&rollout_id, status).await?))
}

/// Deletes a rollout, whether it is there or not.
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
