/// Why a span or a reward could not be taken in.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Error {
    /// A reward is not a finite number.
    #[error("reward {name} is {value}: it must be a finite number")]
    Reward {
        /// The dimension.
        name: String,
        /// Its value.
        value: f64,
    },
    /// There is no rollout to attach to.
    #[error(
        "no rollout is being run in this task: call this from an agent, or use its context in tasks it spawns"
    )]
    NoRollout,
    /// The rollout is over, and its spans go nowhere any more.
    #[error("the rollout is over: emit spans before the agent returns")]
    Over,
    /// The store did not take it.
    #[error(transparent)]
    Store(#[from] agl_store::Error),
}
