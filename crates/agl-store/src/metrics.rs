//! The figures that a store emits through the `metrics` facade, under the names of 0.3 where that has them.
//!
//! Nothing is counted where no recorder is installed. Labels are bounded: names of calls, statuses and modes.

use std::time::{Duration, Instant};

use metrics::{Unit, counter, describe_counter, describe_histogram, histogram};

use crate::Error;
use crate::backend::Ended;

/// Calls of a store, by `method`, `store_pubmeth` (the same) and `status` (`OK` or the kind of error).
pub const STORE_TOTAL: &str = "agl_store_total";
/// Seconds that calls of a store took, waits included; labels as [`STORE_TOTAL`].
pub const STORE_LATENCY: &str = "agl_store_latency";
/// Transactions, by `store_pubmeth` (the call that made them), `operation` (`query` or `atomic`), `collection`
/// (`router`: all of them), `store_privmeth` (the call again) and `status`.
pub const COLLECTIONS_TOTAL: &str = "agl_collections_total";
/// Seconds that transactions took once it was their turn, without their commit; labels as [`COLLECTIONS_TOTAL`].
pub const COLLECTIONS_LATENCY: &str = "agl_collections_latency";
/// Rollouts that have ended, by `status` and `mode`.
pub const ROLLOUTS_TOTAL: &str = "agl_rollouts_total";
/// Seconds from the creation of a rollout to its end, by `status` and `mode`.
pub const ROLLOUTS_DURATION: &str = "agl_rollouts_duration";
/// Seconds from the creation of a rollout to its first claim from the queue.
pub const QUEUE_WAIT: &str = "agl_queue_wait";
/// Operations that shared a commit.
pub const COMMIT_OPERATIONS: &str = "agl_commit_operations";
/// Seconds that a group of operations and its commit took.
pub const COMMIT_LATENCY: &str = "agl_commit_latency";
/// Bytes of a stored span.
pub const SPAN_BYTES: &str = "agl_span_bytes";

/// Upper bounds of the histograms of seconds: those of 0.3.
pub const SECONDS: &[f64] = &[
    1e-6, 2e-6, 5e-6, 1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 0.001, 0.002, 0.003, 0.005, 0.007, 0.01, 0.015,
    0.02, 0.03, 0.05, 0.07, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 2.0, 3.0, 5.0, 7.0, 10.0, 12.0, 15.0, 20.0, 25.0,
    30.0, 40.0, 50.0, 60.0, 90.0, 120.0, 180.0, 240.0, 300.0,
];
/// Upper bounds of [`COMMIT_OPERATIONS`].
pub const OPERATIONS: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0];
/// Upper bounds of [`SPAN_BYTES`].
pub const BYTES: &[f64] =
    &[256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0, 65536.0, 262_144.0, 1_048_576.0];

/// Tells the recorder what the figures mean.
pub fn describe() {
    describe_counter!(STORE_TOTAL, "Counter agl.store.total");
    describe_histogram!(STORE_LATENCY, Unit::Seconds, "Histogram agl.store.latency");
    describe_counter!(COLLECTIONS_TOTAL, "Counter agl.collections.total");
    describe_histogram!(COLLECTIONS_LATENCY, Unit::Seconds, "Histogram agl.collections.latency");
    describe_counter!(ROLLOUTS_TOTAL, "Counter agl.rollouts.total");
    describe_histogram!(ROLLOUTS_DURATION, Unit::Seconds, "Histogram agl.rollouts.duration");
    describe_histogram!(
        QUEUE_WAIT,
        Unit::Seconds,
        "Seconds from the creation of a rollout to its first claim"
    );
    describe_histogram!(COMMIT_OPERATIONS, "Operations that shared a commit");
    describe_histogram!(
        COMMIT_LATENCY,
        Unit::Seconds,
        "Seconds that a group of operations and its commit took"
    );
    describe_histogram!(SPAN_BYTES, Unit::Bytes, "Bytes of a stored span");
}

/// A call has been answered.
pub(crate) fn answered<T>(call: &'static str, took: Duration, outcome: &Result<T, Error>) {
    let status = outcome.as_ref().map_or_else(Error::kind, |_| "OK");
    counter!(STORE_TOTAL, "method" => call, "store_pubmeth" => call, "status" => status).increment(1);
    histogram!(STORE_LATENCY, "method" => call, "store_pubmeth" => call, "status" => status)
        .record(took.as_secs_f64());
}

/// What a transaction is to 0.3's figures.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Transaction {
    /// It only looks.
    Query,
    /// It changes something.
    Atomic,
}

/// Carries out the work of a transaction.
pub(crate) fn timed<T>(
    call: &'static str,
    kind: Transaction,
    work: impl FnOnce() -> Result<T, Error>,
) -> Result<T, Error> {
    let started = Instant::now();
    let outcome = work();
    let operation = match kind {
        Transaction::Query => "query",
        Transaction::Atomic => "atomic",
    };
    let labels = [
        ("store_pubmeth", call),
        ("operation", operation),
        ("collection", "router"),
        ("store_privmeth", call),
        ("status", outcome.as_ref().map_or_else(Error::kind, |_| "OK")),
    ];
    counter!(COLLECTIONS_TOTAL, &labels).increment(1);
    histogram!(COLLECTIONS_LATENCY, &labels).record(started.elapsed().as_secs_f64());
    outcome
}

/// A rollout has ended.
pub(crate) fn ended(ended: &Ended) {
    let mode = ended.mode.map_or("unknown", agl_types::RolloutMode::as_str);
    counter!(ROLLOUTS_TOTAL, "status" => ended.status.as_str(), "mode" => mode).increment(1);
    histogram!(ROLLOUTS_DURATION, "status" => ended.status.as_str(), "mode" => mode).record(ended.seconds);
}

/// A rollout has been claimed for the first time.
pub(crate) fn claimed(waited: f64) {
    histogram!(QUEUE_WAIT).record(waited);
}

/// Operations have been committed together.
pub(crate) fn committed(operations: usize, took: Duration) {
    // Far below where a float could not hold it.
    histogram!(COMMIT_OPERATIONS).record(u32::try_from(operations).unwrap_or(u32::MAX));
    histogram!(COMMIT_LATENCY).record(took.as_secs_f64());
}

/// A span has been written.
pub(crate) fn span_written(bytes: usize) {
    histogram!(SPAN_BYTES).record(u32::try_from(bytes).unwrap_or(u32::MAX));
}
