//! Serving a store or a gateway to other processes.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use agl_gateway::{AttemptGrant, AttemptTokens, Capture, Gateway, GatewayOptions, ModelList, Pause};
use agl_server::{CorsOrigins, ServerOptions};
use pyo3::exceptions::PyOSError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use serde::Deserialize;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::dispatch::{read, reply};
use crate::failure::Failure;
use crate::runtime::runtime;
use crate::store::{Store, api_key, wait};

/// What is served in the background until it is stopped or dropped.
struct Serving {
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

impl Serving {
    /// Listens, and has `serve` make the server that is told to stop by the future it gets.
    fn start<F>(
        py: Python<'_>,
        host: String,
        port: u16,
        serve: impl FnOnce(TcpListener, oneshot::Receiver<()>) -> F,
    ) -> PyResult<Self>
    where
        F: Future<Output = std::io::Result<()>> + Send + 'static,
    {
        let runtime = runtime(py)?;
        let address = (host.clone(), port);
        let listening = async move {
            let listener = TcpListener::bind(address).await?;
            let port = listener.local_addr()?.port();
            std::io::Result::Ok((listener, port))
        };
        let (listener, port) = wait(py, runtime, listening)?
            .map_err(|error| PyOSError::new_err(format!("cannot listen on {host}:{port}: {error}")))?;
        let (stop, stopped) = oneshot::channel();
        let server = runtime.spawn(serve(listener, stopped));
        let running = Mutex::new(Some(Running { stop, server }));
        Ok(Self { host, port, process: std::process::id(), running })
    }

    fn take(&self) -> Option<Running> {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner).take();
        if std::process::id() == self.process {
            return running;
        }
        // What is in there belongs to the parent's runtime and must not be touched here.
        std::mem::forget(running);
        None
    }

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

impl Drop for Serving {
    fn drop(&mut self) {
        // Dropping the sender stops the server.
        drop(self.take());
    }
}

/// Returns when a server is to stop: told to, or because its handle was dropped.
async fn told(stopped: oneshot::Receiver<()>) {
    let _ = stopped.await;
}

/// A server that runs in the background until it is stopped or this handle is dropped.
#[pyclass(frozen, module = "agentlightning._core")]
pub(crate) struct ServerHandle(Serving);

#[pymethods]
impl ServerHandle {
    /// The port that it listens on.
    #[getter]
    fn port(&self) -> u16 {
        self.0.port
    }

    /// Where this machine reaches it, without a trailing slash.
    #[getter]
    fn url(&self) -> String {
        self.0.url()
    }

