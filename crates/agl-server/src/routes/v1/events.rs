use agl_types::v1::{Event, EventCreate, EventsQuery, MODEL_REQUEST, REWARD};
use axum::Json;
use axum::extract::State;
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::admission::Scope;
use crate::error::ApiError;
use crate::extract::{Body, Path, Query};
use crate::openapi::{Conflict, Gone, NotFound, Once};
use crate::routes::{Answer, App};

/// The format that is cut down to what training reads.
const TRIPLET: &str = "triplet";

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(add)).routes(routes!(list))
}

/// Keeps something that happened in an attempt.
#[utoipa::path(
    post,
    path = "/rollouts/{rollout_id}/attempt/{attempt_id}/events",
    operation_id = "add_event",
    params(("rollout_id" = String, Path, description = "The rollout."), ("attempt_id" = String, Path, description = "The attempt; `0` is the latest."), Once),
    request_body = EventCreate,
    responses((status = 200, description = "The event with its time.", body = Event), NotFound, Conflict),
)]
async fn add(
    State(app): State<App>,
    Path((rollout_id, attempt_id)): Path<(String, String)>,
    Scope(scope): Scope,
    body: Body,
) -> Answer<Event> {
    let event: EventCreate = body.parse()?;
    match (&scope, event.event_type.as_str()) {
        (Some(grant), REWARD) if !grant.may_reward => {
            return Err(ApiError::forbidden("this agent may not set its own reward"));
        }
        // What an agent asked of a model is the gateway's to tell.
        (Some(_), MODEL_REQUEST) => {
            return Err(ApiError::forbidden("model calls are recorded by the gateway"));
        }
        _ => {}
    }
    Ok(Json(body.store(&app).add_event(&rollout_id, &attempt_id, event).await?))
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct Wanted {
    /// The type is this.
    event_type: Option<String>,
    /// `triplet` leaves of calls of models what training reads.
    format: Option<String>,
}

/// The events of an attempt at a rollout: the one that its controller named last, or else the latest.
#[utoipa::path(
    get,
    path = "/rollouts/{rollout_id}/events",
    operation_id = "query_events",
    params(("rollout_id" = String, Path, description = "The rollout."), Wanted),
    responses((status = 200, description = "The events.", body = Vec<Event>), NotFound, Gone),
)]
async fn list(
    State(app): State<App>,
    Path(rollout_id): Path<String>,
    Query(Wanted { event_type, format }): Query<Wanted>,
) -> Answer<Vec<Event>> {
    let events = app.store.query_events(EventsQuery { rollout_id, event_type }).await?;
    let is_triplet = format.is_some_and(|format| format == TRIPLET);
    Ok(Json(if is_triplet { agl_trace::as_triplets(events) } else { events }))
}
