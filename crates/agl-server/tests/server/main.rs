//! The server over real sockets.
#![expect(clippy::unwrap_used, reason = "what cannot be set up is a failed test")]

mod common;
mod conformance;
mod failures;
#[cfg(feature = "grpc")]
mod grpc;
mod json;
mod once;
mod openapi;
mod otlp;
mod push;
mod rest;
mod v1;
