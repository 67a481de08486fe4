//! Time and randomness come in through these, so that a whole store can run in a seeded simulation.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use async_trait::async_trait;
use tokio::sync::watch;

/// Where the time comes from.
#[async_trait]
pub trait Clock: Send + Sync + std::fmt::Debug + 'static {
    /// Wall-clock seconds since the Unix epoch.
    fn now(&self) -> f64;

    /// Returns once `now()` is greater than `moment` (a little later is fine).
    async fn sleep_past(&self, moment: f64);
}

/// The machine's clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

#[async_trait]
impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "this is the one place where the time comes in")]
    fn now(&self) -> f64 {
        std::time::SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
    }

    async fn sleep_past(&self, moment: f64) {
        loop {
            let left = moment - self.now();
            if left < 0.0 {
                return;
            }
            // Capped, so that a wall clock set forward is noticed within a minute.
            let wait = Duration::try_from_secs_f64(left).unwrap_or(Duration::MAX);
            tokio::time::sleep(wait.min(Duration::from_secs(60)) + Duration::from_millis(1)).await;
        }
    }
}

/// A clock that moves only when told to.
#[derive(Debug, Clone)]
pub struct ManualClock {
    now: Arc<watch::Sender<f64>>,
}

impl ManualClock {
    /// A clock that shows `now`.
    #[must_use]
    pub fn at(now: f64) -> Self {
        Self { now: Arc::new(watch::Sender::new(now)) }
    }

    /// Moves the clock on by `seconds` and wakes whoever sleeps until then.
    pub fn advance(&self, seconds: f64) {
        self.now.send_modify(|now| *now += seconds);
    }
}

#[async_trait]
impl Clock for ManualClock {
    fn now(&self) -> f64 {
        *self.now.borrow()
    }

    async fn sleep_past(&self, moment: f64) {
        let mut receiver = self.now.subscribe();
        // The sender lives in self, so this cannot fail while we are here.
        let _ = receiver.wait_for(|now| *now > moment).await;
    }
}

/// Where ids get their randomness from.
pub trait IdSource: Send + Sync + std::fmt::Debug + 'static {
    /// 64 fresh random bits.
    fn next(&self) -> u64;
}

/// Randomness of the operating system's quality.
#[derive(Debug, Clone, Copy, Default)]
pub struct RandomIds;

impl IdSource for RandomIds {
    fn next(&self) -> u64 {
        rand::random()
    }
}

/// The same ids in every run (SplitMix64; Steele, Lea and Flood, 2014).
#[derive(Debug, Default)]
pub struct SeededIds {
    state: AtomicU64,
}

impl SeededIds {
    /// A source that follows from `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self { state: AtomicU64::new(seed) }
    }
}

impl IdSource for SeededIds {
    fn next(&self) -> u64 {
        const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
        let mut z = self.state.fetch_add(STEP, Ordering::Relaxed).wrapping_add(STEP);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}
