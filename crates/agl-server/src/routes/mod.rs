//! The routes, one file a resource.

mod attempts;
mod events;
#[cfg(feature = "grpc")]
mod grpc;
mod maintenance;
mod otlp;
mod queues;
mod resources;
mod rollouts;
mod spans;
mod v1;
mod workers;

use std::any::Any;
use std::sync::Arc;
use std::time::Instant;

use agl_store::{Statistics, Store};
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse as _, Response};
use axum::{Extension, Json, Router};
use serde::Serialize;
use tokio::sync::watch;
use tower_http::catch_panic::CatchPanicLayer;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::ServerOptions;
use crate::error::ApiError;
use crate::extract::BodyLimit;
use crate::openapi::{self, tagged, with_problems};

/// What every handler can get at.
#[derive(Debug, Clone)]
pub(crate) struct App {
    pub(crate) store: Arc<dyn Store>,
    /// Turns true when the server is about to stop.
    pub(crate) draining: watch::Receiver<bool>,
    pub(crate) body_limit: usize,
}

impl App {
    /// Returns when the server is about to stop.
    pub(crate) fn stopping(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut draining = self.draining.clone();
        async move {
            if draining.wait_for(|draining| *draining).await.is_err() {
                // Without a server around us there is nobody to say so.
                std::future::pending::<()>().await;
            }
        }
    }
}

/// What most handlers return.
type Answer<T> = Result<Json<T>, ApiError>;

/// The application: 0.3's routes under `/v1/agl`, OTLP under `/v1`, 1.0's routes under `/api`.
pub fn router(store: Arc<dyn Store>, options: &ServerOptions) -> Router {
    // Without a server around it there is nobody to say that it is about to stop.
    let (_, draining) = watch::channel(false);
    application(store, options, draining)
}

pub(crate) fn application(
    store: Arc<dyn Store>,
    options: &ServerOptions,
    draining: watch::Receiver<bool>,
) -> Router {
    let api = OpenApiRouter::new()
        .merge(tagged("server", OpenApiRouter::new().routes(routes!(health)).routes(routes!(statistics))))
        .merge(tagged("queues", queues::routes()))
        .merge(tagged("rollouts", rollouts::routes()))
        .merge(tagged("attempts", attempts::routes()))
        .merge(tagged("spans", spans::routes()))
        .merge(tagged("resources", resources::routes()))
        .merge(tagged("workers", workers::routes()))
        .merge(tagged("server", events::routes()))
        .merge(tagged("server", maintenance::routes()));
    let (routes, document) = OpenApiRouter::with_openapi(openapi::blank())
        .nest("/v1/agl", with_problems(api))
        .nest("/api", with_problems(tagged("1.0", v1::routes())))
        .merge(tagged("server", OpenApiRouter::new().routes(routes!(healthz))))
        .merge(tagged("otlp", otlp::routes()))
        .split_for_parts();
    let routes = routes
        .merge(openapi::pages(document))
        .fallback(async || ApiError::no_such_path())
        .method_not_allowed_fallback(async || ApiError::no_such_method());
    let app = guarded(routes, App { store, draining, body_limit: options.body_limit });
    // Around everything else, so that errors carry the headers too.
    let app = match options.cors.layer() {
        Some(cors) => app.layer(cors),
        None => app,
    };
    app.layer(from_fn(log_access))
}

/// The application of the gRPC port.
#[cfg(feature = "grpc")]
pub(crate) fn grpc_application(
    store: Arc<dyn Store>,
    options: &ServerOptions,
    draining: watch::Receiver<bool>,
) -> Router {
    let app = App { store, draining, body_limit: options.body_limit };
    guarded(grpc::routes(), app).layer(from_fn(log_access))
}

/// Routes with what has to be around all of them.
fn guarded(routes: Router<App>, app: App) -> Router {
    let body_limit = app.body_limit;
    routes
        .with_state(app)
        .layer(DefaultBodyLimit::max(body_limit))
        .layer(Extension(BodyLimit(body_limit)))
        .layer(CatchPanicLayer::custom(on_panic))
}

/// All is well.
#[derive(Serialize, ToSchema)]
struct Health {
    /// `ok`.
    status: &'static str,
}

impl Health {
    const OK: Self = Self { status: "ok" };
}

/// Says that the server is there, without asking the store.
#[utoipa::path(
    get,
    path = "/health",
    operation_id = "health",
    responses((status = 200, description = "It is.", body = Health)),
)]
async fn health() -> Json<Health> {
    Json(Health::OK)
}

/// Says that the server is there.
#[utoipa::path(
    get,
    path = "/healthz",
    operation_id = "healthz",
    responses((status = 200, description = "It is.", body = Health)),
)]
async fn healthz() -> Json<Health> {
    Json(Health::OK)
}

/// How much the store holds.
#[utoipa::path(
    get,
    path = "/statistics",
    operation_id = "statistics",
    responses((status = 200, description = "The figures.", body = Statistics)),
)]
async fn statistics(State(app): State<App>) -> Answer<Statistics> {
    Ok(Json(app.store.statistics().await?))
}

async fn log_access(request: Request, next: Next) -> Response {
    if !tracing::enabled!(tracing::Level::DEBUG) {
        return next.run(request).await;
    }
    let method = request.method().clone();
    let path = request.uri().path().to_owned();
    let started = Instant::now();
    let response = next.run(request).await;
    let millis = started.elapsed().as_secs_f64() * 1e3;
    tracing::debug!("{method} {path} {} {millis:.1} ms", response.status().as_u16());
    response
}

#[expect(clippy::needless_pass_by_value, reason = "the signature is tower-http's")]
fn on_panic(payload: Box<dyn Any + Send>) -> Response {
    let message = payload
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| payload.downcast_ref::<&str>().copied())
        .unwrap_or("no message");
    tracing::error!(message, "a request handler panicked");
    ApiError::internal("panic").into_response()
}

/// Checks a page as REST does, which is stricter than the store about a limit of 0.
fn check_page(limit: i64, offset: i64) -> Result<(), ApiError> {
    if limit == 0 || limit < agl_types::UNLIMITED {
        return Err(ApiError::bad_request("Limit must be greater than 0 or -1 for no limit"));
    }
    if offset < 0 {
        return Err(ApiError::bad_request("Offset must be greater than or equal to 0"));
    }
    Ok(())
}
