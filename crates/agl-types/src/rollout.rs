use std::num::NonZeroU32;

use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;
use utoipa::ToSchema;

use crate::{JsonMap, ResourcesUpdate};

macro_rules! wire_enum {
    ($(#[doc = $doc:literal])* $name:ident {
        $($(#[doc = $variant_doc:literal])* $variant:ident = $text:literal),+ $(,)?
    }) => {
        $(#[doc = $doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        pub enum $name { $($(#[doc = $variant_doc])* #[serde(rename = $text)] $variant),+ }

        impl $name {
            /// Every value, in declaration order.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The word used on the wire and in storage.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }

            /// The value that this word stands for.
            #[must_use]
            pub fn parse(text: &str) -> Option<Self> {
                match text { $($text => Some(Self::$variant),)+ _ => None }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }

        // The derive sees neither the words nor what they mean.
        impl utoipa::PartialSchema for $name {
            fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::Schema> {
                let description = concat!($($doc),* $(, "\n\n`", $text, "`:", $($variant_doc),*)+);
                utoipa::openapi::ObjectBuilder::new()
                    .schema_type(utoipa::openapi::Type::String)
                    .enum_values(Some(Self::ALL.iter().map(|value| value.as_str())))
                    .description(Some(description.trim()))
                    .into()
            }
        }

        impl utoipa::ToSchema for $name {}
    };
}
pub(crate) use wire_enum;

wire_enum! {
    /// Where a rollout stands.
    ///
    /// ```
    /// use agl_types::RolloutStatus;
    ///
    /// assert!(RolloutStatus::Cancelled.is_terminal());
    /// assert!(RolloutStatus::Requeuing.is_queuing());
    /// ```
    RolloutStatus {
        /// Waiting in the queue for its first attempt.
        Queuing = "queuing",
        /// Claimed; nothing heard from the agent yet.
        Preparing = "preparing",
        /// The agent has been heard from.
        Running = "running",
        /// Ended without success.
        Failed = "failed",
        /// Ended with success.
        Succeeded = "succeeded",
        /// Called off.
        Cancelled = "cancelled",
        /// Waiting in the queue for another attempt.
        Requeuing = "requeuing",
    }
}

impl RolloutStatus {
    /// Whether a rollout with this status waits in the queue.
    #[must_use]
    pub fn is_queuing(self) -> bool {
        matches!(self, Self::Queuing | Self::Requeuing)
    }

    /// Whether a rollout with this status is being worked on.
    #[must_use]
    pub fn is_active(self) -> bool {
        matches!(self, Self::Preparing | Self::Running)
    }

    /// Whether a rollout with this status has ended.
    #[must_use]
    pub fn is_terminal(self) -> bool {
        matches!(self, Self::Failed | Self::Succeeded | Self::Cancelled)
    }
}

wire_enum! {
    /// Where one attempt stands.
    AttemptStatus {
        /// Claimed; nothing heard from the agent yet.
        Preparing = "preparing",
        /// The agent has been heard from.
        Running = "running",
        /// The agent ended with an error.
        Failed = "failed",
        /// The agent ended well.
        Succeeded = "succeeded",
        /// Silent for longer than `unresponsive_seconds`; a span brings it back.
        Unresponsive = "unresponsive",
        /// Took longer than `timeout_seconds`; nothing but an explicit update brings it back.
        Timeout = "timeout",
    }
}

impl AttemptStatus {
    /// Whether an attempt with this status has ended. An unresponsive one has not: it may speak again.
    #[must_use]
    pub fn is_terminal(self) -> bool {
        matches!(self, Self::Failed | Self::Succeeded | Self::Timeout)
    }
}

wire_enum! {
    /// What a rollout is for.
    ///
    /// ```
    /// use agl_types::RolloutMode;
    ///
    /// assert_eq!(RolloutMode::Val.as_str(), "val");
    /// ```
    RolloutMode {
        /// Training.
        Train = "train",
        /// Validation during training.
        Val = "val",
        /// Held-out test.
        Test = "test",
    }
}

/// Time limits and retries of a rollout.
///
/// ```
/// use agl_types::{AttemptStatus, RolloutConfig};
///
/// // A minute at most, and one more try for what takes longer.
/// let config = RolloutConfig {
///     timeout_seconds: Some(60.0),
///     max_attempts: 2.try_into().unwrap(),
///     retry_condition: vec![AttemptStatus::Timeout],
///     ..RolloutConfig::default()
/// };
/// assert_eq!(config.unresponsive_seconds, None);
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default, remote = "Self")]
#[schema(default)]
pub struct RolloutConfig {
    /// Seconds from the start of an attempt until it counts as timed out.
    pub timeout_seconds: Option<f64>,
    /// Seconds of silence until an attempt counts as unresponsive.
    pub unresponsive_seconds: Option<f64>,
    /// How many attempts may be made automatically, the first included; at least 1.
    #[schema(value_type = u32, minimum = 1)]
    pub max_attempts: NonZeroU32,
    /// The attempt statuses after which another attempt is made.
    pub retry_condition: Vec<AttemptStatus>,
}

impl Default for RolloutConfig {
    fn default() -> Self {
        Self {
            timeout_seconds: None,
            unresponsive_seconds: None,
            max_attempts: NonZeroU32::MIN,
            retry_condition: Vec::new(),
        }
    }
}

impl Serialize for RolloutConfig {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Self::serialize(self, serializer)
    }
}

impl<'de> Deserialize<'de> for RolloutConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // A derived struct also takes a list for its fields in order, and `[]` would pass for the defaults.
        struct Fields;
        impl<'de> Visitor<'de> for Fields {
            type Value = RolloutConfig;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("struct RolloutConfig")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<RolloutConfig, A::Error> {
                RolloutConfig::deserialize(MapAccessDeserializer::new(map))
            }
        }
        deserializer.deserialize_map(Fields)
    }
}

