use std::time::Duration;

use agl_gateway::Gateway;
use agl_store::Retention;
use agl_types::ApiKey;
use axum::http::HeaderValue;
use tower_http::cors::{AllowHeaders, AllowMethods, AllowOrigin, Any, CorsLayer};

use crate::{Error, Tls};

/// How long a browser may remember the answer to a preflight request.
const PREFLIGHT_MAX_AGE: Duration = Duration::from_secs(600);

/// How the server behaves.
#[derive(Debug, Clone)]
pub struct ServerOptions {
    /// The gateway to models that is served too, if there is one. Its key should be the same.
    pub gateway: Option<Gateway>,
    /// Web pages of which origins may call the server.
    pub cors: CorsOrigins,
    /// What a request has to bring along as `Authorization: Bearer KEY` or `x-api-key: KEY`; without one, everybody
    /// may do everything. Health and readiness are told to all.
    pub key: Option<ApiKey>,
    /// The certificate to speak TLS with; without one, the server speaks plain HTTP.
    pub tls: Option<Tls>,
    /// Bytes of the largest request body taken in, after decompression; larger ones are answered 413.
    pub body_limit: usize,
    /// The same for the bearers of a token for an attempt, who send events and spans.
    pub agent_body_limit: usize,
    /// How many spans the bearers of a token for an attempt may send at once.
    pub agent_spans: usize,
    /// How long requests in flight may take to finish after the server was told to stop.
    pub drain: Duration,
    /// What the store forgets by itself.
    pub retention: Retention,
    /// How often the store is told to forget what is past its time.
    pub housekeeping: Duration,
    /// How many connections may be open; further ones wait to be accepted.
    pub max_connections: usize,
    /// How many requests may be under way; further ones are answered 503 with `Retry-After`.
    pub max_requests: usize,
    /// How many requests may wait for something to happen, beside those that are under way.
    pub max_waits: usize,
    /// How long a connection may take from one request to the head of the next, or to its first.
    pub idle_timeout: Duration,
    /// How long the body of a request may stand still on its way in.
    pub body_timeout: Duration,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            gateway: None,
            cors: CorsOrigins::None,
            key: None,
            tls: None,
            body_limit: 256 << 20,
            agent_body_limit: 32 << 20,
            agent_spans: 8192,
            drain: Duration::from_secs(10),
            retention: Retention::default(),
            housekeeping: Duration::from_secs(10),
            max_connections: 8192,
            max_requests: 1024,
            max_waits: 4096,
            idle_timeout: Duration::from_secs(75),
            body_timeout: Duration::from_secs(30),
        }
    }
}

/// Web pages of which origins may call the server from a browser.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum CorsOrigins {
    /// None but those that the server itself serves.
    #[default]
    None,
    /// All of them, without credentials.
    Any,
    /// These, with credentials.
    List(Vec<HeaderValue>),
}

impl CorsOrigins {
    /// Origins as a user gives them: blanks are passed over, and one `*` means all.
    ///
    /// # Errors
    /// [`Error::Origin`] for text that is not an origin: a scheme and a host, and no path.
    pub fn parse<T: AsRef<str>>(origins: impl IntoIterator<Item = T>) -> Result<Self, Error> {
        let mut list = Vec::new();
        for origin in origins {
            match origin.as_ref().trim() {
                "" => {}
                "*" => return Ok(Self::Any),
                text => {
                    let value = HeaderValue::from_str(text).ok().filter(|_| is_origin(text));
                    list.push(value.ok_or_else(|| Error::Origin { origin: text.to_owned() })?);
                }
            }
        }
        Ok(if list.is_empty() { Self::None } else { Self::List(list) })
    }

    pub(crate) fn layer(&self) -> Option<CorsLayer> {
        let layer = CorsLayer::new()
            .allow_headers(AllowHeaders::mirror_request())
            .allow_methods(AllowMethods::mirror_request())
            .max_age(PREFLIGHT_MAX_AGE);
        match self {
            Self::None => None,
            Self::Any => Some(layer.allow_origin(Any).expose_headers(Any)),
            Self::List(origins) => {
                Some(layer.allow_origin(AllowOrigin::list(origins.iter().cloned())).allow_credentials(true))
            }
        }
    }
}

/// Whether `text` is like `https://example.org:8443`, as browsers write where a page comes from.
fn is_origin(text: &str) -> bool {
    text.split_once("://")
        .is_some_and(|(scheme, host)| !scheme.is_empty() && !host.is_empty() && !host.contains('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blanks_are_passed_over_and_a_star_means_all() {
        assert_eq!(CorsOrigins::parse([" ", ""]).unwrap(), CorsOrigins::None);
        assert_eq!(CorsOrigins::parse(["http://a", "*"]).unwrap(), CorsOrigins::Any);
        let list = CorsOrigins::List(vec![HeaderValue::from_static("http://a")]);
        assert_eq!(CorsOrigins::parse([" http://a "]).unwrap(), list);
        assert_eq!(CorsOrigins::parse(["a\nb"]).unwrap_err(), Error::Origin { origin: "a\nb".to_owned() });
    }
}
