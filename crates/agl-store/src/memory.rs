//! The memory backend: everything is gone when the process ends.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::{Arc, PoisonError, RwLock};

use agl_types::v1::{Control, Model, ModelKey, RolloutConfig};
use agl_types::{Attempt, ResourcesUpdate, Rollout, RolloutStatus, RolloutView, Worker, WrittenSpan};
use indexmap::IndexMap;
use serde_json::Value;

use crate::backend::{Aftermath, Backend, Counts, Found, Having, Lane, Part, Read, Receipt, Tx};
use crate::engine::LocalStore;
use crate::metrics;
use crate::query::{Cell, Row, Selection};
use crate::raw::RawSpan;
use crate::signals::Signals;
use crate::{Clock, Error, IdSource, RandomIds, SystemClock};

/// A store that lives in this process's memory, for tests and throw-away runs.
///
/// ```
/// use agl_store::{MemoryStore, Store as _};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), agl_store::Error> {
/// let store = MemoryStore::new();
/// assert_eq!(store.statistics().await?.total_rollouts, 0);
/// # Ok(()) }
/// ```
pub type MemoryStore = LocalStore<Memory>;

impl MemoryStore {
    /// An empty store with the machine's clock and random ids.
    #[must_use]
    pub fn new() -> Self {
        Self::with(Arc::new(SystemClock), Arc::new(RandomIds))
    }

    /// An empty store with its own time and ids.
    #[must_use]
    pub fn with(clock: Arc<dyn Clock>, ids: Arc<dyn IdSource>) -> Self {
        Self::over(Memory { data: RwLock::default(), signals: Signals::new(Counts::default()) }, clock, ids)
    }
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

/// The memory backend; see [`MemoryStore`].
#[derive(Debug)]
pub struct Memory {
    data: RwLock<Data>,
    signals: Arc<Signals>,
}

impl Backend for Memory {
    const NAME: &'static str = "InMemoryLightningStore";
    const READS_APART: bool = false;

