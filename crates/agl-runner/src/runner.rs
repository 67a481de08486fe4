use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use agl_store::{Clock, Error as StoreError, IdSource, RandomIds, Store, SystemClock};
use agl_types::{
    Attempt, AttemptQuery, AttemptStatus, AttemptUpdate, AttemptedRollout, DequeueRequest, JsonMap,
    NamedResources, Patch, RolloutView, SpanQuery, StartRollout, WorkerUpdate, semconv,
};
use futures_util::FutureExt as _;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::task::{JoinError, JoinHandle};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::agent::Failure;
use crate::retry::{Backoff, Patience};
use crate::snapshot::machine_snapshot;
use crate::{AnyAgent, BoxError, Error, Hook, Outcome, RolloutContext, SpanSink, StopSignal};

/// How long an agent that was given up may take to drop what it holds.
const FAREWELL: Duration = Duration::from_secs(1);

/// How a runner works.
///
/// ```
/// use std::time::Duration;
///
/// use agl_runner::RunnerOptions;
///
/// let options = RunnerOptions {
///     max_rollouts: Some(100),
///     heartbeat_interval: Duration::from_secs(5),
///     ..RunnerOptions::new("Worker-7")
/// };
/// ```
#[derive(Debug, Clone)]
pub struct RunnerOptions {
    /// The name that the store knows the runner by; unique among those that live.
    pub worker_id: String,
    /// How many rollouts to run before returning; for ever when there is none.
    pub max_rollouts: Option<u64>,
    /// How often to tell the store that the worker lives; never when zero.
    pub heartbeat_interval: Duration,
    /// How long the store is asked to wait for work at a time. It answers the moment there is some; meanwhile the
    /// signal to stop is not heeded, because a request that is given up may have claimed something.
    pub idle_wait: Duration,
    /// How often to look whether the rollout being run was called off meanwhile; never when zero.
    pub recall_interval: Duration,
    /// How long a store that fails is waited for after the signal to stop; before it, for ever.
    pub patience_after_stop: Duration,
}

impl RunnerOptions {
    /// The defaults for a worker of this name.
    #[must_use]
    pub fn new(worker_id: impl Into<String>) -> Self {
        Self {
            worker_id: worker_id.into(),
            max_rollouts: None,
            heartbeat_interval: Duration::from_secs(10),
            idle_wait: Duration::from_millis(500),
            recall_interval: Duration::from_secs(2),
            patience_after_stop: Duration::from_secs(10),
        }
    }
}

/// How many attempts of a runner ended how.
///
/// ```
/// use agl_runner::RunnerReport;
///
/// let report = RunnerReport::default();
/// assert_eq!(report.succeeded + report.failed + report.timed_out, 0);
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunnerReport {
    /// Attempts that ended well.
    pub succeeded: u64,
    /// Attempts that ended with an error, a panic, without their resources, or were called off.
    pub failed: u64,
    /// Attempts whose time was up.
    pub timed_out: u64,
}

