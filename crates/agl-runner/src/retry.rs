//! Riding out a store that fails or cannot be reached.

use std::future::Future;
use std::time::Duration;

use agl_store::Error;
use tokio::time::{Instant, sleep};

use crate::StopSignal;

const SHORTEST: Duration = Duration::from_millis(20);
const LONGEST: Duration = Duration::from_secs(2);
/// How long a store is asked again that does answer, but with a failure of its own: it may never take this call.
const FAILURES_ALLOWED: Duration = Duration::from_secs(60);

/// Waits that grow from attempt to attempt.
#[derive(Debug)]
pub(crate) struct Backoff {
    next: Duration,
    longest: Duration,
}

impl Backoff {
    pub(crate) fn up_to(longest: Duration) -> Self {
        Self { next: SHORTEST.min(longest), longest }
    }

    pub(crate) fn next(&mut self) -> Duration {
        let wait = self.next;
        self.next = (wait * 2).min(self.longest);
        wait
    }
}

/// Whether the same call may succeed later.
pub(crate) fn is_passing(error: &Error) -> bool {
    matches!(error, Error::Unavailable { .. } | Error::Unwritable { .. } | Error::Backend { .. })
}

/// How long a store that fails is waited for.
///
/// One that cannot be reached, or takes no changes for now: for ever. One that answers with a failure of its own: for a minute. Once `signal` was
/// given: for `after_stop` at most.
#[derive(Debug, Clone)]
pub struct Patience {
    /// Ends the patience.
    pub signal: StopSignal,
    /// How long the store is still waited for then.
    pub after_stop: Duration,
}

impl Patience {
    /// Calls the store until it succeeds, fails for good, or patience ends. Only for calls that may be repeated;
    /// `what` names the call in the log.
    ///
    /// # Errors
    /// The store's last answer.
    pub async fn insist<T, Call>(
        &self,
        what: &'static str,
        mut call: impl FnMut() -> Call,
    ) -> Result<T, Error>
    where
        Call: Future<Output = Result<T, Error>>,
    {
        let mut backoff = Backoff::up_to(LONGEST);
        let mut stopped_since: Option<Instant> = None;
        let mut failing_since: Option<Instant> = None;
        loop {
            let error = match call().await {
                Err(error) if is_passing(&error) => error,
                result => return result,
            };
            match error {
                Error::Backend { .. } => {
                    if failing_since.get_or_insert_with(Instant::now).elapsed() >= FAILURES_ALLOWED {
                        return Err(error);
                    }
                }
                _ => failing_since = None,
            }
            if self.signal.is_stopped()
                && stopped_since.get_or_insert_with(Instant::now).elapsed() >= self.after_stop
            {
                return Err(error);
            }
            let wait = backoff.next();
            tracing::warn!(%error, what, ?wait, "the store failed; trying again");
            sleep(wait).await;
        }
    }
}
