//! How many input tokens a second the merge by prefix takes in, on one core; prints JSON. Used by `make bench-traces`.

#![expect(clippy::print_stdout, reason = "that is what it is for")]

use std::time::{Duration, Instant};

use agl_trace::trajectory::{Sampled, merge};

const CONVERSATIONS: u32 = 16;
const CALLS: u32 = 40;
const TURN: u32 = 250;

/// Conversations side by side, which begin alike, each call with all that came before.
fn calls() -> Vec<(Vec<u32>, Vec<u32>)> {
    let mut state = 1_u32;
    let mut next = move || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state >> 8
    };
    let shared: Vec<u32> = (0..1000).map(|_| next()).collect();
    let mut told: Vec<Vec<u32>> = (0..CONVERSATIONS).map(|_| shared.clone()).collect();
    let mut calls = Vec::new();
    for _ in 0..CALLS {
        for told in &mut told {
            told.extend((0..TURN).map(|_| next()));
            let prompt = told.clone();
            let response: Vec<u32> = (0..TURN).map(|_| next()).collect();
            told.extend(&response);
            calls.push((prompt, response));
        }
    }
    calls
}

fn main() {
    let calls = calls();
    let sampled: Vec<Sampled<'_>> =
        calls.iter().map(|(prompt, response)| Sampled { prompt, response, logprobs: &[], key: 0 }).collect();
    let tokens: usize = calls.iter().map(|(prompt, _)| prompt.len()).sum();
    let began = Instant::now();
    let mut best = Duration::MAX;
    while began.elapsed() < Duration::from_secs(2) {
        let start = Instant::now();
        let sequences = std::hint::black_box(merge(&sampled));
        best = best.min(start.elapsed());
        assert_eq!(sequences.len(), CONVERSATIONS as usize, "each conversation is one sequence");
    }
    #[expect(clippy::cast_precision_loss, reason = "far from 2^52 tokens")]
    let rate = tokens as f64 / best.as_secs_f64();
    println!(
        "{}",
        serde_json::json!({"tokens": tokens, "seconds": best.as_secs_f64(), "tokens_per_s": rate})
    );
}
