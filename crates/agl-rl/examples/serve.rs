//! Serves a model: `cargo run -p agl-rl --example serve -- [MODEL] [PORT]`.

use agl_rl::{Engine, EngineOptions};

#[tokio::main]
#[expect(clippy::print_stdout, reason = "an example speaks to its reader")]
async fn main() -> agl_rl::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let model = arguments.next().unwrap_or_else(|| "smollm2".into());
    let port = arguments.next().and_then(|port| port.parse().ok()).unwrap_or(0);
    let engine = Engine::load(&model, &EngineOptions::default())?;
    let shutdown = async {
        // Without a handler the signal would have ended the process already.
        let _ = tokio::signal::ctrl_c().await;
    };
    agl_rl::serve(engine, "127.0.0.1", port, |address| println!("listening on http://{address}"), shutdown)
        .await
}
