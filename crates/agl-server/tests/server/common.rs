//! A server on a free port of this machine, and how to talk to it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use agl_server::ServerOptions;
use agl_store::{MemoryStore, Store};
use reqwest::{Method, RequestBuilder, StatusCode};
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::openapi;

/// A running server. It ends with the test's runtime, or when told to.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    stop: oneshot::Sender<()>,
    ended: JoinHandle<std::io::Result<()>>,
}

impl Server {
    pub(crate) async fn over(store: Arc<dyn Store>, options: ServerOptions) -> Self {
        // The HTTP client wants one even for plain HTTP; it fails where there is one already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel();
        let ended = tokio::spawn(async move {
            let told = async {
                if stopped.await.is_err() {
                    std::future::pending::<()>().await;
                }
            };
            agl_server::serve(listener, store, &options, told).await
        });
        Self { address, stop, ended }
    }

    pub(crate) async fn start() -> Self {
        Self::over(Arc::new(MemoryStore::new()), ServerOptions::default()).await
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Tells the server to stop, and waits until it has.
    pub(crate) async fn stop(self) {
        soon(self.tell_to_stop()).await.unwrap().unwrap();
    }

    /// Tells the server to stop.
    pub(crate) fn tell_to_stop(self) -> JoinHandle<std::io::Result<()>> {
        self.stop.send(()).unwrap();
        self.ended
    }

    /// Sends JSON to a path below `/v1/agl`. What goes back and forth has to be as the OpenAPI document says.
    pub(crate) async fn send(&self, method: Method, path: &str, body: Option<Value>) -> (StatusCode, Value) {
        let path = format!("/v1/agl{path}");
        let mut request = reqwest::Client::new().request(method.clone(), self.url(&path));
        if let Some(body) = &body {
            request = request.json(body);
        }
        let (status, answer) = answer(request).await;
        openapi::check(&method, &path, body.as_ref(), status, &answer);
        (status, answer)
    }

    pub(crate) async fn get(&self, path: &str) -> (StatusCode, Value) {
        self.send(Method::GET, path, None).await
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> (StatusCode, Value) {
        self.send(Method::POST, path, Some(body)).await
    }
}

/// The status and the JSON of an answer.
pub(crate) async fn answer(request: RequestBuilder) -> (StatusCode, Value) {
    let response = request.send().await.unwrap();
    let status = response.status();
    let bytes = response.bytes().await.unwrap();
    (status, serde_json::from_slice(&bytes).unwrap())
}

/// What has to come without a long wait. A minute is not meant to be measured, only to be shorter than for ever.
pub(crate) async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), future).await.unwrap()
}
