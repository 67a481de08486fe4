//! The operations of the engine: what each changing call does within its transaction.
//!
//! Every transition is decided by [`agl_types::lifecycle`]; what is here reads the state, applies the event, and
//! writes back what came out, effects included. An operation checks everything it can before its first write.

use std::collections::HashMap;

use agl_types::lifecycle::{self, Effect, Event, State, WorkerEvent};
use agl_types::{
    Attempt, AttemptUpdate, AttemptedRollout, DequeueRequest, EnqueueRolloutRequest, NamedResources,
    ResourcesUpdate, Rollout, RolloutUpdate, SequenceIdRequest, Span, StartRollout, Worker, WorkerUpdate,
    ids,
};
use indexmap::IndexMap;

use crate::backend::{Aftermath, Deadline, Part, Tx};
use crate::{Error, IdSource, SpanDraft};

/// How many overdue rollouts one transaction deals with at most, so that it stays short.
const OVERDUE_AT_ONCE: usize = 128;

/// One operation at work in its transaction.
pub(crate) struct Work<'a> {
    tx: &'a mut dyn Tx,
    ids: &'a dyn IdSource,
    now: f64,
    /// Workers that something happened to; written once, at the end.
    workers: IndexMap<String, Worker>,
    aftermath: Aftermath,
}

impl<'a> Work<'a> {
    pub(crate) fn new(tx: &'a mut dyn Tx, ids: &'a dyn IdSource, now: f64) -> Self {
        Self { tx, ids, now, workers: IndexMap::new(), aftermath: Aftermath::default() }
    }

    /// Ends an operation that has succeeded.
    pub(crate) fn finish(self) -> Result<Aftermath, Error> {
        for worker in self.workers.values() {
            self.tx.put_worker(worker)?;
        }
        Ok(self.aftermath)
    }

    /// Puts new rollouts into the queue.
    pub(crate) fn enqueue(&mut self, requests: Vec<EnqueueRolloutRequest>) -> Result<Vec<Rollout>, Error> {
        let latest_resources_id = self.tx.latest_resources_id()?;
        let mut rollouts = Vec::with_capacity(requests.len());
        for request in requests {
            let rollout_id = self.fresh_rollout_id()?;
            let rollout = lifecycle::create(request, rollout_id, latest_resources_id.as_deref(), self.now);
            self.tx.insert_rollout(&rollout)?;
            self.tx.push_queue(&rollout.rollout_id)?;
            rollouts.push(rollout);
        }
        Ok(rollouts)
    }

    /// Creates a rollout and starts its first attempt.
    pub(crate) fn start_rollout(&mut self, request: StartRollout) -> Result<AttemptedRollout, Error> {
        let latest_resources_id = self.tx.latest_resources_id()?;
        let rollout_id = self.fresh_rollout_id()?;
        let rollout =
            lifecycle::create(request.rollout, rollout_id, latest_resources_id.as_deref(), self.now);
        self.tx.insert_rollout(&rollout)?;
        self.begin_attempt(rollout, request.worker_id)
    }

    /// Claims rollouts from the head of the queue.
    pub(crate) fn dequeue(&mut self, request: &DequeueRequest) -> Result<Vec<AttemptedRollout>, Error> {
        let mut claimed = Vec::new();
        if request.limit <= 0 {
            return Ok(claimed);
        }
        let mut head = self.tx.queue_head()?;
        if let Some(worker_id) = request.worker_id.as_deref().filter(|id| !id.is_empty()) {
            self.tell_worker(worker_id, &WorkerEvent::Dequeued { got_work: head.is_some() })?;
        }
        while let Some(rollout_id) = head {
            let rollout = self.rollout(&rollout_id, Part::Whole)?;
            claimed.push(self.begin_attempt(rollout, request.worker_id.clone())?);
            let is_enough = i64::try_from(claimed.len()).is_ok_and(|count| count >= request.limit);
            head = if is_enough { None } else { self.tx.queue_head()? };
        }
        Ok(claimed)
    }

