use std::io;
use std::sync::Arc;

use agl_store::Store;
use axum::serve::ListenerExt as _;
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::ServerOptions;
use crate::routes::application;

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
    let (drain, draining) = watch::channel(false);
    let app = application(store, options, draining.clone());
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
        tokio::time::sleep(options.drain).await;
    };
    tokio::select! {
        served = axum::serve(listener, app).with_graceful_shutdown(told) => served,
        () = deadline => {
            tracing::warn!("requests in flight did not finish within {:?} and were cut off", options.drain);
            Ok(())
        }
    }
}
