//! The `agl` command.

use std::process::ExitCode;

/// A server makes its answers on one thread and frees them on another, which this allocator is better at than most.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    ExitCode::from(agl_cli::run(std::env::args_os()))
}
