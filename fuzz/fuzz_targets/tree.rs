//! Any tree, with calls and rewards in any places.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../crates/agl-trace/tests/common/mod.rs"]
#[allow(dead_code, unused_attributes)]
mod common;

fuzz_target!(|bytes: &[u8]| common::check(&common::spans(bytes)));