    async fn write<T, F>(&self, _lane: Lane, operation: F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: FnOnce(&mut dyn Tx) -> Result<(T, Aftermath), Error> + Send + 'static,
    {
        // The engine checks before it writes and nothing here fails, so there is nothing to undo on an error.
        let mut data = self.data.write().unwrap_or_else(PoisonError::into_inner);
        let (value, aftermath) = operation(&mut *data)?;
        self.signals.publish(&aftermath);
        Ok(value)
    }

    async fn read<T, F>(&self, operation: F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: FnOnce(&dyn Read) -> Result<T, Error> + Send + 'static,
    {
        operation(&*self.data.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn signals(&self) -> &Arc<Signals> {
        &self.signals
    }

    fn close(&self) {}
}

#[derive(Debug, Default)]
struct Data {
    rollouts: IndexMap<String, Record>,
    /// The rollouts of each status, by the order in which they were made.
    by_status: BTreeMap<RolloutStatus, BTreeMap<u64, String>>,
    last_number: u64,
    /// Place in the queue to rollout.
    queue: BTreeMap<u64, String>,
    queue_tail: u64,
    is_paused: bool,
    /// Also of rollouts that do not exist.
    counters: HashMap<String, i64>,
    deadlines: BTreeSet<(Moment, String)>,
    /// All versions of each id, in the order of their numbers.
    resources: IndexMap<String, Vec<ResourcesUpdate>>,
    /// The order in which versions were written.
    resources_log: Vec<(String, u32)>,
    workers: IndexMap<String, Worker>,
    receipts: HashMap<String, Receipt>,
    /// The keys of the receipts in the order in which they were made.
    receipts_log: VecDeque<String>,
    /// Ended rollouts whose spans may be purged, by the time of their end.
    purgeable: BTreeSet<(Moment, String)>,
    models: Vec<Model>,
    /// Place in the completion log to rollout.
    completions: BTreeMap<i64, String>,
    last_completion: i64,
}

/// A rollout with all that belongs to it.
#[derive(Debug)]
struct Record {
    rollout: Rollout,
    /// Counts up in the order in which rollouts were made.
    number: u64,
    place: Option<u64>,
    deadline: Option<f64>,
    /// Place in the completion log.
    completion: Option<i64>,
    control: Option<(Control, RolloutConfig)>,
    attempts: Vec<Attempt>,
    spans: Vec<KeptSpan>,
    /// Attempt id and span id.
    span_ids: HashSet<(String, String)>,
    purged_at: Option<f64>,
}

/// A span with what queries look at.
#[derive(Debug)]
struct KeptSpan {
    raw: RawSpan,
    trace_id: String,
    span_id: String,
    parent_id: Option<String>,
    name: String,
    start_time: Option<f64>,
    end_time: Option<f64>,
}

impl Row for KeptSpan {
    fn cell(&self, column: &str) -> Cell<'_> {
        match column {
            "rollout_id" => (&self.raw.rollout_id).into(),
            "attempt_id" => (&self.raw.attempt_id).into(),
            "sequence_id" => Cell::Integer(self.raw.sequence_id),
            "trace_id" => (&self.trace_id).into(),
            "span_id" => (&self.span_id).into(),
            "parent_id" => self.parent_id.as_ref().into(),
            "name" => (&self.name).into(),
            "start_time" => self.start_time.into(),
            "end_time" => self.end_time.into(),
            _ => Cell::Null,
        }
    }
}

/// A time that has a place in an order.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Moment(f64);

impl Eq for Moment {}

impl PartialOrd for Moment {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Moment {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.total_cmp(&other.0)
    }
}

fn count(length: usize) -> i64 {
    i64::try_from(length).unwrap_or(i64::MAX)
}

fn cloned<T: Clone>((items, total): (Vec<&T>, i64)) -> Found<T> {
    (items.into_iter().cloned().collect(), total)
}

impl Data {
    /// The rollouts with any of these statuses, in the order in which they were made.
    fn of_statuses(&self, statuses: &BTreeSet<RolloutStatus>) -> impl Iterator<Item = &Record> {
        let of_each = statuses.iter().filter_map(|status| self.by_status.get(status));
        let mut all: Vec<(&u64, &String)> = of_each.flatten().collect();
        // Runs in order are merged, not sorted anew.
        all.sort();
        all.into_iter().filter_map(|(_, rollout_id)| self.rollouts.get(rollout_id))
    }

    fn record(&mut self, rollout_id: &str) -> Result<&mut Record, Error> {
        self.rollouts.get_mut(rollout_id).ok_or_else(|| Error::rollout_not_found(rollout_id))
    }
}

impl Read for Data {
    fn rollout(&self, rollout_id: &str, part: Part) -> Result<Option<Rollout>, Error> {
        let Some(Record { rollout, .. }) = self.rollouts.get(rollout_id) else { return Ok(None) };
        Ok(Some(match part {
            Part::Whole => rollout.clone(),
            Part::Brief => Rollout {
                rollout_id: rollout.rollout_id.clone(),
                input: Value::Null,
                start_time: rollout.start_time,
                end_time: rollout.end_time,
                mode: rollout.mode,
                resources_id: rollout.resources_id.clone(),
                status: rollout.status,
                config: rollout.config.clone(),
                metadata: None,
            },
        }))
    }

    fn attempt(&self, rollout_id: &str, attempt_id: &str) -> Result<Option<Attempt>, Error> {
        let attempts = self.rollouts.get(rollout_id).map(|record| &record.attempts);
        Ok(attempts.into_iter().flatten().rev().find(|attempt| attempt.attempt_id == attempt_id).cloned())
    }

    fn latest_attempt(&self, rollout_id: &str) -> Result<Option<Attempt>, Error> {
        Ok(self.rollouts.get(rollout_id).and_then(|record| record.attempts.last()).cloned())
    }

    fn queue_head(&self) -> Result<Option<String>, Error> {
        Ok(self.queue.values().next().cloned())
    }

    fn is_paused(&self) -> Result<bool, Error> {
        Ok(self.is_paused)
    }

    fn counter(&self, rollout_id: &str) -> Result<i64, Error> {
        Ok(self.counters.get(rollout_id).copied().unwrap_or_default())
    }

    fn resources(&self, resources_id: &str, version: Option<u32>) -> Result<Option<ResourcesUpdate>, Error> {
        let Some(versions) = self.resources.get(resources_id) else { return Ok(None) };
        Ok(match version {
            Some(version) => versions.iter().find(|update| update.version == version).cloned(),
            None => versions.last().cloned(),
        })
    }

    fn latest_resources_id(&self) -> Result<Option<String>, Error> {
        Ok(self.resources_log.last().map(|(resources_id, _)| resources_id.clone()))
    }

    fn worker(&self, worker_id: &str) -> Result<Option<Worker>, Error> {
        Ok(self.workers.get(worker_id).cloned())
    }

    fn earliest_deadline(&self) -> Result<Option<f64>, Error> {
        Ok(self.deadlines.first().map(|(moment, _)| moment.0))
    }

    fn overdue(&self, now: f64, limit: usize) -> Result<Vec<String>, Error> {
        let passed = self.deadlines.iter().take_while(|(moment, _)| moment.0 < now);
        Ok(passed.take(limit).map(|(_, rollout_id)| rollout_id.clone()).collect())
    }

    fn counts(&self) -> Result<Counts, Error> {
        let total = |of: fn(&Record) -> usize| count(self.rollouts.values().map(of).sum());
        Ok(Counts {
            rollouts: count(self.rollouts.len()),
            attempts: total(|record| record.attempts.len()),
            spans: total(|record| record.spans.len()),
            resources: count(self.resources.len()),
            workers: count(self.workers.len()),
            queued: count(self.queue.len()),
        })
    }

    fn receipt(&self, key: &str) -> Result<Option<Receipt>, Error> {
        Ok(self.receipts.get(key).cloned())
    }

    fn purgeable(&self, ended_before: f64, limit: usize) -> Result<Vec<String>, Error> {
        let ended = self.purgeable.iter().take_while(|(moment, _)| moment.0 < ended_before);
        Ok(ended.take(limit).map(|(_, rollout_id)| rollout_id.clone()).collect())
    }

    fn bytes(&self) -> Result<Option<u64>, Error> {
        Ok(None)
    }

    fn is_purged(&self, rollout_id: &str) -> Result<bool, Error> {
        Ok(self.rollouts.get(rollout_id).is_some_and(|record| record.purged_at.is_some()))
    }

    fn select_rollouts(&self, selection: &Selection) -> Result<Found<RolloutView>, Error> {
        let (rollouts, total) = if let Some(candidates) = selection.candidates("rollout_id") {
            // Sorted into insertion order, each once.
            let places: BTreeSet<usize> =
                candidates.into_iter().filter_map(|id| self.rollouts.get_index_of(id)).collect();
            let records = places.into_iter().filter_map(|place| self.rollouts.get_index(place));
            selection.pick(records.map(|(_, record)| &record.rollout))
        } else if let Some(candidates) = selection.candidates("status") {
            let statuses = candidates.into_iter().filter_map(RolloutStatus::parse).collect();
            selection.pick(self.of_statuses(&statuses).map(|record| &record.rollout))
        } else {
            selection.pick(self.rollouts.values().map(|record| &record.rollout))
        };
        let views = rollouts.into_iter().map(|rollout| RolloutView {
            rollout: rollout.clone(),
            attempt: self
                .rollouts
                .get(&rollout.rollout_id)
                .and_then(|record| record.attempts.last())
                .cloned(),
        });
        Ok((views.collect(), total))
    }

    fn select_attempts(&self, rollout_id: &str, selection: &Selection) -> Result<Found<Attempt>, Error> {
        let attempts = self.rollouts.get(rollout_id).map(|record| &record.attempts);
        Ok(cloned(selection.pick(attempts.into_iter().flatten())))
    }

    fn select_spans(
        &self,
        rollout_id: &str,
        attempt_id: Option<&str>,
        selection: &Selection,
    ) -> Result<Found<RawSpan>, Error> {
        let spans = self.rollouts.get(rollout_id).map(|record| &record.spans).into_iter().flatten();
        let of_attempt =
            spans.filter(|span| attempt_id.is_none_or(|attempt_id| span.raw.attempt_id == attempt_id));
        let (found, total) = selection.pick(of_attempt);
        Ok((found.into_iter().map(|span| span.raw.clone()).collect(), total))
    }

    fn select_resources(
        &self,
        all_versions: bool,
        selection: &Selection,
    ) -> Result<Found<ResourcesUpdate>, Error> {
        if !all_versions {
            return Ok(cloned(
                selection.pick(self.resources.values().filter_map(|versions| versions.last())),
            ));
        }
        let written = self.resources_log.iter().filter_map(|(resources_id, version)| {
            self.resources.get(resources_id)?.iter().find(|update| update.version == *version)
        });
        Ok(cloned(selection.pick(written)))
    }

    fn select_workers(&self, selection: &Selection) -> Result<Found<Worker>, Error> {
        Ok(cloned(selection.pick(self.workers.values())))
    }

    fn control(&self, rollout_id: &str) -> Result<Option<Control>, Error> {
        let control = self.rollouts.get(rollout_id).and_then(|record| record.control.as_ref());
        Ok(control.map(|(control, _)| control.clone()))
    }

    fn run_config(&self, rollout_id: &str) -> Result<Option<RolloutConfig>, Error> {
        let control = self.rollouts.get(rollout_id).and_then(|record| record.control.as_ref());
        Ok(control.map(|(_, config)| config.clone()))
    }

    fn having(&self, statuses: &[Having], limit: usize) -> Result<Vec<String>, Error> {
        let matches = |record: &&Record| {
            statuses.iter().any(|having| {
                having.status == record.rollout.status && (!having.is_controlled || record.control.is_some())
            })
        };
        let wanted = statuses.iter().map(|having| having.status).collect();
        let found = self.of_statuses(&wanted).filter(matches).take(limit);
        Ok(found.map(|record| record.rollout.rollout_id.clone()).collect())
    }

    fn completions(&self, after: i64, limit: usize) -> Result<Vec<(i64, String)>, Error> {
        let has_ended = |rollout_id: &String| {
            self.rollouts.get(rollout_id).is_some_and(|record| record.rollout.status.is_terminal())
        };
        let later = self.completions.range(after.saturating_add(1)..);
        let ended = later.filter(|(_, rollout_id)| has_ended(rollout_id)).take(limit);
        Ok(ended.map(|(place, rollout_id)| (*place, rollout_id.clone())).collect())
    }

    fn last_completion(&self) -> Result<i64, Error> {
        Ok(self.last_completion)
    }

    fn models(&self) -> Result<Vec<Model>, Error> {
        Ok(self.models.clone())
    }
}

impl Tx for Data {
    fn insert_rollout(&mut self, rollout: &Rollout) -> Result<(), Error> {
        self.last_number += 1;
        let number = self.last_number;
        self.by_status.entry(rollout.status).or_default().insert(number, rollout.rollout_id.clone());
        let record = Record {
            rollout: rollout.clone(),
            number,
            place: None,
            deadline: None,
            completion: None,
            control: None,
            attempts: Vec::new(),
            spans: Vec::new(),
            span_ids: HashSet::new(),
            purged_at: None,
        };
        self.rollouts.insert(rollout.rollout_id.clone(), record);
        Ok(())
    }

    fn put_rollout(&mut self, rollout: &Rollout) -> Result<(), Error> {
        self.put_rollout_status(rollout)?;
        self.record(&rollout.rollout_id)?.rollout.clone_from(rollout);
        Ok(())
    }

    fn put_rollout_status(&mut self, rollout: &Rollout) -> Result<(), Error> {
        let record = self.record(&rollout.rollout_id)?;
        let number = record.number;
        let status = std::mem::replace(&mut record.rollout.status, rollout.status);
        let before = std::mem::replace(&mut record.rollout.end_time, rollout.end_time);
        if status != rollout.status {
            let moved = self.by_status.entry(status).or_default().remove(&number);
            self.by_status.entry(rollout.status).or_default().extend(moved.map(|id| (number, id)));
        }
        if let Some(end_time) = before {
            self.purgeable.remove(&(Moment(end_time), rollout.rollout_id.clone()));
        }
        if let Some(end_time) = rollout.end_time {
            self.purgeable.insert((Moment(end_time), rollout.rollout_id.clone()));
        }
        Ok(())
    }

    fn insert_attempt(&mut self, attempt: &Attempt) -> Result<(), Error> {
        self.record(&attempt.rollout_id)?.attempts.push(attempt.clone());
        Ok(())
    }

    fn put_attempt(&mut self, attempt: &Attempt) -> Result<(), Error> {
        let known = &mut self.record(&attempt.rollout_id)?.attempts;
        let place = known
            .iter_mut()
            .rfind(|known| known.attempt_id == attempt.attempt_id)
            .ok_or_else(|| Error::attempt_not_found(&attempt.rollout_id, &attempt.attempt_id))?;
        place.clone_from(attempt);
        Ok(())
    }

    fn set_deadline(&mut self, rollout_id: &str, deadline: Option<f64>) -> Result<(), Error> {
        let before = std::mem::replace(&mut self.record(rollout_id)?.deadline, deadline);
        if let Some(moment) = before {
            self.deadlines.remove(&(Moment(moment), rollout_id.to_owned()));
        }
        if let Some(moment) = deadline {
            self.deadlines.insert((Moment(moment), rollout_id.to_owned()));
        }
        Ok(())
    }

    fn push_queue(&mut self, rollout_id: &str) -> Result<(), Error> {
        let place = self.queue_tail;
        self.record(rollout_id)?.place = Some(place);
        self.queue.insert(place, rollout_id.to_owned());
        self.queue_tail += 1;
        Ok(())
    }

    fn leave_queue(&mut self, rollout_id: &str) -> Result<bool, Error> {
        let place = self.record(rollout_id)?.place.take();
        Ok(place.is_some_and(|place| self.queue.remove(&place).is_some()))
    }

    fn set_paused(&mut self, paused: bool) -> Result<(), Error> {
        self.is_paused = paused;
        Ok(())
    }

    fn set_counter(&mut self, rollout_id: &str, last: i64, _new_spans: usize) -> Result<(), Error> {
        self.counters.insert(rollout_id.to_owned(), last);
        Ok(())
    }

    fn insert_spans(&mut self, rollout_id: &str, spans: &[&WrittenSpan]) -> Result<Vec<bool>, Error> {
        let record = self.record(rollout_id)?;
        let mut answers = Vec::with_capacity(spans.len());
        for span in spans {
            let is_new = record.span_ids.insert((span.attempt_id.clone(), span.span_id.clone()));
            if is_new {
                metrics::span_written(span.rest.len());
                record.spans.push(KeptSpan {
                    raw: RawSpan::from(*span),
                    trace_id: span.trace_id.clone(),
                    span_id: span.span_id.clone(),
                    parent_id: span.parent_id.clone(),
                    name: span.name.clone(),
                    start_time: span.start_time,
                    end_time: span.end_time,
                });
            }
            answers.push(is_new);
        }
        Ok(answers)
    }

    fn insert_resources(&mut self, update: &ResourcesUpdate) -> Result<(), Error> {
        self.resources.entry(update.resources_id.clone()).or_default().push(update.clone());
        self.resources_log.push((update.resources_id.clone(), update.version));
        Ok(())
    }

    fn put_worker(&mut self, worker: &Worker) -> Result<(), Error> {
        self.workers.insert(worker.worker_id.clone(), worker.clone());
        Ok(())
    }

    fn put_receipt(&mut self, key: &str, receipt: &Receipt) -> Result<(), Error> {
        if self.receipts.insert(key.to_owned(), receipt.clone()).is_some() {
            self.receipts_log.retain(|other| other != key);
        }
        self.receipts_log.push_back(key.to_owned());
        Ok(())
    }

    fn forget_receipts(&mut self, made_before: f64, limit: usize) -> Result<usize, Error> {
        let is_old = |key: &&String| self.receipts.get(*key).is_none_or(|receipt| receipt.made < made_before);
        let old = self.receipts_log.iter().take(limit).take_while(is_old).count();
        for key in self.receipts_log.drain(..old) {
            self.receipts.remove(&key);
        }
        Ok(old)
    }

    fn delete_spans(&mut self, rollout_id: &str, limit: usize) -> Result<usize, Error> {
        let record = self.record(rollout_id)?;
        let deleted = limit.min(record.spans.len());
        for span in record.spans.drain(..deleted) {
            record.span_ids.remove(&(span.raw.attempt_id, span.span_id));
        }
        if record.spans.is_empty() {
            record.spans.shrink_to_fit();
            record.span_ids.shrink_to_fit();
        }
        Ok(deleted)
    }

    fn set_purged(&mut self, rollout_id: &str, now: f64) -> Result<(), Error> {
        let record = self.record(rollout_id)?;
        record.purged_at = Some(now);
        if let Some(end_time) = record.rollout.end_time {
            self.purgeable.remove(&(Moment(end_time), rollout_id.to_owned()));
        }
        Ok(())
    }

    fn insert_control(
        &mut self,
        rollout_id: &str,
        control: &Control,
        config: &RolloutConfig,
    ) -> Result<(), Error> {
        self.record(rollout_id)?.control = Some((control.clone(), config.clone()));
        Ok(())
    }

    fn put_control(&mut self, rollout_id: &str, control: &Control) -> Result<(), Error> {
        if let Some((known, _)) = &mut self.record(rollout_id)?.control {
            known.clone_from(control);
        }
        Ok(())
    }

    fn complete(&mut self, rollout_id: &str) -> Result<(), Error> {
        let place = self.last_completion + 1;
        if let Some(before) = self.record(rollout_id)?.completion.replace(place) {
            self.completions.remove(&before);
        }
        self.completions.insert(place, rollout_id.to_owned());
        self.last_completion = place;
        Ok(())
    }

    fn delete_rollout(&mut self, rollout_id: &str) -> Result<(), Error> {
        self.set_deadline(rollout_id, None)?;
        self.counters.remove(rollout_id);
        // The order of the others stays.
        if let Some(record) = self.rollouts.shift_remove(rollout_id) {
            record.completion.and_then(|place| self.completions.remove(&place));
            self.by_status.entry(record.rollout.status).or_default().remove(&record.number);
            if let Some(end_time) = record.rollout.end_time {
                self.purgeable.remove(&(Moment(end_time), rollout_id.to_owned()));
            }
        }
        Ok(())
    }

    fn put_model(&mut self, model: &Model) -> Result<(), Error> {
        let is_same = |known: &&mut Model| known.model == model.model && known.endpoint == model.endpoint;
        match self.models.iter_mut().find(is_same) {
            Some(known) => known.version = model.version,
            None => self.models.push(model.clone()),
        }
        Ok(())
    }

    fn delete_models(&mut self, key: Option<&ModelKey>) -> Result<(), Error> {
        self.models.retain(|model| {
            key.is_some_and(|key| model.model != key.model || model.endpoint != key.endpoint)
        });
        Ok(())
    }
}
