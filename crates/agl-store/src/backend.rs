//! What a backend has to offer: transactions over a handful of primitives. A backend decides nothing.

use std::fmt::Debug;
use std::sync::Arc;

use agl_types::v1::{Control, Model, ModelKey, RolloutConfig};
use agl_types::{
    Attempt, ResourcesUpdate, Rollout, RolloutMode, RolloutStatus, RolloutView, Span, SpanQuery, StoreEvent,
    Worker, WrittenSpan,
};

use crate::query::Selection;
use crate::raw::RawSpan;
use crate::signals::Signals;
use crate::{Error, Lean};

/// How much of a rollout is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// All of it.
    Whole,
    /// All but `input` and `metadata`, which may be large and which no implicit event looks at.
    Brief,
}

/// How many of each thing there are, or by how many there are more or fewer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Rollouts.
    pub rollouts: i64,
    /// Attempts.
    pub attempts: i64,
    /// Spans.
    pub spans: i64,
    /// Resources ids.
    pub resources: i64,
    /// Workers.
    pub workers: i64,
    /// Rollouts in the queue.
    pub queued: i64,
}

impl Counts {
    /// Adds a difference.
    pub(crate) fn add(&mut self, difference: &Self) {
        let Self { rollouts, attempts, spans, resources, workers, queued } = difference;
        self.rollouts += rollouts;
        self.attempts += attempts;
        self.spans += spans;
        self.resources += resources;
        self.workers += workers;
        self.queued += queued;
    }
}

/// The items of a page, and how many match in all.
pub(crate) type Found<T> = (Vec<T>, i64);

/// Looking things up, all in one consistent state.
pub trait Read {
    /// One rollout; with [`Part::Brief`] its `input` is null and its `metadata` is none.
    fn rollout(&self, rollout_id: &str, part: Part) -> Result<Option<Rollout>, Error>;
    /// One attempt.
    fn attempt(&self, rollout_id: &str, attempt_id: &str) -> Result<Option<Attempt>, Error>;
    /// The attempt with the highest number.
    fn latest_attempt(&self, rollout_id: &str) -> Result<Option<Attempt>, Error>;
    /// The rollout at the head of the queue.
    fn queue_head(&self) -> Result<Option<String>, Error>;
    /// Whether the queue gives out no work.
    fn is_paused(&self) -> Result<bool, Error>;
    /// The last span sequence id issued or seen in a rollout; 0 when none was.
    fn counter(&self, rollout_id: &str) -> Result<i64, Error>;
    /// One version of a resources id, the newest for none.
    fn resources(&self, resources_id: &str, version: Option<u32>) -> Result<Option<ResourcesUpdate>, Error>;
    /// The id of the resources written last.
    fn latest_resources_id(&self) -> Result<Option<String>, Error>;
    /// One worker.
    fn worker(&self, worker_id: &str) -> Result<Option<Worker>, Error>;
    /// The earliest deadline of all rollouts.
    fn earliest_deadline(&self) -> Result<Option<f64>, Error>;
    /// Up to `limit` rollouts whose deadline is before `now`, the most overdue first.
    fn overdue(&self, now: f64, limit: usize) -> Result<Vec<String>, Error>;
    /// How many of each thing there are, counted one by one.
    fn counts(&self) -> Result<Counts, Error>;
    /// What was written down about a call under this idempotency key.
    fn receipt(&self, key: &str) -> Result<Option<Receipt>, Error>;
    /// Up to `limit` rollouts that have ended before `ended_before` and whose spans were not purged since, those
    /// that ended first first.
    fn purgeable(&self, ended_before: f64, limit: usize) -> Result<Vec<String>, Error>;
    /// How many bytes the store takes up on disk, without what it will use again; none where there is no disk.
    fn bytes(&self) -> Result<Option<u64>, Error>;
    /// Whether the spans of a rollout were purged.
    fn is_purged(&self, rollout_id: &str) -> Result<bool, Error>;
    /// Rollouts with their latest attempts.
    fn select_rollouts(&self, selection: &Selection) -> Result<Found<RolloutView>, Error>;
    /// Attempts of one rollout.
    fn select_attempts(&self, rollout_id: &str, selection: &Selection) -> Result<Found<Attempt>, Error>;
    /// Spans of one rollout, or of one of its attempts.
    fn select_spans(
        &self,
        rollout_id: &str,
        attempt_id: Option<&str>,
        selection: &Selection,
    ) -> Result<Found<RawSpan>, Error>;
    /// All spans of an attempt, in the order of sequence ids, as [`RawSpan::parse_lean`] reads them.
    fn lean_spans(&self, rollout_id: &str, attempt_id: &str, purpose: Lean) -> Result<Vec<Span>, Error> {
        let selection = Selection::spans(&SpanQuery::default())?;
        let (spans, _) = self.select_spans(rollout_id, Some(attempt_id), &selection)?;
        spans.iter().map(|span| span.parse_lean(purpose)).collect()
    }
    /// Resources: the newest version of each id, or every version.
    fn select_resources(
        &self,
        all_versions: bool,
        selection: &Selection,
    ) -> Result<Found<ResourcesUpdate>, Error>;
    /// Workers.
    fn select_workers(&self, selection: &Selection) -> Result<Found<Worker>, Error>;
    /// What a controller keeps beside a rollout; none for a rollout of a runner.
    fn control(&self, rollout_id: &str) -> Result<Option<Control>, Error>;
    /// How a controller is to run a rollout; none for a rollout of a runner.
    fn run_config(&self, rollout_id: &str) -> Result<Option<RolloutConfig>, Error>;
    /// Up to `limit` rollouts that have one of these statuses, in order of creation.
    fn having(&self, statuses: &[Having], limit: usize) -> Result<Vec<String>, Error>;
    /// Up to `limit` rollouts that have ended and not been taken up again, with their places in the completion log,
    /// from the first one after `after` on.
    fn completions(&self, after: i64, limit: usize) -> Result<Vec<(i64, String)>, Error>;
    /// The last place in the completion log; 0 when nothing has ended.
    fn last_completion(&self) -> Result<i64, Error>;
    /// Every model, in the order in which they were registered.
    fn models(&self) -> Result<Vec<Model>, Error>;
}

