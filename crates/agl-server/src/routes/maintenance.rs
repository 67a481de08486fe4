use agl_types::{PurgeReport, PurgeRequest};
use axum::extract::State;
use axum::routing::post;
use axum::{Json, Router};

use super::{Answer, App};
use crate::extract::Body;

pub(super) fn routes() -> Router<App> {
    Router::new().route("/purge", post(purge))
}

/// Removes the spans of rollouts that have ended and are of no more use.
async fn purge(State(app): State<App>, body: Body) -> Answer<PurgeReport> {
    let request: PurgeRequest = body.parse()?;
    Ok(Json(app.store.purge(request).await?))
}