    /// Makes another attempt at a rollout.
    pub(crate) fn start_attempt(
        &mut self,
        rollout_id: &str,
        worker_id: Option<String>,
    ) -> Result<AttemptedRollout, Error> {
        let rollout = self.rollout(rollout_id, Part::Whole)?;
        self.begin_attempt(rollout, worker_id)
    }

    fn begin_attempt(
        &mut self,
        rollout: Rollout,
        worker_id: Option<String>,
    ) -> Result<AttemptedRollout, Error> {
        let latest = self.tx.latest_attempt(&rollout.rollout_id)?;
        let mut attempt_id = ids::attempt_id(self.ids.next());
        while latest.is_some() && self.tx.attempt(&rollout.rollout_id, &attempt_id)?.is_some() {
            attempt_id = ids::attempt_id(self.ids.next());
        }
        let sequence_id = latest.as_ref().map_or(0, |attempt| attempt.sequence_id) + 1;
        let event = Event::AttemptStarted { attempt_id, sequence_id, worker_id };
        let state = self.apply(rollout, None, latest.as_ref(), &event)?;
        let attempt = state.attempt.ok_or_else(|| Error::backend("a started attempt is missing"))?;
        Ok(AttemptedRollout { rollout: state.rollout, attempt })
    }

    /// Stores spans and returns the new ones, grouped by attempt.
    pub(crate) fn add_spans(&mut self, drafts: Vec<SpanDraft>) -> Result<Vec<Span>, Error> {
        let mut groups: IndexMap<(String, String), Vec<SpanDraft>> = IndexMap::new();
        let mut order = Vec::with_capacity(drafts.len());
        for draft in drafts {
            let key = (draft.span.rollout_id.clone(), draft.span.attempt_id.clone());
            let entry = groups.entry(key);
            let group = entry.index();
            let spans = entry.or_default();
            order.push((group, spans.len()));
            spans.push(draft);
        }
        for (rollout_id, attempt_id) in groups.keys() {
            if self.tx.attempt(rollout_id, attempt_id)?.is_none() {
                self.rollout(rollout_id, Part::Brief)?;
                return Err(Error::attempt_not_found(rollout_id, attempt_id));
            }
        }
        self.number(&mut groups, order)?;
        let mut added = Vec::new();
        for ((rollout_id, attempt_id), drafts) in groups {
            let spans: Vec<Span> = drafts.into_iter().map(|draft| draft.span).collect();
            let is_new = self.tx.insert_spans(&rollout_id, &spans)?;
            let before = added.len();
            for (span, is_new) in spans.into_iter().zip(is_new) {
                if is_new {
                    added.push(span);
                } else {
                    tracing::error!(
                        rollout_id = span.rollout_id,
                        attempt_id = span.attempt_id,
                        span_id = span.span_id,
                        "Duplicated span added: the attempt already has a span of this id, which stays"
                    );
                }
            }
            if added.len() > before {
                self.about_attempt(&rollout_id, &attempt_id, &Event::SpanReceived)?;
            }
        }
        Ok(added)
    }

    /// Issues the sequence ids that are missing and takes note of the others, in the order given.
    fn number(
        &mut self,
        groups: &mut IndexMap<(String, String), Vec<SpanDraft>>,
        order: Vec<(usize, usize)>,
    ) -> Result<(), Error> {
        let mut counters: HashMap<String, i64> = HashMap::new();
        for (group, place) in order {
            let Some(((rollout_id, _), drafts)) = groups.get_index_mut(group) else { continue };
            let Some(draft) = drafts.get_mut(place) else { continue };
            let last = match counters.get(rollout_id) {
                Some(last) => *last,
                None => self.tx.counter(rollout_id)?,
            };
            if !draft.has_sequence_id {
                draft.span.sequence_id = last.saturating_add(1);
            }
            counters.insert(rollout_id.clone(), last.max(draft.span.sequence_id));
        }
        for (rollout_id, last) in counters {
            self.tx.set_counter(&rollout_id, last)?;
        }
        Ok(())
    }

