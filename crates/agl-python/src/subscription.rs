//! Following a store's events from Python.

use std::sync::Arc;

use agl_store::Subscription as Feed;
use agl_types::{EventQuery, FeedItem};
use futures_util::StreamExt as _;
use pyo3::prelude::*;
use serde_json::{Value, json};
use tokio::sync::Mutex;

use crate::completion::{CompletionQueue, Outcome};
use crate::dispatch::reply;
use crate::failure::Failure;
use crate::runtime::runtime;
use crate::store::Task;

/// The events of a store, one after the other.
#[pyclass(frozen, module = "agentlightning._core")]
pub(crate) struct Subscription {
    shared: Arc<Shared>,
    /// The process that it was made in.
    process: u32,
}

struct Shared {
    store: Arc<dyn agl_store::Store>,
    query: EventQuery,
    /// None until the first event is asked for.
    feed: Mutex<Option<Feed>>,
}

impl Drop for Subscription {
    fn drop(&mut self) {
        if std::process::id() != self.process {
            // As with a store.
            std::mem::forget(Arc::clone(&self.shared));
        }
    }
}

impl Subscription {
    pub(crate) fn new(store: Arc<dyn agl_store::Store>, query: EventQuery) -> Self {
        let shared = Arc::new(Shared { store, query, feed: Mutex::new(None) });
        Self { shared, process: std::process::id() }
    }
}

impl Shared {
    async fn next(&self) -> Outcome {
        let mut feed = self.feed.lock().await;
        let feed = match &mut *feed {
            Some(feed) => feed,
            none => none.insert(self.store.subscribe(self.query.clone()).await?),
        };
        let item = match feed.next().await {
            None => Value::Null,
            Some(item) => match item? {
                FeedItem::Start { id } => json!({ "kind": "start", "id": id }),
                FeedItem::Gap(gap) => json!({ "kind": "gap", "dropped": gap.dropped, "reason": gap.reason }),
                FeedItem::Event { id, event } => {
                    let mut value = serde_json::to_value(event)
                        .map_err(|error| Failure::backend(format!("the event has no JSON: {error}")))?;
                    value["id"] = id.into();
                    value
                }
            },
        };
        reply(&item)
    }
}

#[pymethods]
impl Subscription {
    /// Starts to wait for the next event, JSON, which `queue` will have under `ticket`; null when there are no more.
    fn next(&self, py: Python<'_>, queue: &CompletionQueue, ticket: u64) -> PyResult<Task> {
        let completion = queue.completion(ticket);
        let shared = Arc::clone(&self.shared);
        let task = runtime(py)?.spawn(async move { completion.finish(shared.next().await) });
        Ok(Task::over(task.abort_handle()))
    }
}
