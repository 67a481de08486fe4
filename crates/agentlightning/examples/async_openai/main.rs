//! Runs an agent that is built on async-openai, against any OpenAI-compatible server:
//!
//! ```text
//! agl model serve --model smollm2 &
//! cargo run -p agentlightning --example async_openai -- --base-url http://127.0.0.1:8000/v1 --model smollm2
//! ```

#![expect(clippy::print_stdout, reason = "an example speaks to its reader")]

mod agent;

use agentlightning::{BoxError, Llm, NamedResources, Resource, Trainer};
use clap::Parser;
use serde_json::json;

/// Asks a model for capitals.
#[derive(Parser)]
struct Arguments {
    /// Base URL of an OpenAI-compatible server.
    #[arg(long, default_value = "http://127.0.0.1:8000/v1")]
    base_url: String,
    /// The model to ask.
    #[arg(long, default_value = "smollm2")]
    model: String,
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let Arguments { base_url, model } = Arguments::parse();
    // The HTTP client underneath speaks TLS by whatever provider the program has installed.
    rustls::crypto::ring::default_provider()
        .install_default()
        .map_err(|_| "a TLS provider is installed already")?;
    let llm = Resource::Llm(Llm::new(base_url, model));
    let trainer = Trainer::builder()
        .agent(agent::Geographer)
        .n_runners(2)
        .initial_resources(NamedResources::from_iter([("llm".to_owned(), llm)]))
        .build()?;
    let tasks = [("Japan", "Tokyo"), ("Peru", "Lima")]
        .map(|(country, capital)| json!({"country": country, "capital": capital}));
    let summary = trainer.fit(Vec::new(), tasks.to_vec()).await?;
    println!("{summary:#?}");
    Ok(())
}
