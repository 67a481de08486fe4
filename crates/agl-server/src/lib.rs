//! The store server: Agent Lightning's REST routes, of 0.3 and of 1.0, and OTLP traces over any [`agl_store::Store`].
//!
//! [`router`] is the application, [`serve`] runs it on a socket until told to stop, and `serve_grpc` (feature `grpc`)
//! takes OTLP over gRPC on another one. A gateway to models is served beside the
//! store ([`ServerOptions::gateway`]) or without one ([`serve_gateway`]). Beside the routes of 0.3
//! there are a few of our own: `POST /v1/agl/spans/batch` stores many spans at once (issuing the sequence ids
//! that are missing), `POST /v1/agl/spans/next/batch` issues many sequence ids, `PATCH` on an attempt is its
//! `POST` with null clearing a field, `DELETE /v1/agl/rollouts/{id}` removes a rollout, and
//! `GET /v1/agl/resources/{id}?version=N` reads older versions. The routes of 1.0 are under `/api`.

mod admission;
mod encoding;
mod error;
mod extract;
mod metrics;
mod openapi;
mod options;
mod routes;
mod serve;
mod tls;

pub use error::Error;
pub use options::{CorsOrigins, ServerOptions};
pub use routes::router;
#[cfg(feature = "grpc")]
pub use serve::serve_grpc;
pub use serve::{serve, serve_gateway};
pub use tls::Tls;
