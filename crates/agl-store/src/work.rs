//! The operations of the engine: what each changing call does within its transaction.
//!
//! Every transition is decided by [`agl_types::lifecycle`]; what is here reads the state, applies the event, and
//! writes back what came out, effects included. An operation checks everything it can before its first write.

pub(crate) mod controller;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use agl_types::lifecycle::{self, Effect, Event, State, WorkerEvent};
use agl_types::{
    Attempt, AttemptUpdate, AttemptedRollout, Claim, DequeueRequest, EnqueueRolloutRequest, NamedResources,
    PurgeReport, QueueState, ResourcesUpdate, Rollout, RolloutUpdate, SequenceIdRequest, Span, StartRollout,
    StoreEvent, Worker, WorkerUpdate, WrittenSpan, ids, semconv,
};
use indexmap::IndexMap;

use crate::backend::{Aftermath, Deadline, Ended, Part, Read, Receipt, Tx};
use crate::idempotency::{IdempotencyKey, KEPT, Replay};
use crate::raw::write_out;
use crate::{Error, IdSource, PassedOver, WrittenDraft};

/// How many overdue rollouts one transaction deals with at most, so that it stays short.
const OVERDUE_AT_ONCE: usize = 128;

/// How many spans one transaction removes at most.
const SPANS_PURGED_AT_ONCE: usize = 1_000;

/// The word that names the attempt with the highest number.
const LATEST: &str = "latest";

/// An attempt among those of its rollout.
struct Place {
    attempt: Attempt,
    latest: Attempt,
}

/// A span that was stored.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NewSpan {
    /// Which one of those given.
    pub(crate) index: usize,
    /// The number that it has now.
    pub(crate) sequence_id: i64,
}

