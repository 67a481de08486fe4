//! Who gets in, and how many at once.

use std::sync::{Arc, Mutex, PoisonError};

use agl_gateway::access::Unknown;
use agl_gateway::{AttemptGrant, AttemptTokens, Gateway};
use agl_types::ApiKey;
use axum::extract::{DefaultBodyLimit, FromRequestParts, Request, State};
use axum::http::Method;
use axum::http::request::Parts;
use axum::middleware::Next;
use axum::response::Response;
use percent_encoding::percent_decode_str;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::ServerOptions;
use crate::error::ApiError;
use crate::extract::BodyLimit;
use crate::routes::TRACES;

/// What the bearers of a token for an attempt are told where it is not good.
pub(crate) const FOR_AGENTS: &str = "a token for an attempt is good for its model calls, events and spans";

/// How a request is turned away.
type Refuse = fn(ApiError, &Request) -> Response;

/// What every request has to pass.
#[derive(Debug)]
pub(crate) struct Gate {
    refuse: Refuse,
    key: Option<ApiKey>,
    tokens: AttemptTokens,
    requests: Arc<Semaphore>,
    waits: Arc<Semaphore>,
    body_limit: usize,
    agent_body_limit: usize,
}

impl Gate {
    pub(crate) fn new(options: &ServerOptions, refuse: Refuse) -> Self {
        let semaphore = |permits: usize| Arc::new(Semaphore::new(permits.min(Semaphore::MAX_PERMITS)));
        Self {
            refuse,
            key: options.key.clone(),
            tokens: options.gateway.as_ref().map_or_else(
                || AttemptTokens::new(options.key.as_ref()),
                |gateway: &Gateway| gateway.tokens().clone(),
            ),
            requests: semaphore(options.max_requests),
            waits: semaphore(options.max_waits),
            body_limit: options.body_limit,
            agent_body_limit: options.agent_body_limit.min(options.body_limit),
        }
    }
}

impl Gate {
    /// Lets a request in that has the key, or a token that is good for it, which the routes then go by.
    fn check_key(&self, request: &Request) -> Result<Option<AttemptGrant>, ApiError> {
        match self.tokens.admit(request.headers(), self.key.as_ref()) {
            Ok(Some(grant)) if !is_for_agents(request, &grant) => Err(ApiError::forbidden(FOR_AGENTS)),
            Ok(grant) => Ok(grant),
            Err(Unknown) => Err(ApiError::unauthorized()),
        }
    }

    fn find_place(&self) -> Result<Place, ApiError> {
        let permit =
            Arc::clone(&self.requests).try_acquire_owned().map_err(|_| ApiError::busy("requests"))?;
        Ok(Place { permit: Arc::new(Mutex::new(Some(permit))), waits: Arc::clone(&self.waits) })
    }
}

/// Lets a request through that has the key, however many are under way.
pub(crate) async fn identify(State(gate): State<Arc<Gate>>, request: Request, next: Next) -> Response {
    match gate.check_key(&request) {
        Ok(_) => next.run(request).await,
        Err(refusal) => (gate.refuse)(refusal, &request),
    }
}

/// Lets a request through that has the key and finds room.
pub(crate) async fn admit(State(gate): State<Arc<Gate>>, mut request: Request, next: Next) -> Response {
    let admitted = gate.check_key(&request).and_then(|grant| Ok((grant, gate.find_place()?)));
    let (grant, place) = match admitted {
        Ok(admitted) => admitted,
        Err(refusal) => return (gate.refuse)(refusal, &request),
    };
    let limit = if grant.is_some() { gate.agent_body_limit } else { gate.body_limit };
    DefaultBodyLimit::max(limit).apply(&mut request);
    request.extensions_mut().insert(BodyLimit(limit));
    request.extensions_mut().insert(Scope(grant));
    request.extensions_mut().insert(place.clone());
    let response = next.run(request).await;
    place.leave();
    response
}

/// Whether an agent with a token for this attempt may ask for that: to record an event or spans of its own. The routes
/// look at what is in the request.
fn is_for_agents(request: &Request, grant: &AttemptGrant) -> bool {
    let path = request.uri().path();
    let events = || {
        let path = path.strip_prefix("/api/rollouts/")?.strip_suffix("/events")?;
        let (rollout_id, attempt_id) = path.split_once("/attempt/")?;
        let is = |part: &str, id: &str| percent_decode_str(part).decode_utf8().is_ok_and(|part| part == id);
        Some(is(rollout_id, &grant.rollout_id) && is(attempt_id, &grant.attempt_id))
    };
    request.method() == Method::POST && (path == TRACES || events().unwrap_or(false))
}

/// What the sender of a request is held to: an attempt, or nothing.
#[derive(Debug, Clone)]
pub(crate) struct Scope(pub(crate) Option<AttemptGrant>);

impl<S: Sync> FromRequestParts<S> for Scope {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, ApiError> {
        // Set on every request by `admit`.
        parts.extensions.get::<Self>().cloned().ok_or_else(|| ApiError::internal("scope"))
    }
}

/// The place that a request has among those under way.
///
/// A handler that waits for something to happen gives it up for one among those who wait, so that any number of them
/// leave room for the rest.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    permit: Arc<Mutex<Option<OwnedSemaphorePermit>>>,
    waits: Arc<Semaphore>,
}

impl Place {
    /// Changes over to those who wait, for as long as the answer lives; 503 when there are too many.
    pub(crate) fn wait(&self) -> Result<OwnedSemaphorePermit, ApiError> {
        let waiting = Arc::clone(&self.waits).try_acquire_owned().map_err(|_| ApiError::busy("waits"))?;
        self.leave();
        Ok(waiting)
    }

    fn leave(&self) {
        drop(self.permit.lock().unwrap_or_else(PoisonError::into_inner).take());
    }
}

impl<S: Sync> FromRequestParts<S> for Place {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, ApiError> {
        // Set on every request by `admit`.
        parts.extensions.get::<Self>().cloned().ok_or_else(|| ApiError::internal("place"))
    }
}
