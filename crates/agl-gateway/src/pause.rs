//! Holding calls back while a model learns, and waiting for those under way.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::sync::{Notify, oneshot};
use utoipa::ToSchema;

/// What passes, what waits and what is under way.
#[derive(Debug, Clone)]
pub(crate) struct Gate(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Told when a call ends.
    ended: Notify,
    max_parked: usize,
    max_wait: Duration,
}

#[derive(Debug, Default)]
struct State {
    paused: Option<Pause>,
    parked: VecDeque<oneshot::Sender<()>>,
    under_way: BTreeMap<u64, Call>,
    count: u64,
}

/// Why calls are held back, and when those who do not wait should come back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pause {
    /// What a call that is not parked is told to wait, in seconds.
    pub retry_after_seconds: u64,
    /// Why; told to whoever asks.
    pub reason: Option<String>,
}

impl Default for Pause {
    fn default() -> Self {
        Self { retry_after_seconds: 5, reason: None }
    }
}

#[derive(Debug)]
struct Call {
    what: String,
    since: Instant,
}

/// Where a gateway stands between pause and resume.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct PauseState {
    /// Whether new calls are held back.
    pub paused: bool,
    /// What a call that is not parked is told to wait, in seconds.
    pub retry_after_seconds: u64,
    /// Why it is paused.
    pub reason: Option<String>,
    /// Calls under way.
    pub inflight: usize,
    /// Calls held back.
    pub parked: usize,
    /// The calls under way that have been so for longest, at most ten.
    pub waiting_for: Vec<WaitingFor>,
}

/// A call under way.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct WaitingFor {
    /// Rollout, attempt and model.
    pub call: String,
    /// For how many seconds it has been under way.
    pub seconds: f64,
}

/// Why a call was not let in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HeldBack(pub(crate) Pause);

/// A call that was let in, for as long as it is under way.
#[derive(Debug)]
pub(crate) struct Pass {
    gate: Gate,
    number: u64,
}

impl Drop for Pass {
    fn drop(&mut self) {
        self.gate.state().under_way.remove(&self.number);
        self.gate.0.ended.notify_waiters();
    }
}

impl Gate {
    /// A gate before which `max_parked` calls may wait, for `max_wait` each.
    pub(crate) fn new(max_parked: usize, max_wait: Duration) -> Self {
        Self(Arc::new(Shared { state: Mutex::default(), ended: Notify::new(), max_parked, max_wait }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets a call in, at once or when its turn comes: those who came first go first, also after several pauses.
    pub(crate) async fn enter(&self, what: impl FnOnce() -> String) -> Result<Pass, HeldBack> {
        let mut what = Some(what);
        let deadline = tokio::time::Instant::now() + self.0.max_wait;
        let mut again = false;
        loop {
            let turn = {
                let mut state = self.state();
                let Some(pause) = state.paused.clone() else {
                    let number = state.count;
                    state.count += 1;
                    let call = Call {
                        what: what.take().map(|what| what()).unwrap_or_default(),
                        since: Instant::now(),
                    };
                    state.under_way.insert(number, call);
                    return Ok(Pass { gate: self.clone(), number });
                };
                // Those who gave up take no room.
                state.parked.retain(|waiting| !waiting.is_closed());
                if state.parked.len() >= self.0.max_parked {
                    return Err(HeldBack(pause));
                }
                let (go, turn) = oneshot::channel();
                // One that was sent on its way into the next pause was there before the others.
                if again {
                    state.parked.push_front(go);
                } else {
                    state.parked.push_back(go);
                }
                turn
            };
            again = true;
            if tokio::time::timeout_at(deadline, turn).await.is_err() {
                let pause = self.state().paused.clone().unwrap_or_default();
                return Err(HeldBack(pause));
            }
        }
    }

    pub(crate) fn pause(&self, pause: Pause) {
        self.state().paused = Some(pause);
    }

    pub(crate) fn resume(&self) {
        let parked = {
            let mut state = self.state();
            state.paused = None;
            std::mem::take(&mut state.parked)
        };
        for waiting in parked {
            // It may have given up.
            let _ = waiting.send(());
        }
    }

    pub(crate) fn look(&self) -> PauseState {
        let state = self.state();
        let pause = state.paused.clone();
        let waiting_for = state
            .under_way
            .values()
            .take(10)
            .map(|call| WaitingFor { call: call.what.clone(), seconds: call.since.elapsed().as_secs_f64() });
        PauseState {
            paused: pause.is_some(),
            retry_after_seconds: pause
                .as_ref()
                .map_or(Pause::default().retry_after_seconds, |pause| pause.retry_after_seconds),
            reason: pause.and_then(|pause| pause.reason),
            inflight: state.under_way.len(),
            parked: state.parked.iter().filter(|waiting| !waiting.is_closed()).count(),
            waiting_for: waiting_for.collect(),
        }
    }

    /// Waits until no call is under way, or the time is up, and tells how things stand then.
    pub(crate) async fn drain(&self, within: Duration) -> PauseState {
        let none_left = async {
            loop {
                let ended = self.0.ended.notified();
                tokio::pin!(ended);
                ended.as_mut().enable();
                if self.state().under_way.is_empty() {
                    return;
                }
                ended.await;
            }
        };
        // Whether it was in time is what the state says.
        let _ = tokio::time::timeout(within, none_left).await;
        self.look()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn settle() {
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn calls_are_parked_in_order_and_counted() {
        let gate = Gate::new(3, Duration::from_secs(60));
        let first = gate.enter(|| "a".to_owned()).await.unwrap();
        gate.pause(Pause { retry_after_seconds: 7, reason: Some("weights".to_owned()) });
        let (sender, mut order) = tokio::sync::mpsc::unbounded_channel();
        for number in 0..3 {
            let (gate, sender) = (gate.clone(), sender.clone());
            tokio::spawn(async move {
                let pass = gate.enter(String::new).await.unwrap();
                sender.send(number).unwrap();
                drop(pass);
            });
            settle().await;
        }
        let state = gate.look();
        assert_eq!((state.paused, state.inflight, state.parked, state.retry_after_seconds), (true, 1, 3, 7));
        assert_eq!(state.waiting_for[0].call, "a");
        let refused = gate.enter(String::new).await.unwrap_err();
        assert_eq!(refused.0.reason.as_deref(), Some("weights"));
        drop(first);
        gate.resume();
        let mut seen = Vec::new();
        for _ in 0..3 {
            seen.push(order.recv().await.unwrap());
        }
        assert_eq!(seen, [0, 1, 2]);
    }

    #[tokio::test]
    async fn waiting_has_an_end() {
        let gate = Gate::new(10, Duration::from_millis(5));
        let pass = gate.enter(|| "slow".to_owned()).await.unwrap();
        gate.pause(Pause::default());
        assert!(gate.enter(String::new).await.is_err());
        assert_eq!(gate.look().parked, 0);
        let state = gate.drain(Duration::from_millis(5)).await;
        assert_eq!((state.inflight, state.waiting_for.len()), (1, 1));
        let draining = tokio::spawn({
            let gate = gate.clone();
            async move { gate.drain(Duration::from_secs(1000)).await }
        });
        settle().await;
        drop(pass);
        assert_eq!(draining.await.unwrap().inflight, 0);
    }
}
