//! The gateway against those that it replaces. A model server that costs next to nothing is asked directly and through
//! each of them, in turns. Every answer is compared with what it should be, byte for byte.

mod load;
mod measure;
mod report;
mod shape;
mod target;
mod upstream;

use std::path::PathBuf;

use clap::Args;

use crate::{Outcome, block_on, page};
use measure::{Choice, Plan};
use report::Report;
use target::{Kind, Programs};

/// What `agl-bench gateway` is told.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// The program that serves our gateway.
    #[arg(long, default_value = "target/release/agl")]
    ours: PathBuf,

    /// A Python with agentlightning 0.3.
    #[arg(long, default_value = "target/peer-venv/bin/python")]
    peer: PathBuf,

    /// What that is to run.
    #[arg(long, default_value = "scripts/bench_gateway/peer.py")]
    script: PathBuf,

    /// The server of agentlightning 1.0 [default: it is left out].
    #[arg(long)]
    controller: Option<PathBuf>,

    /// Folder for databases, removed afterwards; its disk is a part of what is measured.
    #[arg(long, default_value = "target")]
    scratch: PathBuf,

    /// Folder to write gateway.json and the tables of gateway.md into [default: none is written].
    #[arg(long)]
    out: Option<PathBuf>,

    /// Look only whether everything works; the figures are worth little.
    #[arg(long)]
    quick: bool,

    /// Measure this only; may be given several times.
    #[arg(long, value_name = "KIND")]
    target: Vec<Kind>,

    /// Measure only calls whose title has this part, with the process ids told: for profiling.
    #[arg(long, value_name = "PART")]
    shape: Option<String>,

    /// Measure nothing, show what is in this file.
    #[arg(long, value_name = "gateway.json")]
    show: Option<PathBuf>,
}

pub(crate) fn run(arguments: &Arguments) -> Outcome<()> {
    let report: Report = match &arguments.show {
        Some(path) => serde_json::from_slice(&std::fs::read(path)?)?,
        None => {
            let Arguments { ours, peer, script, scratch, .. } = arguments;
            let missing = PathBuf::new();
            let controller = arguments.controller.as_ref();
            let everybody =
                Kind::ALL.into_iter().filter(|kind| *kind != Kind::Controller || controller.is_some());
            let targets =
                if arguments.target.is_empty() { everybody.collect() } else { arguments.target.clone() };
            let choice = Choice { targets: &targets, shape: arguments.shape.as_deref() };
            let plan = if arguments.quick { Plan::QUICK } else { Plan::FULL };
            let programs =
                Programs { ours, peer, script, controller: controller.unwrap_or(&missing), scratch };
            block_on(measure::run(plan, &choice, &programs))?
        }
    };
    let tables = report.tables();
    page::print(&tables);
    arguments.out.as_deref().map_or(Ok(()), |folder| page::write(folder, "gateway", &report, &tables))
}
