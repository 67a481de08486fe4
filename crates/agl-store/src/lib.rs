//! The [`Store`] trait, its engine, and the memory and SQLite backends.
//!
//! A store keeps rollouts, attempts, spans, resources and workers. Everything that decides anything is in
//! [`agl_types::lifecycle`] and in the engine; a backend only persists. What every store must do is written down
//! as test cases in the crate `agl-conformance`.

mod backend;
mod clock;
mod engine;
mod error;
mod feed;
mod idempotency;
mod lean;
mod memory;
pub mod metrics;
mod query;
mod raw;
mod signals;
mod sqlite;
mod store;
mod work;

pub use clock::{Clock, IdSource, ManualClock, RandomIds, SeededIds, SystemClock};
pub use engine::LocalStore;
pub use error::Error;
pub use feed::Subscription;
pub use idempotency::IdempotencyKey;
pub use lean::Lean;
pub use memory::MemoryStore;
pub use raw::{AttemptSpans, Look, RawSpan};
pub use sqlite::{SqliteOptions, SqliteStore, Sync, maintenance};
pub use store::{Capabilities, PassedOver, Retention, SpanDraft, Statistics, Store, WrittenDraft};
