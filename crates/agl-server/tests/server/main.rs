//! The server over real sockets.
#![expect(clippy::unwrap_used, reason = "what cannot be set up is a failed test")]

mod access;
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
