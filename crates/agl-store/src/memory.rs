//! The memory backend: everything is gone when the process ends.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::{Arc, PoisonError, RwLock};

use agl_types::{Attempt, ResourcesUpdate, Rollout, RolloutView, Span, Worker};
use indexmap::IndexMap;
use serde_json::Value;

use crate::backend::{Aftermath, Backend, Counts, Found, Lane, Part, Read, Tx};
use crate::engine::LocalStore;
use crate::query::Selection;
use crate::signals::Signals;
use crate::{Clock, Error, IdSource, RandomIds, SystemClock};

/// A store that lives in this process's memory, for tests and throw-away runs.
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
        Self::over(Memory { data: RwLock::default(), signals: Signals::new() }, clock, ids)
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
    /// Place in the queue to rollout.
    queue: BTreeMap<u64, String>,
    queue_tail: u64,
    /// Also of rollouts that do not exist.
    counters: HashMap<String, i64>,
    deadlines: BTreeSet<(Moment, String)>,
    /// All versions of each id, in the order of their numbers.
    resources: IndexMap<String, Vec<ResourcesUpdate>>,
    /// The order in which versions were written.
    resources_log: Vec<(String, u32)>,
    workers: IndexMap<String, Worker>,
    attempts: u64,
    spans: u64,
}

/// A rollout with all that belongs to it.
#[derive(Debug)]
struct Record {
    rollout: Rollout,
    place: Option<u64>,
    deadline: Option<f64>,
    attempts: Vec<Attempt>,
    spans: Vec<Span>,
    /// Attempt id and span id.
    span_ids: HashSet<(String, String)>,
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

fn count(length: usize) -> u64 {
    u64::try_from(length).unwrap_or(u64::MAX)
}

fn cloned<T: Clone>((items, total): (Vec<&T>, i64)) -> Found<T> {
    (items.into_iter().cloned().collect(), total)
}

impl Data {
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
        Ok(Counts {
            rollouts: count(self.rollouts.len()),
            attempts: self.attempts,
            spans: self.spans,
            resources: count(self.resources.len()),
            workers: count(self.workers.len()),
        })
    }

    fn select_rollouts(&self, selection: &Selection) -> Result<Found<RolloutView>, Error> {
        let (rollouts, total) = match selection.candidates("rollout_id") {
            Some(candidates) => {
                // Sorted into insertion order, each once.
                let places: BTreeSet<usize> =
                    candidates.into_iter().filter_map(|id| self.rollouts.get_index_of(id)).collect();
                let records = places.into_iter().filter_map(|place| self.rollouts.get_index(place));
                selection.pick(records.map(|(_, record)| &record.rollout))
            }
            None => selection.pick(self.rollouts.values().map(|record| &record.rollout)),
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
    ) -> Result<Found<Span>, Error> {
        let spans = self.rollouts.get(rollout_id).map(|record| &record.spans).into_iter().flatten();
        let of_attempt =
            spans.filter(|span| attempt_id.is_none_or(|attempt_id| span.attempt_id == attempt_id));
        Ok(cloned(selection.pick(of_attempt)))
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
}

impl Tx for Data {
    fn insert_rollout(&mut self, rollout: &Rollout) -> Result<(), Error> {
        let record = Record {
            rollout: rollout.clone(),
            place: None,
            deadline: None,
            attempts: Vec::new(),
            spans: Vec::new(),
            span_ids: HashSet::new(),
        };
        self.rollouts.insert(rollout.rollout_id.clone(), record);
        Ok(())
    }

    fn put_rollout(&mut self, rollout: &Rollout) -> Result<(), Error> {
        self.record(&rollout.rollout_id)?.rollout.clone_from(rollout);
        Ok(())
    }

    fn put_rollout_status(&mut self, rollout: &Rollout) -> Result<(), Error> {
        let record = self.record(&rollout.rollout_id)?;
        record.rollout.status = rollout.status;
        record.rollout.end_time = rollout.end_time;
        Ok(())
    }

    fn insert_attempt(&mut self, attempt: &Attempt) -> Result<(), Error> {
        self.record(&attempt.rollout_id)?.attempts.push(attempt.clone());
        self.attempts += 1;
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

    fn leave_queue(&mut self, rollout_id: &str) -> Result<(), Error> {
        if let Some(place) = self.record(rollout_id)?.place.take() {
            self.queue.remove(&place);
        }
        Ok(())
    }

    fn set_counter(&mut self, rollout_id: &str, last: i64) -> Result<(), Error> {
        self.counters.insert(rollout_id.to_owned(), last);
        Ok(())
    }

    fn insert_spans(&mut self, rollout_id: &str, spans: &[Span]) -> Result<Vec<bool>, Error> {
        let record = self.record(rollout_id)?;
        let mut answers = Vec::with_capacity(spans.len());
        let mut added = 0;
        for span in spans {
            let is_new = record.span_ids.insert((span.attempt_id.clone(), span.span_id.clone()));
            if is_new {
                record.spans.push(span.clone());
                added += 1;
            }
            answers.push(is_new);
        }
        self.spans += added;
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
}
