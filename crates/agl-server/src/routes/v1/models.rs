use agl_types::v1::{Model, ModelKey};
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::error::ApiError;
use crate::extract::{Body, Query};
use crate::routes::{Answer, App};

pub(super) fn routes() -> Router<App> {
    Router::new().route("/models", get(list).post(register).delete(delete))
}

async fn list(State(app): State<App>) -> Answer<Vec<Model>> {
    Ok(Json(app.store.query_models().await?))
}

async fn register(State(app): State<App>, body: Body) -> Result<(StatusCode, Json<Vec<Model>>), ApiError> {
    let models: Vec<Model> = body.parse_list()?;
    Ok((StatusCode::CREATED, Json(body.store(&app).register_models(models).await?)))
}

/// One model, or by default all of them.
#[derive(Deserialize)]
struct Which {
    model: Option<String>,
    endpoint: Option<String>,
}

async fn delete(
    State(app): State<App>,
    Query(Which { model, endpoint }): Query<Which>,
    body: Body,
) -> Answer<Value> {
    let key = match (model, endpoint) {
        (None, None) => None,
        (Some(model), Some(endpoint)) => Some(ModelKey { model, endpoint }),
        _ => {
            let detail = "one model is deleted by its model and its endpoint: give both, or neither for all";
            return Err(ApiError::bad_request(detail));
        }
    };
    body.store(&app).delete_models(key).await?;
    Ok(Json(json!({ "status": "ok" })))
}