    /// Issues span sequence ids.
    pub(crate) fn issue_sequence_ids(&mut self, requests: &[SequenceIdRequest]) -> Result<Vec<i64>, Error> {
        let mut issued = Vec::with_capacity(requests.len());
        for request in requests {
            let next = self.tx.counter(&request.rollout_id)?.saturating_add(1);
            self.tx.set_counter(&request.rollout_id, next)?;
            issued.push(next);
        }
        Ok(issued)
    }

    /// Stores resources under a new id.
    pub(crate) fn add_resources(&mut self, resources: NamedResources) -> Result<ResourcesUpdate, Error> {
        let mut resources_id = ids::resources_id(self.ids.next());
        while self.tx.resources(&resources_id, None)?.is_some() {
            resources_id = ids::resources_id(self.ids.next());
        }
        self.update_resources(resources_id, resources)
    }

    /// Stores a new version of a resources id.
    pub(crate) fn update_resources(
        &mut self,
        resources_id: String,
        resources: NamedResources,
    ) -> Result<ResourcesUpdate, Error> {
        let last = self.tx.resources(&resources_id, None)?;
        let update = ResourcesUpdate {
            resources_id,
            create_time: last.as_ref().map_or(self.now, |last| last.create_time),
            update_time: self.now,
            version: last.map_or(0, |last| last.version) + 1,
            resources,
        };
        self.tx.insert_resources(&update)?;
        Ok(update)
    }

    /// Changes a rollout.
    pub(crate) fn update_rollout(
        &mut self,
        rollout_id: &str,
        update: RolloutUpdate,
    ) -> Result<Rollout, Error> {
        let Some(rollout) = self.tx.rollout(rollout_id, Part::Whole)? else {
            // 0.3's callers match on "Item ... does not exist" here and on "Rollout X not found" elsewhere.
            let message =
                format!("Rollout {rollout_id} not found (Item with rollout_id={rollout_id} does not exist)");
            return Err(Error::NotFound { message });
        };
        let latest = self.tx.latest_attempt(rollout_id)?;
        Ok(self.apply(rollout, None, latest.as_ref(), &Event::RolloutUpdated(update))?.rollout)
    }

    /// Changes an attempt, or the latest one.
    pub(crate) fn update_attempt(
        &mut self,
        rollout_id: &str,
        attempt_id: &str,
        update: AttemptUpdate,
    ) -> Result<Attempt, Error> {
        self.about_attempt(rollout_id, attempt_id, &Event::AttemptUpdated(update))
    }

    /// Takes a worker's heartbeat in.
    pub(crate) fn update_worker(&mut self, worker_id: &str, update: WorkerUpdate) -> Result<Worker, Error> {
        self.tell_worker(worker_id, &WorkerEvent::Heartbeat(update))
    }

    /// Acts upon deadlines that have passed, the earliest first, and finds out which one is next.
    pub(crate) fn pass_deadlines(&mut self) -> Result<(), Error> {
        for rollout_id in self.tx.overdue(self.now, OVERDUE_AT_ONCE)? {
            let rollout = self.rollout(&rollout_id, Part::Brief)?;
            let latest = self.tx.latest_attempt(&rollout_id)?;
            self.apply(rollout, latest.clone(), latest.as_ref(), &Event::DeadlinePassed)?;
            // Whatever came of it, this moment is over and must not come up again.
            if self.tx.overdue(self.now, 1)?.first() == Some(&rollout_id) {
                self.tx.set_deadline(&rollout_id, None)?;
            }
        }
        let earliest = self.tx.earliest_deadline()?;
        self.aftermath.deadline = Deadline::Exactly(earliest.unwrap_or(f64::INFINITY));
        Ok(())
    }

    /// Applies an implicit event to an attempt; `latest` names the one with the highest number.
    fn about_attempt(&mut self, rollout_id: &str, attempt_id: &str, event: &Event) -> Result<Attempt, Error> {
        let rollout = self.rollout(rollout_id, Part::Brief)?;
        let Some(latest) = self.tx.latest_attempt(rollout_id)? else {
            return Err(Error::NotFound { message: format!("No attempts found for rollout {rollout_id}") });
        };
        let attempt = if attempt_id == "latest" || attempt_id == latest.attempt_id {
            latest.clone()
        } else {
            self.tx
                .attempt(rollout_id, attempt_id)?
                .ok_or_else(|| Error::attempt_not_found(rollout_id, attempt_id))?
        };
        let state = self.apply(rollout, Some(attempt), Some(&latest), event)?;
        state.attempt.ok_or_else(|| Error::backend("an attempt vanished while it was updated"))
    }

