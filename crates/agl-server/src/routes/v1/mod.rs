//! The routes of the 1.0 contract, under `/api`, over the same store.

mod events;
mod models;
mod rollouts;

use utoipa_axum::router::OpenApiRouter;

use super::App;

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().merge(rollouts::routes()).merge(events::routes()).merge(models::routes())
}
