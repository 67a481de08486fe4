use agl_types::{NamedResources, Page, ResourcesQuery, ResourcesUpdate};
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};

use super::{Answer, App, check_page};
use crate::error::ApiError;
use crate::extract::{Body, Path, Query, VersionQuery};

/// An id that can be written to, but reads as "the newest of all".
const LATEST: &str = "latest";

pub(super) fn routes() -> Router<App> {
    Router::new()
        .route("/resources", get(list).post(add))
        .route("/resources/latest", get(latest).post(update_named_latest))
        .route("/resources/{resources_id}", get(by_id).post(update))
}

async fn list(State(app): State<App>, Query(query): Query<ResourcesQuery>) -> Answer<Page<ResourcesUpdate>> {
    check_page(query.limit, query.offset)?;
    Ok(Json(app.store.query_resources(query).await?))
}

async fn add(State(app): State<App>, body: Body) -> Result<(StatusCode, Json<ResourcesUpdate>), ApiError> {
    let resources: NamedResources = body.parse()?;
    Ok((StatusCode::CREATED, Json(body.store(&app).add_resources(resources).await?)))
}

async fn latest(State(app): State<App>) -> Answer<Option<ResourcesUpdate>> {
    Ok(Json(app.store.get_latest_resources().await?))
}

async fn by_id(
    State(app): State<App>,
    Path(resources_id): Path<String>,
    Query(VersionQuery { version }): Query<VersionQuery>,
) -> Answer<Option<ResourcesUpdate>> {
    Ok(Json(app.store.get_resources_by_id(&resources_id, version).await?))
}

async fn update_named_latest(state: State<App>, body: Body) -> Answer<ResourcesUpdate> {
    update(state, Path(LATEST.to_owned()), body).await
}

async fn update(
    State(app): State<App>,
    Path(resources_id): Path<String>,
    body: Body,
) -> Answer<ResourcesUpdate> {
    let resources: NamedResources = body.parse()?;
    Ok(Json(body.store(&app).update_resources(&resources_id, resources).await?))
}
