//! The LLM gateway: agents call models through it by its base URL alone, and every call is kept as a span.
//!
//! Bytes pass through untouched: a stream is a tee, and only what capture itself asked for is cut out of answers. The
//! path says whose call it is (0.3: `/rollout/{r}/attempt/{a}/v1/…`, 1.0:
//! `/proxy/rollout/{r}/attempt/{a}/mode/{m}/openai/v1/…`); headers, a token, or a session do where it does not.

pub mod access;
mod address;
mod answer;
mod assemble;
mod blobs;
mod call;
mod change;
mod config;
mod dialect;
pub mod doctor;
mod error;
mod gateway;
mod json;
mod link;
mod models;
mod pause;
mod record;
mod refusal;
mod sessions;
mod sse;
mod stream;
mod upstream;
mod written;

pub use access::{AttemptGrant, AttemptTokens};
pub use config::{Api, ModelEntry, ModelList};
pub use error::Error;
pub use gateway::{Capture, Gateway, GatewayOptions, PauseRequest};
pub use pause::{Pause, PauseState, WaitingFor};
