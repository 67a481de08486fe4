use std::future::Future;

use agl_store::Error as StoreError;
use async_trait::async_trait;
use serde_json::Value;

use crate::{Error, RolloutContext};

/// Any error.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// How an agent's work on a task ended well.
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
/// Also implemented for `Fn(Value, RolloutContext) -> Future<Output = Result<Outcome, BoxError>>`.
#[async_trait]
pub trait Agent: Send + Sync + 'static {
    /// Works on `task`. Whether it trains or validates is in `context.rollout().mode`.
    ///
    /// # Errors
    /// Any error marks the attempt as failed and is recorded as an exception span. So is a panic.
    async fn rollout(&self, task: Value, context: &RolloutContext) -> Result<Outcome, BoxError>;
}

#[async_trait]
impl<F, Running> Agent for F
where
    F: Fn(Value, RolloutContext) -> Running + Send + Sync + 'static,
    Running: Future<Output = Result<Outcome, BoxError>> + Send,
{
    async fn rollout(&self, task: Value, context: &RolloutContext) -> Result<Outcome, BoxError> {
        self(task, context.clone()).await
    }
}

/// What went wrong with an attempt, as it is recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    /// The kind of error, as `exception.type` has it.
    pub(crate) kind: &'static str,
    /// What happened.
    pub(crate) message: String,
}

impl Failure {
    pub(crate) fn new(kind: &'static str, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
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
        let kind = if error.is::<Error>() || error.is::<StoreError>() { "StoreError" } else { "Error" };
        Self { kind, message }
    }

    /// The agent panicked with this payload.
    pub(crate) fn of_panic(payload: &(dyn std::any::Any + Send)) -> Self {
        let message = payload
            .downcast_ref::<&str>()
            .map(|text| (*text).to_owned())
            .or_else(|| payload.downcast_ref::<String>().cloned())
            .unwrap_or_else(|| "the agent panicked".to_owned());
        Self { kind: "Panic", message }
    }
}
