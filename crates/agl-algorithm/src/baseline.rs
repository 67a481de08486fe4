use std::sync::Arc;
use std::time::Duration;

use agl_runner::{Patience, StopSignal};
use agl_store::{Error as StoreError, Store};
use agl_trace::TripletOptions;
use agl_types::{
    EnqueueRolloutRequest, Rollout, RolloutConfig, RolloutMode, RolloutQuery, RolloutStatus, RolloutUpdate,
    WaitRequest,
};
use async_trait::async_trait;
use serde_json::Value;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::{Algorithm, AlgorithmContext, Counts, Error, RolloutReport, Summary, harvest};

/// The id that Baseline keeps its resources under.
const RESOURCES_ID: &str = "default";
/// How long one call to the store waits; it is repeated until the rollout has ended.
const WAIT_SECONDS: f64 = 20.0;
/// How long to wait before the queue is looked at again.
const SHORT_WAIT: Duration = Duration::from_millis(50);
/// How long a store that fails is waited for after the signal to stop.
const PATIENCE_AFTER_STOP: Duration = Duration::from_secs(10);
/// How long runners get to report what they gave up before it is called off.
const GRACE_AFTER_CANCEL: Duration = Duration::from_secs(3);

/// How Baseline works.
///
/// ```
/// use agl_algorithm::{Baseline, BaselineOptions};
///
/// assert!(Baseline::new(BaselineOptions { n_epochs: 3, ..BaselineOptions::default() }).is_ok());
/// assert!(Baseline::new(BaselineOptions { n_epochs: 0, ..BaselineOptions::default() }).is_err());
/// ```
#[derive(Debug, Clone)]
pub struct BaselineOptions {
    /// How often to go through the tasks; at least 1.
    pub n_epochs: u32,
    /// How many rollouts may wait in the queue before no more are put in; at least 1.
    pub max_queue_length: u32,
    /// Time limits and retries of the rollouts.
    pub rollout_config: Option<RolloutConfig>,
    /// How spans become triplets.
    pub triplets: TripletOptions,
}

impl Default for BaselineOptions {
    fn default() -> Self {
        Self { n_epochs: 1, max_queue_length: 4, rollout_config: None, triplets: TripletOptions::default() }
    }
}

/// Learns nothing: runs every task once an epoch, the training tasks first, and sums up how the agent did.
///
/// Tasks are enqueued in the order of the datasets, none is skipped, and no rollout that goes wrong ends the run.
/// When told to stop, it calls off what it has put into the store and sums up what there is.
///
/// ```
/// use std::sync::Arc;
///
/// use agl_algorithm::{Algorithm as _, AlgorithmContext, Baseline, Error};
/// use agl_store::MemoryStore;
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// let nothing = AlgorithmContext::new(Arc::new(MemoryStore::new()), Vec::new(), Vec::new());
/// assert!(matches!(Baseline::default().run(&nothing).await, Err(Error::NoTasks)));
/// # }
/// ```
#[derive(Debug, Clone, Default)]
pub struct Baseline {
    options: BaselineOptions,
}

impl Baseline {
    /// Baseline with these options.
    ///
    /// # Errors
    /// [`Error::Option`] when one is out of range.
    pub fn new(options: BaselineOptions) -> Result<Self, Error> {
        let out_of_range = |field| Error::Option { field, message: "must be at least 1".to_owned() };
        if options.n_epochs == 0 {
            return Err(out_of_range("n_epochs"));
        }
        if options.max_queue_length == 0 {
            return Err(out_of_range("max_queue_length"));
        }
        Ok(Self { options })
    }
}

#[async_trait]
impl Algorithm for Baseline {
    async fn run(&self, context: &AlgorithmContext) -> Result<Summary, Error> {
        if context.train.is_empty() && context.val.is_empty() {
            return Err(Error::NoTasks);
        }
        let patience = Patience { signal: context.signal.clone(), after_stop: PATIENCE_AFTER_STOP };
        let resources_id = match &context.initial_resources {
            Some(resources) => {
                let update = || context.store.update_resources(RESOURCES_ID, resources.clone());
                Some(patience.insist("storing resources", update).await?.resources_id)
            }
            None => None,
        };
        let tasks_an_epoch = (context.train.len() + context.val.len()) as u64;
        let summary = Summary {
            counts: Counts {
                planned: tasks_an_epoch * u64::from(self.options.n_epochs),
                ..Counts::default()
            },
            resources_id,
            ..Summary::default()
        };
        let mut run = Run { options: &self.options, context, patience, summary, underway: JoinSet::new() };
        run.go().await?;
        Ok(run.summary)
    }
}

/// One run on its way.
struct Run<'a> {
    options: &'a BaselineOptions,
    context: &'a AlgorithmContext,
    patience: Patience,
    summary: Summary,
    /// One task for each rollout that has been enqueued and not been read yet.
    underway: JoinSet<Result<RolloutReport, Error>>,
}

