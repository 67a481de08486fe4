//! The HTTP client of the store server: [`Client`] implements [`agl_store::Store`].
//!
//! A call rides out an outage of the server (restarts included) for up to [`ClientOptions::max_outage`], and
//! then fails with [`agl_store::Error::Unavailable`], which says what was tried and for how long; an empty queue
//! and a dead server are told apart. A call that changes something carries an idempotency key, so that trying it again
//! does not carry it out again, even when the server was restarted in between. (A server of 0.3 knows no such keys:
//! there, a retry of a call that makes something may make it twice, spans excepted.)

mod client;
mod feed;
mod options;
mod sse;
mod store;
pub mod tls;
mod transport;

pub use client::Client;
pub use options::ClientOptions;
