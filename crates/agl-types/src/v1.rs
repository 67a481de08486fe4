//! Agent Lightning 1.0's side of the same things: its JSON, its states, and what a controller may do.
//!
//! A rollout belongs to one of two lanes. Runners take theirs from the queue (0.3); a controller lists what waits and
//! claims by name (1.0). Each lane's rollouts can be looked at through either contract, and are claimed through
//! their own only. What a controller keeps beside a rollout is its [`Control`] and its [`RolloutConfig`].

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use utoipa::{IntoParams, ToSchema};

use crate::rollout::wire_enum;
use crate::{Attempt, AttemptStatus, JsonMap, Patch, RolloutMode, RolloutStatus};

/// The attempt id that stands for the latest attempt.
pub const LATEST_ATTEMPT: &str = "0";

/// How many seconds a controller has to end a run that took too long, before the store takes it for lost.
pub const GRACE: f64 = 60.0;

/// The type of the event that gives a reward.
pub const REWARD: &str = "reward";

/// The type of the event of one call of a model.
pub const MODEL_REQUEST: &str = "model_request";

/// Metadata that every rollout shows, as whole numbers or null.
const METADATA: [&str; 2] = ["batch_idx", "sample_idx_in_batch"];

wire_enum! {
    /// Where a rollout stands, in the words of 1.0.
    State {
        /// Waiting to be claimed.
        Queuing = "queuing",
        /// Claimed.
        Running = "running",
        /// Ended with success.
        Succeeded = "succeeded",
        /// Ended without success.
        Failed = "failed",
    }
}

impl State {
    /// The statuses of 0.3 that look like this.
    #[must_use]
    pub fn statuses(self) -> &'static [RolloutStatus] {
        match self {
            Self::Queuing => &[RolloutStatus::Queuing, RolloutStatus::Requeuing],
            Self::Running => &[RolloutStatus::Preparing, RolloutStatus::Running],
            Self::Succeeded => &[RolloutStatus::Succeeded],
            Self::Failed => &[RolloutStatus::Failed, RolloutStatus::Cancelled],
        }
    }

    /// Whether a rollout in this state has ended.
    #[must_use]
    pub fn is_terminal(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed)
    }

    /// Whether a controller may take a rollout from this state to that one: there is no way back, and no way on
    /// from an end.
    #[must_use]
    pub fn may_become(self, next: Self) -> bool {
        match self {
            Self::Queuing => matches!(next, Self::Running | Self::Failed),
            Self::Running => next.is_terminal(),
            Self::Succeeded | Self::Failed => false,
        }
    }
}

impl From<RolloutStatus> for State {
    fn from(status: RolloutStatus) -> Self {
        match status {
            RolloutStatus::Queuing | RolloutStatus::Requeuing => Self::Queuing,
            RolloutStatus::Preparing | RolloutStatus::Running => Self::Running,
            RolloutStatus::Succeeded => Self::Succeeded,
            RolloutStatus::Failed | RolloutStatus::Cancelled => Self::Failed,
        }
    }
}

/// An agent that runs as a local process.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = v1::LocalRun)]
pub struct LocalRun {
    /// The Python class, as `module:Class`.
    pub agent_class: String,
    /// Names of environment variables, and what of the input they are set to.
    #[serde(default)]
    #[schema(value_type = Object)]
    pub env_map: JsonMap,
}

/// An agent that runs as a Kubernetes job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = v1::K8sRun)]
pub struct K8sRun {
    /// The Jinja template of the job's YAML.
    #[serde(default)]
    pub job_template: Option<String>,
}

/// How a controller is to run a rollout, and for how long. It may hold a whole job template, so it is kept apart from
/// what changes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = v1::RolloutConfig)]
pub struct RolloutConfig {
    /// Seconds after which the controller ends a run; 0 shows that there is no limit, which only 0.3 has.
    #[serde(default = "an_hour")]
    pub timeout_seconds: u64,
    /// As a process of the controller's machine.
    #[serde(default)]
    pub local: Option<LocalRun>,
    /// As a job of a Kubernetes cluster.
    #[serde(default)]
    pub k8s: Option<K8sRun>,
}