/// Takes rollouts from a store, one after the other, and has an agent work on them.
///
/// ```
/// use std::sync::Arc;
///
/// use agl_runner::{BoxError, Outcome, RolloutContext, Runner, RunnerOptions, StopSignal};
/// use agl_store::{MemoryStore, Store as _};
/// use agl_types::EnqueueRolloutRequest;
/// use serde_json::Value;
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), BoxError> {
/// let store = Arc::new(MemoryStore::new());
/// store.enqueue_rollout(EnqueueRolloutRequest::new("a task")).await?;
/// let agent = |_: Value, _: RolloutContext| async { Ok(Outcome::Reward(1.0)) };
/// let options = RunnerOptions { max_rollouts: Some(1), ..RunnerOptions::new("Worker-0") };
/// let report = Runner::new(Arc::new(agent), store, options).run(&StopSignal::new()).await;
/// assert_eq!(report.succeeded, 1);
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Runner {
    agent: Arc<dyn AnyAgent>,
    store: Arc<dyn Store>,
    options: RunnerOptions,
    hooks: Vec<Arc<dyn Hook>>,
    clock: Arc<dyn Clock>,
    ids: Arc<dyn IdSource>,
}

impl std::fmt::Debug for Runner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Runner")
            .field("store", &self.store)
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

/// How an attempt ended.
enum Verdict {
    Succeeded(Outcome),
    Failed(Failure),
    /// Its time was up.
    TimedOut(Failure),
    /// Somebody else has ended the attempt or its rollout meanwhile.
    Recalled(Failure),
}

impl Runner {
    /// A runner on the machine's clock.
    #[must_use]
    pub fn new(agent: Arc<dyn AnyAgent>, store: Arc<dyn Store>, options: RunnerOptions) -> Self {
        Self::with(agent, store, options, Arc::new(SystemClock), Arc::new(RandomIds))
    }

    /// A runner that takes time and ids from elsewhere.
    #[must_use]
    pub fn with(
        agent: Arc<dyn AnyAgent>,
        store: Arc<dyn Store>,
        options: RunnerOptions,
        clock: Arc<dyn Clock>,
        ids: Arc<dyn IdSource>,
    ) -> Self {
        Self { agent, store, options, hooks: Vec::new(), clock, ids }
    }

    /// The same runner, with hooks that are called around each attempt, in this order.
    #[must_use]
    pub fn with_hooks(mut self, hooks: Vec<Arc<dyn Hook>>) -> Self {
        self.hooks = hooks;
        self
    }

    /// Works until the signal is given or `max_rollouts` have been run.
    ///
    /// A store that fails is waited for. When the returned future is dropped, the rollout being run is given up
    /// and still reported as failed, as long as the runtime lives.
    pub async fn run(&self, signal: &StopSignal) -> RunnerReport {
        let heartbeat = AbortOnDrop(self.start_heartbeat());
        let mut report = RunnerReport::default();
        let mut failing = self.fresh_backoff();
        let mut done = 0;
        while !signal.is_stopped() && self.options.max_rollouts.is_none_or(|most| done < most) {
            // Never dropped half-way: a claim whose answer nobody reads would be lost.
            match self.claim().await {
                Ok(claimed) => {
                    failing = self.fresh_backoff();
                    for attempted in claimed {
                        report.count(self.work_on(attempted, signal).await);
                        done += 1;
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, worker = self.options.worker_id, "asking for work failed");
                    tokio::select! {
                        () = signal.stopped() => {}
                        () = sleep(failing.next()) => {}
                    }
                }
            }
        }
        drop(heartbeat);
        report
    }

    /// Runs one rollout at once, past the queue, and returns it as it ended.
    ///
    /// # Errors
    /// What the store answers; a failing agent is no error here, its attempt says so.
    pub async fn step(
        &self,
        mut request: StartRollout,
        signal: &StopSignal,
    ) -> Result<RolloutView, StoreError> {
        request.worker_id.get_or_insert_with(|| self.options.worker_id.clone());
        let attempted = self.store.start_rollout(request).await?;
        let rollout_id = attempted.rollout.rollout_id.clone();
        self.work_on(attempted, signal).await;
        let view = self.store.get_rollout_by_id(&rollout_id).await?;
        view.ok_or_else(|| StoreError::rollout_not_found(&rollout_id))
    }

    /// One rollout, or none when there was none for as long as the store was asked to wait.
    async fn claim(&self) -> Result<Vec<AttemptedRollout>, StoreError> {
        let RunnerOptions { worker_id, idle_wait, .. } = &self.options;
        let request = DequeueRequest {
            limit: 1,
            worker_id: Some(worker_id.clone()),
            wait: Some(idle_wait.as_secs_f64()),
        };
        self.store.dequeue_many_rollouts(request).await
    }

    fn fresh_backoff(&self) -> Backoff {
        Backoff::up_to(self.options.idle_wait)
    }

    fn start_heartbeat(&self) -> JoinHandle<()> {
        let Self { store, options, clock, .. } = self.clone();
        tokio::spawn(async move {
            if options.heartbeat_interval.is_zero() {
                return;
            }
            let mut ticks = interval(options.heartbeat_interval);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                let update = WorkerUpdate { heartbeat_stats: Patch::Set(machine_snapshot(&*clock)) };
                // A late heartbeat says nothing that the next one does not say better.
                match timeout(options.heartbeat_interval, store.update_worker(&options.worker_id, update))
                    .await
                {
                    Ok(Ok(_)) => {}
                    Ok(Err(error)) => {
                        tracing::warn!(%error, worker = options.worker_id, "a heartbeat failed");
                    }
                    Err(_) => tracing::warn!(worker = options.worker_id, "a heartbeat took too long"),
                }
            }
        })
    }

    /// Runs one attempt in a task of its own, so that it is reported even when this future is dropped.
    async fn work_on(&self, attempted: AttemptedRollout, signal: &StopSignal) -> AttemptStatus {
        let cancel = signal.cancel_token();
        let given_up = cancel.clone().drop_guard();
        let attempt = RunningAttempt {
            runner: self.clone(),
            patience: Patience { signal: signal.clone(), after_stop: self.options.patience_after_stop },
            attempted,
            cancel,
        };
        let status = tokio::spawn(attempt.run()).await;
        given_up.disarm();
        status.unwrap_or_else(|error| {
            tracing::error!(%error, "the runner itself failed");
            AttemptStatus::Failed
        })
    }
}

