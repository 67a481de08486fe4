use std::convert::Infallible;
use std::fmt::Display;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use agl_gateway::Gateway;
use agl_store::{Retention, Store};
use agl_types::PurgeReport;
use axum::Router;
use hyper::server::conn::http1;
#[cfg(feature = "grpc")]
use hyper::server::conn::http2;
#[cfg(feature = "grpc")]
use hyper_util::rt::TokioExecutor;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulConnection;
use hyper_util::service::TowerToHyperService;
use metrics::gauge;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use crate::ServerOptions;
use crate::metrics::HTTP_CONNECTIONS;
#[cfg(feature = "grpc")]
use crate::routes::grpc_application;
use crate::routes::{application, gateway_application};

/// Bytes of the longest head of a request.
const LONGEST_HEAD: usize = 64 << 10;
/// Bytes that are read at once at most. Every connection keeps as much room, so that it adds up.
const READ: usize = 2 * LONGEST_HEAD;
/// How long a client may take to agree on keys.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long to rest when the system has no connection to give, as a rule for want of file descriptors.
const REST: Duration = Duration::from_secs(1);
/// How long those who were cut off may take to let go of what they hold.
const LAST_MOMENT: Duration = Duration::from_secs(1);

/// Serves `store` on `listener` until `shutdown` is ready; then takes no new connections and gives the requests
/// in flight [`ServerOptions::drain`] to finish. Waits (`POST /v1/agl/waits/rollouts`) are answered 503 at once, and
/// connections are closed after the answer that they are at.
///
/// Every handle on the store that the server had is dropped when this returns, save for those of requests that
/// did not finish in time and hang on in a blocking call.
///
/// # Errors
/// None for now: what goes wrong with a connection is its own affair, and the listener is asked again.
pub async fn serve(
    listener: TcpListener,
    store: Arc<dyn Store>,
    options: &ServerOptions,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let housekeeping = keep_house(Arc::clone(&store), options.retention, options.housekeeping);
    let (drain, draining) = watch::channel(false);
    let server = Server {
        app: application(store, options, draining.clone()),
        protocol: Protocol::http1(options),
        tls: options.tls.as_ref().map(|tls| tls.acceptor("http/1.1")),
        draining,
    };
    tokio::select! {
        never = housekeeping => match never {},
        () = server.run(listener, options, drain, shutdown) => {}
    }
    if let Some(gateway) = &options.gateway {
        see_off(gateway, options).await;
    }
    Ok(())
}

/// Serves a gateway that records in a store elsewhere, and is in everything else like [`serve`].
///
/// # Errors
/// As [`serve`].
pub async fn serve_gateway(
    listener: TcpListener,
    gateway: &Gateway,
    options: &ServerOptions,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let (drain, draining) = watch::channel(false);
    let server = Server {
        app: gateway_application(gateway, options),
        protocol: Protocol::http1(options),
        tls: options.tls.as_ref().map(|tls| tls.acceptor("http/1.1")),
        draining,
    };
    server.run(listener, options, drain, shutdown).await;
    see_off(gateway, options).await;
    Ok(())
}

/// Waits for the calls that were answered to be recorded.
async fn see_off(gateway: &Gateway, options: &ServerOptions) {
    if tokio::time::timeout(options.drain, gateway.close()).await.is_err() {
        tracing::warn!("calls were not recorded within {:?}", options.drain);
    }
}