    /// Stops it and waits until requests in flight are done. Does nothing the second time, or after a fork.
    fn stop(&self, py: Python<'_>) -> PyResult<()> {
        self.0.stop(py)
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
    let store = store.inner();
    let serving = Serving::start(py, host, port, |listener, stopped| async move {
        agl_server::serve(listener, store, &options, told(stopped)).await
    })?;
    Ok(ServerHandle(serving))
}

/// A gateway that runs in the background until it is stopped or this handle is dropped.
#[pyclass(frozen, module = "agentlightning._core")]
pub(crate) struct GatewayHandle {
    serving: Serving,
    gateway: Option<Gateway>,
}

impl Drop for GatewayHandle {
    fn drop(&mut self) {
        if std::process::id() != self.serving.process {
            // Its connections are the parent's.
            std::mem::forget(self.gateway.take());
        }
    }
}

/// The model list and the options of a gateway, as Python gives them.
#[derive(Deserialize)]
struct Setup {
    /// In LiteLLM's form.
    model_list: Vec<Value>,
    /// For entries that say nothing about it themselves.
    num_retries: Option<u32>,
    /// Whether token ids and log-probs are asked for where an entry says nothing about it; absent, the server is
    /// asked whether it has them.
    return_token_ids: Option<bool>,
    /// Whether log-probs are asked for.
    logprobs: Option<bool>,
    #[serde(default)]
    is_async: bool,
}

impl Setup {
    fn models(&self) -> Result<ModelList, Failure> {
        let mut models = models(&self.model_list)?;
        for (entry, given) in models.models.iter_mut().zip(&self.model_list) {
            let says = |name: &str| given["litellm_params"].get(name).is_some();
            if let Some(retries) = self.num_retries.filter(|_| !says("num_retries") && !says("max_retries")) {
                entry.retries = retries;
            }
            match self.return_token_ids {
                Some(false) => entry.token_ids = Some(false),
                said => entry.token_ids = entry.token_ids.or(said),
            }
            entry.logprobs = self.logprobs.or(entry.logprobs);
        }
        Ok(models)
    }
}

fn models(list: &[Value]) -> Result<ModelList, Failure> {
    ModelList::from_litellm(list).map_err(|error| refused(&error))
}

fn refused(error: &agl_gateway::Error) -> Failure {
    Failure::invalid(Some("model_list".to_owned()), error.to_string())
}

/// Serves a gateway that records in `store`; port 0 takes a free one. `setup` is JSON: `model_list` in LiteLLM's form,
/// `num_retries`, `return_token_ids`, `logprobs`, `is_async`. `OSError` when the port cannot be had.
#[pyo3::pyfunction]
#[pyo3(signature = (store, host, port, setup, key=None))]
pub(crate) fn serve_gateway(
    py: Python<'_>,
    store: &Store,
    host: String,
    port: u16,
    setup: &[u8],
    key: Option<&str>,
) -> PyResult<GatewayHandle> {
    let setup: Setup = read(setup)?;
    let key = api_key(key)?;
    let gateway_options = GatewayOptions {
        capture: if setup.is_async { Capture::Async } else { Capture::Durable },
        key: key.clone(),
        ..GatewayOptions::default()
    };
    let gateway =
        Gateway::new(store.inner(), setup.models()?, gateway_options).map_err(|error| refused(&error))?;
    let options = ServerOptions { key, ..ServerOptions::default() };
    let served = gateway.clone();
    let serving = Serving::start(py, host, port, |listener, stopped| async move {
        agl_server::serve_gateway(listener, &served, &options, told(stopped)).await
    })?;
    Ok(GatewayHandle { serving, gateway: Some(gateway) })
}

/// What an agent gets in place of a gateway's key: a token that is good for one attempt, and sets no reward.
#[pyo3::pyfunction]
pub(crate) fn attempt_token(key: &str, rollout_id: String, attempt_id: String) -> PyResult<String> {
    let grant = AttemptGrant { rollout_id, attempt_id, may_reward: false, until: None };
    Ok(AttemptTokens::new(api_key(Some(key))?.as_ref()).issue(&grant))
}

impl GatewayHandle {
    fn gateway(&self) -> Result<&Gateway, Failure> {
        self.gateway.as_ref().ok_or_else(|| Failure::backend("the gateway is gone"))
    }
}

#[pymethods]
impl GatewayHandle {
    /// The port that it listens on.
    #[getter]
    fn port(&self) -> u16 {
        self.serving.port
    }

    /// Where this machine reaches it, without a trailing slash.
    #[getter]
    fn url(&self) -> String {
        self.serving.url()
    }

    /// Puts another list of models in place, JSON as in `serve_gateway`. Calls under way keep the former.
    fn set_models(&self, setup: &[u8]) -> PyResult<()> {
        let setup: Setup = read(setup)?;
        Ok(self.gateway()?.set_models(setup.models()?).map_err(|error| refused(&error))?)
    }

    /// Holds new calls back and waits up to `drain` seconds for those under way. Returns the state, JSON.
    fn pause<'py>(
        &self,
        py: Python<'py>,
        retry_after: u64,
        reason: Option<String>,
        drain: f64,
    ) -> PyResult<Bound<'py, PyBytes>> {
        let within = Duration::try_from_secs_f64(drain)
            .map_err(|_| Failure::invalid(Some("drain".to_owned()), "drain has to be 0 or more seconds"))?;
        let gateway = self.gateway()?.clone();
        gateway.pause(Pause { retry_after_seconds: retry_after, reason });
        let state = wait(py, runtime(py)?, async move { gateway.drain(within).await })?;
        Ok(PyBytes::new(py, &reply(&state)?))
    }

    /// Lets calls through again.
    fn resume(&self) -> PyResult<()> {
        self.gateway()?.resume();
        Ok(())
    }

    /// Where it stands between pause and resume, JSON.
    fn state<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        Ok(PyBytes::new(py, &reply(&self.gateway()?.state())?))
    }

    /// Stops it and waits until calls under way are done and recorded. Does nothing the second time, or after a fork.
    fn stop(&self, py: Python<'_>) -> PyResult<()> {
        self.serving.stop(py)
    }
}
