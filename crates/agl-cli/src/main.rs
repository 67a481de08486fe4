//! The `agl` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(agl_cli::run(std::env::args_os()))
}
