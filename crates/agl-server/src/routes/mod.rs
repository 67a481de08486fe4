//! The routes, one file a resource.

mod attempts;
mod events;
mod gateway;
#[cfg(feature = "grpc")]
mod grpc;
mod maintenance;
mod operations;
mod otlp;
mod queues;
mod resources;
mod rollouts;
mod spans;
mod training;
mod v1;
mod workers;

pub(crate) use otlp::TRACES;

use std::any::Any;
use std::sync::Arc;

use agl_gateway::Gateway;
use agl_store::{Statistics, Store};
use axum::extract::{MatchedPath, Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse as _, Response};
use axum::{Json, Router};
use tokio::sync::watch;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::timeout::RequestBodyTimeoutLayer;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::ServerOptions;
use crate::admission::{Gate, admit, identify};
use crate::error::ApiError;
use crate::metrics::{self, HttpFigures, Measured};
use crate::openapi::{self, keyed, tagged, with_problems};

/// What every handler can get at.
#[derive(Debug, Clone)]
pub(crate) struct App {
    pub(crate) store: Arc<dyn Store>,
    /// Turns true when the server is about to stop.
    pub(crate) draining: watch::Receiver<bool>,
    /// How many spans an agent may send at once.
    pub(crate) agent_spans: usize,
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
        .merge(tagged("server", OpenApiRouter::new().routes(routes!(statistics))))
        .merge(tagged("queues", queues::routes()))
        .merge(tagged("rollouts", rollouts::routes()))
        .merge(tagged("attempts", attempts::routes()))
        .merge(tagged("spans", spans::routes()))
        .merge(tagged("spans", training::routes()))
        .merge(tagged("resources", resources::routes()))
        .merge(tagged("workers", workers::routes()))
        .merge(tagged("server", events::routes()))
        .merge(tagged("server", maintenance::routes()));
    // Its routes come on their own, below.
    let of_gateway = options.gateway.as_ref().map(|_| keyed(tagged("gateway", gateway::documented())));
    let (routes, mut document) = OpenApiRouter::with_openapi(openapi::blank(openapi::STORE))
        .nest("/v1/agl", keyed(with_problems(api)))
        .nest("/api", keyed(with_problems(tagged("1.0", v1::routes()))))
        .merge(keyed(tagged("otlp", otlp::routes())))
        .merge(of_gateway.unwrap_or_default())
        .split_for_parts();
    let (figures, of_figures) = keyed(tagged("server", operations::routes())).split_for_parts();
    let (probes, of_probes) = tagged("server", operations::probes()).split_for_parts();
    document.merge(of_probes);
    document.merge(of_figures);
    let routes =
        routes.fallback(async || ApiError::no_such_path()).method_not_allowed_fallback(no_such_method);
    let gate = Arc::new(Gate::new(options, refuse));
    // What the server says of itself in general is nobody's secret.
    let open = probes.merge(openapi::pages(document)).method_not_allowed_fallback(no_such_method);
    let routes = figures
        .method_not_allowed_fallback(no_such_method)
        .layer(from_fn_with_state(Arc::clone(&gate), identify))
        .merge(open)
        .merge(admitted(routes, options, gate));
    let mut app = routes.with_state(App { store, draining, agent_spans: options.agent_spans });
    if let Some(gateway) = &options.gateway {
        // It lets in those with the key or a token by itself, and its calls take long.
        app = app.merge(gateway.router().layer(RequestBodyTimeoutLayer::new(options.body_timeout)));
    }
    let app = app.layer(CatchPanicLayer::custom(on_panic));
    // Around everything else, so that errors carry the headers too.
    let app = match options.cors.layer() {
        Some(cors) => app.layer(cors),
        None => app,
    };
    observed(app)
}

/// The application of a gateway that is served without a store beside it.
pub(crate) fn gateway_application(gateway: &Gateway, options: &ServerOptions) -> Router {
    let (probe, document) = OpenApiRouter::with_openapi(openapi::blank(openapi::GATEWAY))
        .merge(keyed(tagged("gateway", gateway::documented())))
        .merge(tagged("server", gateway::probe()))
        .split_for_parts();
    let app = gateway
        .router()
        .layer(RequestBodyTimeoutLayer::new(options.body_timeout))
        .merge(probe.merge(openapi::pages(document)).method_not_allowed_fallback(no_such_method))
        .fallback(async || ApiError::no_such_path())
        .layer(CatchPanicLayer::custom(on_panic));
    observed(app)
}

/// The application of the gRPC port.
#[cfg(feature = "grpc")]
pub(crate) fn grpc_application(
    store: Arc<dyn Store>,
    options: &ServerOptions,
    draining: watch::Receiver<bool>,
) -> Router {
    let gate = Arc::new(Gate::new(options, grpc::refuse));
    let routes = admitted(grpc::routes(), options, gate);
    let app = routes.with_state(App { store, draining, agent_spans: options.agent_spans });
    observed(app.layer(CatchPanicLayer::custom(on_panic)))
}

/// Routes behind the gate.
fn admitted(routes: Router<App>, options: &ServerOptions, gate: Arc<Gate>) -> Router<App> {
    routes.layer(RequestBodyTimeoutLayer::new(options.body_timeout)).layer(from_fn_with_state(gate, admit))
}

/// An application whose answers are counted and logged.
fn observed(app: Router) -> Router {
    // In place before anything is counted.
    metrics::are_ours();
    app.layer(from_fn_with_state(Arc::new(HttpFigures::default()), observe))
}

/// Turns a request away, in the form that its sender reads.
fn refuse(error: ApiError, request: &Request) -> Response {
    if request.uri().path() == otlp::TRACES {
        otlp::refuse(&error, request.headers())
    } else {
        error.into_response()
    }
}

async fn no_such_method() -> ApiError {
    ApiError::no_such_method()
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

/// Counts and logs what is answered. The query is left out, for who knows what is in it.
async fn observe(State(figures): State<Arc<HttpFigures>>, request: Request, next: Next) -> Response {
    let matched = request.extensions().get::<MatchedPath>().cloned();
    let mut measured = Measured::start(&figures, matched, request.method());
    if !tracing::enabled!(tracing::Level::DEBUG) {
        let response = next.run(request).await;
        measured.answered(response.status());
        return response;
    }
    let method = request.method().clone();
    let path = request.uri().path().to_owned();
    let response = next.run(request).await;
    let status = response.status();
    let millis = (measured.answered(status).as_secs_f64() * 1e6).round() / 1e3;
    let status = status.as_u16();
    tracing::debug!(%method, path, status, millis, "answered");
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
