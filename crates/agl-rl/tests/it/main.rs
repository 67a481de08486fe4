//! Integration tests, in one binary so that they link once.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test that fails may panic")]

mod common;
mod engine;
mod http;
mod model;
mod reference;
