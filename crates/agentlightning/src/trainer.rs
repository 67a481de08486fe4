use std::sync::Arc;

use agl_algorithm::{Algorithm, AlgorithmContext, Baseline, Progress, Silent, Summary};
use agl_runner::{AnyAgent, Hook, Runner, RunnerOptions, StopSignal};
use agl_store::{MemoryStore, Store};
use agl_types::{NamedResources, QueueState};
use serde_json::Value;
use tokio::task::JoinSet;

use crate::Error;

/// Runs an agent over datasets: some runners and an algorithm, side by side in this process, over one store.
///
/// ```
/// use agentlightning::{BoxError, Outcome, RolloutContext, Trainer};
/// use serde_json::{Value, json};
///
/// # #[tokio::main]
/// # async fn main() -> Result<(), BoxError> {
/// let agent = |task: Value, _: RolloutContext| async move { Ok(Outcome::Reward(task.as_f64().ok_or("no number")?)) };
/// let trainer = Trainer::builder().agent(agent).n_runners(2).build()?;
/// let summary = trainer.fit(vec![json!(0.5), json!(1.5), json!("x")], Vec::new()).await?;
/// assert_eq!((summary.train.mean_reward, summary.train.failed), (Some(1.0), 1));
/// # Ok(())
/// # }
/// ```
pub struct Trainer {
    agent: Arc<dyn AnyAgent>,
    store: Arc<dyn Store>,
    algorithm: Arc<dyn Algorithm>,
    progress: Arc<dyn Progress>,
    initial_resources: Option<NamedResources>,
    hooks: Vec<Arc<dyn Hook>>,
    n_runners: usize,
    worker_prefix: String,
    signal: StopSignal,
}

impl std::fmt::Debug for Trainer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Trainer")
            .field("store", &self.store)
            .field("n_runners", &self.n_runners)
            .field("worker_prefix", &self.worker_prefix)
            .finish_non_exhaustive()
    }
}

impl Trainer {
    /// A trainer to be put together.
    #[must_use]
    pub fn builder() -> TrainerBuilder {
        TrainerBuilder::default()
    }

    /// The store that everything is kept in.
    #[must_use]
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// Ends [`Trainer::fit`] early: `stop` lets the agents finish what they are at, `cancel` does not. What was put
    /// into the queue is called off either way, so that nobody's later run picks it up.
    #[must_use]
    pub fn signal(&self) -> &StopSignal {
        &self.signal
    }

    /// Has the store give out no more rollouts, until [`Trainer::resume`]. Those under way go on.
    ///
    /// # Errors
    /// [`Error::Store`] when the store does not take it.
    pub async fn pause(&self) -> Result<(), Error> {
        self.store.set_queue_state(QueueState { paused: true }).await?;
        Ok(())
    }

    /// Has the store give out rollouts again.
    ///
    /// # Errors
    /// [`Error::Store`] when the store does not take it.
    pub async fn resume(&self) -> Result<(), Error> {
        self.store.set_queue_state(QueueState { paused: false }).await?;
        Ok(())
    }

    /// Runs the algorithm over the datasets, with the runners at work, and returns its summary.
    ///
    /// # Errors
    /// [`Error::Algorithm`] when the algorithm cannot go on. An agent that fails is no error.
    pub async fn fit(&self, train: Vec<Value>, val: Vec<Value>) -> Result<Summary, Error> {
        let runner_signal = self.signal.child();
        let mut runners: JoinSet<_> = (0..self.n_runners)
            .map(|number| {
                let options = RunnerOptions::new(format!("{}-{number}", self.worker_prefix));
                let runner = Runner::new(self.agent.clone(), self.store.clone(), options)
                    .with_hooks(self.hooks.clone());
                let signal = runner_signal.clone();
                async move { runner.run(&signal).await }
            })
            .collect();
        let context = AlgorithmContext {
            store: self.store.clone(),
            train,
            val,
            initial_resources: self.initial_resources.clone(),
            progress: self.progress.clone(),
            signal: self.signal.clone(),
        };
        let result = self.algorithm.run(&context).await;
        match &result {
            Ok(_) => runner_signal.stop(),
            // Nobody waits for these rollouts any more.
            Err(_) => runner_signal.cancel(),
        }
        while runners.join_next().await.is_some() {}
        Ok(result?)
    }
}