impl RolloutConfig {
    /// The limit that the store itself sets: [`GRACE`] later, because a controller has to be first. It ends the
    /// process only of what still runs.
    #[must_use]
    pub fn deadline_seconds(&self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "nobody waits for that many seconds")]
        let seconds = self.timeout_seconds as f64;
        seconds + GRACE
    }
}

fn an_hour() -> u64 {
    3600
}

impl Default for RolloutConfig {
    fn default() -> Self {
        Self { timeout_seconds: an_hour(), local: None, k8s: None }
    }
}

/// A rollout to be made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = v1::RolloutCreate)]
pub struct RolloutCreate {
    /// The task itself, any JSON.
    pub input: Value,
    /// Whether it is for training, or else for validation.
    #[serde(default = "yes")]
    pub is_train: bool,
    /// How it is to be run.
    #[serde(default)]
    pub config: Option<RolloutConfig>,
    /// Anything the algorithm wants to remember; `batch_idx` and `sample_idx_in_batch` are whole numbers or null.
    #[serde(default, deserialize_with = "metadata")]
    #[schema(value_type = Option<Object>)]
    pub metadata: Option<JsonMap>,
    /// The id; a new one when absent or empty. A rollout that is there already under this id is left as it is.
    #[serde(default)]
    pub rollout_id: Option<String>,
}

fn yes() -> bool {
    true
}

fn metadata<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<JsonMap>, D::Error> {
    let metadata: Option<JsonMap> = Option::deserialize(deserializer)?;
    for key in METADATA {
        let value = metadata.as_ref().and_then(|metadata| metadata.get(key));
        if value.is_some_and(|value| !value.is_null() && !value.is_i64()) {
            return Err(D::Error::custom(format!("{key} should be a whole number or null")));
        }
    }
    Ok(metadata)
}

impl RolloutCreate {
    /// A rollout for `input` with everything else left to the defaults.
    #[must_use]
    pub fn new(input: impl Into<Value>) -> Self {
        Self { input: input.into(), is_train: true, config: None, metadata: None, rollout_id: None }
    }
}

/// What a controller keeps beside a rollout. That it is there puts the rollout into the controllers' lane.
#[derive(Debug, Clone, PartialEq)]
pub struct Control {
    /// The name of its Kubernetes job.
    pub k8s_job_name: Option<String>,
    /// The attempt, as the controller calls it.
    pub last_attempt_id: Option<String>,
    /// Why it failed.
    pub error_message: Option<String>,
    /// 1 at first, and one more with every change by a controller.
    pub version: i64,
    /// When it was last changed by a controller.
    pub updated_at: f64,
}

impl Control {
    /// That of a new rollout.
    #[must_use]
    pub fn new(now: f64) -> Self {
        Self { k8s_job_name: None, last_attempt_id: None, error_message: None, version: 1, updated_at: now }
    }

    /// Takes over what a controller says, apart from the state.
    pub fn update(&mut self, update: &StatusUpdate, now: f64) {
        let StatusUpdate { state: _, k8s_job_name, last_attempt_id, error_message } = update;
        k8s_job_name.apply_to(&mut self.k8s_job_name);
        last_attempt_id.apply_to(&mut self.last_attempt_id);
        error_message.apply_to(&mut self.error_message);
        self.version += 1;
        self.updated_at = now;
    }
}

/// Changes to a rollout's status; fields that are kept are absent on the wire, and others are refused.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
#[schema(as = v1::StatusUpdate)]
pub struct StatusUpdate {
    /// Where it stands. Going on to running is a claim.
    #[serde(skip_serializing_if = "Patch::is_keep")]
    #[schema(value_type = State)]
    pub state: Patch<State>,
    /// The name of its Kubernetes job.
    #[serde(skip_serializing_if = "Patch::is_keep")]
    #[schema(value_type = Option<String>)]
    pub k8s_job_name: Patch<Option<String>>,
    /// The attempt, as the controller calls it.
    #[serde(skip_serializing_if = "Patch::is_keep")]
    #[schema(value_type = Option<String>)]
    pub last_attempt_id: Patch<Option<String>>,
    /// Why it failed.
    #[serde(skip_serializing_if = "Patch::is_keep")]
    #[schema(value_type = Option<String>)]
    pub error_message: Patch<Option<String>>,
}

