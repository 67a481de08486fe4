use std::future::Future;

use agl_store::Error as StoreError;
use agl_types::{Attempt, Attributes};
use async_trait::async_trait;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::{Error, FromResources, RolloutContext};

/// Any error.
///
/// ```
/// use agl_runner::BoxError;
///
/// fn parse(text: &str) -> Result<f64, BoxError> {
///     if text.is_empty() {
///         return Err("there is nothing to parse".into());
///     }
///     Ok(text.parse()?)
/// }
/// assert!(parse("1.5").is_ok() && parse("one").is_err() && parse("").is_err());
/// ```
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// How an agent's work on a task ended well.
///
/// ```
/// use agl_runner::Outcome;
///
/// assert_eq!(Outcome::from(0.5), Outcome::Reward(0.5));
/// assert_eq!(Outcome::from(()), Outcome::Done);
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Outcome {
    /// It is done; rewards, if any, were emitted on the way.
    Done,
    /// It is done, and this is its reward, emitted last.
    Reward(f64),
}

impl From<()> for Outcome {
    fn from((): ()) -> Self {
        Self::Done
    }
}

impl From<f64> for Outcome {
    fn from(reward: f64) -> Self {
        Self::Reward(reward)
    }
}

/// Something that works on tasks.
///
/// It is called from several runners at once, so state that rollouts share needs a lock. It may be dropped at any
/// `await`: when its time is up, when its rollout is cancelled, when the program ends.
///
/// ```
/// use agl_runner::{Agent, BoxError, Outcome, RolloutContext};
/// use agl_types::{Llm, PromptTemplate};
/// use async_trait::async_trait;
/// use serde::Deserialize;
///
/// #[derive(Deserialize)]
/// struct Question {
///     text: String,
///     answer: String,
/// }
///
/// struct Guesser;
///
/// #[async_trait]
/// impl Agent for Guesser {
///     type Task = Question;
///     type Resources = (Llm, Option<PromptTemplate>);
///
///     async fn rollout(
///         &self,
///         task: Question,
///         (llm, prompt): Self::Resources,
///         context: &RolloutContext,
///     ) -> Result<Outcome, BoxError> {
///         context.emit_message(&format!("asking {} about {}", llm.model, task.text)).await?;
///         Ok(Outcome::Reward(if task.answer == "42" && prompt.is_none() { 1.0 } else { 0.0 }))
///     }
/// }
/// ```
///
/// Also implemented for `Fn(Value, RolloutContext) -> Future<Output = Result<Outcome, BoxError>>`, which takes tasks
/// as they come and finds resources in its context.
#[async_trait]
pub trait Agent: Send + Sync + 'static {
    /// What it works on; [`Value`] for tasks of any kind. A task that cannot be read as this fails its attempt.
    type Task: DeserializeOwned + Send;
    /// What it needs of the rollout's resources; `()` for nothing. An attempt that lacks some fails.
    type Resources: FromResources;

    /// Works on `task`. Whether it trains or validates is in `context.rollout().mode`.
    ///
    /// # Errors
    /// Any error marks the attempt as failed and is recorded as an exception span. So is a panic.
    async fn rollout(
        &self,
        task: Self::Task,
        resources: Self::Resources,
        context: &RolloutContext,
    ) -> Result<Outcome, BoxError>;
}

#[async_trait]
impl<F, Running> Agent for F
where
    F: Fn(Value, RolloutContext) -> Running + Send + Sync + 'static,
    Running: Future<Output = Result<Outcome, BoxError>> + Send,
{
    type Task = Value;
    type Resources = ();

    async fn rollout(&self, task: Value, (): (), context: &RolloutContext) -> Result<Outcome, BoxError> {
        self(task, context.clone()).await
    }
}

/// An agent, whatever its types; every [`Agent`] is one.
///
/// ```
/// use std::sync::Arc;
///
/// use agl_runner::{AnyAgent, Outcome, RolloutContext};
/// use serde_json::Value;
///
/// let agents: Vec<Arc<dyn AnyAgent>> = vec![
///     Arc::new(|_: Value, _: RolloutContext| async { Ok(Outcome::Reward(1.0)) }),
///     Arc::new(|_: Value, _: RolloutContext| async { Err("no luck".into()) }),
/// ];
/// ```
#[async_trait]
pub trait AnyAgent: Send + Sync + 'static {
    /// Works on the task of the context's rollout.
    ///
    /// # Errors
    /// Those of [`Agent::rollout`], [`Error::Task`] and [`Error::Resources`].
    async fn run(&self, context: &RolloutContext) -> Result<Outcome, BoxError>;
}

#[async_trait]
impl<A: Agent> AnyAgent for A {
    async fn run(&self, context: &RolloutContext) -> Result<Outcome, BoxError> {
        let resources = A::Resources::from_context(context)?;
        let task = serde_path_to_error::deserialize(context.rollout().input.clone())
            .map_err(|error| Error::Task(error.to_string()))?;
        self.rollout(task, resources, context).await
    }
}

/// What went wrong with an attempt, as it is recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    /// Why, in a word.
    pub(crate) reason: &'static str,
    /// The kind of error, as `exception.type` has it.
    pub(crate) kind: &'static str,
    /// What happened.
    pub(crate) message: String,
}

impl Failure {
    /// Somebody wants it to end.
    pub(crate) fn cancelled(message: impl Into<String>) -> Self {
        Self { reason: Attempt::CANCELLED, kind: "CancelledError", message: message.into() }
    }

    /// It has taken too long.
    pub(crate) fn timeout(message: impl Into<String>) -> Self {
        Self { reason: "timeout", kind: "TimeoutError", message: message.into() }
    }

    /// What it needs is not there.
    pub(crate) fn missing_resources(message: impl Into<String>) -> Self {
        Self { reason: "missing_resources", kind: "ResourcesError", message: message.into() }
    }

    /// As attributes of a span.
    pub(crate) fn attributes(&self) -> Attributes {
        let Self { kind, message, .. } = self;
        Attributes::from_iter([
            ("exception.type".to_owned(), (*kind).into()),
            ("exception.message".to_owned(), message.clone().into()),
            ("exception.escaped".to_owned(), true.into()),
        ])
    }

    /// The agent returned an error; its causes follow it.
    pub(crate) fn of_error(error: &BoxError) -> Self {
        let mut message = error.to_string();
        let mut cause = error.source();
        while let Some(inner) = cause {
            let text = inner.to_string();
            // Many errors already show their cause.
            if !message.ends_with(&text) {
                message.push_str(": ");
                message.push_str(&text);
            }
            cause = inner.source();
        }
        let kind = match error.downcast_ref::<Error>() {
            Some(Error::Resources(_)) => return Self::missing_resources(message),
            Some(Error::Task(_)) => "TaskError",
            Some(_) => "StoreError",
            None if error.is::<StoreError>() => "StoreError",
            None => "Error",
        };
        Self { reason: "error", kind, message }
    }

    /// The agent panicked with this payload.
    pub(crate) fn of_panic(payload: &(dyn std::any::Any + Send)) -> Self {
        let message = payload
            .downcast_ref::<&str>()
            .map(|text| (*text).to_owned())
            .or_else(|| payload.downcast_ref::<String>().cloned())
            .unwrap_or_else(|| "the agent panicked".to_owned());
        Self { reason: "error", kind: "Panic", message }
    }
}