impl RunnerReport {
    fn count(&mut self, status: AttemptStatus) {
        match status {
            AttemptStatus::Succeeded => self.succeeded += 1,
            AttemptStatus::Timeout => self.timed_out += 1,
            _ => self.failed += 1,
        }
    }
}

/// One attempt on its way through the runner.
struct RunningAttempt {
    runner: Runner,
    patience: Patience,
    attempted: AttemptedRollout,
    cancel: CancellationToken,
}

impl RunningAttempt {
    async fn run(self) -> AttemptStatus {
        let sink = SpanSink::start(self.runner.store.clone(), self.patience.clone());
        let resources = self.resolve_resources().await;
        let context = RolloutContext::new(
            self.attempted.clone(),
            resources.as_ref().cloned().unwrap_or_default(),
            sink.clone(),
            self.runner.clock.clone(),
            self.runner.ids.clone(),
        );
        self.note(context.emit_state(semconv::STATE_STARTED, None, None).await);
        let verdict = match resources {
            Ok(_) => {
                let verdict = self.run_agent_with_hooks(&context).await;
                let verdict = self.emit_rest(&context, verdict).await;
                self.tell_end(&context).await;
                verdict
            }
            Err(failure) => self.emit_rest(&context, Verdict::Failed(failure)).await,
        };
        self.report(verdict).await
    }

    async fn run_agent_with_hooks(&self, context: &RolloutContext) -> Verdict {
        for hook in &self.runner.hooks {
            self.call(hook.on_rollout_start(context)).await;
        }
        for hook in &self.runner.hooks {
            self.call(hook.on_trace_start(context)).await;
        }
        let verdict = self.run_agent(context).await;
        if let Verdict::Succeeded(_) = verdict {
            for hook in &self.runner.hooks {
                self.call(hook.on_trace_end(context)).await;
            }
        }
        verdict
    }

    /// Tells the hooks that it is over.
    async fn tell_end(&self, context: &RolloutContext) {
        if self.runner.hooks.is_empty() {
            return;
        }
        let AttemptedRollout { rollout, attempt } = &self.attempted;
        let query = || {
            self.runner.store.query_spans(SpanQuery {
                rollout_id: rollout.rollout_id.clone(),
                attempt_id: Some(attempt.attempt_id.clone()),
                ..SpanQuery::default()
            })
        };
        let mut spans = match self.patience.insist("reading spans", query).await {
            Ok(page) => page.items,
            Err(error) => {
                self.note(Err(error));
                Vec::new()
            }
        };
        spans.retain(|span| span.name != semconv::AGL_STATE);
        for hook in &self.runner.hooks {
            self.call(hook.on_rollout_end(context, &spans)).await;
        }
    }

