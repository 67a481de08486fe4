//! How results get from the runtime's threads to Python: they are put down here, and Python picks them up.
//!
//! No thread of the runtime ever calls into Python. It would have to take the interpreter's lock, and a thread
//! that waits for it while the interpreter ends is killed in the middle of what it does.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};

use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::failure::Failure;

/// JSON, or what went wrong.
pub(crate) type Outcome = Result<Vec<u8>, Failure>;

/// Finished calls, and a descriptor that is readable while there are any.
#[pyclass(frozen, module = "agentlightning._core")]
pub(crate) struct CompletionQueue {
    shared: Arc<Shared>,
    readable: UnixStream,
}

/// The runtime's side of a [`CompletionQueue`].
#[derive(Debug)]
pub(crate) struct Shared {
    finished: Mutex<VecDeque<(u64, Outcome)>>,
    signal: UnixStream,
}

impl Shared {
    fn push(&self, ticket: u64, outcome: Outcome) {
        let mut finished = self.finished.lock().unwrap_or_else(PoisonError::into_inner);
        let was_empty = finished.is_empty();
        finished.push_back((ticket, outcome));
        drop(finished);
        if was_empty {
            // Full means that a signal is waiting already, and broken that nobody reads any more.
            let _ = (&self.signal).write(&[1]);
        }
    }
}

/// The duty to finish one call. Dropped without having been done, as on a cancelled or panicked task, it
/// finishes the call with a failure.
#[derive(Debug)]
pub(crate) struct Completion {
    shared: Arc<Shared>,
    ticket: u64,
    done: bool,
}

impl Completion {
    pub(crate) fn finish(mut self, outcome: Outcome) {
        self.done = true;
        self.shared.push(self.ticket, outcome);
    }
}

impl Drop for Completion {
    fn drop(&mut self) {
        if !self.done {
            self.shared.push(self.ticket, Err(Failure::backend("the call was ended before it was done")));
        }
    }
}

impl CompletionQueue {
    /// The duty to finish the call that Python knows by `ticket`.
    pub(crate) fn completion(&self, ticket: u64) -> Completion {
        Completion { shared: Arc::clone(&self.shared), ticket, done: false }
    }
}

#[pymethods]
impl CompletionQueue {
    #[new]
    fn new() -> PyResult<Self> {
        let (readable, signal) = UnixStream::pair()?;
        readable.set_nonblocking(true)?;
        signal.set_nonblocking(true)?;
        Ok(Self { shared: Arc::new(Shared { finished: Mutex::default(), signal }), readable })
    }

    /// The descriptor to watch.
    fn fileno(&self) -> i32 {
        self.readable.as_raw_fd()
    }

    /// Takes the finished calls out: ticket, and JSON or the failure's kind, message and field.
    fn drain<'py>(&self, py: Python<'py>) -> PyResult<Vec<(u64, Bound<'py, PyAny>)>> {
        let mut signals = [0; 64];
        loop {
            match (&self.readable).read(&mut signals) {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error.into()),
            }
        }
        // The signals are taken first: whoever pushes from here on sends another.
        let finished =
            std::mem::take(&mut *self.shared.finished.lock().unwrap_or_else(PoisonError::into_inner));
        finished
            .into_iter()
            .map(|(ticket, outcome)| {
                let outcome = match outcome {
                    Ok(json) => PyBytes::new(py, &json).into_any(),
                    Err(failure) => failure.to_tuple(py)?.into_any(),
                };
                Ok((ticket, outcome))
            })
            .collect()
    }
}