/// The resources of this id, or else those written last.
pub(crate) fn resources_for(
    read: &dyn Read,
    resources_id: Option<&str>,
) -> Result<Option<ResourcesUpdate>, Error> {
    match resources_id {
        Some(resources_id) => read.resources(resources_id, None),
        None => match read.latest_resources_id()? {
            Some(resources_id) => read.resources(&resources_id, None),
            None => Ok(None),
        },
    }
}

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
    pub(crate) fn finish(mut self) -> Result<Aftermath, Error> {
        for worker in self.workers.values() {
            self.tx.put_worker(worker)?;
            self.aftermath.events.push(Arc::new(worker.into()));
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
            self.insert_rollout(&rollout)?;
            self.push_queue(&rollout.rollout_id)?;
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
        self.insert_rollout(&rollout)?;
        self.begin_attempt(rollout, request.worker_id)
    }

    /// Carries an operation out, unless a call under this key has done so before.
    pub(crate) fn once<T: Replay>(
        &mut self,
        key: &IdempotencyKey,
        operation: impl FnOnce(&mut Self) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let IdempotencyKey { key, fingerprint } = key;
        let known = self.tx.receipt(key)?.filter(|receipt| receipt.made > self.now - KEPT);
        if let Some(receipt) = known {
            if receipt.fingerprint != *fingerprint {
                let message = format!("idempotency key {key} was used for another request: take a new one");
                return Err(Error::Conflict { message });
            }
            let receipt = serde_json::from_str(&receipt.answer)
                .map_err(|error| Error::backend(format!("the receipt of {key} cannot be read: {error}")))?;
            return T::replay(receipt, &*self.tx);
        }
        let value = operation(self)?;
        if let Some(receipt) = value.receipt() {
            let answer = serde_json::to_string(&receipt)
                .map_err(|error| Error::backend(format!("a receipt cannot be written: {error}")))?;
            self.tx.put_receipt(key, &Receipt { fingerprint: *fingerprint, made: self.now, answer })?;
        }
        Ok(value)
    }

    /// Forgets up to `limit` of the receipts that are too old to count; tells whether there may be more.
    pub(crate) fn forget_receipts(&mut self, limit: usize) -> Result<bool, Error> {
        Ok(self.tx.forget_receipts(self.now - KEPT, limit)? == limit)
    }

    /// Removes spans of ended rollouts, so many that the transaction stays short, and returns those that remain to
    /// be looked at. Of `rollout_ids`, those that have not ended, or not before `ended_before`, are passed over.
    pub(crate) fn purge(
        &mut self,
        mut rollout_ids: VecDeque<String>,
        ended_before: Option<f64>,
    ) -> Result<(PurgeReport, VecDeque<String>), Error> {
        let mut report = PurgeReport::default();
        let mut left = SPANS_PURGED_AT_ONCE;
        while left > 0
            && let Some(rollout_id) = rollout_ids.pop_front()
        {
            let Some(rollout) = self.tx.rollout(&rollout_id, Part::Brief)? else { continue };
            let Some(end_time) =
                rollout.end_time.filter(|end| ended_before.is_none_or(|moment| *end < moment))
            else {
                continue;
            };
            let deleted = self.tx.delete_spans(&rollout_id, left)?;
            self.aftermath.counts.spans -= i64::try_from(deleted).unwrap_or(i64::MAX);
            report.spans += u64::try_from(deleted).unwrap_or(u64::MAX);
            left -= deleted;
            if left == 0 {
                rollout_ids.push_front(rollout_id);
            } else {
                // Never before the end, or it would be found purgeable again.
                self.tx.set_purged(&rollout_id, self.now.max(end_time))?;
                report.rollouts += 1;
            }
        }
        Ok((report, rollout_ids))
    }

    fn insert_rollout(&mut self, rollout: &Rollout) -> Result<(), Error> {
        self.tx.insert_rollout(rollout)?;
        self.aftermath.counts.rollouts += 1;
        self.tell(rollout);
        Ok(())
    }

    fn push_queue(&mut self, rollout_id: &str) -> Result<(), Error> {
        self.tx.push_queue(rollout_id)?;
        self.aftermath.claimable += 1;
        self.aftermath.counts.queued += 1;
        Ok(())
    }

    /// Tells the world of a change, once it is kept.
    fn tell(&mut self, change: impl Into<StoreEvent>) {
        self.aftermath.events.push(Arc::new(change.into()));
    }

    /// Claims rollouts from the head of the queue.
    pub(crate) fn dequeue(&mut self, request: &DequeueRequest) -> Result<Vec<AttemptedRollout>, Error> {
        let mut claimed = Vec::new();
        if request.limit <= 0 {
            return Ok(claimed);
        }
        let mut head = if self.tx.is_paused()? { None } else { self.tx.queue_head()? };
        if let Some(worker_id) = request.worker_id.as_deref().filter(|id| !id.is_empty()) {
            self.tell_worker(worker_id, &WorkerEvent::Dequeued { got_work: head.is_some() })?;
        }
        while let Some(rollout_id) = head {
            let rollout = self.rollout(&rollout_id, Part::Whole)?;
            let queued_at = rollout.start_time;
            let claim = self.begin_attempt(rollout, request.worker_id.clone())?;
            if claim.attempt.sequence_id == 1 {
                self.aftermath.claim_waits.push((self.now - queued_at).max(0.0));
            }
            claimed.push(claim);
            let is_enough = i64::try_from(claimed.len()).is_ok_and(|count| count >= request.limit);
            head = if is_enough { None } else { self.tx.queue_head()? };
        }
        Ok(claimed)
    }

    /// Claims rollouts, finds their resources and notes that they have started.
    pub(crate) fn claim(&mut self, request: &DequeueRequest) -> Result<Vec<Claim>, Error> {
        let mut claims = Vec::new();
        for attempted in self.dequeue(request)? {
            let resources = resources_for(&*self.tx, attempted.rollout.resources_id.as_deref())?;
            let Attempt { rollout_id, attempt_id, .. } = &attempted.attempt;
            let trace_id = ids::trace_id(self.ids.next(), self.ids.next());
            let span = ids::span_id(self.ids.next());
            let started = Span::new(semconv::AGL_STATE, trace_id, span, self.now, self.now)
                .placed(rollout_id, attempt_id, 0)
                .with_state(semconv::STATE_STARTED);
            self.add_spans(vec![WrittenDraft { span: write_out(&started)?, has_sequence_id: false }])?;
            claims.push(Claim { attempted, resources });
        }
        Ok(claims)
    }

    /// Stores the last spans of an attempt, and changes the attempt.
    pub(crate) fn end_attempt(
        &mut self,
        rollout_id: &str,
        attempt_id: &str,
        spans: Vec<WrittenDraft>,
        update: AttemptUpdate,
    ) -> Result<Attempt, Error> {
        self.add_spans(spans)?;
        self.update_attempt(rollout_id, attempt_id, update)
    }

    /// Pauses or resumes the queue.
    pub(crate) fn set_queue_state(&mut self, state: QueueState) -> Result<QueueState, Error> {
        if self.tx.is_paused()? != state.paused {
            self.tx.set_paused(state.paused)?;
            self.tell(state);
            if !state.paused {
                // Whoever waits looks again.
                self.aftermath.claimable = usize::MAX;
            }
        }
        Ok(state)
    }

    /// Makes another attempt at a rollout.
    pub(crate) fn start_attempt(
        &mut self,
        rollout_id: &str,
        worker_id: Option<String>,
    ) -> Result<AttemptedRollout, Error> {
        let rollout = self.rollout(rollout_id, Part::Whole)?;
        if self.tx.control(rollout_id)?.is_some() {
            let message = format!(
                "Rollout {rollout_id} is a controller's: it is claimed by PATCH /api/rollouts/{rollout_id} only"
            );
            return Err(Error::Conflict { message });
        }
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

    /// Stores spans and tells which are new, grouped by attempt.
    pub(crate) fn add_spans(&mut self, drafts: Vec<WrittenDraft>) -> Result<Vec<NewSpan>, Error> {
        let (new, _) = self.store_spans(drafts, |_| false)?;
        Ok(new)
    }

    /// Stores spans, passes over those of unknown rollouts and attempts, and tells why and how many.
    pub(crate) fn ingest_spans(&mut self, drafts: Vec<WrittenDraft>) -> Result<PassedOver, Error> {
        let (_, passed_over) = self.store_spans(drafts, |error| matches!(error, Error::NotFound { .. }))?;
        Ok(passed_over)
    }

    /// Stores spans, except for those of places that are wrong in a way that `is_tolerated`.
    fn store_spans(
        &mut self,
        mut drafts: Vec<WrittenDraft>,
        is_tolerated: impl Fn(&Error) -> bool,
    ) -> Result<(Vec<NewSpan>, PassedOver), Error> {
        // By attempt, the indexes of its drafts.
        let mut groups: IndexMap<(String, String), Vec<usize>> = IndexMap::new();
        for (index, WrittenDraft { span, .. }) in drafts.iter().enumerate() {
            let key = (span.rollout_id.clone(), span.attempt_id.clone());
            groups.entry(key).or_default().push(index);
        }
        let mut places = Vec::with_capacity(groups.len());
        let mut passed_over = PassedOver::new();
        for ((rollout_id, attempt_id), indexes) in groups {
            let unknown = || Error::attempt_not_found(&rollout_id, &attempt_id);
            match self.place(&rollout_id, Some(&attempt_id), unknown) {
                Ok(place) => places.push((place, indexes)),
                Err(error) if is_tolerated(&error) => {
                    passed_over.push((error.to_string(), u64::try_from(indexes.len()).unwrap_or(u64::MAX)));
                }
                Err(error) => return Err(error),
            }
        }
        let counters = self.number(&mut drafts, &places)?;
        let mut new = Vec::with_capacity(drafts.len());
        for (Place { attempt, latest }, indexes) in places {
            let rollout_id = attempt.rollout_id.clone();
            let spans: Vec<&WrittenSpan> =
                indexes.iter().filter_map(|index| drafts.get(*index)).map(|draft| &draft.span).collect();
            let is_new = self.tx.insert_spans(&rollout_id, &spans)?;
            let before = new.len();
            for ((index, span), is_new) in indexes.into_iter().zip(spans).zip(is_new) {
                if is_new {
                    self.tell(span);
                    new.push(NewSpan { index, sequence_id: span.sequence_id });
                } else {
                    tracing::error!(
                        rollout_id = span.rollout_id,
                        attempt_id = span.attempt_id,
                        span_id = span.span_id,
                        "Duplicated span added: the attempt already has a span of this id, which stays"
                    );
                }
            }
            let new_spans = new.len() - before;
            let last = counters.get(&rollout_id).copied().unwrap_or_default();
            self.tx.set_counter(&rollout_id, last, new_spans)?;
            if new_spans > 0 {
                self.aftermath.counts.spans += i64::try_from(new_spans).unwrap_or(i64::MAX);
                // Another attempt of the same rollout may have had its turn in this batch.
                let rollout = self.rollout(&rollout_id, Part::Brief)?;
                self.apply(rollout, Some(attempt), Some(&latest), &Event::SpanReceived)?;
            }
        }
        Ok((new, passed_over))
    }

    /// Issues the sequence ids that are missing, in the order of the drafts, and returns the last one of each rollout.
    fn number(
        &self,
        drafts: &mut [WrittenDraft],
        places: &[(Place, Vec<usize>)],
    ) -> Result<HashMap<String, i64>, Error> {
        let mut counters: HashMap<String, i64> = HashMap::new();
        let mut is_placed = vec![false; drafts.len()];
        for (Place { attempt, .. }, indexes) in places {
            if !counters.contains_key(&attempt.rollout_id) {
                counters.insert(attempt.rollout_id.clone(), self.tx.counter(&attempt.rollout_id)?);
            }
            for index in indexes {
                is_placed[*index] = true;
            }
        }
        for (WrittenDraft { span, has_sequence_id }, is_placed) in drafts.iter_mut().zip(is_placed) {
            let Some(last) = counters.get_mut(&span.rollout_id).filter(|_| is_placed) else { continue };
            if !*has_sequence_id {
                span.sequence_id = last.saturating_add(1);
            }
            *last = span.sequence_id.max(*last);
        }
        Ok(counters)
    }

    /// Issues span sequence ids.
    pub(crate) fn issue_sequence_ids(&mut self, requests: &[SequenceIdRequest]) -> Result<Vec<i64>, Error> {
        let mut issued = Vec::with_capacity(requests.len());
        for request in requests {
            let next = self.tx.counter(&request.rollout_id)?.saturating_add(1);
            self.tx.set_counter(&request.rollout_id, next, 0)?;
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
        self.aftermath.counts.resources += i64::from(last.is_none());
        let update = ResourcesUpdate {
            resources_id,
            create_time: last.as_ref().map_or(self.now, |last| last.create_time),
            update_time: self.now,
            version: last.map_or(0, |last| last.version) + 1,
            resources,
        };
        self.tx.insert_resources(&update)?;
        self.tell(&update);
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
        let none = || Error::NotFound { message: format!("No attempts found for rollout {rollout_id}") };
        let named = Some(attempt_id).filter(|attempt_id| *attempt_id != LATEST);
        let Place { attempt, latest } = self.place(rollout_id, named, none)?;
        let rollout = self.rollout(rollout_id, Part::Brief)?;
        let state = self.apply(rollout, Some(attempt), Some(&latest), event)?;
        state.attempt.ok_or_else(|| Error::backend("an attempt vanished while it was updated"))
    }

    /// An attempt, or the latest one, among those of its rollout; the error `none` where there are no attempts.
    fn place(
        &self,
        rollout_id: &str,
        attempt_id: Option<&str>,
        none: impl FnOnce() -> Error,
    ) -> Result<Place, Error> {
        let Some(latest) = self.tx.latest_attempt(rollout_id)? else {
            self.rollout(rollout_id, Part::Brief)?;
            return Err(none());
        };
        let attempt = match attempt_id {
            Some(attempt_id) if attempt_id != latest.attempt_id => {
                let other = self.tx.attempt(rollout_id, attempt_id)?;
                other.ok_or_else(|| Error::attempt_not_found(rollout_id, attempt_id))?
            }
            _ => latest.clone(),
        };
        Ok(Place { attempt, latest })
    }

    /// Applies an event, writes back what it changed and carries out its effects.
    ///
    /// `attempt` is what the event is about; `latest` is the rollout's latest attempt. The rollout may be a brief
    /// one unless the event is an [`Event::RolloutUpdated`] that changes more than the status.
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

        if matches!(event, Event::RolloutUpdated(update) if !update.is_of_status_alone()) {
            self.tx.put_rollout(&state.rollout)?;
            self.tell(&state.rollout);
        } else if status_before != (state.rollout.status, state.rollout.end_time) {
            self.tx.put_rollout_status(&state.rollout)?;
            self.tell(&state.rollout);
        }
        match (&attempt_before, &state.attempt) {
            (None, Some(attempt)) => {
                self.tx.insert_attempt(attempt)?;
                self.aftermath.counts.attempts += 1;
                self.tell(attempt);
            }
            (Some(before), Some(attempt)) if before != attempt => {
                self.tx.put_attempt(attempt)?;
                // A heartbeat alone is no news: the span that it came with is.
                if (before.status, &before.worker_id, &before.metadata)
                    != (attempt.status, &attempt.worker_id, &attempt.metadata)
                {
                    self.tell(attempt);
                }
            }
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
                // A controller's rollout waits for a controller, who does not look into the queue.
                Effect::Enqueue if self.tx.control(&state.rollout.rollout_id)?.is_some() => {}
                Effect::Enqueue => self.push_queue(&state.rollout.rollout_id)?,
                Effect::Unqueue => {
                    let was_queued = self.tx.leave_queue(&state.rollout.rollout_id)?;
                    self.aftermath.counts.queued -= i64::from(was_queued);
                }
                Effect::Finished => {
                    self.tx.complete(&state.rollout.rollout_id)?;
                    self.aftermath.finished.push(Ended {
                        rollout_id: state.rollout.rollout_id.clone(),
                        status: state.rollout.status,
                        mode: state.rollout.mode,
                        seconds: (self.now - state.rollout.start_time).max(0.0),
                    });
                }
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
            None => match self.tx.worker(worker_id)? {
                Some(worker) => worker,
                None => {
                    self.aftermath.counts.workers += 1;
                    Worker::new(worker_id)
                }
            },
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
