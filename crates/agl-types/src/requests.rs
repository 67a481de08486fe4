use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::{IntoParams, ToSchema};

use crate::{
    AttemptStatus, FilterLogic, JsonMap, Patch, RolloutConfig, RolloutMode, RolloutStatus, SortOrder, Span,
    UNLIMITED, WorkerStatus,
};

/// A rollout to be put into the queue.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct EnqueueRolloutRequest {
    /// The task itself, any JSON.
    pub input: Value,
    /// What it is for.
    #[serde(default)]
    pub mode: Option<RolloutMode>,
    /// The resources to pin; the latest at this moment when absent.
    #[serde(default)]
    pub resources_id: Option<String>,
    /// Time limits and retries.
    #[serde(default)]
    pub config: Option<RolloutConfig>,
    /// Anything the algorithm wants to remember.
    #[serde(default)]
    #[schema(value_type = Option<Object>)]
    pub metadata: Option<JsonMap>,
}

impl EnqueueRolloutRequest {
    /// A request for `input` with everything else left to the defaults.
    #[must_use]
    pub fn new(input: impl Into<Value>) -> Self {
        Self { input: input.into(), ..Self::default() }
    }
}

/// Rollouts to be put into the queue, in this order.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct EnqueueRequest {
    /// The rollouts.
    pub rollouts: Vec<EnqueueRolloutRequest>,
}

/// A rollout to be started at once, past the queue.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct StartRollout {
    /// What is to be run.
    #[serde(flatten)]
    pub rollout: EnqueueRolloutRequest,
    /// Who runs it.
    #[serde(default)]
    pub worker_id: Option<String>,
}

/// A worker's request for work.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct DequeueRequest {
    /// How many rollouts at most; nothing is given for 0 and less.
    pub limit: i64,
    /// Who asks.
    pub worker_id: Option<String>,
    /// Seconds to wait for work when there is none; the answer comes the moment there is some. None and 0 do not
    /// wait.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wait: Option<f64>,
}

impl Default for DequeueRequest {
    fn default() -> Self {
        Self { limit: 1, worker_id: None, wait: None }
    }
}

/// How an attempt has ended, and what remains to be recorded of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct AttemptEnd {
    /// Spans to be stored first, under the next sequence ids of the rollout, in this order.
    pub spans: Vec<Span>,
    /// What changes in the attempt then.
    pub update: AttemptUpdate,
}

/// Whether the queue gives out work.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct QueueState {
    /// Whether whoever asks for work is given none. What is being worked on goes on.
    pub paused: bool,
}

/// Asks for the spans of ended rollouts to be removed for good. Conditions that are there must all hold; at least
/// one must be there. Rollouts that have not ended are left alone.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct PurgeRequest {
    /// The rollout is one of these.
    pub rollout_id_in: Option<Vec<String>>,
    /// The rollout ended before this moment.
    pub ended_before: Option<f64>,
}

/// What a purge has removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PurgeReport {
    /// Rollouts that have lost their spans.
    pub rollouts: u64,
    /// Spans removed.
    pub spans: u64,
}

/// Asks for the next span sequence id of a rollout.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SequenceIdRequest {
    /// The rollout whose counter is moved on.
    pub rollout_id: String,
    /// The attempt; the counter is shared by all attempts of a rollout.
    pub attempt_id: String,
}

/// Waits for rollouts to end.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct WaitRequest {
    /// The rollouts; unknown ids are left out of the answer.
    pub rollout_ids: Vec<String>,
    /// Seconds to wait at most; none means for ever, 0 and less just looks.
    #[serde(default)]
    pub timeout: Option<f64>,
}

