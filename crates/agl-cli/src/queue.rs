use std::time::Duration;

use agl_client::{Client, ClientOptions};
use agl_store::Store as _;
use agl_types::QueueState;

use crate::args::ServedStore;
use crate::error::Error;
use crate::{console, key};

/// Somebody waits in front of the screen.
const PATIENCE: Duration = Duration::from_secs(2);

/// Pauses or resumes the queue of a store.
pub(crate) fn set(address: &ServedStore, state: QueueState) -> Result<(), Error> {
    let from_environment = ClientOptions::from_env()?;
    let key = key::read(&address.key)?;
    let client =
        Client::new(&address.server, ClientOptions { key, max_outage: PATIENCE, ..from_environment })?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| Error::System { what: "cannot start the runtime", source })?;
    let QueueState { paused } = runtime.block_on(client.set_queue_state(state))?;
    let how = if paused { "gives out no more tasks" } else { "gives out tasks" };
    console::say(format_args!("the store at {} {how}", client.address()))
}
