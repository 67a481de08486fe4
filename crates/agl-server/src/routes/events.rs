use std::convert::Infallible;
use std::time::Duration;

use agl_types::{EventQuery, FeedItem, StoreEvent};
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName};
use axum::response::Sse;
use axum::response::sse::{Event, KeepAlive};
use futures_util::{Stream, StreamExt as _};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::App;
use crate::admission::Place;
use crate::error::ApiError;
use crate::extract::Query;

/// Where a browser says what it saw last.
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// How often a silent stream shows that it lives.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(follow))
}

/// Streams what changes, as server-sent events, until the server stops.
///
/// The stream begins with an event `start` that has no data but an id to resume after, unless it resumes. An event `gap`
/// says that events are missing, how many, if that is known, and why. The header `Last-Event-ID` says the same as `after`.
#[utoipa::path(
    get,
    path = "/events",
    operation_id = "follow_events",
    params(EventQuery),
    responses((
        status = 200,
        description = "Events, each named after its kind, with its id.",
        body = StoreEvent,
        content_type = "text/event-stream",
    )),
)]
async fn follow(
    State(app): State<App>,
    place: Place,
    headers: HeaderMap,
    Query(mut query): Query<EventQuery>,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, ApiError> {
    // A stream that breaks is resumed by its header, which then knows better than the address.
    if let Some(id) = headers.get(LAST_EVENT_ID) {
        query.after = Some(String::from_utf8_lossy(id.as_bytes()).into_owned());
    }
    let waiting = place.wait()?;
    let items = app.store.subscribe(query).await?;
    let events = items.filter_map(async |item| match item.and_then(|item| event(&item)) {
        Ok(event) => Some(Ok(event)),
        Err(error) => {
            tracing::error!(%error, "an event could not be sent");
            None
        }
    });
    // The place is kept for as long as the stream is.
    let events = events.inspect(move |_| _ = &waiting);
    let events = Box::pin(events.take_until(app.stopping()));
    Ok(Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)))
}

fn event(item: &FeedItem) -> Result<Event, agl_store::Error> {
    let event = match item {
        FeedItem::Start { id } => Event::default().id(id).event("start").json_data(serde_json::json!({})),
        FeedItem::Event { id, event } => {
            Event::default().id(id).event(event.kind().as_str()).json_data(event)
        }
        FeedItem::Gap(gap) => Event::default().event("gap").json_data(gap),
    };
    event.map_err(|error| agl_store::Error::backend(format!("an event has no JSON: {error}")))
}
