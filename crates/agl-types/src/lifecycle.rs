//! The one state machine of rollouts, attempts and workers, as pure functions from (state, event, now) to
//! (new state, effects).
//!
//! Whoever keeps the state (a store backend) reads it, calls [`apply`], writes back what comes out and carries
//! out the effects, all in one transaction. Nothing here knows a clock, an id source or a database.
//!
//! Two kinds of events are told apart. *Explicit* ones are commands about the rollout itself: a claim or
//! restart ([`Event::AttemptStarted`]) and [`Event::RolloutUpdated`]. All others are *implicit*: a span, a
//! deadline, news of an attempt. **No implicit event moves a rollout out of a terminal status.**

use std::num::NonZeroU32;

use crate::{
    Attempt, AttemptStatus, AttemptUpdate, EnqueueRolloutRequest, Rollout, RolloutConfig, RolloutStatus,
    RolloutUpdate, Worker, WorkerStatus, WorkerUpdate,
};

/// What an event is applied to.
#[derive(Debug, Clone, PartialEq)]
pub struct State {
    /// The rollout.
    pub rollout: Rollout,
    /// The attempt that the event is about; none for events about the rollout alone.
    pub attempt: Option<Attempt>,
    /// Whether the rollout has a later attempt than this one. News of a superseded attempt is kept with the
    /// attempt and changes nothing else.
    pub superseded: bool,
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A worker takes the rollout on: by dequeue, by `start_rollout` or by `start_attempt`. Explicit; allowed
    /// from any status, and beyond `max_attempts`.
    AttemptStarted {
        /// The id of the new attempt.
        attempt_id: String,
        /// Its number: one more than the attempts made so far.
        sequence_id: u32,
        /// Who takes it on.
        worker_id: Option<String>,
    },
    /// A span of the attempt came in. It is also the attempt's heartbeat.
    SpanReceived,
    /// A deadline of the attempt may have passed; see [`deadline`].
    DeadlinePassed,
    /// Somebody reports on the attempt.
    AttemptUpdated(AttemptUpdate),
    /// Somebody changes the rollout. Explicit.
    RolloutUpdated(RolloutUpdate),
}

/// What has to happen beside writing the new state back.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// The rollout enters the queue at its tail.
    Enqueue,
    /// The rollout leaves the queue.
    Unqueue,
    /// The rollout has ended (again): whoever waits for it is told.
    Finished,
    /// Something happened to this worker; see [`apply_to_worker`].
    Worker {
        /// Which worker.
        worker_id: String,
        /// What happened.
        event: WorkerEvent,
    },
}

/// Something that happened to a worker.
#[derive(Debug, Clone, PartialEq)]
pub enum WorkerEvent {
    /// It asked the queue for work; a claim, if there was one, follows as [`WorkerEvent::Claimed`].
    Dequeued {
        /// Whether it was given any.
        got_work: bool,
    },
    /// It holds this attempt.
    Claimed {
        /// The rollout.
        rollout_id: String,
        /// The attempt.
        attempt_id: String,
    },
    /// It is done with this attempt.
    Released {
        /// The attempt.
        attempt_id: String,
    },
    /// It was not heard from, and this attempt was given up.
    Lost {
        /// The attempt.
        attempt_id: String,
    },
    /// It says that it lives.
    Heartbeat(WorkerUpdate),
}

/// A state and what follows from it.
#[derive(Debug, Clone, PartialEq)]
pub struct Transition {
    /// The new state.
    pub state: State,
    /// What has to happen beside writing it back, in this order.
    pub effects: Vec<Effect>,
}

/// An event that makes no sense for the state it was applied to; a defect of the caller.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// News of an attempt without the attempt.
    #[error("the event is about an attempt, but the state of rollout {rollout_id} has none")]
    NoAttempt {
        /// The rollout.
        rollout_id: String,
    },
}