/// Puts a [`Trainer`] together. Only the agent has to be given.
///
/// ```
/// use agentlightning::{Counts, Llm, NamedResources, Outcome, Resource, RolloutContext, Trainer};
/// use serde_json::Value;
///
/// let llm = Resource::Llm(Llm::new("http://127.0.0.1:8000/v1", "smollm2"));
/// let trainer = Trainer::builder()
///     .agent(|_: Value, _: RolloutContext| async { Ok(Outcome::Done) })
///     .n_runners(4)
///     .initial_resources(NamedResources::from_iter([("llm".to_owned(), llm)]))
///     .on_progress(|counts: &Counts| println!("{} of {}", counts.finished, counts.planned))
///     .worker_prefix("Quiz")
///     .build()?;
/// # Ok::<(), agentlightning::Error>(())
/// ```
pub struct TrainerBuilder {
    agent: Option<Arc<dyn AnyAgent>>,
    store: Option<Arc<dyn Store>>,
    algorithm: Arc<dyn Algorithm>,
    progress: Arc<dyn Progress>,
    initial_resources: Option<NamedResources>,
    hooks: Vec<Arc<dyn Hook>>,
    n_runners: usize,
    worker_prefix: String,
    signal: StopSignal,
}

impl Default for TrainerBuilder {
    fn default() -> Self {
        Self {
            agent: None,
            store: None,
            algorithm: Arc::new(Baseline::default()),
            progress: Arc::new(Silent),
            initial_resources: None,
            hooks: Vec::new(),
            n_runners: 1,
            worker_prefix: "Worker".to_owned(),
            signal: StopSignal::new(),
        }
    }
}

impl std::fmt::Debug for TrainerBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TrainerBuilder").field("n_runners", &self.n_runners).finish_non_exhaustive()
    }
}

impl TrainerBuilder {
    /// Who works on the tasks.
    #[must_use]
    pub fn agent(mut self, agent: impl AnyAgent) -> Self {
        self.agent = Some(Arc::new(agent));
        self
    }

    /// How many rollouts run at the same time; 1 by default.
    #[must_use]
    pub fn n_runners(mut self, n_runners: usize) -> Self {
        self.n_runners = n_runners;
        self
    }

    /// Where everything is kept; a fresh [`MemoryStore`] by default.
    #[must_use]
    pub fn store(mut self, store: Arc<dyn Store>) -> Self {
        self.store = Some(store);
        self
    }

    /// What the agents are run for; [`Baseline`] by default.
    #[must_use]
    pub fn algorithm(mut self, algorithm: impl Algorithm) -> Self {
        self.algorithm = Arc::new(algorithm);
        self
    }

    /// The resources to start from.
    #[must_use]
    pub fn initial_resources(mut self, resources: NamedResources) -> Self {
        self.initial_resources = Some(resources);
        self
    }

    /// What is called around each attempt; may be given several times, and is called in that order.
    #[must_use]
    pub fn hook(mut self, hook: impl Hook) -> Self {
        self.hooks.push(Arc::new(hook));
        self
    }

    /// Who watches the algorithm at work, for example a closure that is given the counts.
    #[must_use]
    pub fn on_progress(mut self, progress: impl Progress) -> Self {
        self.progress = Arc::new(progress);
        self
    }

    /// What the runners' names begin with, `Worker` by default. Where several trainers share a store, each needs
    /// its own.
    #[must_use]
    pub fn worker_prefix(mut self, prefix: impl Into<String>) -> Self {
        self.worker_prefix = prefix.into();
        self
    }

    /// A signal from outside that ends the run early; see [`Trainer::signal`].
    #[must_use]
    pub fn signal(mut self, signal: StopSignal) -> Self {
        self.signal = signal;
        self
    }

    /// The trainer.
    ///
    /// # Errors
    /// [`Error::Option`] without an agent or with no runners.
    pub fn build(self) -> Result<Trainer, Error> {
        let agent =
            self.agent.ok_or(Error::Option { field: "agent", message: "give one with .agent(...)" })?;
        if self.n_runners == 0 {
            return Err(Error::Option { field: "n_runners", message: "must be at least 1" });
        }
        Ok(Trainer {
            agent,
            store: self.store.unwrap_or_else(|| Arc::new(MemoryStore::new())),
            algorithm: self.algorithm,
            progress: self.progress,
            initial_resources: self.initial_resources,
            hooks: self.hooks,
            n_runners: self.n_runners,
            worker_prefix: self.worker_prefix,
            signal: self.signal,
        })
    }
}