impl StatusUpdate {
    /// Takes the rollout to this state, and nothing else.
    #[must_use]
    pub fn to(state: State) -> Self {
        Self { state: state.into(), ..Self::default() }
    }

    /// Whether there is nothing to change.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Changes to a rollout.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = v1::RolloutPatch)]
pub struct RolloutPatch {
    /// Changes to its status.
    #[serde(default)]
    pub status: StatusUpdate,
}

/// One task to be run, in the words of 1.0.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = v1::Rollout)]
pub struct Rollout {
    /// The id.
    pub rollout_id: String,
    /// The task itself, any JSON.
    pub input: Value,
    /// Whether it is for training.
    pub is_train: bool,
    /// How it is to be run.
    pub config: RolloutConfig,
    /// Anything the algorithm wants to remember, and at least `batch_idx` and `sample_idx_in_batch`.
    #[schema(value_type = Object)]
    pub metadata: JsonMap,
    /// Where it stands.
    pub status: Status,
}

/// Where a rollout stands, and what its controller said about it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = v1::Status)]
pub struct Status {
    /// Where it stands.
    pub state: State,
    /// The name of its Kubernetes job.
    pub k8s_job_name: Option<String>,
    /// The attempt that [`EventsQuery`] is answered from; none means the latest.
    pub last_attempt_id: Option<String>,
    /// Why it failed.
    pub error_message: Option<String>,
    /// 1 at first, and one more with every change by a controller; 0 for a rollout of a runner.
    pub version: i64,
    /// When it was made.
    pub created_at: f64,
    /// When it last changed.
    pub updated_at: f64,
}

impl Rollout {
    /// The rollout as 1.0 sees it: with its latest attempt, and with what its controller keeps, if it has one.
    #[must_use]
    pub fn view(
        rollout: crate::Rollout,
        latest: Option<&Attempt>,
        control: Option<(Control, RolloutConfig)>,
    ) -> Self {
        let state = State::from(rollout.status);
        let is_controlled = control.is_some();
        let (control, config) = control.unwrap_or_else(|| {
            let mut control = Control::new(rollout.start_time);
            control.version = 0;
            control.last_attempt_id = latest.map(|attempt| attempt.attempt_id.clone());
            let timeout_seconds = whole_seconds(rollout.config.timeout_seconds.unwrap_or_default());
            (control, RolloutConfig { timeout_seconds, ..RolloutConfig::default() })
        });
        let error_message = control.error_message.or_else(|| failure(&rollout, latest));
        let changes = [rollout.end_time, latest.filter(|_| !is_controlled).map(|attempt| attempt.start_time)];
        let mut metadata: JsonMap = METADATA.map(|key| (key.to_owned(), Value::Null)).into_iter().collect();
        metadata.extend(rollout.metadata.unwrap_or_default());
        Self {
            rollout_id: rollout.rollout_id,
            input: rollout.input,
            is_train: matches!(rollout.mode, None | Some(RolloutMode::Train)),
            config,
            metadata,
            status: Status {
                state,
                k8s_job_name: control.k8s_job_name,
                last_attempt_id: control.last_attempt_id,
                error_message,
                version: control.version,
                created_at: rollout.start_time,
                updated_at: changes.into_iter().flatten().fold(control.updated_at, f64::max),
            },
        }
    }
}

/// Why a rollout failed, where no controller said so.
fn failure(rollout: &crate::Rollout, latest: Option<&Attempt>) -> Option<String> {
    match (rollout.status, latest.map(|attempt| attempt.status)) {
        (RolloutStatus::Cancelled, _) => Some("the rollout was cancelled".to_owned()),
        (RolloutStatus::Failed, Some(AttemptStatus::Timeout)) => Some("the attempt timed out".to_owned()),
        (RolloutStatus::Failed, Some(AttemptStatus::Unresponsive)) => {
            Some("the attempt fell silent".to_owned())
        }
        _ => None,
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the cast saturates, which is as near as a whole number gets"
)]
fn whole_seconds(seconds: f64) -> u64 {
    seconds.ceil() as u64
}

/// What [`Status::last_attempt_id`] and the events call an attempt: the latest one of a controller's rollout is
/// [`LATEST_ATTEMPT`], any other is called by its id.
#[must_use]
pub fn attempt_label(attempt_id: &str, is_latest: bool, is_controlled: bool) -> &str {
    if is_latest && is_controlled { LATEST_ATTEMPT } else { attempt_id }
}

/// A rollout with the names of its attempts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = v1::RolloutDetail)]
pub struct RolloutDetail {
    /// The rollout.
    pub rollout: Rollout,
    /// Its attempts, the first one first.
    pub attempts: Vec<String>,
}

/// Asks for rollouts in these states, in order of creation. Those that are queuing or running are listed only where
/// they are a controller's to claim or to end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct RolloutQuery {
    /// The states.
    pub state_in: Vec<State>,
    /// How many at most; [`crate::UNLIMITED`] for all of them.
    #[serde(default = "five_hundred")]
    pub limit: i64,
}

