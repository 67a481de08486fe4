//! The `agl` command inside the wheel.

use std::ffi::OsString;

use pyo3::prelude::*;

/// Does what a command line says, the program's name first, and returns the exit code. The caller leaves signals
/// to it: Python's own handlers do not run in the meantime.
#[pyo3::pyfunction]
#[expect(clippy::needless_pass_by_value, reason = "arguments from Python arrive by value")]
pub(crate) fn cli_main(py: Python<'_>, args: Vec<OsString>) -> u8 {
    py.detach(|| agl_cli::run(&args))
}
