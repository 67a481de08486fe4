//! The `agl` command.

use std::process::ExitCode;

/// Servers run for days and their calls come and go in bursts: this one is quicker, and gives back what was freed.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    ExitCode::from(agl_cli::run(std::env::args_os()))
}
