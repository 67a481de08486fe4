//! What those ask who look after a server.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::App;
use crate::error::{ApiError, RETRY_SOON};
use crate::metrics;

/// How long the store may take to show that it is there.
const PATIENCE: Duration = Duration::from_secs(2);

/// Prometheus's text format.
const TEXT_FORMAT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Told to everybody, and always.
pub(super) fn probes() -> OpenApiRouter<App> {
    // 1.0 asks for its health elsewhere.
    OpenApiRouter::new().routes(routes!(health)).routes(routes!(healthz)).routes(routes!(ready))
}

/// For those who have the key.
pub(super) fn routes() -> OpenApiRouter<App> {
    // 0.3 has them under a path of its own, with and without the slash.
    let same = |router: OpenApiRouter<App>, path| router.route(path, get(figures));
    ["/v1/prometheus", "/v1/prometheus/"]
        .into_iter()
        .fold(OpenApiRouter::new().routes(routes!(figures)), same)
}

/// How a server is.
#[derive(Serialize, ToSchema)]
pub(super) struct Health {
    /// `ok`, `ready` or `unavailable`.
    status: &'static str,
    /// What is wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<String>,
}

impl Health {
    /// All is well.
    pub(super) const OK: Self = Self { status: "ok", detail: None };
}

/// Says that the server is there, without asking the store.
#[utoipa::path(
    get,
    path = "/v1/agl/health",
    operation_id = "health",
    responses((status = 200, description = "It is.", body = Health)),
)]
async fn health() -> Json<Health> {
    Json(Health::OK)
}

/// Says that the server is there, where 1.0 asks.
#[utoipa::path(
    get,
    path = "/healthz",
    operation_id = "healthz",
    responses((status = 200, description = "It is.", body = Health)),
)]
async fn healthz() -> Json<Health> {
    Json(Health::OK)
}

/// Says whether the store answers, and will go on doing so for now.
#[utoipa::path(
    get,
    path = "/v1/agl/ready",
    operation_id = "ready",
    responses(
        (status = 200, description = "It does.", body = Health),
        (status = 503, description = "It does not, or the server is about to stop.", body = Health),
    ),
)]
async fn ready(State(app): State<App>) -> Response {
    let reason = if *app.draining.borrow() {
        "the server is shutting down".to_owned()
    } else {
        match tokio::time::timeout(PATIENCE, app.store.statistics()).await {
            Ok(Ok(_)) => return Json(Health { status: "ready", detail: None }).into_response(),
            Ok(Err(error)) => {
                tracing::warn!(%error, "not ready");
                format!("the store failed ({}); see the server's log", error.kind())
            }
            Err(_) => format!("the store did not answer within {} s", PATIENCE.as_secs()),
        }
    };
    let body = Json(Health { status: "unavailable", detail: Some(reason) });
    (StatusCode::SERVICE_UNAVAILABLE, [RETRY_SOON], body).into_response()
}

/// All figures of this process, for Prometheus.
#[utoipa::path(
    get,
    path = "/metrics",
    operation_id = "metrics",
    responses(
        (status = 200, description = "The figures.", body = String, content_type = "text/plain"),
        (status = 501, description = "The program around the server collects them elsewhere.", body = crate::openapi::Problem),
    ),
)]
async fn figures(State(app): State<App>) -> Response {
    if !metrics::are_ours() {
        let message = "this program collects its metrics elsewhere: look there".to_owned();
        return ApiError::from(agl_store::Error::Unsupported { message }).into_response();
    }
    // Without them, the rest is still worth to know.
    if let Ok(Ok(statistics)) = tokio::time::timeout(PATIENCE, app.store.statistics()).await {
        metrics::look_at(&statistics);
    }
    ([(CONTENT_TYPE, TEXT_FORMAT)], metrics::render()).into_response()
}