/// One task to be run.
///
/// ```
/// use agl_types::{Rollout, RolloutStatus};
///
/// let wire = r#"{"rollout_id": "ro-1", "input": {"question": "?"}, "start_time": 1.5}"#;
/// let rollout: Rollout = serde_json::from_str(wire).unwrap();
/// assert_eq!((rollout.status, rollout.end_time), (RolloutStatus::Queuing, None));
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Rollout {
    /// `ro-` and 12 hexadecimal digits.
    pub rollout_id: String,
    /// The task itself, any JSON.
    pub input: Value,
    /// When it was created.
    pub start_time: f64,
    /// When it ended; set if and only if the status is terminal.
    #[serde(default)]
    pub end_time: Option<f64>,
    /// What it is for.
    #[serde(default)]
    pub mode: Option<RolloutMode>,
    /// The resources pinned at creation.
    #[serde(default)]
    pub resources_id: Option<String>,
    /// Where it stands.
    #[serde(default = "queuing")]
    pub status: RolloutStatus,
    /// Time limits and retries.
    #[serde(default)]
    pub config: RolloutConfig,
    /// Anything the algorithm wants to remember.
    #[serde(default)]
    #[schema(value_type = Option<Object>)]
    pub metadata: Option<JsonMap>,
}

fn queuing() -> RolloutStatus {
    RolloutStatus::Queuing
}

/// One try at a rollout.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Attempt {
    /// The rollout it belongs to.
    pub rollout_id: String,
    /// `at-` and 8 hexadecimal digits; unique within the rollout.
    pub attempt_id: String,
    /// 1 for the first attempt of a rollout, 2 for the second, and so on.
    pub sequence_id: u32,
    /// When it was claimed.
    pub start_time: f64,
    /// When it ended; set if and only if the status is terminal.
    #[serde(default)]
    pub end_time: Option<f64>,
    /// Where it stands.
    #[serde(default = "preparing")]
    pub status: AttemptStatus,
    /// Who works on it.
    #[serde(default)]
    pub worker_id: Option<String>,
    /// When it was last heard from (a span, or an explicit update).
    #[serde(default)]
    pub last_heartbeat_time: Option<f64>,
    /// Anything the runner wants to remember.
    #[serde(default)]
    #[schema(value_type = Option<Object>)]
    pub metadata: Option<JsonMap>,
}

fn preparing() -> AttemptStatus {
    AttemptStatus::Preparing
}

impl Attempt {
    /// The key of the metadata under which a runner says, in a word, why the attempt has not succeeded.
    pub const REASON: &str = "reason";
    /// The reason of an attempt that was called off.
    pub const CANCELLED: &str = "cancelled";

    /// Whether the attempt's metadata say that it was called off, which is no reason to try again.
    #[must_use]
    pub fn was_cancelled(&self) -> bool {
        let reason = self.metadata.as_ref().and_then(|metadata| metadata.get(Self::REASON));
        reason.is_some_and(|reason| reason == Self::CANCELLED)
    }
}

/// A rollout and the attempt that a runner holds; on the wire the rollout's keys with `attempt` last.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct AttemptedRollout {
    /// The plain rollout.
    #[serde(flatten)]
    pub rollout: Rollout,
    /// The attempt at it.
    pub attempt: Attempt,
}

/// A rollout that was claimed together with all that a runner needs to begin: see `claim_rollouts` of a store.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Claim {
    /// The rollout and the attempt at it.
    pub attempted: AttemptedRollout,
    /// The resources that the rollout names, or else the latest; none when there are none.
    pub resources: Option<ResourcesUpdate>,
}

/// A rollout as queries show it: with its latest attempt, if there has been one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RolloutView {
    /// The plain rollout.
    #[serde(flatten)]
    pub rollout: Rollout,
    /// The latest attempt; the key is absent on the wire when there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<Attempt>,
}

impl From<AttemptedRollout> for RolloutView {
    fn from(attempted: AttemptedRollout) -> Self {
        Self { rollout: attempted.rollout, attempt: Some(attempted.attempt) }
    }
}
