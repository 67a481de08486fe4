use std::sync::Arc;

use agl_runner::StopSignal;
use agl_store::Store;
use agl_trace::TripletOptions;
use agl_types::{
    EnqueueRolloutRequest, NamedResources, RolloutMode, RolloutStatus, RolloutUpdate, WaitRequest,
};
use async_trait::async_trait;
use serde_json::Value;

use crate::{Error, Progress, RolloutReport, Silent, Summary, harvest};

/// What an algorithm works with.
///
/// ```
/// use std::sync::Arc;
///
/// use agl_algorithm::AlgorithmContext;
/// use agl_store::MemoryStore;
/// use serde_json::json;
///
/// let context = AlgorithmContext::new(Arc::new(MemoryStore::new()), vec![json!("a task")], Vec::new());
/// assert!(context.initial_resources.is_none() && !context.signal.is_stopped());
/// ```
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

impl AlgorithmContext {
    /// Has the tasks run, all at once, and returns what became of each, in their order.
    ///
    /// # Errors
    /// [`Error::Store`] when the store fails for good; [`Error::Stopped`] when the signal was given, after the tasks
    /// that were left were called off.
    pub async fn run_tasks(
        &self,
        mode: RolloutMode,
        tasks: &[Value],
        resources_id: Option<&str>,
    ) -> Result<Vec<RolloutReport>, Error> {
        let request = |task: &Value| EnqueueRolloutRequest {
            mode: Some(mode),
            resources_id: resources_id.map(str::to_owned),
            ..EnqueueRolloutRequest::new(task.clone())
        };
        let rollouts = self.store.enqueue_many_rollouts(tasks.iter().map(request).collect()).await?;
        let rollout_ids: Vec<String> = rollouts.into_iter().map(|rollout| rollout.rollout_id).collect();
        let wait = WaitRequest { rollout_ids: rollout_ids.clone(), timeout: None };
        let ended = tokio::select! {
            ended = self.store.wait_for_rollouts(wait) => ended?,
            () = self.signal.stopped() => {
                for rollout_id in rollout_ids {
                    call_off(&*self.store, &rollout_id).await?;
                }
                return Err(Error::Stopped);
            }
        };
        let mut reports = Vec::with_capacity(ended.len());
        for rollout in ended {
            let report = harvest(&*self.store, rollout, &TripletOptions::default()).await?;
            self.progress.finished(&report);
            reports.push(report);
        }
        Ok(reports)
    }
}

/// Cancels a rollout unless it has ended.
async fn call_off(store: &dyn Store, rollout_id: &str) -> Result<(), Error> {
    let view = store.get_rollout_by_id(rollout_id).await?;
    if view.is_some_and(|view| !view.rollout.status.is_terminal()) {
        let cancel = RolloutUpdate { status: RolloutStatus::Cancelled.into(), ..RolloutUpdate::default() };
        store.update_rollout(rollout_id, cancel).await?;
    }
    Ok(())
}

/// Something that has agents run, and learns from what they did.
///
/// ```
/// use agl_algorithm::{Algorithm, AlgorithmContext, Error, Summary};
/// use agl_types::RolloutMode;
/// use async_trait::async_trait;
///
/// /// Validates once.
/// struct Validate;
///
/// #[async_trait]
/// impl Algorithm for Validate {
///     async fn run(&self, context: &AlgorithmContext) -> Result<Summary, Error> {
///         let reports = context.run_tasks(RolloutMode::Val, &context.val, None).await?;
///         let mut summary = Summary::default();
///         reports.iter().for_each(|report| summary.add(report));
///         Ok(summary)
///     }
/// }
/// ```
#[async_trait]
pub trait Algorithm: Send + Sync + 'static {
    /// Runs to the end, or until the context's signal is given.
    ///
    /// # Errors
    /// When it cannot go on. A rollout that fails is no reason for that.
    async fn run(&self, context: &AlgorithmContext) -> Result<Summary, Error>;
}
