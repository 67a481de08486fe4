//! The figures of the server, and where Prometheus reads all of them.

mod registry;

use std::collections::HashMap;
use std::sync::{LazyLock, OnceLock, PoisonError, RwLock};
use std::time::{Duration, Instant};

use agl_store::Statistics;
use axum::extract::MatchedPath;
use axum::http::{Method, StatusCode};
use metrics::{
    Counter, Histogram, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
};
use registry::Registry;

/// Requests, by `path` (the route), `method` and `status`.
const HTTP_TOTAL: &str = "agl_http_total";
/// Seconds to the head of the answer; labels as [`HTTP_TOTAL`].
const HTTP_LATENCY: &str = "agl_http_latency";
/// Connections that are open.
pub(crate) const HTTP_CONNECTIONS: &str = "agl_http_connections";

/// What is told as of the moment it is asked for: the key in the statistics of a store, the name, the help.
const STATISTICS: &[(&str, &str, &str)] = &[
    ("total_rollouts", "agl_store_rollouts", "Rollouts ever made"),
    ("total_attempts", "agl_store_attempts", "Attempts ever made"),
    ("total_spans", "agl_store_spans", "Spans held"),
    ("total_resources", "agl_store_resources", "Resources ids held"),
    ("total_workers", "agl_store_workers", "Workers ever seen"),
    ("queued_rollouts", "agl_queue_depth", "Rollouts that wait to be claimed"),
    ("feed_subscribers", "agl_feed_subscribers", "Subscribers of events"),
    ("feed_lag", "agl_feed_lag", "Events that the slowest subscriber has yet to take"),
    ("feed_dropped", "agl_feed_dropped", "Events that subscribers were too slow for"),
    ("store_bytes", "agl_store_bytes", "Bytes that the store takes on disk"),
];

/// The `path` of a request that no route matches.
const UNMATCHED: &str = "unmatched";
/// The status of a request whose client went away, as nginx has it.
const CLIENT_GONE: u16 = 499;

static REGISTRY: LazyLock<Registry> = LazyLock::new(|| Registry::new(bounds));

/// The upper bounds of a histogram's buckets.
fn bounds(name: &str) -> &'static [f64] {
    match name {
        agl_store::metrics::COMMIT_OPERATIONS => agl_store::metrics::OPERATIONS,
        agl_store::metrics::SPAN_BYTES => agl_store::metrics::BYTES,
        _ => agl_store::metrics::SECONDS,
    }
}

/// Whether the figures of this process end up in our registry. Asked for the first time, it puts it in place, unless
/// the program around us has a recorder of its own, which then gets them.
pub(crate) fn are_ours() -> bool {
    static OURS: OnceLock<bool> = OnceLock::new();
    *OURS.get_or_init(|| {
        let ours = metrics::set_global_recorder(&*REGISTRY).is_ok();
        agl_store::metrics::describe();
        describe_counter!(HTTP_TOTAL, "Counter agl.http.total");
        describe_histogram!(HTTP_LATENCY, "Histogram agl.http.latency");
        describe_gauge!(HTTP_CONNECTIONS, "Connections that are open");
        for (_, name, help) in STATISTICS {
            describe_gauge!(*name, *help);
        }
        ours
    })
}

/// Takes over what a store says about itself.
pub(crate) fn look_at(statistics: &Statistics) {
    let Ok(values) = serde_json::to_value(statistics) else { return };
    for (key, name, _) in STATISTICS {
        if let Some(value) = values.get(key).and_then(serde_json::Value::as_f64) {
            gauge!(*name).set(value);
        }
    }
}

/// All figures in Prometheus's text format.
pub(crate) fn render() -> String {
    REGISTRY.render()
}

/// The figures of requests, at hand without a look into the registry.
#[derive(Debug, Default)]
pub(crate) struct HttpFigures {
    routes: RwLock<HashMap<Box<str>, Vec<Outcome>>>,
}

/// The figures of one method and status of a route.
#[derive(Debug)]
struct Outcome {
    method: &'static str,
    status: u16,
    total: Counter,
    latency: Histogram,
}

impl Outcome {
    fn of(path: &str, method: &'static str, status: u16) -> Self {
        let labels =
            [("path", path.to_owned()), ("method", method.to_owned()), ("status", status.to_string())];
        Self {
            method,
            status,
            total: counter!(HTTP_TOTAL, &labels),
            latency: histogram!(HTTP_LATENCY, &labels),
        }
    }

    fn count(&self, took: Duration) {
        self.total.increment(1);
        self.latency.record(took.as_secs_f64());
    }
}

impl HttpFigures {
    fn count(&self, path: &str, method: &'static str, status: u16, took: Duration) {
        let is_it = |outcome: &&Outcome| outcome.status == status && outcome.method == method;
        let routes = self.routes.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(outcome) = routes.get(path).and_then(|outcomes| outcomes.iter().find(is_it)) {
            outcome.count(took);
            return;
        }
        drop(routes);
        let mut routes = self.routes.write().unwrap_or_else(PoisonError::into_inner);
        let outcomes = routes.entry(path.into()).or_default();
        let outcome = Outcome::of(path, method, status);
        outcome.count(took);
        // Somebody else may have been faster; then both count into the same figure.
        outcomes.push(outcome);
    }
}

/// A request under way. It is counted when this goes, whether it was answered or its client left.
#[derive(Debug)]
pub(crate) struct Measured<'a> {
    figures: &'a HttpFigures,
    path: Option<MatchedPath>,
    method: &'static str,
    started: Instant,
    status: u16,
}

impl<'a> Measured<'a> {
    pub(crate) fn start(figures: &'a HttpFigures, path: Option<MatchedPath>, method: &Method) -> Self {
        let method = bounded(method);
        Self { figures, path, method, started: Instant::now(), status: CLIENT_GONE }
    }

    /// Notes the answer, and says how long it took.
    pub(crate) fn answered(&mut self, status: StatusCode) -> Duration {
        self.status = status.as_u16();
        self.started.elapsed()
    }
}

impl Drop for Measured<'_> {
    fn drop(&mut self) {
        let path = self.path.as_ref().map_or(UNMATCHED, MatchedPath::as_str);
        self.figures.count(path, self.method, self.status, self.started.elapsed());
    }
}

/// A method as a label. Clients may invent any number of them.
fn bounded(method: &Method) -> &'static str {
    const KNOWN: [&str; 7] = ["GET", "POST", "PATCH", "DELETE", "PUT", "HEAD", "OPTIONS"];
    KNOWN.into_iter().find(|known| *known == method.as_str()).unwrap_or("other")
}
