//! Types of the task protocol before 0.2, kept because the Python package still exports them.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{JsonMap, RolloutMode, Triplet};

/// An answer with a status word.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct GenericResponse {
    /// `success`, unless something went wrong.
    pub status: String,
    /// What went wrong.
    pub message: Option<String>,
    /// Anything else.
    pub data: Option<JsonMap>,
}

impl Default for GenericResponse {
    fn default() -> Self {
        Self { status: "success".to_owned(), message: None, data: None }
    }
}

/// A task as the old server hands it out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Task {
    /// The id that the result is reported under.
    pub rollout_id: String,
    /// The task itself, any JSON.
    pub input: Value,
    /// What it is for.
    #[serde(default)]
    pub mode: Option<RolloutMode>,
    /// The resources to use.
    #[serde(default)]
    pub resources_id: Option<String>,
    /// When it was queued.
    #[serde(default)]
    pub create_time: Option<f64>,
    /// When it was last handed out.
    #[serde(default)]
    pub last_claim_time: Option<f64>,
    /// How often it was handed out.
    #[serde(default)]
    pub num_claims: Option<i64>,
    /// Anything else.
    #[serde(default)]
    pub metadata: JsonMap,
}

/// The answer to a request for a task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TaskIfAny {
    /// Whether there was one.
    pub is_available: bool,
    /// The task.
    #[serde(default)]
    pub task: Option<Task>,
}

/// The result of a task as the old server takes it in.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RolloutLegacy {
    /// The id of the task.
    pub rollout_id: String,
    /// The task.
    #[serde(default)]
    pub task: Option<Task>,
    /// The reward of the whole.
    #[serde(default)]
    pub final_reward: Option<f64>,
    /// Training data.
    #[serde(default)]
    pub triplets: Option<Vec<Triplet>>,
    /// Raw spans.
    #[serde(default)]
    pub trace: Option<Vec<JsonMap>>,
    /// Log lines.
    #[serde(default)]
    pub logs: Option<Vec<String>>,
    /// Anything else.
    #[serde(default)]
    pub metadata: JsonMap,
}
