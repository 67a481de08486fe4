use agl_types::{Page, Worker, WorkerQuery, WorkerUpdate};
use axum::Json;
use axum::extract::State;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::{Answer, App, check_page};
use crate::extract::{Body, Path, Query};
use crate::openapi::Once;

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(list)).routes(routes!(search)).routes(routes!(by_id, update))
}

/// Workers, a page at a time.
#[utoipa::path(
    get,
    path = "/workers",
    operation_id = "query_workers",
    params(WorkerQuery),
    responses((status = 200, description = "One page.", body = Page<Worker>)),
)]
async fn list(State(app): State<App>, Query(query): Query<WorkerQuery>) -> Answer<Page<Worker>> {
    check_page(query.limit, query.offset)?;
    Ok(Json(app.store.query_workers(query).await?))
}

/// Workers, a page at a time, with the query in the body.
#[utoipa::path(
    post,
    path = "/workers/search",
    operation_id = "search_workers",
    request_body = WorkerQuery,
    responses((status = 200, description = "One page.", body = Page<Worker>)),
)]
async fn search(state: State<App>, body: Body) -> Answer<Page<Worker>> {
    list(state, Query(body.parse()?)).await
}

/// One worker, or null.
#[utoipa::path(
    get,
    path = "/workers/{worker_id}",
    operation_id = "get_worker",
    params(("worker_id" = String, Path, description = "The worker.")),
    responses((status = 200, description = "The worker, or null.", body = Option<Worker>)),
)]
async fn by_id(State(app): State<App>, Path(worker_id): Path<String>) -> Answer<Option<Worker>> {
    Ok(Json(app.store.get_worker_by_id(&worker_id).await?))
}

/// A sign of life of a worker, which is made if it is new.
#[utoipa::path(
    post,
    path = "/workers/{worker_id}",
    operation_id = "update_worker",
    params(("worker_id" = String, Path, description = "The worker."), Once),
    request_body = Option<WorkerUpdate>,
    responses((status = 200, description = "The worker as it is now.", body = Worker)),
)]
async fn update(State(app): State<App>, Path(worker_id): Path<String>, body: Body) -> Answer<Worker> {
    let update = if body.is_empty() {
        WorkerUpdate::default()
    } else {
        body.parse_without_nulls(&["heartbeat_stats"])?
    };
    Ok(Json(body.store(&app).update_worker(&worker_id, update).await?))
}
