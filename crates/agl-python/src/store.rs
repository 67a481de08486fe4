//! A store, as Python holds it.

use std::path::PathBuf;
use std::pin::Pin;
use std::sync::mpsc;
use std::sync::{Arc, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use agl_client::{Client, ClientOptions};
use agl_store::{SqliteOptions, SqliteStore, Sync};
use agl_types::ApiKey;
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use tokio::task::AbortHandle;

use crate::completion::{CompletionQueue, Outcome};
use crate::dispatch::{dispatch, read, reply};
use crate::failure::Failure;
use crate::runtime::runtime;
use crate::subscription::Subscription;

/// How often a blocking call looks whether Ctrl+C has been pressed.
const SIGNAL_CHECK: Duration = Duration::from_millis(50);

type Call = Pin<Box<dyn Future<Output = Outcome> + Send>>;

/// A store in this process, or a client of one elsewhere.
#[pyclass(frozen, module = "agentlightning._core")]
pub(crate) struct Store {
    store: Arc<dyn agl_store::Store>,
    /// The same store, where it has a file to close.
    sqlite: Option<Arc<SqliteStore>>,
    /// The process that it was made in.
    process: u32,
}

impl Drop for Store {
    fn drop(&mut self) {
        if std::process::id() != self.process {
            // What ends with a store (threads, connections) is the parent's. Ending it in a forked child could
            // wait for a lock that a thread of the parent held at the moment of the fork.
            std::mem::forget(Arc::clone(&self.store));
        }
    }
}

/// A call that is under way.
#[pyclass(frozen, module = "agentlightning._core")]
pub(crate) struct Task {
    handle: AbortHandle,
    /// The process that it was made in.
    process: u32,
}

impl Drop for Task {
    fn drop(&mut self) {
        if std::process::id() != self.process {
            // As with a store.
            std::mem::forget(self.handle.clone());
        }
    }
}

impl Task {
    pub(crate) fn over(handle: AbortHandle) -> Self {
        Self { handle, process: std::process::id() }
    }
}

#[pymethods]
impl Task {
    /// Ends the call, if it is not done yet.
    fn cancel(&self) {
        if std::process::id() == self.process {
            self.handle.abort();
        }
    }
}

impl Store {
    fn over(store: impl agl_store::Store) -> Self {
        Self { store: Arc::new(store), sqlite: None, process: std::process::id() }
    }

    /// The store itself.
    pub(crate) fn inner(&self) -> Arc<dyn agl_store::Store> {
        Arc::clone(&self.store)
    }

    fn start(&self, method: &str, payload: &[u8]) -> Call {
        let store = self.inner();
        let method = method.to_owned();
        let payload = payload.to_owned();
        Box::pin(async move { dispatch(&*store, &method, &payload).await })
    }
}

fn seconds(field: &str, value: f64) -> Result<Duration, Failure> {
    Duration::try_from_secs_f64(value).map_err(|_| {
        Failure::invalid(Some(field.to_owned()), format!("{field} must be seconds, not {value}"))
    })
}

/// A key as a user gives it.
pub(crate) fn api_key(text: Option<&str>) -> Result<Option<ApiKey>, Failure> {
    let parsed = text.map(ApiKey::new).transpose();
    parsed.map_err(|error| Failure::invalid(Some("key".to_owned()), error.to_string()))
}

/// Runs a call as far as it goes without waiting. Calls to a store in memory go all the way, which spares them
/// two changes of threads.
fn try_now(call: &mut Call) -> Option<Outcome> {
    match call.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(outcome) => Some(outcome),
        Poll::Pending => None,
    }
}

#[pymethods]
impl Store {
    /// A store in this process's memory.
    #[staticmethod]
    fn memory() -> Self {
        Self::over(agl_store::MemoryStore::new())
    }

    /// A store in a file. `sync` says what an acknowledged write survives: `normal`, the end of the process, or
    /// `full`, power loss too.
    #[staticmethod]
    fn sqlite(py: Python<'_>, path: PathBuf, sync: &str) -> PyResult<Self> {
        let sync = match sync {
            "normal" => Sync::Normal,
            "full" => Sync::Full,
            other => {
                let message = format!("sync must be normal or full, not {other:?}");
                return Err(Failure::invalid(Some("sync".to_owned()), message).into());
            }
        };
        let options = SqliteOptions { sync, ..SqliteOptions::default() };
        let store = Arc::new(py.detach(|| SqliteStore::open(path, options)).map_err(Failure::from)?);
        Ok(Self {
            store: Arc::clone(&store) as Arc<dyn agl_store::Store>,
            sqlite: Some(store),
            process: std::process::id(),
        })
    }

