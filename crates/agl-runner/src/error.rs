/// Why a span or a reward could not be taken in, or an agent could not begin.
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
    /// The rollout's task is not what the agent works on.
    #[error("the task is not one of this agent's: {0}")]
    Task(String),
    /// The rollout's resources lack what the agent needs.
    #[error("{0}")]
    Resources(String),
    /// Spans come faster than the store takes them, from code that cannot wait.
    #[error("too many spans are on their way to the store: this one is lost")]
    Full,
    /// An object cannot be noted.
    #[error("the object has no JSON: {0}")]
    Object(String),
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
