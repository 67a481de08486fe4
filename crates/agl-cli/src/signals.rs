//! Being told to stop.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::error::Error;

/// SIGTERM and Ctrl+C, caught from the moment this is made.
#[derive(Debug)]
pub(crate) struct StopSignals {
    terminate: Signal,
    interrupt: Signal,
}

impl StopSignals {
    /// Starts to catch them. Needs a runtime.
    pub(crate) fn catch() -> Result<Self, Error> {
        let catch = || -> io::Result<Self> {
            Ok(Self {
                terminate: signal(SignalKind::terminate())?,
                interrupt: signal(SignalKind::interrupt())?,
            })
        };
        catch().map_err(|source| Error::System { what: "cannot catch signals", source })
    }

    /// Returns with the next one.
    pub(crate) async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Runs `server`, which ends by itself some time after `StopSignals::next` first returned, or at once when it
/// returns again.
pub(crate) async fn until_stopped<T>(server: impl Future<Output = T>, mut again: StopSignals) -> Option<T> {
    tokio::select! {
        ended = server => Some(ended),
        () = async {
            again.next().await;
            again.next().await;
        } => None,
    }
}
