//! Rollouts, attempts, spans, resources and workers, their ids, and the pure lifecycle.
//!
//! This crate is the leaf that every other crate stands on: it does no I/O, knows no clock and spawns nothing.
//! Every type serializes to the JSON that Agent Lightning 0.3 puts on the wire: all declared keys, nulls
//! included, in declaration order. All times are wall-clock seconds since the Unix epoch as `f64`.

mod api_key;
mod attributes;
mod extra;
mod feed;
pub mod ids;
pub mod legacy;
pub mod lifecycle;
mod page;
mod patch;
mod requests;
mod resource;
mod rollout;
pub mod semconv;
mod span;
mod triplet;
pub mod v1;
mod worker;
mod written;

pub use api_key::{ApiKey, ApiKeyError};
pub use attributes::{
    AttributeError, Attributes, CLIENT_HEADER, MAX_ATTRIBUTE_DEPTH, attribute_bytes, bytes_attribute,
    is_plain_attribute,
};
pub use feed::{EventKind, EventQuery, FeedItem, Gap, StoreEvent};
pub use page::{FilterLogic, Page, SortOrder, UNLIMITED};
pub use patch::Patch;
pub use requests::{
    AttemptEnd, AttemptQuery, AttemptUpdate, DequeueRequest, EnqueueRequest, EnqueueRolloutRequest,
    PurgeReport, PurgeRequest, QueueState, ResourcesQuery, RolloutQuery, RolloutUpdate, SequenceIdRequest,
    SpanQuery, StartRollout, WaitRequest, WorkerQuery, WorkerUpdate,
};
pub use resource::{Llm, NamedResources, PromptTemplate, Resource, ResourcesUpdate, TemplateEngine};
pub use rollout::{
    Attempt, AttemptStatus, AttemptedRollout, Claim, Rollout, RolloutConfig, RolloutMode, RolloutStatus,
    RolloutView,
};
pub use span::{Event, Link, OtelResource, Span, SpanContext, StatusCode, TraceStatus};
pub use triplet::Triplet;
pub use worker::{Worker, WorkerStatus};
pub use written::{WrittenSpan, write_place};

/// A JSON object whose key order is kept.
pub type JsonMap = serde_json::Map<String, serde_json::Value>;
