use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use agl_server::CorsOrigins;
use agl_store::{MemoryStore, SqliteOptions, SqliteStore, Store, Sync};
use tokio::net::TcpListener;

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
    let listener = listen(&options.server.host, options.port).await?;
    let address = listener
        .local_addr()
        .map_err(|source| Error::System { what: "cannot tell the address listened on", source })?;

    let told = async move { stop.next().await };
    match options.backend {
        Backend::Memory => {
            console::say(format_args!("store listening on http://{address} (memory)"))?;
            let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
            finish(until_stopped(agl_server::serve(listener, store, server_options, told), again).await)
        }
        Backend::Sqlite => {
            let path = options.path.clone().unwrap_or_else(|| PathBuf::from(DEFAULT_PATH));
            let store = Arc::new(open(&path, options.sync)?);
            console::say(format_args!("store listening on http://{address} (sqlite {})", path.display()))?;
            let shared: Arc<dyn Store> = Arc::clone(&store) as Arc<dyn Store>;
            let served =
                until_stopped(agl_server::serve(listener, shared, server_options, told), again).await;
            // Everything acknowledged is in the file already; this lets go of it in good order.
            store.close();
            finish(served)
        }
    }
}

async fn listen(host: &str, port: u16) -> Result<TcpListener, Error> {
    let listener = TcpListener::bind((host, port)).await;
    listener.map_err(|source| Error::Listen { address: format!("{host}:{port}"), source })
}

fn open(path: &Path, sync: SyncMode) -> Result<SqliteStore, Error> {
    let sync = match sync {
        SyncMode::Normal => Sync::Normal,
        SyncMode::Full => Sync::Full,
    };
    Ok(SqliteStore::open(path, SqliteOptions { sync, ..SqliteOptions::default() })?)
}

fn finish(served: Option<std::io::Result<()>>) -> Result<(), Error> {
    match served {
        Some(Err(source)) => Err(Error::System { what: "the server failed", source }),
        Some(Ok(())) | None => Ok(()),
    }
}
