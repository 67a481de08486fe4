use agl_types::Span;
use async_trait::async_trait;

use crate::{BoxError, RolloutContext};

/// Called by a runner around each attempt, in this order. A hook's error, or its panic, is logged and changes nothing.
///
/// ```
/// use agl_runner::{BoxError, Hook, RolloutContext};
/// use agl_types::Span;
/// use async_trait::async_trait;
///
/// struct Count;
///
/// #[async_trait]
/// impl Hook for Count {
///     async fn on_rollout_end(&self, context: &RolloutContext, spans: &[Span]) -> Result<(), BoxError> {
///         println!("{}: {} spans", context.rollout().rollout_id, spans.len());
///         Ok(())
///     }
/// }
/// ```
#[async_trait]
pub trait Hook: Send + Sync + 'static {
    /// The attempt is about to begin.
    async fn on_rollout_start(&self, context: &RolloutContext) -> Result<(), BoxError> {
        let _ = context;
        Ok(())
    }

    /// The agent is about to begin; what is emitted here comes before anything of the agent's.
    async fn on_trace_start(&self, context: &RolloutContext) -> Result<(), BoxError> {
        let _ = context;
        Ok(())
    }

    /// The agent has ended well; what is emitted here comes after everything of the agent's but its reward.
    async fn on_trace_end(&self, context: &RolloutContext) -> Result<(), BoxError> {
        let _ = context;
        Ok(())
    }

    /// The attempt has ended, well or not, and is about to be reported; `spans` are those that the store has of it,
    /// state events left out.
    async fn on_rollout_end(&self, context: &RolloutContext, spans: &[Span]) -> Result<(), BoxError> {
        let _ = (context, spans);
        Ok(())
    }
}
