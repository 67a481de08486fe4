//! The [`Store`] trait, its engine, the memory and SQLite backends, and the conformance suite.
//!
//! A store keeps rollouts, attempts, spans, resources and workers. Everything that decides anything is in
//! [`agl_types::lifecycle`] and in the engine; a backend only persists.

mod clock;
mod error;
mod store;

pub use clock::{Clock, IdSource, ManualClock, RandomIds, SeededIds, SystemClock};
pub use error::Error;
pub use store::{Capabilities, SpanDraft, Statistics, Store};
