//! Measures our servers against those that they replace, on the machine at hand: `make bench-store`, `make
//! bench-gateway`.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "printing is its purpose")]

mod figures;
mod gateway;
mod http;
mod page;
mod process;
mod store;

use std::process::ExitCode;

use clap::Parser;

type Outcome<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// Measures our servers against those that they replace.
#[derive(Debug, Parser)]
enum Arguments {
    /// Measures `agl store` against the server of agentlightning 0.3.
    Store(store::Arguments),
    /// Measures the gateway against LiteLLM's proxy as agentlightning 0.3 runs it, and against that of 1.0.
    Gateway(gateway::Arguments),
}

fn main() -> ExitCode {
    let done = match &Arguments::parse() {
        Arguments::Store(arguments) => store::run(arguments),
        Arguments::Gateway(arguments) => gateway::run(arguments),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Runs a future on this thread, with a runtime of its own.
fn block_on<T>(future: impl Future<Output = Outcome<T>>) -> Outcome<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(future)
}

/// Tells how far it is.
fn say(what: &str) {
    eprintln!("── {what}");
}
