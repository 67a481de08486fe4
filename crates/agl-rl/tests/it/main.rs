//! Integration tests, in one binary so that they link once.

mod common;
mod engine;
mod http;
mod model;
mod reference;
