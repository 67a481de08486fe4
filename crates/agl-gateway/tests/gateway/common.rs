//! A gateway on a free port of this machine, and how to talk to it.

use std::sync::Arc;
use std::time::Duration;

use agl_gateway::{Gateway, GatewayOptions, ModelEntry, ModelList};
use agl_store::{MemoryStore, Store};
use agl_types::{EnqueueRolloutRequest, RolloutMode, Span, SpanQuery, StartRollout};
use reqwest::{Response, StatusCode};
use serde_json::Value;
use tokio::net::TcpListener;

/// A gateway and the store that it records in.
#[derive(Debug, Clone)]
pub(crate) struct Served {
    pub(crate) root: String,
    pub(crate) gateway: Gateway,
    pub(crate) store: Arc<dyn Store>,
}

/// An attempt that calls can be booked to.
#[derive(Debug, Clone)]
pub(crate) struct Booked {
    pub(crate) rollout_id: String,
    pub(crate) attempt_id: String,
    /// Where 0.3's agents call.
    pub(crate) base: String,
}

/// A way to the engine for each of these names.
pub(crate) fn list(url: &str, names: &[&str]) -> ModelList {
    let entry = |name: &&str| ModelEntry { retries: 0, ..ModelEntry::new(*name, url) };
    ModelList::new(names.iter().map(entry).collect())
}

impl Served {
    pub(crate) async fn with(models: ModelList, options: GatewayOptions) -> Self {
        Self::over(Arc::new(MemoryStore::new()), models, options).await
    }

    pub(crate) async fn over(store: Arc<dyn Store>, models: ModelList, options: GatewayOptions) -> Self {
        let gateway = Gateway::new(Arc::clone(&store), models, options).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let root = format!("http://{}", listener.local_addr().unwrap());
        let app = gateway.router();
        tokio::spawn(async move { axum::serve(listener, app).await });
        Self { root, gateway, store }
    }

    pub(crate) async fn start(url: &str, names: &[&str]) -> Self {
        Self::with(list(url, names), GatewayOptions::default()).await
    }

    pub(crate) async fn book(&self, mode: Option<RolloutMode>) -> Booked {
        let rollout = EnqueueRolloutRequest { mode, ..EnqueueRolloutRequest::new("task") };
        let started = self.store.start_rollout(StartRollout { rollout, worker_id: None }).await.unwrap();
        let (rollout_id, attempt_id) = (started.rollout.rollout_id, started.attempt.attempt_id);
        let booked = Booked { rollout_id, attempt_id, base: String::new() };
        Booked { base: self.at(&booked), ..booked }
    }

    /// Where 0.3's agents call for an attempt.
    pub(crate) fn at(&self, booked: &Booked) -> String {
        format!("{}/rollout/{}/attempt/{}/v1", self.root, booked.rollout_id, booked.attempt_id)
    }

    pub(crate) async fn spans(&self, booked: &Booked) -> Vec<Span> {
        let query = SpanQuery { rollout_id: booked.rollout_id.clone(), ..SpanQuery::default() };
        self.store.query_spans(query).await.unwrap().items
    }

    /// The spans of an attempt once there are as many, within a minute.
    pub(crate) async fn until(&self, booked: &Booked, count: usize) -> Vec<Span> {
        let there = async {
            loop {
                let spans = self.spans(booked).await;
                if spans.len() >= count {
                    return spans;
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), there).await.unwrap()
    }
}

pub(crate) fn client() -> reqwest::Client {
    // It wants one even for plain HTTP; this fails where there is one already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    // What is never answered fails a test instead of keeping it.
    let patience = Duration::from_secs(60);
    let builder = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).timeout(patience);
    builder.build().unwrap()
}

pub(crate) async fn post(url: &str, body: &Value) -> Response {
    client().post(url).json(body).send().await.unwrap()
}

pub(crate) async fn json(response: Response) -> (StatusCode, Value) {
    let status = response.status();
    (status, serde_json::from_str(&response.text().await.unwrap()).unwrap())
}

/// An attribute of a span; null when it is not there.
pub(crate) fn at<'s>(span: &'s Span, key: &str) -> &'s Value {
    span.attributes.get(key).unwrap_or(&Value::Null)
}

/// One of the gateway's own attributes.
pub(crate) fn of<'s>(span: &'s Span, key: &str) -> &'s Value {
    at(span, &format!("agentlightning.gateway.{key}"))
}