/// Takes OTLP over gRPC on `listener`, and is in everything else like [`serve`].
///
/// # Errors
/// As [`serve`].
#[cfg(feature = "grpc")]
pub async fn serve_grpc(
    listener: TcpListener,
    store: Arc<dyn Store>,
    options: &ServerOptions,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let (drain, draining) = watch::channel(false);
    let server = Server {
        app: grpc_application(store, options, draining.clone()),
        protocol: Protocol::http2(options),
        tls: options.tls.as_ref().map(|tls| tls.acceptor("h2")),
        draining,
    };
    server.run(listener, options, drain, shutdown).await;
    Ok(())
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

/// The next connection, once there is room for it.
async fn accept(listener: &TcpListener, slots: &Arc<Semaphore>) -> (TcpStream, OwnedSemaphorePermit) {
    loop {
        let Ok(slot) = Arc::clone(slots).acquire_owned().await else {
            // Nobody closes the semaphore.
            std::future::pending::<()>().await;
            continue;
        };
        match listener.accept().await {
            Ok((stream, _)) => {
                // Small answers should not wait for more to send.
                if let Err(error) = stream.set_nodelay(true) {
                    tracing::debug!(%error, "TCP_NODELAY was refused");
                }
                return (stream, slot);
            }
            Err(error) if is_of_the_client(&error) => tracing::debug!(%error, "a client left early"),
            Err(error) => {
                tracing::error!(%error, "cannot accept connections for now");
                tokio::time::sleep(REST).await;
            }
        }
    }
}

/// Whether it was the client that gave up, between asking for a connection and getting it.
fn is_of_the_client(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

/// What is spoken on a connection.
#[derive(Clone)]
enum Protocol {
    Http1(http1::Builder),
    #[cfg(feature = "grpc")]
    Http2(http2::Builder<TokioExecutor>),
}

impl Protocol {
    fn http1(options: &ServerOptions) -> Self {
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new())
            .header_read_timeout(options.idle_timeout)
            .max_header_size(LONGEST_HEAD)
            .max_buf_size(READ);
        Self::Http1(http)
    }

    #[cfg(feature = "grpc")]
    fn http2(options: &ServerOptions) -> Self {
        let mut http = http2::Builder::new(TokioExecutor::new());
        http.timer(TokioTimer::new())
            .keep_alive_interval(options.idle_timeout)
            .max_header_list_size(u32::try_from(LONGEST_HEAD).unwrap_or(u32::MAX));
        Self::Http2(http)
    }
}

/// What a connection needs.
#[derive(Clone)]
struct Server {
    app: Router,
    protocol: Protocol,
    tls: Option<TlsAcceptor>,
    draining: watch::Receiver<bool>,
}

impl Server {
    /// Serves until `shutdown`, and what was begun to its end.
    async fn run(
        self,
        listener: TcpListener,
        options: &ServerOptions,
        drain: watch::Sender<bool>,
        shutdown: impl Future<Output = ()>,
    ) {
        let slots = Arc::new(Semaphore::new(options.max_connections.clamp(1, Semaphore::MAX_PERMITS)));
        let mut connections = JoinSet::new();
        let mut shutdown = pin!(shutdown);
        loop {
            tokio::select! {
                biased;
                () = &mut shutdown => break,
                // Nothing is to be done about one that has ended, but to forget it.
                Some(_) = connections.join_next() => {}
                (stream, slot) = accept(&listener, &slots) => {
                    connections.spawn(self.clone().attend(stream, slot));
                }
            }
        }
        drop((listener, self));
        // Fails only when nobody listens any more.
        let _ = drain.send(true);
        let all_done = async { while connections.join_next().await.is_some() {} };
        if tokio::time::timeout(options.drain, all_done).await.is_err() {
            tracing::warn!("requests in flight did not finish within {:?} and were cut off", options.drain);
            // What hangs on in a blocking call does not end by being told to.
            let _ = tokio::time::timeout(LAST_MOMENT, connections.shutdown()).await;
        }
    }

    /// Serves one connection to its end.
    async fn attend(mut self, stream: TcpStream, _slot: OwnedSemaphorePermit) {
        let _open = OpenConnection::count();
        let Some(tls) = self.tls.take() else { return self.speak(stream).await };
        let agreed = tokio::select! {
            agreed = tokio::time::timeout(HANDSHAKE, tls.accept(stream)) => agreed,
            _ = self.draining.wait_for(|draining| *draining) => return,
        };
        match agreed {
            Ok(Ok(stream)) => self.speak(stream).await,
            Ok(Err(error)) => tracing::debug!(%error, "a client did not come to terms about TLS"),
            Err(_) => tracing::debug!("a client took too long to come to terms about TLS"),
        }
    }

    async fn speak(self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
        let service = TowerToHyperService::new(self.app);
        let stream = TokioIo::new(stream);
        match self.protocol {
            Protocol::Http1(http) => see_out(http.serve_connection(stream, service), self.draining).await,
            #[cfg(feature = "grpc")]
            Protocol::Http2(http) => see_out(http.serve_connection(stream, service), self.draining).await,
        }
    }
}

/// Waits for the end of a connection, and tells it to close when the server is about to stop.
async fn see_out<C>(connection: C, mut draining: watch::Receiver<bool>)
where
    C: GracefulConnection<Error: Display>,
{
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        biased;
        ended = connection.as_mut() => Some(ended),
        _ = draining.wait_for(|draining| *draining) => None,
    };
    let ended = match ended {
        Some(ended) => ended,
        None => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection broke off");
    }
}

/// A connection, for as long as it is open.
struct OpenConnection;

impl OpenConnection {
    fn count() -> Self {
        gauge!(HTTP_CONNECTIONS).increment(1.0);
        Self
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        gauge!(HTTP_CONNECTIONS).decrement(1.0);
    }
}
