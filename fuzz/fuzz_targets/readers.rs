//! Any JSON that is a list of spans, as recorders may have sent it, through every reader.
#![no_main]

use agl_types::Span;
use libfuzzer_sys::fuzz_target;

#[path = "../../crates/agl-trace/tests/common/mod.rs"]
#[allow(dead_code, unused_attributes)]
mod common;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(spans) = serde_json::from_slice::<Vec<Span>>(bytes) {
        common::check(&spans);
    }
});