/// A rollout as it is created by an enqueue: queuing. The caller puts it into the queue.
///
/// `latest_resources_id` is pinned when the request names no resources itself.
#[must_use]
pub fn create(
    request: EnqueueRolloutRequest,
    rollout_id: String,
    latest_resources_id: Option<&str>,
    now: f64,
) -> Rollout {
    Rollout {
        rollout_id,
        input: request.input,
        start_time: now,
        end_time: None,
        mode: request.mode,
        resources_id: request.resources_id.or_else(|| latest_resources_id.map(str::to_owned)),
        status: RolloutStatus::Queuing,
        config: request.config.unwrap_or_default(),
        metadata: Some(request.metadata.unwrap_or_default()),
    }
}

/// The status that a rollout takes on when its latest attempt has `status`.
///
/// A failure leads to another attempt if `retry_condition` names it and attempts are left.
#[must_use]
pub fn project(status: AttemptStatus, sequence_id: u32, config: &RolloutConfig) -> RolloutStatus {
    match status {
        AttemptStatus::Preparing => RolloutStatus::Preparing,
        AttemptStatus::Running => RolloutStatus::Running,
        AttemptStatus::Succeeded => RolloutStatus::Succeeded,
        AttemptStatus::Failed | AttemptStatus::Timeout | AttemptStatus::Unresponsive => {
            let attempts_left = sequence_id < NonZeroU32::get(config.max_attempts);
            if attempts_left && config.retry_condition.contains(&status) {
                RolloutStatus::Requeuing
            } else {
                RolloutStatus::Failed
            }
        }
    }
}

/// The moment after which the attempt has run too long or been silent too long, whichever comes first.
///
/// None when nothing bounds it, or when it is not being worked on. `attempt` must be the latest one.
#[must_use]
pub fn deadline(rollout: &Rollout, attempt: &Attempt) -> Option<f64> {
    if !is_watched(rollout, attempt) {
        return None;
    }
    match (timeout_at(rollout, attempt), unresponsive_at(rollout, attempt)) {
        (Some(timeout), Some(silence)) => Some(timeout.min(silence)),
        (timeout, silence) => timeout.or(silence),
    }
}

/// Which deadline of the attempt has passed at `now`, if any; a timeout wins over silence.
#[must_use]
pub fn overdue(rollout: &Rollout, attempt: &Attempt, now: f64) -> Option<AttemptStatus> {
    if !is_watched(rollout, attempt) {
        return None;
    }
    if timeout_at(rollout, attempt).is_some_and(|at| now > at) {
        return Some(AttemptStatus::Timeout);
    }
    if unresponsive_at(rollout, attempt).is_some_and(|at| now > at) {
        return Some(AttemptStatus::Unresponsive);
    }
    None
}

fn is_watched(rollout: &Rollout, attempt: &Attempt) -> bool {
    rollout.status.is_active() && matches!(attempt.status, AttemptStatus::Preparing | AttemptStatus::Running)
}

fn timeout_at(rollout: &Rollout, attempt: &Attempt) -> Option<f64> {
    rollout.config.timeout_seconds.map(|seconds| attempt.start_time + seconds)
}

fn unresponsive_at(rollout: &Rollout, attempt: &Attempt) -> Option<f64> {
    let last_heard = attempt.last_heartbeat_time.unwrap_or(attempt.start_time);
    rollout.config.unresponsive_seconds.map(|seconds| last_heard + seconds)
}

/// Applies `event` to `state` at the moment `now`.
///
/// # Errors
/// [`Error::NoAttempt`] when the event is about an attempt and the state holds none.
pub fn apply(state: State, event: &Event, now: f64) -> Result<Transition, Error> {
    let mut step = Step { state, effects: Vec::new(), now };
    match event {
        Event::AttemptStarted { attempt_id, sequence_id, worker_id } => {
            step.start_attempt(attempt_id, *sequence_id, worker_id.as_deref());
        }
        Event::SpanReceived => step.receive_span()?,
        Event::DeadlinePassed => step.pass_deadline()?,
        Event::AttemptUpdated(update) => step.update_attempt(update)?,
        Event::RolloutUpdated(update) => step.update_rollout(update),
    }
    Ok(Transition { state: step.state, effects: step.effects })
}

struct Step {
    state: State,
    effects: Vec<Effect>,
    now: f64,
}