macro_rules! query {
    ($(#[$doc:meta])* $name:ident, sort_by = $sort:expr, { $($(#[$field_doc:meta])* $field:ident: $ty:ty),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema, IntoParams)]
        #[serde(default)]
        #[into_params(parameter_in = Query)]
        pub struct $name {
            $($(#[$field_doc])* pub $field: $ty,)*
            /// The field to sort by.
            #[schema(default = json!($name::default().sort_by))]
            #[param(default = json!($name::default().sort_by))]
            pub sort_by: Option<String>,
            /// The direction of the sort.
            #[schema(default = json!(SortOrder::Asc))]
            #[param(default = json!(SortOrder::Asc))]
            pub sort_order: SortOrder,
            /// How many items at most; -1 for all of them.
            #[schema(default = json!(UNLIMITED), minimum = -1)]
            #[param(default = json!(UNLIMITED), minimum = -1)]
            pub limit: i64,
            /// How many matches to pass over.
            #[schema(default = json!(0), minimum = 0)]
            #[param(default = json!(0), minimum = 0)]
            pub offset: i64,
        }

        impl Default for $name {
            fn default() -> Self {
                let sort_by: Option<&str> = $sort;
                Self {
                    $($field: Default::default(),)*
                    sort_by: sort_by.map(str::to_owned),
                    sort_order: SortOrder::Asc,
                    limit: UNLIMITED,
                    offset: 0,
                }
            }
        }
    };
}

query! {
    /// Asks for rollouts. A list that is there but empty matches nothing; by default in order of creation.
    RolloutQuery, sort_by = None, {
        /// The status is one of these.
        status_in: Option<Vec<RolloutStatus>>,
        /// The mode is one of these.
        mode_in: Option<Vec<RolloutMode>>,
        /// The id is one of these.
        rollout_id_in: Option<Vec<String>>,
        /// The id has this in it.
        rollout_id_contains: Option<String>,
        /// How the conditions are put together.
        #[schema(default = json!(FilterLogic::And))]
        #[param(default = json!(FilterLogic::And))]
        filter_logic: FilterLogic,
    }
}

query! {
    /// Asks for the attempts of one rollout.
    AttemptQuery, sort_by = Some("sequence_id"), {
        /// The rollout; over HTTP it is in the path.
        #[schema(ignore)]
        #[param(ignore)]
        rollout_id: String,
    }
}

query! {
    /// Asks for spans of one rollout. The rollout and the attempt always apply; the other conditions are put
    /// together by `filter_logic`.
    SpanQuery, sort_by = Some("sequence_id"), {
        /// The rollout.
        #[schema(required)]
        #[param(required)]
        rollout_id: String,
        /// The attempt, or `latest`.
        attempt_id: Option<String>,
        /// The trace id is this.
        trace_id: Option<String>,
        /// The trace id has this in it.
        trace_id_contains: Option<String>,
        /// The span id is this.
        span_id: Option<String>,
        /// The span id has this in it.
        span_id_contains: Option<String>,
        /// The parent id is this.
        parent_id: Option<String>,
        /// The parent id has this in it.
        parent_id_contains: Option<String>,
        /// The name is this.
        name: Option<String>,
        /// The name has this in it.
        name_contains: Option<String>,
        /// How the conditions are put together.
        #[schema(default = json!(FilterLogic::And))]
        #[param(default = json!(FilterLogic::And))]
        filter_logic: FilterLogic,
    }
}

query! {
    /// Asks for resources: the newest version of each id, or with `all_versions` every one kept.
    ResourcesQuery, sort_by = None, {
        /// The id is this.
        resources_id: Option<String>,
        /// The id has this in it.
        resources_id_contains: Option<String>,
        /// Whether older versions are listed too.
        all_versions: bool,
    }
}

query! {
    /// Asks for workers.
    WorkerQuery, sort_by = None, {
        /// The status is one of these.
        status_in: Option<Vec<WorkerStatus>>,
        /// The id has this in it.
        worker_id_contains: Option<String>,
        /// How the conditions are put together.
        #[schema(default = json!(FilterLogic::And))]
        #[param(default = json!(FilterLogic::And))]
        filter_logic: FilterLogic,
    }
}

/// Changes to a rollout; fields that are kept are absent on the wire.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct RolloutUpdate {
    /// The task itself.
    #[serde(skip_serializing_if = "Patch::is_keep")]
    #[schema(value_type = Value)]
    pub input: Patch<Value>,
    /// What it is for.
    #[serde(skip_serializing_if = "Patch::is_keep")]
    #[schema(value_type = Option<RolloutMode>)]
    pub mode: Patch<Option<RolloutMode>>,
    /// The resources pinned.
    #[serde(skip_serializing_if = "Patch::is_keep")]
    #[schema(value_type = Option<String>)]
    pub resources_id: Patch<Option<String>>,
    /// Where it stands: the one explicit way out of a terminal status.
    #[serde(skip_serializing_if = "Patch::is_keep")]
    #[schema(value_type = RolloutStatus)]
    pub status: Patch<RolloutStatus>,
    /// Time limits and retries.
    #[serde(skip_serializing_if = "Patch::is_keep")]
    #[schema(value_type = RolloutConfig)]
    pub config: Patch<RolloutConfig>,
    /// Replaced as a whole, not merged.
    #[serde(skip_serializing_if = "Patch::is_keep")]
    #[schema(value_type = Option<Object>)]
    pub metadata: Patch<Option<JsonMap>>,
}

impl RolloutUpdate {
    /// Whether everything but the status is kept.
    #[must_use]
    pub fn is_of_status_alone(&self) -> bool {
        let Self { input, mode, resources_id, status: _, config, metadata } = self;
        input.is_keep() && mode.is_keep() && resources_id.is_keep() && config.is_keep() && metadata.is_keep()
    }
}

/// Changes to an attempt; fields that are kept are absent on the wire.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct AttemptUpdate {
    /// Where it stands.
    #[serde(skip_serializing_if = "Patch::is_keep")]
    #[schema(value_type = AttemptStatus)]
    pub status: Patch<AttemptStatus>,
    /// Who works on it; an empty string is kept and names nobody.
    #[serde(skip_serializing_if = "Patch::is_keep")]
    #[schema(value_type = Option<String>)]
    pub worker_id: Patch<Option<String>>,
    /// When it was last heard from.
    #[serde(skip_serializing_if = "Patch::is_keep")]
    #[schema(value_type = Option<f64>)]
    pub last_heartbeat_time: Patch<Option<f64>>,
    /// Replaced as a whole, not merged.
    #[serde(skip_serializing_if = "Patch::is_keep")]
    #[schema(value_type = Option<Object>)]
    pub metadata: Patch<Option<JsonMap>>,
}

/// A worker's heartbeat; absent stats leave the last ones standing.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct WorkerUpdate {
    /// A snapshot of the worker's machine.
    #[serde(skip_serializing_if = "Patch::is_keep")]
    #[schema(value_type = Object)]
    pub heartbeat_stats: Patch<JsonMap>,
}
