use agl_types::v1::{Event, EventsQuery};
use axum::extract::State;
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;

use crate::extract::{Body, Path, Query};
use crate::routes::{Answer, App};

/// The format that is cut down to what training reads.
const TRIPLET: &str = "triplet";

pub(super) fn routes() -> Router<App> {
    Router::new()
        .route("/rollouts/{rollout_id}/attempt/{attempt_id}/events", post(add))
        .route("/rollouts/{rollout_id}/events", get(list))
}

async fn add(
    State(app): State<App>,
    Path((rollout_id, attempt_id)): Path<(String, String)>,
    body: Body,
) -> Answer<Event> {
    Ok(Json(body.store(&app).add_event(&rollout_id, &attempt_id, body.parse()?).await?))
}

#[derive(Deserialize)]
struct Wanted {
    event_type: Option<String>,
    format: Option<String>,
}

async fn list(
    State(app): State<App>,
    Path(rollout_id): Path<String>,
    Query(Wanted { event_type, format }): Query<Wanted>,
) -> Answer<Vec<Event>> {
    let events = app.store.query_events(EventsQuery { rollout_id, event_type }).await?;
    let is_triplet = format.is_some_and(|format| format == TRIPLET);
    Ok(Json(if is_triplet { agl_trace::as_triplets(events) } else { events }))
}
