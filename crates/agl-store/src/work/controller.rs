//! The operations of the 1.0 contract: rollouts that controllers claim by name, events, models, deletion.

use agl_types::lifecycle::{self, Event as Change, WorkerEvent};
use agl_types::v1::{
    self, Completion, CompletionQuery, Completions, Control, Event, EventCreate, EventsQuery, LATEST_ATTEMPT,
    Model, ModelKey, RolloutCreate, RolloutDetail, RolloutQuery, State, StatusUpdate, attempt_label,
};
use agl_types::{
    Attempt, AttemptQuery, AttemptStatus, AttemptUpdate, EnqueueRolloutRequest, Rollout, RolloutConfig,
    RolloutMode, RolloutStatus, RolloutUpdate, Span, SpanQuery, StoreEvent, ids,
};

use super::{SPANS_PURGED_AT_ONCE, Work};
use crate::backend::{Having, Part, Read};
use crate::idempotency::{Replay, deleted};
use crate::query::Selection;
use crate::raw::write_out;
use crate::{Error, WrittenDraft, engine};

impl Work<'_> {
    /// Makes rollouts that wait for a controller, and returns them together with those that were there already.
    pub(crate) fn create_controlled(
        &mut self,
        requests: Vec<RolloutCreate>,
    ) -> Result<Vec<v1::Rollout>, Error> {
        let mut rollouts = Vec::with_capacity(requests.len());
        for RolloutCreate { input, is_train, config, metadata, rollout_id } in requests {
            let rollout_id = match rollout_id.filter(|id| !id.is_empty()) {
                Some(rollout_id) => rollout_id,
                None => ids::uuid(self.ids.next(), self.ids.next()),
            };
            if let Some(known) = view(self.tx, &rollout_id)? {
                rollouts.push(known);
                continue;
            }
            let run_config = config.unwrap_or_default();
            let timeout_seconds = Some(run_config.deadline_seconds());
            let request = EnqueueRolloutRequest {
                input,
                mode: Some(if is_train { RolloutMode::Train } else { RolloutMode::Val }),
                resources_id: None,
                config: Some(RolloutConfig { timeout_seconds, ..RolloutConfig::default() }),
                metadata,
            };
            let rollout = lifecycle::create(request, rollout_id, None, self.now);
            let control = Control::new(self.now);
            self.insert_rollout(&rollout)?;
            self.tx.insert_control(&rollout.rollout_id, &control, &run_config)?;
            rollouts.push(v1::Rollout::view(rollout, None, Some((control, run_config))));
        }
        Ok(rollouts)
    }

    /// Takes over what a controller says about a rollout of theirs. Going on to running is a claim.
    pub(crate) fn update_controlled(
        &mut self,
        rollout_id: &str,
        update: &StatusUpdate,
    ) -> Result<v1::Rollout, Error> {
        let rollout = self.rollout(rollout_id, Part::Brief)?;
        let Some(mut control) = self.tx.control(rollout_id)? else {
            let message =
                format!("Rollout {rollout_id} is a runner's: it is changed through `/v1/agl/rollouts` only");
            return Err(Error::Conflict { message });
        };
        if !update.is_empty() {
            if let Some(next) = update.state.as_set() {
                self.change_state(rollout, *next, &mut control)?;
            }
            control.update(update, self.now);
            self.tx.put_control(rollout_id, &control)?;
        }
        view(self.tx, rollout_id)?.ok_or_else(|| Error::rollout_not_found(rollout_id))
    }

    fn change_state(&mut self, rollout: Rollout, next: State, control: &mut Control) -> Result<(), Error> {
        let state = State::from(rollout.status);
        let latest = self.tx.latest_attempt(&rollout.rollout_id)?;
        if !state.may_become(next) {
            let message = format!("Rollout {}: cannot transition {state} -> {next}", rollout.rollout_id);
            return Err(Error::Conflict { message });
        }
        let (attempt_status, status) = match next {
            State::Succeeded => (AttemptStatus::Succeeded, RolloutStatus::Succeeded),
            State::Failed => (AttemptStatus::Failed, RolloutStatus::Failed),
            State::Queuing | State::Running => {
                control.error_message = None;
                let waited_since = rollout.start_time;
                let claim = self.begin_attempt(rollout, None)?;
                if claim.attempt.sequence_id == 1 {
                    self.aftermath.claim_waits.push((self.now - waited_since).max(0.0));
                }
                return Ok(());
            }
        };
        let mut rollout = rollout;
        let under_way = |attempt: &Attempt| !attempt.status.is_terminal();
        if let Some(attempt) = latest.clone().filter(under_way).filter(|_| state == State::Running) {
            let ended =
                Change::AttemptUpdated(AttemptUpdate { status: attempt_status.into(), ..Default::default() });
            rollout = self.apply(rollout, Some(attempt), latest.as_ref(), &ended)?.rollout;
        }
        if rollout.status != status {
            let latest = self.tx.latest_attempt(&rollout.rollout_id)?;
            let ended = Change::RolloutUpdated(RolloutUpdate { status: status.into(), ..Default::default() });
            self.apply(rollout, None, latest.as_ref(), &ended)?;
        }
        Ok(())
    }

    /// Stores what an agent tells as a span of its attempt.
    pub(crate) fn add_event(
        &mut self,
        rollout_id: &str,
        attempt_id: &str,
        event: EventCreate,
    ) -> Result<Told, Error> {
        self.rollout(rollout_id, Part::Brief)?;
        let Some(attempt) = resolve(self.tx, rollout_id, attempt_id)? else {
            if attempt_id != LATEST_ATTEMPT {
                return Err(Error::attempt_not_found(rollout_id, attempt_id));
            }
            let message = format!(
                "Rollout {rollout_id} has no attempt that the event could belong to: claim it first, with state running"
            );
            return Err(Error::Conflict { message });
        };
        let trace_id = ids::trace_id(self.ids.next(), self.ids.next());
        let span = agl_trace::event_span(event, trace_id, ids::span_id(self.ids.next()), self.now);
        let mut span = span.placed(rollout_id, &attempt.attempt_id, 0);
        let draft = WrittenDraft { span: write_out(&span)?, has_sequence_id: false };
        let added = self.add_spans(vec![draft])?;
        let stored = added.first();
        span.sequence_id = stored
            .ok_or_else(|| Error::backend("an event was not stored: its span id is taken"))?
            .sequence_id;
        Told::new(self.tx, span)
    }

    /// Removes a rollout and all that belongs to it, or for a start some of its spans, so that the transaction stays
    /// short.
    pub(crate) fn delete_rollout(&mut self, rollout_id: &str) -> Result<Deletion, Error> {
        let rollout = self.rollout(rollout_id, Part::Brief)?;
        let deleted = self.tx.delete_spans(rollout_id, SPANS_PURGED_AT_ONCE)?;
        self.aftermath.counts.spans -= i64::try_from(deleted).unwrap_or(i64::MAX);
        if deleted == SPANS_PURGED_AT_ONCE {
            return Ok(Deletion::Partial);
        }
        for attempt in attempts(self.tx, rollout_id)? {
            self.aftermath.counts.attempts -= 1;
            let Some(worker_id) = attempt.worker_id.filter(|id| !id.is_empty()) else { continue };
            let holds = |worker: agl_types::Worker| {
                worker.current_rollout_id.as_deref() == Some(rollout_id)
                    && worker.current_attempt_id.as_deref() == Some(&attempt.attempt_id)
            };
            if self.tx.worker(&worker_id)?.is_some_and(holds) {
                self.tell_worker(&worker_id, &WorkerEvent::Released { attempt_id: attempt.attempt_id })?;
            }
        }
        let was_queued = self.tx.leave_queue(rollout_id)?;
        self.aftermath.counts.queued -= i64::from(was_queued);
        self.tx.delete_rollout(rollout_id)?;
        self.aftermath.counts.rollouts -= 1;
        self.aftermath.deleted.push(rollout_id.to_owned());
        self.tell(StoreEvent::Rollout {
            rollout_id: rollout_id.to_owned(),
            status: None,
            mode: rollout.mode,
        });
        Ok(Deletion::Whole)
    }

    /// Registers models, or new versions of known ones.
    pub(crate) fn register_models(&mut self, models: Vec<Model>) -> Result<Vec<Model>, Error> {
        for model in &models {
            self.tx.put_model(model)?;
        }
        Ok(models)
    }

    /// Removes one model, or all of them.
    pub(crate) fn delete_models(&mut self, key: Option<&ModelKey>) -> Result<(), Error> {
        self.tx.delete_models(key)
    }
}