    /// Calls a hook; its errors and panics stay its own.
    async fn call(&self, hook: impl Future<Output = Result<(), BoxError>>) {
        match AssertUnwindSafe(hook).catch_unwind().await {
            Ok(result) => self.note(result),
            Err(payload) => self.note(Err(Failure::of_panic(&*payload).message)),
        }
    }

    /// Logs an error that changes nothing.
    fn note<E: std::fmt::Display>(&self, result: Result<(), E>) {
        if let Err(error) = result {
            let AttemptedRollout { rollout, attempt } = &self.attempted;
            tracing::error!(%error, rollout_id = rollout.rollout_id, attempt_id = attempt.attempt_id,
                "something around the attempt failed");
        }
    }

    /// The resources that the rollout names; the latest when it names none; empty when there are none either.
    async fn resolve_resources(&self) -> Result<NamedResources, Failure> {
        let store = &self.runner.store;
        let failed = |error: StoreError| Failure::missing_resources(format!("resources: {error}"));
        let Some(resources_id) = &self.attempted.rollout.resources_id else {
            let latest = self.patience.insist("reading resources", || store.get_latest_resources()).await;
            return Ok(latest.map_err(failed)?.map(|update| update.resources).unwrap_or_default());
        };
        let read = || store.get_resources_by_id(resources_id, None);
        match self.patience.insist("reading resources", read).await.map_err(failed)? {
            Some(update) => Ok(update.resources),
            None => {
                let message =
                    format!("resources {resources_id} are not in the store: add them before enqueueing");
                Err(Failure::missing_resources(message))
            }
        }
    }

    async fn run_agent(&self, context: &RolloutContext) -> Verdict {
        let (agent, agent_context) = (self.runner.agent.clone(), context.clone());
        let mut work = tokio::spawn(async move {
            agent_context.clone().scope(async { agent.run(&agent_context).await }).await
        });
        let verdict = tokio::select! {
            result = &mut work => return of_agent(result),
            () = self.cancel.cancelled() => {
                Verdict::Failed(Failure::cancelled("the runner was told to give the rollout up"))
            }
            failure = self.time_up() => Verdict::TimedOut(failure),
            failure = self.recalled() => Verdict::Recalled(failure),
        };
        work.abort();
        // An agent that does not come to an `await` keeps its thread; the runner goes on without it.
        let _ = timeout(FAREWELL, work).await;
        verdict
    }

