use agl_types::ApiKey;

use crate::args::DoctorOptions;
use crate::console;
use crate::error::Error;

/// Asks a model server what it can do, and prints a table.
pub(crate) fn run(options: &DoctorOptions) -> Result<(), Error> {
    let key = std::env::var(&options.key_env).ok().filter(|key| !key.is_empty());
    let key = key.map(|key| ApiKey::new(&key)).transpose()?;
    let runtime = tokio::runtime::Runtime::new()
        .map_err(|source| Error::System { what: "cannot start the runtime", source })?;
    let examined = agl_gateway::doctor::examine(&options.url, key, options.model.as_deref());
    let findings = runtime.block_on(examined)?;
    for finding in &findings {
        if options.json {
            let line = serde_json::to_string(finding)
                .map_err(|source| Error::System { what: "a finding has no JSON", source: source.into() })?;
            console::say(line)?;
            continue;
        }
        let mark = if finding.is_there { "yes" } else { "no" };
        console::say(format_args!("{:16}  {mark:3}  {}", finding.what, finding.seen))?;
        if !finding.is_there {
            console::say(format_args!("{:16}       {}", "", finding.fix))?;
        }
    }
    Ok(())
}
