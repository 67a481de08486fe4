//! The gateway over HTTP, in front of a model server that behaves like vLLM.
#![expect(clippy::unwrap_used, clippy::panic, reason = "what cannot be set up is a failed test")]

mod chat;
mod common;
mod dialects;
mod doctor;
mod engine;
mod others;
mod routing;
mod streams;
