//! What a store tells its subscribers: one event a change, in the order in which the changes were kept.

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::rollout::wire_enum;
use crate::{
    Attempt, AttemptStatus, QueueState, ResourcesUpdate, Rollout, RolloutMode, RolloutStatus, Worker,
    WorkerStatus, WrittenSpan,
};

wire_enum! {
    /// What an event is about.
    EventKind {
        /// A rollout was made, changed or deleted.
        Rollout = "rollout",
        /// An attempt was made or changed.
        Attempt = "attempt",
        /// A span was stored.
        Span = "span",
        /// A version of resources was stored.
        Resources = "resources",
        /// A worker was heard from, or its work changed.
        Worker = "worker",
        /// The queue was paused or resumed.
        Queue = "queue",
    }
}

/// One change of a store: enough to know what changed and where it stands now; the thing itself is a query away.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum StoreEvent {
    /// A rollout was made, changed or deleted.
    Rollout {
        /// The rollout.
        rollout_id: String,
        /// Where it stands; null when it was deleted.
        status: Option<RolloutStatus>,
        /// What it is for.
        mode: Option<RolloutMode>,
    },
    /// An attempt was made or changed.
    Attempt {
        /// The rollout.
        rollout_id: String,
        /// The attempt.
        attempt_id: String,
        /// Its number.
        sequence_id: u32,
        /// Where it stands.
        status: AttemptStatus,
        /// Who works on it.
        worker_id: Option<String>,
    },
    /// A span was stored.
    Span {
        /// The rollout.
        rollout_id: String,
        /// The attempt.
        attempt_id: String,
        /// The span.
        span_id: String,
        /// Its place in the rollout.
        sequence_id: i64,
        /// What happened.
        name: String,
    },
    /// A version of resources was stored.
    Resources {
        /// The resources.
        resources_id: String,
        /// The version.
        version: u32,
    },
    /// A worker was heard from, or its work changed.
    Worker {
        /// The worker.
        worker_id: String,
        /// What it does.
        status: WorkerStatus,
        /// The rollout that it works on.
        rollout_id: Option<String>,
        /// The attempt that it works on.
        attempt_id: Option<String>,
    },
    /// The queue was paused or resumed.
    Queue {
        /// Whether it gives out no work.
        paused: bool,
    },
}

impl StoreEvent {
    /// What the event is about.
    #[must_use]
    pub fn kind(&self) -> EventKind {
        match self {
            Self::Rollout { .. } => EventKind::Rollout,
            Self::Attempt { .. } => EventKind::Attempt,
            Self::Span { .. } => EventKind::Span,
            Self::Resources { .. } => EventKind::Resources,
            Self::Worker { .. } => EventKind::Worker,
            Self::Queue { .. } => EventKind::Queue,
        }
    }

    /// The rollout that the event belongs to.
    #[must_use]
    pub fn rollout_id(&self) -> Option<&str> {
        match self {
            Self::Rollout { rollout_id, .. }
            | Self::Attempt { rollout_id, .. }
            | Self::Span { rollout_id, .. } => Some(rollout_id),
            Self::Worker { rollout_id, .. } => rollout_id.as_deref(),
            Self::Resources { .. } | Self::Queue { .. } => None,
        }
    }
}

impl From<&Rollout> for StoreEvent {
    fn from(rollout: &Rollout) -> Self {
        Self::Rollout {
            rollout_id: rollout.rollout_id.clone(),
            status: Some(rollout.status),
            mode: rollout.mode,
        }
    }
}

impl From<&Attempt> for StoreEvent {
    fn from(attempt: &Attempt) -> Self {
        Self::Attempt {
            rollout_id: attempt.rollout_id.clone(),
            attempt_id: attempt.attempt_id.clone(),
            sequence_id: attempt.sequence_id,
            status: attempt.status,
            worker_id: attempt.worker_id.clone(),
        }
    }
}

impl From<&WrittenSpan> for StoreEvent {
    fn from(span: &WrittenSpan) -> Self {
        Self::Span {
            rollout_id: span.rollout_id.clone(),
            attempt_id: span.attempt_id.clone(),
            span_id: span.span_id.clone(),
            sequence_id: span.sequence_id,
            name: span.name.clone(),
        }
    }
}

impl From<&ResourcesUpdate> for StoreEvent {
    fn from(update: &ResourcesUpdate) -> Self {
        Self::Resources { resources_id: update.resources_id.clone(), version: update.version }
    }
}

impl From<&Worker> for StoreEvent {
    fn from(worker: &Worker) -> Self {
        Self::Worker {
            worker_id: worker.worker_id.clone(),
            status: worker.status,
            rollout_id: worker.current_rollout_id.clone(),
            attempt_id: worker.current_attempt_id.clone(),
        }
    }
}

impl From<QueueState> for StoreEvent {
    fn from(QueueState { paused }: QueueState) -> Self {
        Self::Queue { paused }
    }
}

/// Which events to follow; every condition must hold, and an absent one holds always.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, IntoParams)]
#[serde(default)]
#[into_params(parameter_in = Query)]
pub struct EventQuery {
    /// The event is about one of these.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind_in: Option<Vec<EventKind>>,
    /// The event belongs to one of these rollouts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rollout_id_in: Option<Vec<String>>,
    /// The event is a span of this name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub span_name: Option<String>,
    /// The id of the event after which to begin; the next event to come when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
}

impl EventQuery {
    /// Whether `event` is one of those to follow.
    #[must_use]
    pub fn matches(&self, event: &StoreEvent) -> bool {
        let is_kind = self.kind_in.as_ref().is_none_or(|kinds| kinds.contains(&event.kind()));
        let is_rollout = self.rollout_id_in.as_ref().is_none_or(|ids| {
            event.rollout_id().is_some_and(|rollout_id| ids.iter().any(|id| id == rollout_id))
        });
        let is_name = self
            .span_name
            .as_ref()
            .is_none_or(|wanted| matches!(event, StoreEvent::Span { name, .. } if name == wanted));
        is_kind && is_rollout && is_name
    }
}

/// What a subscriber gets.
#[derive(Debug, Clone, PartialEq)]
pub enum FeedItem {
    /// The first item of a subscription that does not resume: everything after this id follows.
    Start {
        /// Where to resume after.
        id: String,
    },
    /// A change.
    Event {
        /// Where to resume after: see [`EventQuery::after`].
        id: String,
        /// The change.
        event: StoreEvent,
    },
    /// Events that the subscriber would have got are missing here.
    Gap(Gap),
}

/// Missing events.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gap {
    /// How many; null when nobody knows.
    pub dropped: Option<u64>,
    /// Why.
    pub reason: String,
}