/// How far a rollout was deleted.
pub(crate) enum Deletion {
    /// Some of its spans are gone.
    Partial,
    /// Nothing is left.
    Whole,
}

impl Replay for Deletion {
    type Receipt = ();

    fn receipt(&self) -> Option<()> {
        matches!(self, Self::Whole).then_some(())
    }

    fn replay((): (), _: &dyn Read) -> Result<Self, Error> {
        Ok(Self::Whole)
    }
}

/// An event that was stored, and the span that it is.
pub(crate) struct Told {
    pub(crate) event: Event,
    span: Span,
}

impl Told {
    fn new(read: &dyn Read, span: Span) -> Result<Self, Error> {
        let mut event =
            agl_trace::read_event(&span).ok_or_else(|| Error::backend("an event's span is none"))?;
        event.attempt_id = label(read, &span.rollout_id, &span.attempt_id)?;
        Ok(Self { event, span })
    }
}

impl Replay for Told {
    type Receipt = <Span as Replay>::Receipt;

    fn receipt(&self) -> Option<Self::Receipt> {
        self.span.receipt()
    }

    fn replay(receipt: Self::Receipt, read: &dyn Read) -> Result<Self, Error> {
        Self::new(read, Span::replay(receipt, read)?)
    }
}

impl Replay for v1::Rollout {
    type Receipt = String;