fn five_hundred() -> i64 {
    500
}

impl RolloutQuery {
    /// A query for these states with the usual limit.
    #[must_use]
    pub fn of(states: impl Into<Vec<State>>) -> Self {
        Self { state_in: states.into(), limit: five_hundred() }
    }
}

/// Something that happened in an attempt, told by an agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = v1::EventCreate)]
pub struct EventCreate {
    /// What kind of thing; [`REWARD`] and [`MODEL_REQUEST`] have a meaning, others are kept as they are.
    pub event_type: String,
    /// Its details.
    #[serde(default)]
    #[schema(value_type = Object)]
    pub data: JsonMap,
}

/// Something that happened in an attempt.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = v1::Event)]
pub struct Event {
    /// What kind of thing.
    pub event_type: String,
    /// The rollout.
    pub rollout_id: String,
    /// The attempt, as [`attempt_label`] calls it.
    pub attempt_id: String,
    /// When the store learned of it.
    pub timestamp: f64,
    /// Its details.
    #[schema(value_type = Object)]
    pub data: JsonMap,
}

/// Asks for the events of a rollout's attempt: the one that its controller named last, or else the latest.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventsQuery {
    /// The rollout.
    #[serde(default)]
    pub rollout_id: String,
    /// The type is this.
    #[serde(default)]
    pub event_type: Option<String>,
}

/// Where a model is served.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = v1::Model)]
pub struct Model {
    /// The name that its server knows it by.
    pub model: String,
    /// The URL, `/v1` included.
    pub endpoint: String,
    /// Which weights it has.
    #[serde(default)]
    pub version: i64,
}

/// Tells a model from others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelKey {
    /// The name.
    pub model: String,
    /// The URL.
    pub endpoint: String,
}

/// Asks the completion log: rollouts in the order in which they ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(default)]
#[into_params(parameter_in = Query)]
pub struct CompletionQuery {
    /// The place in the log after which to begin: 0, or the `next_after` of the last answer.
    pub after: i64,
    /// How many at most; at least 1.
    pub limit: i64,
}

impl Default for CompletionQuery {
    fn default() -> Self {
        Self { after: 0, limit: 1000 }
    }
}

/// A part of the completion log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = v1::Completions)]
pub struct Completions {
    /// Rollouts that have ended. One that was deleted, or was taken up again, is not among them; one that ended
    /// again has a new place.
    pub items: Vec<Completion>,
    /// Where to go on.
    pub next_after: i64,
    /// The last place in the log: with `next_after` there, everything has been seen.
    pub total_terminal: i64,
}

/// A rollout that has ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = v1::Completion)]
pub struct Completion {
    /// The rollout.
    pub rollout_id: String,
    /// How it ended.
    pub state: State,
    /// What the input calls itself: its `data_id` or `instance_id`, or nothing.
    pub data_id: String,
    /// Whether it is for training.
    pub is_train: bool,
}

impl From<&crate::Rollout> for Completion {
    fn from(rollout: &crate::Rollout) -> Self {
        let id = |key: &str| match rollout.input.get(key)? {
            Value::String(text) if !text.is_empty() => Some(text.clone()),
            Value::Number(number) => Some(number.to_string()),
            _ => None,
        };
        Self {
            rollout_id: rollout.rollout_id.clone(),
            state: rollout.status.into(),
            data_id: id("data_id").or_else(|| id("instance_id")).unwrap_or_default(),
            is_train: matches!(rollout.mode, None | Some(RolloutMode::Train)),
        }
    }
}
