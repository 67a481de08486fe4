use agl_types::{NamedResources, Page, Resource, ResourcesQuery, ResourcesUpdate};
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::{Answer, App, check_page};
use crate::error::ApiError;
use crate::extract::{Body, Path, Query, VersionQuery};
use crate::openapi::Once;

/// An id that can be written to, but reads as "the newest of all".
const LATEST: &str = "latest";

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(list, add))
        .routes(routes!(latest, update_named_latest))
        .routes(routes!(by_id, update))
}

/// Resources, a page at a time.
#[utoipa::path(
    get,
    path = "/resources",
    operation_id = "query_resources",
    params(ResourcesQuery),
    responses((status = 200, description = "One page.", body = Page<ResourcesUpdate>)),
)]
async fn list(State(app): State<App>, Query(query): Query<ResourcesQuery>) -> Answer<Page<ResourcesUpdate>> {
    check_page(query.limit, query.offset)?;
    Ok(Json(app.store.query_resources(query).await?))
}

/// Adds resources under a new id.
#[utoipa::path(
    post,
    path = "/resources",
    operation_id = "add_resources",
    params(Once),
    request_body = HashMap<String, Resource>,
    responses((status = 201, description = "Version 1 of the new id.", body = ResourcesUpdate)),
)]
async fn add(State(app): State<App>, body: Body) -> Result<(StatusCode, Json<ResourcesUpdate>), ApiError> {
    let resources: NamedResources = body.parse()?;
    Ok((StatusCode::CREATED, Json(body.store(&app).add_resources(resources).await?)))
}

/// The resources that were added or updated last, or null.
#[utoipa::path(
    get,
    path = "/resources/latest",
    operation_id = "get_latest_resources",
    responses((status = 200, description = "The resources, or null.", body = Option<ResourcesUpdate>)),
)]
async fn latest(State(app): State<App>) -> Answer<Option<ResourcesUpdate>> {
    Ok(Json(app.store.get_latest_resources().await?))
}

/// The newest version of a resources id, or the one asked for, or null.
#[utoipa::path(
    get,
    path = "/resources/{resources_id}",
    operation_id = "get_resources",
    params(("resources_id" = String, Path, description = "The resources id."), VersionQuery),
    responses((status = 200, description = "The resources, or null.", body = Option<ResourcesUpdate>)),
)]
async fn by_id(
    State(app): State<App>,
    Path(resources_id): Path<String>,
    Query(VersionQuery { version }): Query<VersionQuery>,
) -> Answer<Option<ResourcesUpdate>> {
    Ok(Json(app.store.get_resources_by_id(&resources_id, version).await?))
}

/// Adds a version to the resources id `latest`.
#[utoipa::path(
    post,
    path = "/resources/latest",
    operation_id = "update_resources_named_latest",
    params(Once),
    request_body = HashMap<String, Resource>,
    responses((status = 200, description = "The new version.", body = ResourcesUpdate)),
)]
async fn update_named_latest(state: State<App>, body: Body) -> Answer<ResourcesUpdate> {
    update(state, Path(LATEST.to_owned()), body).await
}

/// Adds a version to a resources id, which is made if it is new.
#[utoipa::path(
    post,
    path = "/resources/{resources_id}",
    operation_id = "update_resources",
    params(("resources_id" = String, Path, description = "The resources id."), Once),
    request_body = HashMap<String, Resource>,
    responses((status = 200, description = "The new version.", body = ResourcesUpdate)),
)]
async fn update(
    State(app): State<App>,
    Path(resources_id): Path<String>,
    body: Body,
) -> Answer<ResourcesUpdate> {
    let resources: NamedResources = body.parse()?;
    Ok(Json(body.store(&app).update_resources(&resources_id, resources).await?))
}