/// A status to look for, and where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Having {
    /// The status.
    pub status: RolloutStatus,
    /// Whether only among the rollouts of controllers.
    pub is_controlled: bool,
}

/// Looking things up and writing them down, in one transaction.
pub trait Tx: Read {
    /// Adds a rollout whose id is new.
    fn insert_rollout(&mut self, rollout: &Rollout) -> Result<(), Error>;
    /// Writes every field of a known rollout.
    fn put_rollout(&mut self, rollout: &Rollout) -> Result<(), Error>;
    /// Writes `status` and `end_time` of a known rollout, which may be a brief one.
    fn put_rollout_status(&mut self, rollout: &Rollout) -> Result<(), Error>;
    /// Adds an attempt whose id and number are new.
    fn insert_attempt(&mut self, attempt: &Attempt) -> Result<(), Error>;
    /// Writes every field of a known attempt.
    fn put_attempt(&mut self, attempt: &Attempt) -> Result<(), Error>;
    /// Sets or removes the deadline of a rollout's latest attempt.
    fn set_deadline(&mut self, rollout_id: &str, deadline: Option<f64>) -> Result<(), Error>;
    /// Puts a rollout that is not in the queue at its tail.
    fn push_queue(&mut self, rollout_id: &str) -> Result<(), Error>;
    /// Takes a rollout out of the queue; tells whether it was there.
    fn leave_queue(&mut self, rollout_id: &str) -> Result<bool, Error>;
    /// Sets whether the queue gives out no work.
    fn set_paused(&mut self, paused: bool) -> Result<(), Error>;
    /// Sets the last span sequence id of a rollout, known or not, and notes that it has so many more spans.
    fn set_counter(&mut self, rollout_id: &str, last: i64, new_spans: usize) -> Result<(), Error>;
    /// Adds spans of one known rollout; tells of each whether it was new in its attempt. A call of `set_counter`
    /// follows.
    fn insert_spans(&mut self, rollout_id: &str, spans: &[&WrittenSpan]) -> Result<Vec<bool>, Error>;
    /// Adds a version of a resources id, one higher than the last.
    fn insert_resources(&mut self, update: &ResourcesUpdate) -> Result<(), Error>;
    /// Adds or replaces a worker.
    fn put_worker(&mut self, worker: &Worker) -> Result<(), Error>;
    /// Writes down a call under a new idempotency key.
    fn put_receipt(&mut self, key: &str, receipt: &Receipt) -> Result<(), Error>;
    /// Forgets up to `limit` of the oldest receipts made before this moment; tells how many.
    fn forget_receipts(&mut self, made_before: f64, limit: usize) -> Result<usize, Error>;
    /// Removes up to `limit` spans of a rollout; tells how many.
    fn delete_spans(&mut self, rollout_id: &str, limit: usize) -> Result<usize, Error>;
    /// Notes when the spans of a known rollout were purged.
    fn set_purged(&mut self, rollout_id: &str, now: f64) -> Result<(), Error>;
    /// Gives a known rollout to the controllers.
    fn insert_control(
        &mut self,
        rollout_id: &str,
        control: &Control,
        config: &RolloutConfig,
    ) -> Result<(), Error>;
    /// Writes what a controller keeps beside a rollout of theirs.
    fn put_control(&mut self, rollout_id: &str, control: &Control) -> Result<(), Error>;
    /// Puts a known rollout at the end of the completion log, where it may be already.
    fn complete(&mut self, rollout_id: &str) -> Result<(), Error>;
    /// Removes a known rollout that has no spans and is not in the queue, and all that belongs to it.
    fn delete_rollout(&mut self, rollout_id: &str) -> Result<(), Error>;
    /// Adds a model, or replaces the version of a known one.
    fn put_model(&mut self, model: &Model) -> Result<(), Error>;
    /// Removes one model, or all of them.
    fn delete_models(&mut self, key: Option<&ModelKey>) -> Result<(), Error>;
}

