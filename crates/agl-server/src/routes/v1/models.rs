use agl_types::v1::{Model, ModelKey};
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::error::ApiError;
use crate::extract::{Body, Query};
use crate::openapi::Once;
use crate::routes::operations::Health;
use crate::routes::{Answer, App};

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(list, register, delete))
}

/// The models that are served.
#[utoipa::path(
    get,
    path = "/models",
    operation_id = "query_models",
    responses((status = 200, description = "The models.", body = Vec<Model>)),
)]
async fn list(State(app): State<App>) -> Answer<Vec<Model>> {
    Ok(Json(app.store.query_models().await?))
}

/// Says where models are served.
#[utoipa::path(
    post,
    path = "/models",
    operation_id = "register_models",
    params(Once),
    request_body = Vec<Model>,
    responses((status = 201, description = "The models, in the order given.", body = Vec<Model>)),
)]
async fn register(State(app): State<App>, body: Body) -> Result<(StatusCode, Json<Vec<Model>>), ApiError> {
    let models: Vec<Model> = body.parse_list()?;
    Ok((StatusCode::CREATED, Json(body.store(&app).register_models(models).await?)))
}

/// One model, or by default all of them.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct Which {
    /// Its name.
    model: Option<String>,
    /// Its URL.
    endpoint: Option<String>,
}

/// Forgets one model, or by default all of them.
#[utoipa::path(
    delete,
    path = "/models",
    operation_id = "delete_models",
    params(Which, Once),
    responses((status = 200, description = "They are not there any more.", body = Health)),
)]
async fn delete(
    State(app): State<App>,
    Query(Which { model, endpoint }): Query<Which>,
    body: Body,
) -> Answer<Health> {
    let key = match (model, endpoint) {
        (None, None) => None,
        (Some(model), Some(endpoint)) => Some(ModelKey { model, endpoint }),
        _ => {
            let detail = "one model is deleted by its model and its endpoint: give both, or neither for all";
            return Err(ApiError::bad_request(detail));
        }
    };
    body.store(&app).delete_models(key).await?;
    Ok(Json(Health::OK))
}
