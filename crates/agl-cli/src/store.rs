use std::fmt::Display;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use agl_server::{CorsOrigins, Tls};
use agl_store::{MemoryStore, Retention, SqliteOptions, SqliteStore, Store, Sync};
use tokio::net::TcpListener;
#[cfg(feature = "grpc")]
use tokio::sync::watch;

use crate::args::{AccessOptions, Backend, GatewayOptions, LimitOptions, StoreOptions, SyncMode};
use crate::error::Error;
use crate::gateway;
use crate::signals::{StopSignals, until_stopped};
use crate::{console, key};

/// The sqlite backend's file where none is named.
const DEFAULT_PATH: &str = "agl.db";
/// How long tasks that hang may hold up the end of the program.
pub(crate) const LAST_MOMENT: Duration = Duration::from_secs(1);

/// Serves a store, and a gateway beside it if there is to be one, until told to stop.
pub(crate) fn run(options: &StoreOptions, gateway: Option<&GatewayOptions>) -> Result<(), Error> {
    console::start_logging(options.server.log_level, options.server.log_format);
    let server_options = server_options(options)?;
    if options.backend == Backend::Memory {
        let given = [("path", options.path.is_some()), ("max-bytes", options.retention.max_bytes.is_some())];
        if let Some((option, _)) = given.into_iter().find(|(_, is_given)| *is_given) {
            return Err(Error::NeedsSqlite { option });
        }
    }
    let runtime = tokio::runtime::Runtime::new()
        .map_err(|source| Error::System { what: "cannot start the runtime", source })?;
    let ended = runtime.block_on(serve(options, gateway, server_options));
    runtime.shutdown_timeout(LAST_MOMENT);
    ended
}

fn server_options(options: &StoreOptions) -> Result<agl_server::ServerOptions, Error> {
    Ok(agl_server::ServerOptions {
        cors: CorsOrigins::parse(&options.cors_origin)?,
        retention: Retention {
            keep_spans_for: options.retention.keep_spans_for,
            max_bytes: options.retention.max_bytes.map(|bytes| u64::try_from(bytes).unwrap_or(u64::MAX)),
        },
        ..guarded(&options.access, &options.limits)?
    })
}

/// What any server goes by: who is let in, and over what, and how much at once.
pub(crate) fn guarded(
    access: &AccessOptions,
    limits: &LimitOptions,
) -> Result<agl_server::ServerOptions, Error> {
    Ok(agl_server::ServerOptions {
        key: key::read(&access.key)?,
        tls: match (&access.tls_cert, &access.tls_key) {
            (Some(certificates), Some(key)) => Some(Tls::from_files(certificates, key)?),
            _ => None,
        },
        body_limit: limits.max_body,
        drain: Duration::from_secs(limits.drain),
        max_connections: limits.max_connections,
        max_requests: limits.max_requests,
        max_waits: limits.max_waits,
        ..agl_server::ServerOptions::default()
    })
}

async fn serve(
    options: &StoreOptions,
    gateway: Option<&GatewayOptions>,
    mut server_options: agl_server::ServerOptions,
) -> Result<(), Error> {
    let mut stop = StopSignals::catch()?;
    let again = StopSignals::catch()?;
    let listeners = Listeners::open(options, &server_options).await?;
    let told = async move { stop.next().await };
    match options.backend {
        Backend::Memory => {
            listeners.announce(format_args!("memory"))?;
            let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
            gateway::add(gateway, &store, &mut server_options)?;
            let served = listeners.serve(store, &server_options, told);
            finish(until_stopped(served, again).await)
        }
        Backend::Sqlite => {
            let path = options.path.clone().unwrap_or_else(|| PathBuf::from(DEFAULT_PATH));
            let store = Arc::new(open(&path, options.sync)?);
            let shared: Arc<dyn Store> = Arc::clone(&store) as Arc<dyn Store>;
            gateway::add(gateway, &shared, &mut server_options)?;
            listeners.announce(format_args!("sqlite {}", path.display()))?;
            let served = until_stopped(listeners.serve(shared, &server_options, told), again).await;
            // It has a handle on the store.
            drop(server_options);
            // Everything acknowledged is in the file already; this lets go of it in good order.
            store.close();
            finish(served)
        }
    }
}

