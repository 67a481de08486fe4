//! Who gets in, and how many at once.

use std::sync::{Arc, Mutex, PoisonError};

use agl_types::ApiKey;
use axum::extract::{FromRequestParts, Request, State};
use axum::http::header::AUTHORIZATION;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName};
use axum::middleware::Next;
use axum::response::Response;
use subtle::ConstantTimeEq as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::ServerOptions;
use crate::error::ApiError;

const X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// How a request is turned away.
type Refuse = fn(ApiError, &Request) -> Response;

/// What every request has to pass.
#[derive(Debug)]
pub(crate) struct Gate {
    refuse: Refuse,
    key: Option<ApiKey>,
    requests: Arc<Semaphore>,
    waits: Arc<Semaphore>,
}

impl Gate {
    pub(crate) fn new(options: &ServerOptions, refuse: Refuse) -> Self {
        let semaphore = |permits: usize| Arc::new(Semaphore::new(permits.min(Semaphore::MAX_PERMITS)));
        Self {
            refuse,
            key: options.key.clone(),
            requests: semaphore(options.max_requests),
            waits: semaphore(options.max_waits),
        }
    }
}

impl Gate {
    fn check_key(&self, request: &Request) -> Result<(), ApiError> {
        match &self.key {
            Some(key) if !has_key(request.headers(), key) => Err(ApiError::unauthorized()),
            _ => Ok(()),
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
        Ok(()) => next.run(request).await,
        Err(refusal) => (gate.refuse)(refusal, &request),
    }
}

/// Lets a request through that has the key and finds room.
pub(crate) async fn admit(State(gate): State<Arc<Gate>>, mut request: Request, next: Next) -> Response {
    let place = match gate.check_key(&request).and_then(|()| gate.find_place()) {
        Ok(place) => place,
        Err(refusal) => return (gate.refuse)(refusal, &request),
    };
    request.extensions_mut().insert(place.clone());
    let response = next.run(request).await;
    place.leave();
    response
}

/// Whether a request brings this key along, in either header. Takes as long for a key that is nearly right as for any
/// other of its length.
pub(crate) fn has_key(headers: &HeaderMap, key: &ApiKey) -> bool {
    let bearer = headers.get(AUTHORIZATION).and_then(|value| {
        let (scheme, token) = value.as_bytes().split_at_checked("Bearer ".len())?;
        scheme.eq_ignore_ascii_case(b"Bearer ").then(|| token.trim_ascii())
    });
    let plain = headers.get(X_API_KEY).map(|value| value.as_bytes().trim_ascii());
    [bearer, plain].into_iter().flatten().any(|given| given.ct_eq(key.reveal().as_bytes()).into())
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

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn a_key_is_taken_from_either_header() {
        let key = ApiKey::new("s3cret").unwrap();
        let asked = |name: HeaderName, value: &'static str| {
            has_key(&HeaderMap::from_iter([(name, HeaderValue::from_static(value))]), &key)
        };
        assert!(asked(AUTHORIZATION, "Bearer s3cret"));
        assert!(asked(AUTHORIZATION, "bearer  s3cret "));
        assert!(asked(X_API_KEY, "s3cret"));
        for value in ["s3cret", "Basic s3cret", "Bearer s3cre", "Bearer s3crets", "Bearer", ""] {
            assert!(!asked(AUTHORIZATION, value), "{value}");
        }
        assert!(!asked(X_API_KEY, "Bearer s3cret"));
        assert!(!has_key(&HeaderMap::new(), &key));

        // A wrong key beside the right one does no harm.
        let both = [
            (AUTHORIZATION, HeaderValue::from_static("Bearer other")),
            (X_API_KEY, HeaderValue::from_static("s3cret")),
        ];
        assert!(has_key(&HeaderMap::from_iter(both), &key));
    }
}