    /// A store that is served at `address`. Times are in seconds; see `ClientOptions` of agl-client. A key or file
    /// of authorities that is not given is taken from the environment.
    #[staticmethod]
    #[pyo3(signature = (address, max_outage, connect_timeout, request_timeout, server_error_tries, key=None, ca_file=None))]
    fn client(
        address: &str,
        max_outage: f64,
        connect_timeout: f64,
        request_timeout: f64,
        server_error_tries: u32,
        key: Option<&str>,
        ca_file: Option<PathBuf>,
    ) -> PyResult<Self> {
        let defaults = ClientOptions::from_env().map_err(Failure::from)?;
        let options = ClientOptions {
            key: api_key(key)?.or(defaults.key),
            ca_file: ca_file.or(defaults.ca_file),
            max_outage: seconds("max_outage", max_outage)?,
            connect_timeout: seconds("connection_timeout", connect_timeout)?,
            request_timeout: seconds("request_timeout", request_timeout)?,
            server_error_tries,
            ..ClientOptions::default()
        };
        Ok(Self::over(Client::new(address, options).map_err(Failure::from)?))
    }

    /// Finishes what was begun and closes the file, where there is one; later calls fail.
    fn close(&self, py: Python<'_>) {
        if let Some(store) = &self.sqlite {
            py.detach(|| store.close());
        }
    }

    /// What the store can do, as JSON.
    fn capabilities<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        Ok(PyBytes::new(py, &reply(&self.store.capabilities())?))
    }

    /// The URL that OTLP traces go to.
    fn otlp_traces_endpoint(&self) -> PyResult<String> {
        Ok(self.store.otlp_traces_endpoint().map_err(Failure::from)?)
    }

    /// Starts a call. The answer is JSON if it is there at once, else a task whose outcome `queue` will have
    /// under `ticket`.
    fn submit(
        &self,
        py: Python<'_>,
        method: &str,
        payload: &[u8],
        queue: &CompletionQueue,
        ticket: u64,
    ) -> PyResult<Py<PyAny>> {
        let runtime = runtime(py)?;
        let mut call = self.start(method, payload);
        let outcome = py.detach(|| {
            let _context = runtime.enter();
            try_now(&mut call)
        });
        if let Some(outcome) = outcome {
            return Ok(PyBytes::new(py, &outcome?).into_any().unbind());
        }
        let completion = queue.completion(ticket);
        let task = runtime.spawn(async move { completion.finish(call.await) });
        Ok(Py::new(py, Task::over(task.abort_handle()))?.into_any())
    }

    /// Follows the store's events; `payload` is an `EventQuery` of agl-types.
    fn subscribe(&self, payload: &[u8]) -> PyResult<Subscription> {
        Ok(Subscription::new(self.inner(), read(payload)?))
    }

    /// Makes a call and waits for its answer, JSON. Ctrl+C ends the wait.
    fn call<'py>(&self, py: Python<'py>, method: &str, payload: &[u8]) -> PyResult<Bound<'py, PyBytes>> {
        let runtime = runtime(py)?;
        let mut call = self.start(method, payload);
        let outcome = py.detach(|| {
            let _context = runtime.enter();
            try_now(&mut call)
        });
        let outcome = match outcome {
            Some(outcome) => outcome,
            None => wait(py, runtime, call)?,
        };
        Ok(PyBytes::new(py, &outcome?))
    }
}

/// Runs a future on the runtime and waits for it here; Ctrl+C ends both.
pub(crate) fn wait<T: Send + 'static>(
    py: Python<'_>,
    runtime: &tokio::runtime::Runtime,
    future: impl Future<Output = T> + Send + 'static,
) -> PyResult<T> {
    let (sender, receiver) = mpsc::sync_channel(1);
    let task = runtime.spawn(async move {
        // Nobody listens any more after Ctrl+C.
        let _ = sender.send(future.await);
    });
    let receiver = std::sync::Mutex::new(receiver);
    loop {
        let received =
            py.detach(|| receiver.lock().unwrap_or_else(PoisonError::into_inner).recv_timeout(SIGNAL_CHECK));
        match received {
            Ok(value) => return Ok(value),
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                return Err(Failure::backend("the call was ended before it was done").into());
            }
            Err(mpsc::RecvTimeoutError::Timeout) => {
                if let Err(interrupt) = py.check_signals() {
                    task.abort();
                    return Err(interrupt);
                }
            }
        }
    }
}