/// What is kept about a call that carried an idempotency key.
#[derive(Debug, Clone, PartialEq)]
pub struct Receipt {
    /// Stands for the request.
    pub fingerprint: [u8; 16],
    /// When it was carried out.
    pub made: f64,
    /// What the answer is made from, as JSON.
    pub answer: String,
}

/// What must become known once a transaction is kept.
#[derive(Debug, Default)]
pub struct Aftermath {
    /// Rollouts that have ended.
    pub finished: Vec<Ended>,
    /// Rollouts that there are no more.
    pub deleted: Vec<String>,
    /// Of each rollout claimed for the first time, the seconds since it was created.
    pub claim_waits: Vec<f64>,
    /// How many more rollouts can be claimed from the queue, at most.
    pub claimable: usize,
    /// By how many there are more or fewer of each thing.
    pub counts: Counts,
    /// What has changed, in this order.
    pub events: Vec<Arc<StoreEvent>>,
    /// What is known about the earliest deadline.
    pub deadline: Deadline,
}

/// A rollout that has ended.
#[derive(Debug)]
pub struct Ended {
    /// Which one.
    pub rollout_id: String,
    /// How.
    pub status: RolloutStatus,
    /// What it was for.
    pub mode: Option<RolloutMode>,
    /// How long after its creation.
    pub seconds: f64,
}

/// News about the earliest deadline.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub enum Deadline {
    /// It did not come closer.
    #[default]
    NoCloser,
    /// There is one at this moment; earlier ones may exist.
    AtMost(f64),
    /// This is the earliest; infinite when there is none.
    Exactly(f64),
}

/// Who goes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lane {
    /// Small operations.
    Fast,
    /// Large batches, which wait for the small ones.
    Bulk,
}

/// Keeps things, in transactions.
pub trait Backend: Debug + Send + Sync + 'static {
    /// The class name that 0.3's statistics show.
    const NAME: &'static str;
    /// Whether what looks things up runs on threads of the backend's own, in nobody's way, and may take its time there.
    const READS_APART: bool;

    /// Runs `operation` in a transaction, keeps what it wrote if it succeeds and nothing if it fails, and
    /// publishes the aftermath in the order of the transactions. An operation that was submitted is carried out
    /// even when the caller stops waiting for it.
    fn write<T, F>(&self, lane: Lane, operation: F) -> impl Future<Output = Result<T, Error>> + Send
    where
        T: Send + 'static,
        F: FnOnce(&mut dyn Tx) -> Result<(T, Aftermath), Error> + Send + 'static;

    /// Runs `operation` on one consistent state.
    fn read<T, F>(&self, operation: F) -> impl Future<Output = Result<T, Error>> + Send
    where
        T: Send + 'static,
        F: FnOnce(&dyn Read) -> Result<T, Error> + Send + 'static;

    /// Where this backend publishes what happened.
    fn signals(&self) -> &Arc<Signals>;

    /// Carries out what was submitted, refuses what comes after, and lets go of all files.
    fn close(&self);
}
