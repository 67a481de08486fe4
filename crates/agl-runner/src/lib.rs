//! Running agents: dequeue, run, heartbeat, report.
//!
//! A [`Runner`] takes rollouts from a store one after the other and has an [`Agent`] work on each, in a task of
//! its own. Whatever the agent does (return, fail, panic, hang, be called off), its attempt is reported exactly
//! once, after its spans. A store that cannot be reached for a while is waited for.

mod agent;
mod context;
mod error;
mod hook;
mod judge;
mod program;
mod resources;
mod retry;
mod runner;
mod sink;
mod snapshot;
mod stop;

pub use agent::{Agent, AnyAgent, BoxError, Outcome};
pub use context::{LastingSpan, RolloutContext, emit_reward};
pub use error::Error;
pub use hook::Hook;
pub use judge::{Judge, JudgeError, Verdict};
pub use program::{Program, ProgramError, Ran, Surroundings, Task, TaskReport};
pub use resources::{FromResources, Named};
pub use retry::Patience;
pub use runner::{Runner, RunnerOptions, RunnerReport};
pub use sink::SpanSink;
pub use snapshot::machine_snapshot;
pub use stop::StopSignal;
