//! How the kept state is told to those who wait: ended rollouts, new work, the earliest deadline, every change.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::futures::Notified;
use tokio::sync::{Notify, watch};

use crate::backend::{Aftermath, Counts, Deadline};
use crate::feed::Feed;
use crate::metrics;

/// The notice board of one store.
#[derive(Debug)]
pub struct Signals {
    waiters: Mutex<HashMap<String, Vec<Arc<Waiter>>>>,
    earliest: watch::Sender<f64>,
    /// One is woken for each rollout that can be claimed now.
    work: Notify,
    /// How many wait for work.
    idle: AtomicUsize,
    feed: Arc<Feed>,
    counts: Mutex<Counts>,
}

/// Takes a lock whatever became of its last holder: the state behind our locks is valid between any two lines.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Signals {
    /// A board that nothing is on yet, of a store that holds so much.
    pub(crate) fn new(counts: Counts) -> Arc<Self> {
        Arc::new(Self {
            waiters: Mutex::default(),
            earliest: watch::Sender::new(f64::INFINITY),
            work: Notify::new(),
            idle: AtomicUsize::new(0),
            feed: Arc::new(Feed::new()),
            counts: Mutex::new(counts),
        })
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
        lock(&self.counts).add(&aftermath.counts);
        self.feed.publish(&aftermath.events);
        for _ in 0..aftermath.claimable.min(self.idle.load(Ordering::SeqCst)) {
            self.work.notify_one();
        }
        aftermath.finished.iter().for_each(metrics::ended);
        aftermath.claim_waits.iter().copied().for_each(metrics::claimed);
        if aftermath.finished.is_empty() && aftermath.deleted.is_empty() {
            return;
        }
        let waiters = lock(&self.waiters);
        let finished = aftermath.finished.iter().map(|ended| &ended.rollout_id);
        for rollout_id in finished.chain(&aftermath.deleted) {
            for waiter in waiters.get(rollout_id).into_iter().flatten() {
                waiter.strike(rollout_id);
            }
        }
    }

    /// How much the store holds.
    pub(crate) fn counts(&self) -> Counts {
        *lock(&self.counts)
    }

    /// Where every change is told.
    pub(crate) fn feed(&self) -> &Arc<Feed> {
        &self.feed
    }

    /// Starts to wait for work. To miss none, call this before looking for some.
    pub(crate) fn idle(&self) -> Idle<'_> {
        self.idle.fetch_add(1, Ordering::SeqCst);
        let mut work = Box::pin(self.work.notified());
        work.as_mut().enable();
        Idle { signals: self, work }
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

/// Waits for work until it is dropped; what woke it for nothing then wakes another.
#[derive(Debug)]
pub(crate) struct Idle<'a> {
    signals: &'a Signals,
    work: std::pin::Pin<Box<Notified<'a>>>,
}

impl Idle<'_> {
    /// Returns when a rollout has entered the queue that nobody else was woken for.
    pub(crate) async fn work(&mut self) {
        self.work.as_mut().await;
        self.work.set(self.signals.work.notified());
        self.work.as_mut().enable();
    }
}

impl Drop for Idle<'_> {
    fn drop(&mut self) {
        self.signals.idle.fetch_sub(1, Ordering::SeqCst);
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
