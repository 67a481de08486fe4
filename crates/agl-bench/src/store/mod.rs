//! The store server against 0.3's. Every server is a process of its own and is sent the same requests, one server after
//! the other, window by window and round by round, so that whatever else the machine does hits all of them. What counts
//! most is the processor time that a server spends on a request: the load comes from the same cores.

mod chart;
mod load;
mod measure;
mod report;
mod server;
mod shapes;

use std::path::{Path, PathBuf};

use clap::Args;

use crate::{Outcome, block_on, page};
use measure::{Choice, Plan};
use report::Report;
use server::{Kind, Programs};

/// What `agl-bench store` is told.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
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

pub(crate) fn run(arguments: &Arguments) -> Outcome<()> {
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
    page::print(&report.tables());
    arguments.out.as_deref().map_or(Ok(()), |folder| write(&report, folder))
}

fn write(report: &Report, folder: &Path) -> Outcome<()> {
    std::fs::write(folder.join("store.svg"), chart::draw(report))?;
    page::write(folder, "store", report, &report.tables())
}