    fn receipt(&self) -> Option<String> {
        Some(self.rollout_id.clone())
    }

    fn replay(rollout_id: String, read: &dyn Read) -> Result<Self, Error> {
        view(read, &rollout_id)?.ok_or_else(|| deleted("rollout", &rollout_id))
    }
}

/// A model is its own receipt.
impl Replay for Model {
    type Receipt = Self;

    fn receipt(&self) -> Option<Self> {
        Some(self.clone())
    }

    fn replay(receipt: Self, _: &dyn Read) -> Result<Self, Error> {
        Ok(receipt)
    }
}

/// One rollout as 1.0 sees it.
pub(crate) fn view(read: &dyn Read, rollout_id: &str) -> Result<Option<v1::Rollout>, Error> {
    let Some(rollout) = read.rollout(rollout_id, Part::Whole)? else { return Ok(None) };
    let latest = read.latest_attempt(rollout_id)?;
    let control = read.control(rollout_id)?.zip(read.run_config(rollout_id)?);
    Ok(Some(v1::Rollout::view(rollout, latest.as_ref(), control)))
}

/// One rollout with the names of its attempts.
pub(crate) fn detail(read: &dyn Read, rollout_id: &str) -> Result<Option<RolloutDetail>, Error> {
    let Some(rollout) = view(read, rollout_id)? else { return Ok(None) };
    let is_controlled = read.control(rollout_id)?.is_some();
    let attempts = attempts(read, rollout_id)?;
    let last = attempts.len();
    let labels = (1..).zip(&attempts).map(|(number, attempt)| {
        attempt_label(&attempt.attempt_id, number == last, is_controlled).to_owned()
    });
    Ok(Some(RolloutDetail { rollout, attempts: labels.collect() }))
}

