//! Measures the store server against the one that it replaces, on the machine at hand: `make bench-store`.
//!
//! Every server is a process of its own and is sent the same requests, one server after the other, window by
//! window and round by round, so that whatever else the machine does hits all of them. What counts most is the
//! processor time that a server spends on a request: the load comes from the same cores.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "printing is its purpose")]

mod chart;
mod http;
mod load;
mod measure;
mod report;
mod server;
mod shapes;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;

use measure::{Choice, Plan};
use report::Report;
use server::{Kind, Programs};

type Outcome<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// The lines of `store.md` that the tables go between.
const BEGIN: &str = "<!-- tables: written by make bench-store -->";
const END: &str = "<!-- end of tables -->";

/// Measures `agl store` against the server of agentlightning 0.3.
#[derive(Debug, Parser)]
struct Arguments {
    /// The program that serves our stores.
    #[arg(long, default_value = "target/release/agl")]
    ours: PathBuf,

    /// The program that serves the peer's store.
    #[arg(long, default_value = "target/peer-venv/bin/agl")]
    peer: PathBuf,

    /// Folder for databases, removed afterwards; its disk is a part of what is measured.
    #[arg(long, default_value = "target")]
    scratch: PathBuf,

    /// Folder to write store.json, store.svg and the tables of store.md into [default: none is written].
    #[arg(long)]
    out: Option<PathBuf>,

    /// Look only whether everything works; the figures are worth little.
    #[arg(long)]
    quick: bool,

    /// Measure this server only; may be given several times.
    #[arg(long, value_name = "KIND")]
    server: Vec<Kind>,

    /// Measure only operations whose title has this part, with the process ids told: for profiling.
    #[arg(long, value_name = "PART")]
    operation: Option<String>,

    /// Measure nothing, show what is in this file.
    #[arg(long, value_name = "store.json")]
    show: Option<PathBuf>,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Outcome<()> {
    let report = match &arguments.show {
        Some(path) => serde_json::from_slice(&std::fs::read(path)?)?,
        None => {
            let Arguments { ours, peer, scratch, .. } = arguments;
            let servers = if arguments.server.is_empty() { &Kind::ALL } else { arguments.server.as_slice() };
            let choice = Choice { servers, operation: arguments.operation.as_deref() };
            let plan = if arguments.quick { Plan::QUICK } else { Plan::FULL };
            block_on(measure::run(plan, &choice, &Programs { ours, peer, scratch }))?
        }
    };
    println!("{}", report.tables());
    arguments.out.as_deref().map_or(Ok(()), |folder| write(&report, folder))
}

fn write(report: &Report, folder: &Path) -> Outcome<()> {
    std::fs::write(folder.join("store.json"), serde_json::to_string_pretty(report)? + "\n")?;
    std::fs::write(folder.join("store.svg"), chart::draw(report))?;
    let page = folder.join("store.md");
    let text = std::fs::read_to_string(&page)?;
    let places = text.split_once(BEGIN).and_then(|(before, rest)| Some((before, rest.split_once(END)?.1)));
    let (before, after) = places.ok_or_else(|| format!("{} has no place for tables", page.display()))?;
    std::fs::write(&page, format!("{before}{BEGIN}\n\n{}\n{END}{after}", report.tables()))?;
    Ok(())
}

/// Runs a future on this thread, with a runtime of its own.
fn block_on<T>(future: impl Future<Output = Outcome<T>>) -> Outcome<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(future)
}

/// Tells how far it is.
fn say(what: &str) {
    eprintln!("── {what}");
}
