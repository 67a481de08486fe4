use tokio_util::sync::CancellationToken;

/// Tells runners and algorithms to end. Cheap to clone; all clones are one signal.
///
/// ```
/// use agl_runner::StopSignal;
///
/// let signal = StopSignal::new();
/// let child = signal.child();
/// signal.cancel();
/// assert!(child.is_stopped() && child.is_cancelled());
/// ```
#[derive(Debug, Clone, Default)]
pub struct StopSignal {
    stop: CancellationToken,
    cancel: CancellationToken,
}

impl StopSignal {
    /// A signal that has not been given.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A signal that is given together with this one, and can also be given alone.
    #[must_use]
    pub fn child(&self) -> Self {
        Self { stop: self.stop.child_token(), cancel: self.cancel.child_token() }
    }

    /// Asks for an end after what is being done now.
    pub fn stop(&self) {
        self.stop.cancel();
    }

    /// Asks for an end now: rollouts that are being run are given up and reported as failed.
    pub fn cancel(&self) {
        self.stop.cancel();
        self.cancel.cancel();
    }

    /// Whether an end was asked for.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.stop.is_cancelled()
    }

    /// Whether an end was asked for that does not wait for anything.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.cancel.is_cancelled()
    }

    /// Returns once an end was asked for.
    pub async fn stopped(&self) {
        self.stop.cancelled().await;
    }

    /// Cancelled together with this signal, and also when whoever holds the returned token cancels it.
    pub(crate) fn cancel_token(&self) -> CancellationToken {
        self.cancel.child_token()
    }
}
