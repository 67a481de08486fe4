//! The server over real sockets.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "what cannot be set up is a failed test, and so are helpers that find something amiss"
)]

mod access;
mod agents;
mod common;
mod conformance;
mod failures;
#[cfg(feature = "grpc")]
mod grpc;
mod json;
mod limits;
mod once;
mod openapi;
mod operations;
mod otlp;
mod push;
mod rest;
mod tls;
mod v1;