/// Rollouts in certain states.
pub(crate) fn list(read: &dyn Read, query: &RolloutQuery) -> Result<Vec<v1::Rollout>, Error> {
    let mut statuses: Vec<Having> = Vec::new();
    for state in &query.state_in {
        // What is not a controller's must not look as if it waited for one, or needed one.
        let having = |status: &RolloutStatus| Having { status: *status, is_controlled: !state.is_terminal() };
        for having in state.statuses().iter().map(having) {
            if !statuses.contains(&having) {
                statuses.push(having);
            }
        }
    }
    let limit = usize::try_from(query.limit).unwrap_or(usize::MAX);
    let found = read.having(&statuses, limit)?;
    let rollouts = found.iter().filter_map(|rollout_id| view(read, rollout_id).transpose());
    rollouts.collect()
}

/// The events of the attempt that the rollout's controller named last, or else of the latest, in order.
pub(crate) fn events(read: &dyn Read, query: &EventsQuery) -> Result<Vec<Event>, Error> {
    let EventsQuery { rollout_id, event_type } = query;
    if read.rollout(rollout_id, Part::Brief)?.is_none() {
        return Err(Error::rollout_not_found(rollout_id));
    }
    let named = read.control(rollout_id)?.and_then(|control| control.last_attempt_id);
    let Some(attempt) = resolve(read, rollout_id, named.as_deref().unwrap_or(LATEST_ATTEMPT))? else {
        return Ok(Vec::new());
    };
    let in_order = Selection::spans(&SpanQuery::default())?;
    let (spans, _) = engine::spans(read, rollout_id, Some(&attempt.attempt_id), &in_order)?;
    let label = label(read, rollout_id, &attempt.attempt_id)?;
    let mut events = Vec::new();
    for span in &spans {
        let event = agl_trace::read_event(&span.parse()?);
        let is_asked_for =
            |event: &Event| event_type.as_ref().is_none_or(|wanted| *wanted == event.event_type);
        events.extend(event.filter(is_asked_for).map(|event| Event { attempt_id: label.clone(), ..event }));
    }
    Ok(events)
}

/// A part of the completion log.
pub(crate) fn completions(read: &dyn Read, query: CompletionQuery) -> Result<Completions, Error> {
    let after = query.after.max(0);
    let limit = usize::try_from(query.limit.max(1)).unwrap_or(usize::MAX);
    let found = read.completions(after, limit)?;
    let total_terminal = read.last_completion()?;
    let next_after = match found.last() {
        Some((place, _)) if found.len() == limit => *place,
        _ => total_terminal.max(after),
    };
    let mut items = Vec::with_capacity(found.len());
    for (_, rollout_id) in &found {
        items.extend(read.rollout(rollout_id, Part::Whole)?.as_ref().map(Completion::from));
    }
    Ok(Completions { items, next_after, total_terminal })
}

/// The attempt of this id, or the latest.
fn resolve(read: &dyn Read, rollout_id: &str, attempt_id: &str) -> Result<Option<Attempt>, Error> {
    match attempt_id {
        LATEST_ATTEMPT => read.latest_attempt(rollout_id),
        _ => read.attempt(rollout_id, attempt_id),
    }
}

/// What 1.0 calls an attempt.
fn label(read: &dyn Read, rollout_id: &str, attempt_id: &str) -> Result<String, Error> {
    let latest = read.latest_attempt(rollout_id)?;
    let is_latest = latest.is_some_and(|latest| latest.attempt_id == attempt_id);
    Ok(attempt_label(attempt_id, is_latest, read.control(rollout_id)?.is_some()).to_owned())
}

fn attempts(read: &dyn Read, rollout_id: &str) -> Result<Vec<Attempt>, Error> {
    Ok(read.select_attempts(rollout_id, &Selection::attempts(&AttemptQuery::default())?)?.0)
}