/// The sockets that a store is served on.
struct Listeners {
    /// Of the first one's URL.
    scheme: &'static str,
    http: TcpListener,
    #[cfg(feature = "grpc")]
    grpc: Option<TcpListener>,
}

impl Listeners {
    async fn open(options: &StoreOptions, server_options: &agl_server::ServerOptions) -> Result<Self, Error> {
        let host = &options.server.host;
        let http = listen(host, options.port).await?;
        #[cfg(feature = "grpc")]
        let grpc = match &options.otlp_grpc {
            Some(asked) => Some(listen(asked.host.as_ref().unwrap_or(host), asked.port).await?),
            None => None,
        };
        let listeners = Self {
            scheme: if server_options.tls.is_some() { "https" } else { "http" },
            http,
            #[cfg(feature = "grpc")]
            grpc,
        };
        if server_options.key.is_none() && !options.access.insecure {
            listeners.check_private()?;
        }
        Ok(listeners)
    }

    /// Refuses addresses that other machines reach.
    fn check_private(&self) -> Result<(), Error> {
        let mut listeners = vec![&self.http];
        #[cfg(feature = "grpc")]
        listeners.extend(&self.grpc);
        listeners.into_iter().try_for_each(check_private)
    }

    /// Says where they are, and where what they are told is kept.
    fn announce(&self, kept: impl Display) -> Result<(), Error> {
        let url = format!("{}://{}", self.scheme, address_of(&self.http)?);
        console::say(format_args!("store listening on {url} ({kept})"))?;
        #[cfg(feature = "grpc")]
        if let Some(grpc) = &self.grpc {
            console::say(format_args!("OTLP/gRPC listening on {}", address_of(grpc)?))?;
        }
        Ok(())
    }

    #[cfg(not(feature = "grpc"))]
    async fn serve(
        self,
        store: Arc<dyn Store>,
        options: &agl_server::ServerOptions,
        told: impl Future<Output = ()> + Send + 'static,
    ) -> io::Result<()> {
        agl_server::serve(self.http, store, options, told).await
    }

    #[cfg(feature = "grpc")]
    async fn serve(
        self,
        store: Arc<dyn Store>,
        options: &agl_server::ServerOptions,
        told: impl Future<Output = ()> + Send + 'static,
    ) -> io::Result<()> {
        let Some(grpc) = self.grpc else { return agl_server::serve(self.http, store, options, told).await };
        let (running, mut ended) = watch::channel(());
        let told = async {
            told.await;
            drop(running);
        };
        let told_too = async move {
            // An error is what is waited for: nobody is there any more.
            while ended.changed().await.is_ok() {}
        };
        let http = agl_server::serve(self.http, Arc::clone(&store), options, told);
        let grpc = agl_server::serve_grpc(grpc, store, options, told_too);
        tokio::try_join!(http, grpc).map(|((), ())| ())
    }
}

/// Refuses an address that other machines reach.
pub(crate) fn check_private(listener: &TcpListener) -> Result<(), Error> {
    let address = address_of(listener)?.ip();
    if address.is_loopback() { Ok(()) } else { Err(Error::Exposed { address }) }
}

pub(crate) async fn listen(host: &str, port: u16) -> Result<TcpListener, Error> {
    let listener = TcpListener::bind((host, port)).await;
    listener.map_err(|source| Error::Listen { address: format!("{host}:{port}"), source })
}

pub(crate) fn address_of(listener: &TcpListener) -> Result<SocketAddr, Error> {
    let address = listener.local_addr();
    address.map_err(|source| Error::System { what: "cannot tell the address listened on", source })
}

fn open(path: &Path, sync: SyncMode) -> Result<SqliteStore, Error> {
    let sync = match sync {
        SyncMode::Normal => Sync::Normal,
        SyncMode::Full => Sync::Full,
    };
    Ok(SqliteStore::open(path, SqliteOptions { sync, ..SqliteOptions::default() })?)
}

pub(crate) fn finish(served: Option<io::Result<()>>) -> Result<(), Error> {
    match served {
        Some(Err(source)) => Err(Error::System { what: "the server failed", source }),
        Some(Ok(())) | None => Ok(()),
    }
}
