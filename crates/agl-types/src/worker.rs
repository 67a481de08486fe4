use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::JsonMap;
use crate::rollout::wire_enum;

wire_enum! {
    /// What a worker does.
    WorkerStatus {
        /// Waiting for work.
        Idle = "idle",
        /// Holds an attempt.
        Busy = "busy",
        /// Not heard of since its attempt was given up, or never claimed one.
        Unknown = "unknown",
    }
}

/// A runner process, as the store knows it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Worker {
    /// The name that the runner gives itself.
    pub worker_id: String,
    /// What it does; follows from its attempts alone.
    #[serde(default = "unknown")]
    pub status: WorkerStatus,
    /// The last snapshot that it sent: host, processor, memory and so on.
    #[serde(default)]
    #[schema(value_type = Option<Object>)]
    pub heartbeat_stats: Option<JsonMap>,
    /// When it last sent a heartbeat.
    #[serde(default)]
    pub last_heartbeat_time: Option<f64>,
    /// When it last asked for work.
    #[serde(default)]
    pub last_dequeue_time: Option<f64>,
    /// When it was last given work.
    #[serde(default)]
    pub last_busy_time: Option<f64>,
    /// When it last ran out of work.
    #[serde(default)]
    pub last_idle_time: Option<f64>,
    /// The rollout that it works on.
    #[serde(default)]
    pub current_rollout_id: Option<String>,
    /// The attempt that it works on.
    #[serde(default)]
    pub current_attempt_id: Option<String>,
}

fn unknown() -> WorkerStatus {
    WorkerStatus::Unknown
}

impl Worker {
    /// A worker of which nothing but its name is known.
    #[must_use]
    pub fn new(worker_id: impl Into<String>) -> Self {
        Self {
            worker_id: worker_id.into(),
            status: WorkerStatus::Unknown,
            heartbeat_stats: None,
            last_heartbeat_time: None,
            last_dequeue_time: None,
            last_busy_time: None,
            last_idle_time: None,
            current_rollout_id: None,
            current_attempt_id: None,
        }
    }
}
