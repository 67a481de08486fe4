use agl_types::{Page, Worker, WorkerQuery, WorkerUpdate};
use axum::extract::State;
use axum::routing::{get, post};
use axum::{Json, Router};

use super::{Answer, App, check_page};
use crate::extract::{Body, Path, Query};

pub(super) fn routes() -> Router<App> {
    Router::new()
        .route("/workers", get(list))
        .route("/workers/search", post(search))
        .route("/workers/{worker_id}", get(by_id).post(update))
}

async fn list(State(app): State<App>, Query(query): Query<WorkerQuery>) -> Answer<Page<Worker>> {
    check_page(query.limit, query.offset)?;
    Ok(Json(app.store.query_workers(query).await?))
}

async fn search(state: State<App>, body: Body) -> Answer<Page<Worker>> {
    list(state, Query(body.parse()?)).await
}

async fn by_id(State(app): State<App>, Path(worker_id): Path<String>) -> Answer<Option<Worker>> {
    Ok(Json(app.store.get_worker_by_id(&worker_id).await?))
}

async fn update(State(app): State<App>, Path(worker_id): Path<String>, body: Body) -> Answer<Worker> {
    let update = if body.is_empty() {
        WorkerUpdate::default()
    } else {
        body.parse_without_nulls(&["heartbeat_stats"])?
    };
    Ok(Json(body.store(&app).update_worker(&worker_id, update).await?))
}
