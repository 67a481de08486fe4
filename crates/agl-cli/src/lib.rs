//! The `agl` command: [`run`] does what a command line says. It parses arguments, prints and waits for signals;
//! everything else is in the crates below.
//!
//! Exit codes: 0 when all went well (a server told to stop included), 1 after an error, which is one line on
//! standard error, 2 for arguments that make no sense.

mod args;
mod console;
mod data;
mod db;
mod doctor;
mod error;
mod gateway;
mod key;
mod memory;
mod model;
mod queue;
mod run;
mod signals;
mod store;

use std::ffi::OsString;

use agl_types::QueueState;
use clap::Parser as _;

use crate::args::{Arguments, Command, ModelCommand};
use crate::error::Error;

/// Does what the command line says, the program's name first, and returns the exit code. Servers run until a
/// signal (SIGTERM, Ctrl+C) ends them.
pub fn run<T>(args: impl IntoIterator<Item = T>) -> u8
where
    T: Into<OsString> + Clone,
{
    let arguments = match Arguments::try_parse_from(args) {
        Ok(arguments) => arguments,
        Err(refusal) => {
            // Help and version come this way too. If nobody reads it, there is nobody to tell either.
            let _ = refusal.print();
            return u8::try_from(refusal.exit_code()).unwrap_or(2);
        }
    };
    match execute(arguments) {
        Ok(()) => 0,
        Err(error) => {
            console::complain(&error);
            1
        }
    }
}

fn execute(arguments: Arguments) -> Result<(), Error> {
    if matches!(arguments.command, Command::Gateway(_) | Command::Serve(_) | Command::Run(_)) {
        memory::give_back_large_pieces();
    }
    match arguments.command {
        Command::Store(options) => store::run(&options, None),
        Command::Gateway(options) => gateway::run(&options),
        Command::Serve(options) => store::run(&options.store, Some(&options.gateway)),
        Command::Doctor(options) => doctor::run(&options),
        Command::Run(options) => run::run(&options),
        Command::Pause(address) => queue::set(&address, QueueState { paused: true }),
        Command::Resume(address) => queue::set(&address, QueueState { paused: false }),
        Command::Db(command) => db::run(&command),
        Command::Model(ModelCommand::Serve(options)) => model::serve(&options),
        Command::Model(ModelCommand::Pull(options)) => model::pull(&options),
        Command::Export(command) => data::export(&command),
        Command::Import(command) => data::import(&command),
    }
}
