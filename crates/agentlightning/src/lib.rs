//! Agent Lightning for Rust: [`Agent`], [`Trainer`], and everything they need.
//!
//! An agent works on tasks; a trainer has several runners run it over datasets and returns how it did. Everything
//! that happens is a span in a [`store::Store`].
//!
//! ```
//! use std::sync::Arc;
//!
//! use agentlightning::{Agent, BoxError, MemoryStore, Outcome, RolloutContext, Trainer, async_trait};
//! use serde::Deserialize;
//! use serde_json::json;
//!
//! /// A task.
//! #[derive(Deserialize)]
//! struct Call {
//!     say: String,
//!     expect: String,
//! }
//!
//! struct Echo;
//!
//! #[async_trait]
//! impl Agent for Echo {
//!     type Task = Call;
//!     type Resources = ();
//!
//!     async fn rollout(&self, task: Call, (): (), context: &RolloutContext) -> Result<Outcome, BoxError> {
//!         context.emit_message("listening").await?;
//!         Ok(Outcome::Reward(f64::from(u8::from(task.say == task.expect))))
//!     }
//! }
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), BoxError> {
//! let trainer = Trainer::builder().agent(Echo).n_runners(2).store(Arc::new(MemoryStore::new())).build()?;
//! let train = vec![json!({"say": "a", "expect": "a"}), json!({"say": "a", "expect": "b"})];
//! let summary = trainer.fit(train, Vec::new()).await?;
//! assert_eq!(summary.train.mean_reward, Some(0.5));
//! # Ok(())
//! # }
//! ```

#![deny(missing_docs)]

mod error;
#[cfg(feature = "model")]
mod model;
#[cfg(feature = "otel")]
mod otel;
#[cfg(feature = "tracing")]
mod tracing_layer;
mod trainer;

pub use agl_algorithm::{
    Algorithm, AlgorithmContext, Baseline, BaselineOptions, Counts, ModeSummary, Progress, RolloutReport,
    Summary,
};
pub use agl_runner::{
    Agent, AnyAgent, BoxError, FromResources, Hook, LastingSpan, Named, Outcome, RolloutContext, Runner,
    RunnerOptions, RunnerReport, StopSignal, emit_reward,
};
pub use agl_store::{MemoryStore, SqliteOptions, SqliteStore, Store};
pub use agl_trace::{TripletOptions, spans_to_triplets};
pub use agl_types::{
    Llm, NamedResources, PromptTemplate, Resource, Rollout, RolloutConfig, RolloutMode, RolloutStatus, Span,
    Triplet,
};
pub use async_trait::async_trait;
pub use error::Error;
#[cfg(feature = "model")]
pub use model::ChatModel;
#[cfg(feature = "otel")]
pub use otel::OtelExporter;
#[cfg(feature = "tracing")]
pub use tracing_layer::TracingLayer;
pub use trainer::{Trainer, TrainerBuilder};

pub use agl_client as client;
#[cfg(feature = "model")]
pub use agl_rl as rl;
pub use agl_server as server;
pub use agl_store as store;
pub use agl_trace as trace;
pub use agl_types as types;
