//! Measures prefill and decoding, and compares them with the bare matrix products of the same
//! shapes in the same run: `cargo run -p agl-rl --example bench -- [MODEL] [THREADS]`.

use agl_rl::{Engine, EngineOptions, Event, GenerateRequest, ModelConfig, ModelFiles};
use candle_core::{DType, Device, Tensor};
use std::path::Path;
use std::time::{Duration, Instant};

/// Repetitions; the median counts.
const RUNS: usize = 3;
const PROMPT: usize = 256;
const ANSWER: usize = 33;

#[tokio::main(flavor = "current_thread")]
#[expect(clippy::print_stdout, reason = "an example speaks to its reader")]
async fn main() -> agl_rl::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let model = arguments.next().unwrap_or_else(|| "smollm2".into());
    let threads = arguments.next().and_then(|count| count.parse().ok());
    let path = agl_rl::resolve(&model, None)?;
    let files = ModelFiles::load(Path::new(&path))?;
    let config = files.model.config().clone();
    let engine = Engine::new(files, &EngineOptions { threads, ..EngineOptions::default() })?;
    println!("{}: {} parameters, {RUNS} runs, median", engine.model_name(), config.parameters());
    println!("(the product's rate is that of candle's matmul on the same shapes)");

    let mut seed = 0;
    for batch in [1usize, 8, 32] {
        let mut times = Vec::new();
        for _ in 0..RUNS {
            let start = Instant::now();
            let mut running = Vec::new();
            for _ in 0..batch {
                seed += 1;
                let request = GenerateRequest { max_tokens: Some(1), ..request(&config, seed, PROMPT) };
                running.push(engine.submit(request)?);
            }
            for generation in running {
                generation.collect().await?;
            }
            times.push(start.elapsed());
        }
        report("prefill", batch, batch * PROMPT, median(&mut times), bare(&config, batch * PROMPT, batch)?);
    }
    for batch in [1usize, 8, 32] {
        let mut times = Vec::new();
        for _ in 0..RUNS {
            seed += 1;
            let request = GenerateRequest {
                n: batch,
                max_tokens: Some(ANSWER),
                ignore_eos: true,
                ..request(&config, seed, 32)
            };
            let mut generation = engine.submit(request)?;
            let mut tokens = 0;
            let mut start = Instant::now();
            while let Some(event) = generation.next().await? {
                if matches!(event, Event::Token { .. }) {
                    tokens += 1;
                    if tokens == batch {
                        start = Instant::now();
                    }
                }
            }
            times.push(start.elapsed());
        }
        let steps = ANSWER - 1;
        let products = bare(&config, batch, batch)? * u32::try_from(steps).unwrap_or(1);
        report("decode", batch, batch * steps, median(&mut times), products);
    }
    Ok(())
}

/// A prompt that was never seen before.
fn request(config: &ModelConfig, seed: u64, length: usize) -> GenerateRequest {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        u32::try_from((state >> 33) % config.vocab_size as u64).unwrap_or(0)
    };
    GenerateRequest { seed: Some(seed), ..GenerateRequest::new((0..length).map(|_| next()).collect()) }
}

/// Time of the matrix products alone: `rows` through every layer, `wanted` through the output.
fn bare(config: &ModelConfig, rows: usize, wanted: usize) -> agl_rl::Result<Duration> {
    let (q, kv) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
    let (hidden, inner) = (config.hidden_size, config.intermediate_size);
    let shapes = [
        (q, hidden),
        (kv, hidden),
        (kv, hidden),
        (hidden, q),
        (inner, hidden),
        (inner, hidden),
        (hidden, inner),
    ];
    // The values do not matter to the speed.
    let filled = |rows: usize, columns: usize| Tensor::ones((rows, columns), DType::F32, &Device::Cpu);
    // All layers have matrices of their own, so that none comes out of a cache.
    let mut products = Vec::new();
    for _ in 0..config.layers {
        for (out, input) in shapes {
            products.push((filled(rows.min(512), input)?, filled(out, input)?));
        }
    }
    let last = (filled(wanted, hidden)?, filled(config.vocab_size, hidden)?);
    let mut times = Vec::new();
    for _ in 0..3 {
        let start = Instant::now();
        for _ in 0..rows.div_ceil(512) {
            for (x, w) in &products {
                x.matmul(&w.t()?)?;
            }
        }
        last.0.matmul(&last.1.t()?)?;
        times.push(start.elapsed());
    }
    Ok(median(&mut times))
}

fn median(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

#[expect(clippy::print_stdout, reason = "an example speaks to its reader")]
fn report(what: &str, batch: usize, tokens: usize, time: Duration, products: Duration) {
    let rate = tokens as f64 / time.as_secs_f64();
    let bare = tokens as f64 / products.as_secs_f64();
    println!(
        "{what:8} batch {batch:3}: {rate:7.1} tokens/s; bare products {bare:7.1}; share {:3.0}%",
        100.0 * rate / bare
    );
}