impl Step {
    fn attempt(&mut self) -> Result<&mut Attempt, Error> {
        let rollout_id = &self.state.rollout.rollout_id;
        self.state.attempt.as_mut().ok_or_else(|| Error::NoAttempt { rollout_id: rollout_id.clone() })
    }

    fn start_attempt(&mut self, attempt_id: &str, sequence_id: u32, worker_id: Option<&str>) {
        let rollout_id = self.state.rollout.rollout_id.clone();
        self.state.attempt = Some(Attempt {
            rollout_id: rollout_id.clone(),
            attempt_id: attempt_id.to_owned(),
            sequence_id,
            start_time: self.now,
            end_time: None,
            status: AttemptStatus::Preparing,
            worker_id: worker_id.map(str::to_owned),
            last_heartbeat_time: None,
            metadata: None,
        });
        self.state.superseded = false;
        self.set_rollout_status(RolloutStatus::Preparing);
        if let Some(worker_id) = worker_id.filter(|id| !id.is_empty()) {
            let event = WorkerEvent::Claimed { rollout_id, attempt_id: attempt_id.to_owned() };
            self.effects.push(Effect::Worker { worker_id: worker_id.to_owned(), event });
        }
    }

    fn receive_span(&mut self) -> Result<(), Error> {
        let now = self.now;
        let attempt = self.attempt()?;
        attempt.last_heartbeat_time = Some(now);
        let was = attempt.status;
        if matches!(was, AttemptStatus::Preparing | AttemptStatus::Unresponsive) {
            attempt.status = AttemptStatus::Running;
        }
        let is = attempt.status;
        if was == AttemptStatus::Unresponsive {
            // The worker was given up together with the attempt, and is back with it.
            self.sync_worker();
        }
        let waiting = matches!(
            self.state.rollout.status,
            RolloutStatus::Preparing | RolloutStatus::Queuing | RolloutStatus::Requeuing
        );
        if is == AttemptStatus::Running && waiting && !self.state.superseded {
            self.set_rollout_status(RolloutStatus::Running);
        }
        Ok(())
    }

    fn pass_deadline(&mut self) -> Result<(), Error> {
        let now = self.now;
        self.attempt()?;
        if self.state.superseded {
            return Ok(());
        }
        let late = self.state.attempt.as_ref().and_then(|attempt| overdue(&self.state.rollout, attempt, now));
        if let Some(status) = late {
            self.set_attempt_status(status)?;
        }
        Ok(())
    }

    fn update_attempt(&mut self, update: &AttemptUpdate) -> Result<(), Error> {
        let attempt = self.attempt()?;
        let attempt_id = attempt.attempt_id.clone();
        let previous_worker = attempt.worker_id.clone().filter(|id| !id.is_empty());
        update.worker_id.apply_to(&mut attempt.worker_id);
        // The empty name is kept like any other, but is nobody: no worker is told of it.
        let handed_over = attempt.worker_id != previous_worker && attempt.worker_id.as_deref() != Some("");
        update.last_heartbeat_time.apply_to(&mut attempt.last_heartbeat_time);
        update.metadata.apply_to(&mut attempt.metadata);
        if let Some(worker_id) = previous_worker.filter(|_| handed_over) {
            self.effects.push(Effect::Worker { worker_id, event: WorkerEvent::Released { attempt_id } });
        }
        if let Some(status) = update.status.as_set() {
            self.set_attempt_status(*status)?;
        } else if update.worker_id.is_set() {
            self.sync_worker();
        }
        Ok(())
    }

    fn update_rollout(&mut self, update: &RolloutUpdate) {
        let rollout = &mut self.state.rollout;
        update.input.apply_to(&mut rollout.input);
        update.mode.apply_to(&mut rollout.mode);
        update.resources_id.apply_to(&mut rollout.resources_id);
        update.config.apply_to(&mut rollout.config);
        update.metadata.apply_to(&mut rollout.metadata);
        if let Some(status) = update.status.as_set() {
            self.set_rollout_status(*status);
        }
    }