impl Run<'_> {
    async fn go(&mut self) -> Result<(), Error> {
        let context = self.context;
        context.progress.counted(&self.summary.counts);
        for _ in 0..self.options.n_epochs {
            self.enqueue_all(RolloutMode::Train, &context.train).await?;
            self.enqueue_all(RolloutMode::Val, &context.val).await?;
        }
        while !self.underway.is_empty() {
            self.next_event(None).await?;
        }
        self.summary.stopped = context.signal.is_stopped();
        Ok(())
    }

    /// Enqueues the tasks as the queue has room, until a stop is asked for.
    async fn enqueue_all(&mut self, mode: RolloutMode, tasks: &[Value]) -> Result<(), Error> {
        for task in tasks {
            self.wait_for_room().await?;
            if self.context.signal.is_stopped() {
                break;
            }
            self.enqueue(mode, task).await?;
        }
        Ok(())
    }

    async fn enqueue(&mut self, mode: RolloutMode, task: &Value) -> Result<(), Error> {
        let request = EnqueueRolloutRequest {
            mode: Some(mode),
            resources_id: self.summary.resources_id.clone(),
            config: self.options.rollout_config.clone(),
            ..EnqueueRolloutRequest::new(task.clone())
        };
        let put_in = || self.context.store.enqueue_rollout(request.clone());
        let rollout = self.patience.insist("enqueueing a rollout", put_in).await?;
        self.summary.counts.enqueued += 1;
        self.context.progress.counted(&self.summary.counts);
        let watch = Watch {
            store: self.context.store.clone(),
            signal: self.context.signal.clone(),
            patience: self.patience.clone(),
            rollout_id: rollout.rollout_id,
        };
        let triplets = self.options.triplets.clone();
        self.underway.spawn(async move {
            let rollout = watch.until_ended().await?;
            let read = || harvest(&*watch.store, rollout.clone(), &triplets);
            Ok(watch.patience.insist("reading a rollout", read).await?)
        });
        Ok(())
    }

    /// Returns when the queue has room or a stop was asked for.
    async fn wait_for_room(&mut self) -> Result<(), Error> {
        // With so few of our own under way the queue cannot be too long on our account.
        while !self.context.signal.is_stopped()
            && self.underway.len() > self.options.max_queue_length as usize
            && self.queue_length().await? > i64::from(self.options.max_queue_length)
        {
            // A rollout that ends frees a runner, which takes the next from the queue.
            self.next_event(Some(SHORT_WAIT)).await?;
        }
        Ok(())
    }

    async fn queue_length(&self) -> Result<i64, Error> {
        let waiting = RolloutQuery {
            status_in: Some(vec![RolloutStatus::Queuing, RolloutStatus::Requeuing]),
            limit: 0,
            ..RolloutQuery::default()
        };
        let count = || self.context.store.query_rollouts(waiting.clone());
        Ok(self.patience.insist("counting the queue", count).await?.total)
    }

    /// Waits for a rollout to end, at most for `patience`, and takes it into the summary.
    async fn next_event(&mut self, patience: Option<Duration>) -> Result<(), Error> {
        let tired = async {
            match patience {
                Some(patience) => sleep(patience).await,
                None => std::future::pending().await,
            }
        };
        let ended = tokio::select! {
            ended = self.underway.join_next() => ended,
            () = tired => return Ok(()),
        };
        let Some(ended) = ended else { return Ok(()) };
        let report = ended.map_err(|error| Error::Other(Box::new(error)))??;
        self.summary.add(&report);
        self.context.progress.finished(&report);
        self.context.progress.counted(&self.summary.counts);
        Ok(())
    }
}

/// Waits for one rollout.
struct Watch {
    store: Arc<dyn Store>,
    signal: StopSignal,
    patience: Patience,
    rollout_id: String,
}

impl Watch {
    /// Waits until the rollout has ended. After the signal it is called off: at once while it is in the queue,
    /// and when the signal was to cancel and its runner does not report it either, in any case.
    async fn until_ended(&self) -> Result<Rollout, StoreError> {
        let mut cancelled_at: Option<Instant> = None;
        loop {
            let stopping = self.signal.is_stopped();
            tokio::select! {
                ended = self.wait(if stopping { 0.2 } else { WAIT_SECONDS }) => {
                    if let Some(rollout) = ended? {
                        return Ok(rollout);
                    }
                }
                () = self.signal.stopped(), if !stopping => {}
            }
            let look = || self.store.get_rollout_by_id(&self.rollout_id);
            let Some(view) = self.patience.insist("reading a rollout", look).await? else {
                return Err(StoreError::rollout_not_found(&self.rollout_id));
            };
            let status = view.rollout.status;
            if status.is_terminal() {
                return Ok(view.rollout);
            }
            let nobody_reports = self.signal.is_cancelled()
                && cancelled_at.get_or_insert_with(Instant::now).elapsed() > GRACE_AFTER_CANCEL;
            if self.signal.is_stopped() && (status.is_queuing() || nobody_reports) {
                let cancel =
                    RolloutUpdate { status: RolloutStatus::Cancelled.into(), ..RolloutUpdate::default() };
                let call_off = || self.store.update_rollout(&self.rollout_id, cancel.clone());
                return self.patience.insist("calling a rollout off", call_off).await;
            }
            // Should the store ever answer early, it is not asked in a tight loop.
            sleep(SHORT_WAIT).await;
        }
    }

    async fn wait(&self, seconds: f64) -> Result<Option<Rollout>, StoreError> {
        let wait = || {
            let request = WaitRequest { rollout_ids: vec![self.rollout_id.clone()], timeout: Some(seconds) };
            self.store.wait_for_rollouts(request)
        };
        Ok(self.patience.insist("waiting for a rollout", wait).await?.into_iter().next())
    }
}
