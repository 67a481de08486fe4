use agl_types::{PurgeReport, PurgeRequest};
use axum::Json;
use axum::extract::State;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::{Answer, App};
use crate::extract::Body;

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(purge))
}

/// Removes the spans of rollouts that have ended and are of no more use.
#[utoipa::path(
    post,
    path = "/purge",
    operation_id = "purge",
    request_body = PurgeRequest,
    responses((status = 200, description = "What was removed.", body = PurgeReport)),
)]
async fn purge(State(app): State<App>, body: Body) -> Answer<PurgeReport> {
    let request: PurgeRequest = body.parse()?;
    Ok(Json(app.store.purge(request).await?))
}
