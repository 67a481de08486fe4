use std::fmt::Display;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use agl_server::CorsOrigins;
use agl_store::{MemoryStore, SqliteOptions, SqliteStore, Store, Sync};
use tokio::net::TcpListener;
#[cfg(feature = "grpc")]
use tokio::sync::watch;

use crate::args::{Backend, StoreOptions, SyncMode};
use crate::console;
use crate::error::Error;
use crate::signals::{StopSignals, until_stopped};

/// The sqlite backend's file where none is named.
const DEFAULT_PATH: &str = "agl.db";
/// How long tasks that hang may hold up the end of the program.
const LAST_MOMENT: Duration = Duration::from_secs(1);

/// Serves a store until told to stop.
pub(crate) fn run(options: &StoreOptions) -> Result<(), Error> {
    console::start_logging(options.server.log_level);
    let server_options = agl_server::ServerOptions {
        cors: CorsOrigins::parse(&options.cors_origin)?,
        ..agl_server::ServerOptions::default()
    };
    if options.backend == Backend::Memory && options.path.is_some() {
        return Err(Error::NeedsSqlite { option: "path" });
    }
    let runtime = tokio::runtime::Runtime::new()
        .map_err(|source| Error::System { what: "cannot start the runtime", source })?;
    let ended = runtime.block_on(serve(options, &server_options));
    runtime.shutdown_timeout(LAST_MOMENT);
    ended
}

async fn serve(options: &StoreOptions, server_options: &agl_server::ServerOptions) -> Result<(), Error> {
    let mut stop = StopSignals::catch()?;
    let again = StopSignals::catch()?;
    let listeners = Listeners::open(options).await?;
    let told = async move { stop.next().await };
    match options.backend {
        Backend::Memory => {
            listeners.announce(format_args!("memory"))?;
            let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
            let served = listeners.serve(store, server_options, told);
            finish(until_stopped(served, again).await)
        }
        Backend::Sqlite => {
            let path = options.path.clone().unwrap_or_else(|| PathBuf::from(DEFAULT_PATH));
            let store = Arc::new(open(&path, options.sync)?);
            listeners.announce(format_args!("sqlite {}", path.display()))?;
            let shared: Arc<dyn Store> = Arc::clone(&store) as Arc<dyn Store>;
            let served = until_stopped(listeners.serve(shared, server_options, told), again).await;
            // Everything acknowledged is in the file already; this lets go of it in good order.
            store.close();
            finish(served)
        }
    }
}

/// The sockets that a store is served on.
struct Listeners {
    http: TcpListener,
    #[cfg(feature = "grpc")]
    grpc: Option<TcpListener>,
}

impl Listeners {
    async fn open(options: &StoreOptions) -> Result<Self, Error> {
        let host = &options.server.host;
        let http = listen(host, options.port).await?;
        #[cfg(feature = "grpc")]
        let grpc = match &options.otlp_grpc {
            Some(asked) => Some(listen(asked.host.as_ref().unwrap_or(host), asked.port).await?),
            None => None,
        };
        Ok(Self {
            http,
            #[cfg(feature = "grpc")]
            grpc,
        })
    }

    /// Says where they are, and where what they are told is kept.
    fn announce(&self, kept: impl Display) -> Result<(), Error> {
        console::say(format_args!("store listening on http://{} ({kept})", address_of(&self.http)?))?;
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

async fn listen(host: &str, port: u16) -> Result<TcpListener, Error> {
    let listener = TcpListener::bind((host, port)).await;
    listener.map_err(|source| Error::Listen { address: format!("{host}:{port}"), source })
}

fn address_of(listener: &TcpListener) -> Result<SocketAddr, Error> {
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

fn finish(served: Option<io::Result<()>>) -> Result<(), Error> {
    match served {
        Some(Err(source)) => Err(Error::System { what: "the server failed", source }),
        Some(Ok(())) | None => Ok(()),
    }
}
