//! How the kept state is told to those who wait: ended rollouts, and the earliest deadline.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, watch};

use crate::backend::{Aftermath, Deadline};

/// The notice board of one store.
#[derive(Debug)]
pub struct Signals {
    waiters: Mutex<HashMap<String, Vec<Arc<Waiter>>>>,
    earliest: watch::Sender<f64>,
}

/// Takes a lock whatever became of its last holder: the state behind our locks is valid between any two lines.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Signals {
    /// An empty board.
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { waiters: Mutex::default(), earliest: watch::Sender::new(f64::INFINITY) })
    }

    /// Tells what a kept transaction has brought about. Calls must come in the order of the transactions.
    pub(crate) fn publish(&self, aftermath: &Aftermath) {
        match aftermath.deadline {
            Deadline::NoCloser => {}
            Deadline::AtMost(moment) => {
                self.earliest.send_if_modified(|earliest| {
                    let closer = moment < *earliest;
                    if closer {
                        *earliest = moment;
                    }
                    closer
                });
            }
            Deadline::Exactly(moment) => {
                self.earliest.send_replace(moment);
            }
        }
        if aftermath.finished.is_empty() {
            return;
        }
        let waiters = lock(&self.waiters);
        for rollout_id in &aftermath.finished {
            for waiter in waiters.get(rollout_id).into_iter().flatten() {
                waiter.strike(rollout_id);
            }
        }
    }

    /// No deadline passes before this moment; infinite when there is none at all.
    pub(crate) fn earliest_deadline(&self) -> f64 {
        *self.earliest.borrow()
    }

    /// Follows the earliest deadline.
    pub(crate) fn deadlines(&self) -> watch::Receiver<f64> {
        self.earliest.subscribe()
    }

    /// Starts to listen for the end of these rollouts.
    pub(crate) fn listen(&self, rollout_ids: HashSet<String>) -> Listener<'_> {
        let waiter = Arc::new(Waiter { pending: Mutex::default(), all_struck: Notify::new() });
        let mut waiters = lock(&self.waiters);
        for rollout_id in &rollout_ids {
            waiters.entry(rollout_id.clone()).or_default().push(Arc::clone(&waiter));
        }
        Listener { signals: self, rollout_ids, waiter }
    }
}

#[derive(Debug)]
struct Waiter {
    /// The rollouts whose end is still awaited.
    pending: Mutex<HashSet<String>>,
    /// There is nothing left in `pending`.
    all_struck: Notify,
}

impl Waiter {
    fn strike(&self, rollout_id: &str) {
        let mut pending = lock(&self.pending);
        if pending.remove(rollout_id) && pending.is_empty() {
            self.all_struck.notify_one();
        }
    }
}

/// Listens for the end of rollouts until it is dropped.
#[derive(Debug)]
pub(crate) struct Listener<'a> {
    signals: &'a Signals,
    rollout_ids: HashSet<String>,
    waiter: Arc<Waiter>,
}

impl Listener<'_> {
    /// Awaits the end of all the rollouts from now on. To miss nothing, call this before looking at them.
    pub(crate) fn expect_all(&self) {
        lock(&self.waiter.pending).clone_from(&self.rollout_ids);
    }

    /// Stops awaiting those of which it is known that they have ended, or will not.
    pub(crate) fn strike(&self, rollout_id: &str) {
        self.waiter.strike(rollout_id);
    }

    /// Returns once every rollout awaited has ended since [`Listener::expect_all`] or was struck off.
    pub(crate) async fn all_struck(&self) {
        while !lock(&self.waiter.pending).is_empty() {
            self.waiter.all_struck.notified().await;
        }
    }
}

impl Drop for Listener<'_> {
    fn drop(&mut self) {
        let mut waiters = lock(&self.signals.waiters);
        for rollout_id in &self.rollout_ids {
            if let Some(listed) = waiters.get_mut(rollout_id) {
                listed.retain(|waiter| !Arc::ptr_eq(waiter, &self.waiter));
                if listed.is_empty() {
                    waiters.remove(rollout_id);
                }
            }
        }
    }
}
