use std::sync::Arc;

use agl_runner::StopSignal;
use agl_store::Store;
use agl_types::NamedResources;
use async_trait::async_trait;
use serde_json::Value;

use crate::{Error, Progress, Silent, Summary};

/// What an algorithm works with.
#[derive(Clone)]
pub struct AlgorithmContext {
    /// Where everything is kept.
    pub store: Arc<dyn Store>,
    /// The tasks to learn from, in order.
    pub train: Vec<Value>,
    /// The tasks to judge by, in order.
    pub val: Vec<Value>,
    /// The resources to start from.
    pub initial_resources: Option<NamedResources>,
    /// Who watches.
    pub progress: Arc<dyn Progress>,
    /// Ends the algorithm early.
    pub signal: StopSignal,
}

impl AlgorithmContext {
    /// A context without initial resources that nobody watches.
    #[must_use]
    pub fn new(store: Arc<dyn Store>, train: Vec<Value>, val: Vec<Value>) -> Self {
        Self {
            store,
            train,
            val,
            initial_resources: None,
            progress: Arc::new(Silent),
            signal: StopSignal::new(),
        }
    }
}

/// Something that has agents run, and learns from what they did.
#[async_trait]
pub trait Algorithm: Send + Sync + 'static {
    /// Runs to the end, or until the context's signal is given.
    ///
    /// # Errors
    /// When it cannot go on. A rollout that fails is no reason for that.
    async fn run(&self, context: &AlgorithmContext) -> Result<Summary, Error>;
}
