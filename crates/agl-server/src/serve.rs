use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use agl_store::{Retention, Store};
use agl_types::PurgeReport;
use axum::Router;
use axum::serve::ListenerExt as _;
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::ServerOptions;
use crate::routes::application;
#[cfg(feature = "grpc")]
use crate::routes::grpc_application;

/// Serves `store` on `listener` until `shutdown` is ready; then takes no new connections and gives the requests
/// in flight [`ServerOptions::drain`] to finish. Waits (`POST /v1/agl/waits/rollouts`) are answered 503 at once.
///
/// Every handle on the store that the server had is dropped when this returns, save for those of requests that
/// did not finish in time and hang on in a blocking call.
///
/// # Errors
/// When the listener fails for good.
pub async fn serve(
    listener: TcpListener,
    store: Arc<dyn Store>,
    options: &ServerOptions,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let housekeeping = keep_house(Arc::clone(&store), options.retention, options.housekeeping);
    let app = |draining| application(store, options, draining);
    tokio::select! {
        never = housekeeping => match never {},
        served = run(listener, app, options.drain, shutdown) => served,
    }
}

/// Takes OTLP over gRPC on `listener`, and is in everything else like [`serve`].
///
/// # Errors
/// When the listener fails for good.
#[cfg(feature = "grpc")]
pub async fn serve_grpc(
    listener: TcpListener,
    store: Arc<dyn Store>,
    options: &ServerOptions,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    run(listener, |draining| grpc_application(store, options, draining), options.drain, shutdown).await
}

async fn run(
    listener: TcpListener,
    application: impl FnOnce(watch::Receiver<bool>) -> Router,
    drain_time: Duration,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let (drain, draining) = watch::channel(false);
    let app = application(draining.clone());
    let listener = listener.tap_io(|stream| {
        // Small answers should not wait for more to send.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "TCP_NODELAY was refused");
        }
    });

    let told = async move {
        shutdown.await;
        // Fails only when nobody listens any more.
        let _ = drain.send(true);
    };
    let mut late = draining;
    let deadline = async {
        // An error means that the server is gone, which the other branch reports.
        let _ = late.wait_for(|draining| *draining).await;
        tokio::time::sleep(drain_time).await;
    };
    tokio::select! {
        served = axum::serve(listener, app).with_graceful_shutdown(told) => served,
        () = deadline => {
            tracing::warn!("requests in flight did not finish within {drain_time:?} and were cut off");
            Ok(())
        }
    }
}

/// Has the store forget what is past its time, now and then.
async fn keep_house(store: Arc<dyn Store>, retention: Retention, every: Duration) -> Infallible {
    loop {
        let store = Arc::clone(&store);
        // In a task of its own, so that a defect costs this round and not the server.
        match tokio::spawn(async move { store.housekeep(&retention).await }).await {
            Ok(Ok(PurgeReport { rollouts: 0, .. })) => {}
            Ok(Ok(PurgeReport { rollouts, spans })) => {
                tracing::info!(rollouts, spans, "removed spans of ended rollouts");
            }
            Ok(Err(error)) => tracing::warn!(%error, "the store could not forget what is past its time"),
            Err(error) => tracing::error!(%error, "housekeeping broke down"),
        }
        tokio::time::sleep(every).await;
    }
}
