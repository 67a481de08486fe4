//! Calls that are carried out once, however often they are sent.
//!
//! With the changes of a call that carries a key, a receipt is kept in the same transaction. A call that comes again
//! under the key changes nothing, and its answer is made from the receipt. Receipts hold ids, not things: what is
//! answered is the thing named, as it stands by then.

use std::sync::Arc;

use agl_types::{
    Attempt, AttemptedRollout, Claim, QueueState, ResourcesUpdate, Rollout, Span, SpanQuery, Worker,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::Error;
use crate::backend::{Part, Read};
use crate::query::Selection;
use crate::work::{NewSpan, resources_for};

/// For how many seconds a receipt is kept at least.
pub(crate) const KEPT: f64 = 24.0 * 3600.0;

/// Names one call, so that sending it twice does not carry it out twice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdempotencyKey {
    /// The caller's name for the call: unique among all calls of a day.
    pub key: Arc<str>,
    /// Stands for what is asked for; the same key with another fingerprint is a conflict.
    pub fingerprint: [u8; 16],
}

/// An answer that can be made again.
pub(crate) trait Replay: Sized + Send + 'static {
    /// What is kept of it.
    type Receipt: Serialize + DeserializeOwned;

    /// What is to be kept; none when nothing was changed that must not be changed again.
    fn receipt(&self) -> Option<Self::Receipt>;

    /// Makes the answer again.
    fn replay(receipt: Self::Receipt, read: &dyn Read) -> Result<Self, Error>;
}

pub(crate) fn deleted(what: &str, id: &str) -> Error {
    Error::Gone {
        message: format!("{what} {id}, which the first call under this idempotency key was about, is gone"),
    }
}

fn rollout(read: &dyn Read, rollout_id: &str) -> Result<Rollout, Error> {
    read.rollout(rollout_id, Part::Whole)?.ok_or_else(|| deleted("rollout", rollout_id))
}

fn attempt(read: &dyn Read, rollout_id: &str, attempt_id: &str) -> Result<Attempt, Error> {
    read.attempt(rollout_id, attempt_id)?.ok_or_else(|| deleted("attempt", attempt_id))
}

impl Replay for Rollout {
    type Receipt = String;

    fn receipt(&self) -> Option<String> {
        Some(self.rollout_id.clone())
    }

    fn replay(rollout_id: String, read: &dyn Read) -> Result<Self, Error> {
        rollout(read, &rollout_id)
    }
}

impl Replay for Attempt {
    type Receipt = (String, String);

    fn receipt(&self) -> Option<Self::Receipt> {
        Some((self.rollout_id.clone(), self.attempt_id.clone()))
    }

    fn replay((rollout_id, attempt_id): Self::Receipt, read: &dyn Read) -> Result<Self, Error> {
        attempt(read, &rollout_id, &attempt_id)
    }
}

impl Replay for AttemptedRollout {
    type Receipt = (String, String);

    fn receipt(&self) -> Option<Self::Receipt> {
        self.attempt.receipt()
    }

    fn replay((rollout_id, attempt_id): Self::Receipt, read: &dyn Read) -> Result<Self, Error> {
        Ok(Self { rollout: rollout(read, &rollout_id)?, attempt: attempt(read, &rollout_id, &attempt_id)? })
    }
}

impl Replay for Claim {
    type Receipt = (String, String);

    fn receipt(&self) -> Option<Self::Receipt> {
        self.attempted.receipt()
    }

    fn replay(receipt: Self::Receipt, read: &dyn Read) -> Result<Self, Error> {
        let attempted = AttemptedRollout::replay(receipt, read)?;
        let resources = resources_for(read, attempted.rollout.resources_id.as_deref())?;
        Ok(Self { attempted, resources })
    }
}

impl Replay for Span {
    type Receipt = (String, String, String);

    fn receipt(&self) -> Option<Self::Receipt> {
        Some((self.rollout_id.clone(), self.attempt_id.clone(), self.span_id.clone()))
    }

    fn replay((rollout_id, attempt_id, span_id): Self::Receipt, read: &dyn Read) -> Result<Self, Error> {
        let query = SpanQuery { span_id: Some(span_id.clone()), ..SpanQuery::default() };
        let (found, _) = read.select_spans(&rollout_id, Some(&attempt_id), &Selection::spans(&query)?)?;
        found.first().ok_or_else(|| deleted("span", &span_id))?.parse()
    }
}

/// Whoever sends the spans again has them; what is missing is which were new, and their numbers.
impl Replay for NewSpan {
    type Receipt = (usize, i64);

    fn receipt(&self) -> Option<Self::Receipt> {
        Some((self.index, self.sequence_id))
    }

    fn replay((index, sequence_id): Self::Receipt, _: &dyn Read) -> Result<Self, Error> {
        Ok(Self { index, sequence_id })
    }
}

impl Replay for ResourcesUpdate {
    type Receipt = (String, u32);

    fn receipt(&self) -> Option<Self::Receipt> {
        Some((self.resources_id.clone(), self.version))
    }

    fn replay((resources_id, version): Self::Receipt, read: &dyn Read) -> Result<Self, Error> {
        read.resources(&resources_id, Some(version))?.ok_or_else(|| deleted("resources", &resources_id))
    }
}

impl Replay for Worker {
    type Receipt = String;

    fn receipt(&self) -> Option<String> {
        Some(self.worker_id.clone())
    }

    fn replay(worker_id: String, read: &dyn Read) -> Result<Self, Error> {
        read.worker(&worker_id)?.ok_or_else(|| deleted("worker", &worker_id))
    }
}

impl Replay for QueueState {
    type Receipt = ();

    fn receipt(&self) -> Option<()> {
        Some(())
    }

    fn replay((): (), read: &dyn Read) -> Result<Self, Error> {
        Ok(Self { paused: read.is_paused()? })
    }
}

/// A sequence id is its own receipt.
impl Replay for i64 {
    type Receipt = Self;

    fn receipt(&self) -> Option<Self> {
        Some(*self)
    }

    fn replay(receipt: Self, _: &dyn Read) -> Result<Self, Error> {
        Ok(receipt)
    }
}

/// What is done is done.
impl Replay for () {
    type Receipt = ();

    fn receipt(&self) -> Option<()> {
        Some(())
    }

    fn replay((): (), _: &dyn Read) -> Result<Self, Error> {
        Ok(())
    }
}

/// Nothing done is nothing to keep: whoever found an empty queue may find something the next time.
impl<T: Replay> Replay for Vec<T> {
    type Receipt = Vec<T::Receipt>;

    fn receipt(&self) -> Option<Self::Receipt> {
        if self.is_empty() { None } else { self.iter().map(T::receipt).collect() }
    }

    fn replay(receipt: Self::Receipt, read: &dyn Read) -> Result<Self, Error> {
        receipt.into_iter().map(|receipt| T::replay(receipt, read)).collect()
    }
}
