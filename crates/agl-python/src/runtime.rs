//! The tokio runtime of this process.

use std::sync::{Mutex, PoisonError};

use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use tokio::runtime::{Builder, Runtime};

struct Current {
    pid: u32,
    runtime: &'static Runtime,
}

static CURRENT: Mutex<Option<Current>> = Mutex::new(None);

/// The runtime, made when it is first needed.
///
/// It is leaked, so its threads run until the process ends; they never call into Python, so that is safe while
/// the interpreter winds down. A forked child has none of its parent's threads and makes a runtime of its own.
/// The interpreter's lock is held around this, and around `fork` too, so no child inherits `CURRENT` locked.
pub(crate) fn runtime(_: Python<'_>) -> PyResult<&'static Runtime> {
    let pid = std::process::id();
    let mut current = CURRENT.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(current) = current.as_ref().filter(|current| current.pid == pid) {
        return Ok(current.runtime);
    }
    let runtime = Builder::new_multi_thread()
        .thread_name("agl-core")
        .enable_all()
        .build()
        .map_err(|error| PyRuntimeError::new_err(format!("cannot start background threads: {error}")))?;
    let runtime: &'static Runtime = Box::leak(Box::new(runtime));
    *current = Some(Current { pid, runtime });
    Ok(runtime)
}