    /// Applies an event, writes back what it changed and carries out its effects.
    ///
    /// `attempt` is what the event is about; `latest` is the rollout's latest attempt. The rollout may be a brief
    /// one unless the event is [`Event::RolloutUpdated`].
    fn apply(
        &mut self,
        rollout: Rollout,
        attempt: Option<Attempt>,
        latest: Option<&Attempt>,
        event: &Event,
    ) -> Result<State, Error> {
        let superseded = match (&attempt, latest) {
            (Some(attempt), Some(latest)) => attempt.attempt_id != latest.attempt_id,
            _ => false,
        };
        let deadline_before = latest.and_then(|latest| lifecycle::deadline(&rollout, latest));
        let status_before = (rollout.status, rollout.end_time);
        let attempt_before = attempt.clone();
        let transition = lifecycle::apply(State { rollout, attempt, superseded }, event, self.now)
            .map_err(|defect| Error::backend(defect.to_string()))?;
        let state = transition.state;

        if matches!(event, Event::RolloutUpdated(_)) {
            self.tx.put_rollout(&state.rollout)?;
        } else if status_before != (state.rollout.status, state.rollout.end_time) {
            self.tx.put_rollout_status(&state.rollout)?;
        }
        match (&attempt_before, &state.attempt) {
            (None, Some(attempt)) => self.tx.insert_attempt(attempt)?,
            (Some(before), Some(attempt)) if before != attempt => self.tx.put_attempt(attempt)?,
            _ => {}
        }

        let latest = if superseded { latest } else { state.attempt.as_ref().or(latest) };
        let deadline = latest.and_then(|latest| lifecycle::deadline(&state.rollout, latest));
        if deadline != deadline_before {
            self.tx.set_deadline(&state.rollout.rollout_id, deadline)?;
            if let Some(moment) = deadline {
                self.expect_deadline(moment);
            }
        }
        for effect in transition.effects {
            match effect {
                Effect::Enqueue => self.tx.push_queue(&state.rollout.rollout_id)?,
                Effect::Unqueue => self.tx.leave_queue(&state.rollout.rollout_id)?,
                Effect::Finished => self.aftermath.finished.push(state.rollout.rollout_id.clone()),
                Effect::Worker { worker_id, event } => {
                    self.tell_worker(&worker_id, &event)?;
                }
            }
        }
        Ok(state)
    }

    fn expect_deadline(&mut self, moment: f64) {
        self.aftermath.deadline = match self.aftermath.deadline {
            Deadline::NoCloser => Deadline::AtMost(moment),
            Deadline::AtMost(other) => Deadline::AtMost(moment.min(other)),
            Deadline::Exactly(other) => Deadline::Exactly(moment.min(other)),
        };
    }

    fn tell_worker(&mut self, worker_id: &str, event: &WorkerEvent) -> Result<Worker, Error> {
        let mut worker = match self.workers.get(worker_id) {
            Some(worker) => worker.clone(),
            None => self.tx.worker(worker_id)?.unwrap_or_else(|| Worker::new(worker_id)),
        };
        lifecycle::apply_to_worker(&mut worker, event, self.now);
        self.workers.insert(worker_id.to_owned(), worker.clone());
        Ok(worker)
    }

    fn rollout(&self, rollout_id: &str, part: Part) -> Result<Rollout, Error> {
        self.tx.rollout(rollout_id, part)?.ok_or_else(|| Error::rollout_not_found(rollout_id))
    }

    fn fresh_rollout_id(&self) -> Result<String, Error> {
        loop {
            let rollout_id = ids::rollout_id(self.ids.next());
            if self.tx.rollout(&rollout_id, Part::Brief)?.is_none() {
                return Ok(rollout_id);
            }
        }
    }
}
