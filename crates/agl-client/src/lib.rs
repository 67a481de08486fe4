//! The HTTP client of the store server: [`Client`] implements [`agl_store::Store`].
//!
//! A call rides out an outage of the server (restarts included) for up to [`ClientOptions::max_outage`], and
//! then fails with [`agl_store::Error::Unavailable`], which says what was tried and for how long; an empty queue
//! and a dead server are told apart. What a retry of ours has stored twice is stored once: a span by its id.
//! Other calls that make something (enqueue, start, dequeue) may have been carried out although the answer was
//! lost; then a retry carries them out again.

mod client;
mod options;
mod store;
mod transport;

pub use client::Client;
pub use options::ClientOptions;
