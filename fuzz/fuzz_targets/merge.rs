//! Any answers, merged and cut.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../crates/agl-trace/tests/common/mod.rs"]
#[allow(dead_code, unused_attributes)]
mod common;

fuzz_target!(|bytes: &[u8]| common::check_merge(bytes));
