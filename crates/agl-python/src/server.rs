//! Serving a store to other processes.

use std::sync::{Mutex, PoisonError};

use agl_server::{CorsOrigins, ServerOptions};
use pyo3::exceptions::PyOSError;
use pyo3::prelude::*;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::failure::Failure;
use crate::runtime::runtime;
use crate::store::{Store, api_key, wait};

/// A server that runs in the background until it is stopped or this handle is dropped.
#[pyclass(frozen, module = "agentlightning._core")]
pub(crate) struct ServerHandle {
    host: String,
    port: u16,
    /// The process that it runs in; a fork has none of its threads.
    process: u32,
    running: Mutex<Option<Running>>,
}

struct Running {
    stop: oneshot::Sender<()>,
    server: JoinHandle<std::io::Result<()>>,
}

impl ServerHandle {
    fn take(&self) -> Option<Running> {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner).take();
        if std::process::id() == self.process {
            return running;
        }
        // What is in there belongs to the parent's runtime and must not be touched here.
        std::mem::forget(running);
        None
    }
}

#[pymethods]
impl ServerHandle {
    /// The port that it listens on.
    #[getter]
    fn port(&self) -> u16 {
        self.port
    }

    /// Where this machine reaches it, without a trailing slash.
    #[getter]
    fn url(&self) -> String {
        let host = match self.host.as_str() {
            "0.0.0.0" => "127.0.0.1",
            "::" => "::1",
            host => host,
        };
        if host.contains(':') {
            format!("http://[{host}]:{}", self.port)
        } else {
            format!("http://{host}:{}", self.port)
        }
    }

    /// Stops it and waits until requests in flight are done. Does nothing the second time, or after a fork.
    fn stop(&self, py: Python<'_>) -> PyResult<()> {
        let Some(Running { stop, server }) = self.take() else { return Ok(()) };
        // An error means that the server has ended by itself; `server` knows why.
        let _ = stop.send(());
        match wait(py, runtime(py)?, server)? {
            Ok(served) => Ok(served?),
            Err(panic) => Err(Failure::backend(format!("the server broke down: {panic}")).into()),
        }
    }
}

impl Drop for ServerHandle {
    fn drop(&mut self) {
        // Dropping the sender stops the server.
        drop(self.take());
    }
}

/// Serves a store over HTTP, to those who have the key if there is one; port 0 takes a free one. `OSError` when the
/// port cannot be had.
#[pyo3::pyfunction]
#[pyo3(signature = (store, host, port, cors_origins, key=None))]
pub(crate) fn serve_store(
    py: Python<'_>,
    store: &Store,
    host: String,
    port: u16,
    cors_origins: Vec<String>,
    key: Option<&str>,
) -> PyResult<ServerHandle> {
    let cors = CorsOrigins::parse(cors_origins)
        .map_err(|error| Failure::invalid(Some("cors_allow_origins".to_owned()), error.to_string()))?;
    let options = ServerOptions { cors, key: api_key(key)?, ..ServerOptions::default() };
    let runtime = runtime(py)?;
    let address = (host.clone(), port);
    let listening = async move {
        let listener = TcpListener::bind(address).await?;
        let port = listener.local_addr()?.port();
        std::io::Result::Ok((listener, port))
    };
    let (listener, port) = wait(py, runtime, listening)?
        .map_err(|error| PyOSError::new_err(format!("cannot listen on {host}:{port}: {error}")))?;
    let (stop, stopped) = oneshot::channel::<()>();
    let store = store.inner();
    let server = runtime.spawn(async move {
        let shutdown = async {
            // A dropped handle stops the server too.
            let _ = stopped.await;
        };
        agl_server::serve(listener, store, &options, shutdown).await
    });
    let running = Mutex::new(Some(Running { stop, server }));
    Ok(ServerHandle { host, port, process: std::process::id(), running })
}
