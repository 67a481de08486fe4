use agl_rl::{Engine, EngineOptions};

use crate::args::{ModelPullOptions, ModelServeOptions};
use crate::console;
use crate::error::Error;
use crate::signals::{StopSignals, until_stopped};

/// Serves a model until told to stop.
pub(crate) fn serve(options: &ModelServeOptions) -> Result<(), Error> {
    console::start_logging(options.server.log_level, options.server.log_format);
    let engine_options = EngineOptions {
        model_name: options.model_name.clone(),
        threads: options.threads,
        max_context: options.max_context,
        max_batch: options.max_batch,
        cache_dir: options.cache.cache_dir.clone(),
        ..EngineOptions::default()
    };
    let engine = Engine::load(&options.model, &engine_options)?;
    let name = engine.model_name().to_owned();
    let runtime = tokio::runtime::Runtime::new()
        .map_err(|source| Error::System { what: "cannot start the runtime", source })?;
    runtime.block_on(async {
        let mut stop = StopSignals::catch()?;
        let again = StopSignals::catch()?;
        let mut said = Ok(());
        let ready =
            |address| said = console::say(format_args!("model {name} listening on http://{address}/v1"));
        let told = async move { stop.next().await };
        let server = agl_rl::serve(engine, &options.server.host, options.port, ready, told);
        let served = until_stopped(server, again).await;
        said?;
        served.transpose()?;
        Ok(())
    })
}

/// Fetches a model and prints where it is.
pub(crate) fn pull(options: &ModelPullOptions) -> Result<(), Error> {
    let path = agl_rl::pull::pull(&options.model, options.cache.cache_dir.as_deref())?;
    console::say(path.display())
}
