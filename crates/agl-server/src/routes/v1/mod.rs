//! The routes of the 1.0 contract, under `/api`, over the same store.

mod events;
mod models;
mod rollouts;

use axum::Router;

use super::App;

pub(super) fn routes() -> Router<App> {
    Router::new().merge(rollouts::routes()).merge(events::routes()).merge(models::routes())
}