    /// Sets the attempt's status, and carries it over to the worker and, unless the attempt is superseded or
    /// the rollout has ended, to the rollout.
    fn set_attempt_status(&mut self, status: AttemptStatus) -> Result<(), Error> {
        let now = self.now;
        let attempt = self.attempt()?;
        attempt.status = status;
        attempt.end_time = status.is_terminal().then_some(now);
        let (sequence_id, was_cancelled) = (attempt.sequence_id, attempt.was_cancelled());
        self.sync_worker();
        if !self.state.superseded && !self.state.rollout.status.is_terminal() {
            let projected = match project(status, sequence_id, &self.state.rollout.config) {
                RolloutStatus::Requeuing if was_cancelled => RolloutStatus::Failed,
                projected => projected,
            };
            if projected != self.state.rollout.status {
                self.set_rollout_status(projected);
            }
        }
        Ok(())
    }

    fn set_rollout_status(&mut self, status: RolloutStatus) {
        let rollout = &mut self.state.rollout;
        let was_queuing = rollout.status.is_queuing();
        rollout.status = status;
        rollout.end_time = status.is_terminal().then_some(self.now);
        match (was_queuing, status.is_queuing()) {
            (false, true) => self.effects.push(Effect::Enqueue),
            (true, false) => self.effects.push(Effect::Unqueue),
            _ => {}
        }
        if status.is_terminal() {
            self.effects.push(Effect::Finished);
        }
    }

    fn sync_worker(&mut self) {
        let Some(attempt) = &self.state.attempt else { return };
        let Some(worker_id) = attempt.worker_id.clone().filter(|id| !id.is_empty()) else { return };
        let attempt_id = attempt.attempt_id.clone();
        let event = match attempt.status {
            AttemptStatus::Succeeded | AttemptStatus::Failed => WorkerEvent::Released { attempt_id },
            AttemptStatus::Timeout | AttemptStatus::Unresponsive => WorkerEvent::Lost { attempt_id },
            // A superseded attempt that goes on keeps nobody from newer work.
            AttemptStatus::Preparing | AttemptStatus::Running if self.state.superseded => return,
            AttemptStatus::Preparing | AttemptStatus::Running => {
                WorkerEvent::Claimed { rollout_id: attempt.rollout_id.clone(), attempt_id }
            }
        };
        self.effects.push(Effect::Worker { worker_id, event });
    }
}

/// Applies `event` to `worker` at the moment `now`.
///
/// News of an attempt that the worker no longer holds, because it holds another one by now, changes nothing.
pub fn apply_to_worker(worker: &mut Worker, event: &WorkerEvent, now: f64) {
    match event {
        WorkerEvent::Dequeued { got_work } => {
            worker.last_dequeue_time = Some(now);
            if !got_work {
                if worker.status != WorkerStatus::Idle {
                    worker.status = WorkerStatus::Idle;
                    worker.last_idle_time = Some(now);
                }
                worker.current_rollout_id = None;
                worker.current_attempt_id = None;
            }
        }
        WorkerEvent::Claimed { rollout_id, attempt_id } => {
            worker.status = WorkerStatus::Busy;
            worker.last_busy_time = Some(now);
            worker.current_rollout_id = Some(rollout_id.clone());
            worker.current_attempt_id = Some(attempt_id.clone());
        }
        WorkerEvent::Released { attempt_id } => leave(worker, attempt_id, WorkerStatus::Idle, now),
        WorkerEvent::Lost { attempt_id } => leave(worker, attempt_id, WorkerStatus::Unknown, now),
        WorkerEvent::Heartbeat(update) => {
            worker.last_heartbeat_time = Some(now);
            if let Some(stats) = update.heartbeat_stats.as_set() {
                worker.heartbeat_stats = Some(stats.clone());
            }
        }
    }
}

fn leave(worker: &mut Worker, attempt_id: &str, status: WorkerStatus, now: f64) {
    if worker.current_attempt_id.as_deref().is_some_and(|current| current != attempt_id) {
        return;
    }
    worker.status = status;
    worker.last_idle_time = Some(now);
    worker.current_rollout_id = None;
    worker.current_attempt_id = None;
}