    /// Returns when the attempt has taken longer than its rollout allows.
    ///
    /// Counted from the claim's arrival, so that a store on another clock acts first.
    async fn time_up(&self) -> Failure {
        let seconds = self.attempted.rollout.config.timeout_seconds;
        let Some(limit) = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()) else {
            return std::future::pending().await;
        };
        sleep(limit).await;
        Failure::timeout(format!("the attempt took longer than {} s", limit.as_secs_f64()))
    }

    /// Returns when somebody else has ended the rollout.
    async fn recalled(&self) -> Failure {
        let every = self.runner.options.recall_interval;
        if every.is_zero() {
            return std::future::pending().await;
        }
        let AttemptedRollout { rollout, attempt } = &self.attempted;
        loop {
            sleep(every).await;
            // A store that does not answer recalls nothing.
            let Ok(Some(view)) = self.runner.store.get_rollout_by_id(&rollout.rollout_id).await else {
                continue;
            };
            let status = view.rollout.status;
            if !status.is_terminal() {
                continue;
            }
            let latest = view.attempt.filter(|latest| latest.attempt_id == attempt.attempt_id);
            return match latest.map(|latest| latest.status) {
                // The store's clock was the first to say so.
                Some(AttemptStatus::Timeout) => {
                    Failure::timeout("the store has seen the attempt's time run out")
                }
                _ => Failure::cancelled(format!("the rollout became {status} meanwhile")),
            };
        }
    }

    /// Emits what the verdict calls for and waits until all spans are kept.
    async fn emit_rest(&self, context: &RolloutContext, verdict: Verdict) -> Verdict {
        let failure = match verdict {
            Verdict::Succeeded(outcome) => match self.emit_success(context, outcome).await {
                Ok(()) => return verdict,
                // Success without the reward or the spans would be training data with holes.
                Err(error) => return self.emit_rest_of_failure(context, error).await,
            },
            Verdict::Failed(ref failure)
            | Verdict::TimedOut(ref failure)
            | Verdict::Recalled(ref failure) => failure,
        };
        self.note(context.emit_failure(failure).await);
        self.note(context.emit_state(semconv::STATE_FAILED, None, Some(failure)).await);
        self.note(context.flush().await);
        verdict
    }

    async fn emit_rest_of_failure(&self, context: &RolloutContext, error: Error) -> Verdict {
        let failure = Failure::of_error(&BoxError::from(error));
        self.note(context.emit_state(semconv::STATE_FAILED, None, Some(&failure)).await);
        self.note(context.flush().await);
        Verdict::Failed(failure)
    }

    async fn emit_success(&self, context: &RolloutContext, outcome: Outcome) -> Result<(), Error> {
        context.flush().await?;
        if let Outcome::Reward(reward) = outcome {
            context.emit_reward(reward).await?;
        }
        context.emit_state(semconv::STATE_FINISHED, None, None).await?;
        context.flush().await
    }

    async fn report(&self, verdict: Verdict) -> AttemptStatus {
        let (status, failure, may_be_over) = match verdict {
            Verdict::Succeeded(_) => (AttemptStatus::Succeeded, None, false),
            Verdict::Failed(failure) => (AttemptStatus::Failed, Some(failure), false),
            Verdict::TimedOut(failure) => (AttemptStatus::Timeout, Some(failure), true),
            Verdict::Recalled(failure) => (AttemptStatus::Failed, Some(failure), true),
        };
        let AttemptedRollout { rollout, attempt } = &self.attempted;
        if let Some(failure) = &failure {
            let Failure { kind, message, .. } = failure;
            tracing::warn!(
                rollout_id = rollout.rollout_id,
                attempt_id = attempt.attempt_id,
                kind,
                message,
                "attempt ended"
            );
        }
        if may_be_over
            && let Some(known) = self.known_status().await
            && known.is_terminal()
        {
            return known;
        }
        let metadata = failure.map(|failure| {
            let mut metadata = attempt.metadata.clone().unwrap_or_default();
            metadata.insert(Attempt::REASON.to_owned(), failure.reason.into());
            metadata.insert("failure".to_owned(), json!({"type": failure.kind, "message": failure.message}));
            metadata
        });
        let update = AttemptUpdate {
            status: Patch::Set(status),
            metadata: metadata.map_or(Patch::Keep, |metadata: JsonMap| Patch::Set(Some(metadata))),
            ..AttemptUpdate::default()
        };
        let report =
            || self.runner.store.update_attempt(&rollout.rollout_id, &attempt.attempt_id, update.clone());
        if let Err(error) = self.patience.insist("reporting an attempt", report).await {
            tracing::error!(%error, rollout_id = rollout.rollout_id, attempt_id = attempt.attempt_id, %status,
                "the attempt could not be reported");
        }
        status
    }

    /// What the store has this attempt down as.
    async fn known_status(&self) -> Option<AttemptStatus> {
        let AttemptedRollout { rollout, attempt } = &self.attempted;
        let query = || {
            let query = AttemptQuery { rollout_id: rollout.rollout_id.clone(), ..AttemptQuery::default() };
            self.runner.store.query_attempts(query)
        };
        let page = self.patience.insist("reading attempts", query).await.ok()?;
        page.items.into_iter().find(|known| known.attempt_id == attempt.attempt_id).map(|known| known.status)
    }
}

fn of_agent(result: Result<Result<Outcome, BoxError>, JoinError>) -> Verdict {
    match result {
        Ok(Ok(outcome)) => Verdict::Succeeded(outcome),
        Ok(Err(error)) => Verdict::Failed(Failure::of_error(&error)),
        Err(error) => Verdict::Failed(match error.try_into_panic() {
            Ok(payload) => Failure::of_panic(&*payload),
            Err(_) => Failure::cancelled("the agent's task was cancelled"),
        }),
    }
}

/// A background task that ends with its owner.
struct AbortOnDrop(JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}
