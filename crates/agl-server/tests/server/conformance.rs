//! Every behaviour of a store, through the client and the server.

use std::sync::Arc;

use agl_client::{Client, ClientOptions};
use agl_conformance::{START, Subject};
use agl_server::ServerOptions;
use agl_store::{ManualClock, MemoryStore, RandomIds, Store};

use crate::common::Server;

async fn subject() -> Subject {
    let clock = ManualClock::at(START);
    let store: Arc<dyn Store> = Arc::new(MemoryStore::with(Arc::new(clock.clone()), Arc::new(RandomIds)));
    let server = Server::over(store, ServerOptions::default()).await;
    let client = Client::new(&server.url(""), ClientOptions::default()).unwrap();
    Subject::new(Arc::new(client), clock, server)
}

agl_conformance::conformance_tests!(subject().await);
agl_conformance::local_conformance_tests!(subject().await);
