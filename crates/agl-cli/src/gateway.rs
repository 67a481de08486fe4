use std::path::Path;
use std::sync::Arc;

use agl_client::{Client, ClientOptions};
use agl_gateway::{Gateway, ModelList};
use agl_store::Store;
use tokio::signal::unix::{SignalKind, signal};

use crate::args::{Capture, GatewayOptions, GatewayServeOptions};
use crate::console;
use crate::error::Error;
use crate::signals::{StopSignals, until_stopped};
use crate::store::{LAST_MOMENT, address_of, check_private, finish, guarded, listen};

/// Serves a gateway in front of a store elsewhere until told to stop.
pub(crate) fn run(options: &GatewayServeOptions) -> Result<(), Error> {
    console::start_logging(options.server.log_level, options.server.log_format);
    let server_options = guarded(&options.access, &options.limits)?;
    let runtime = tokio::runtime::Runtime::new()
        .map_err(|source| Error::System { what: "cannot start the runtime", source })?;
    let ended = runtime.block_on(serve(options, server_options));
    runtime.shutdown_timeout(LAST_MOMENT);
    ended
}

async fn serve(
    options: &GatewayServeOptions,
    mut server_options: agl_server::ServerOptions,
) -> Result<(), Error> {
    let mut stop = StopSignals::catch()?;
    let again = StopSignals::catch()?;
    let listener = listen(&options.server.host, options.port).await?;
    if server_options.key.is_none() && !options.access.insecure {
        check_private(&listener)?;
    }
    // The store's key is that of the gateway, where it asks for one.
    let environment = ClientOptions::from_env()?;
    let client = ClientOptions { key: server_options.key.clone().or(environment.key), ..environment };
    let store: Arc<dyn Store> = Arc::new(Client::new(&options.store, client)?);
    let gateway = add(Some(&options.gateway), &store, &mut server_options)?;
    let Some(gateway) = gateway else { return Ok(()) };
    let scheme = if server_options.tls.is_some() { "https" } else { "http" };
    let url = format!("{scheme}://{}", address_of(&listener)?);
    console::say(format_args!("gateway listening on {url} (store {})", options.store))?;
    let told = async move { stop.next().await };
    let served = agl_server::serve_gateway(listener, &gateway, &server_options, told);
    finish(until_stopped(served, again).await)
}

/// Has the server serve a gateway too, if there is to be one.
pub(crate) fn add(
    options: Option<&GatewayOptions>,
    store: &Arc<dyn Store>,
    server_options: &mut agl_server::ServerOptions,
) -> Result<Option<Gateway>, Error> {
    let Some(options) = options else { return Ok(None) };
    let config = options.config.clone();
    let models = config.as_deref().map_or_else(|| Ok(ModelList::default()), ModelList::from_file)?;
    let gateway_options = agl_gateway::GatewayOptions {
        capture: match options.capture {
            Capture::Durable => agl_gateway::Capture::Durable,
            Capture::Async => agl_gateway::Capture::Async,
        },
        expose_token_ids: options.expose_token_ids,
        key: server_options.key.clone(),
        ca_file: ClientOptions::from_env()?.ca_file,
        body_limit: server_options.body_limit,
        ..agl_gateway::GatewayOptions::default()
    };
    let gateway = Gateway::new(Arc::clone(store), models, gateway_options)?;
    if let Some(config) = config {
        let mut hangup = signal(SignalKind::hangup())
            .map_err(|source| Error::System { what: "cannot catch signals", source })?;
        let gateway = gateway.clone();
        tokio::spawn(async move {
            while hangup.recv().await.is_some() {
                read_again(&gateway, &config);
            }
        });
    }
    server_options.gateway = Some(gateway.clone());
    Ok(Some(gateway))
}

fn read_again(gateway: &Gateway, config: &Path) {
    match ModelList::from_file(config).and_then(|models| gateway.set_models(models)) {
        Ok(()) => tracing::info!(config = %config.display(), "the model list was read again"),
        Err(error) => tracing::error!(%error, "the model list stays as it was"),
    }
}
