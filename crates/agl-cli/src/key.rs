use agl_types::ApiKey;

use crate::args::KeyOptions;
use crate::error::Error;

/// The key that the command line names, if it names one.
pub(crate) fn read(options: &KeyOptions) -> Result<Option<ApiKey>, Error> {
    let text = match (&options.key, &options.key_file) {
        (Some(key), _) => key.clone(),
        (None, Some(path)) => {
            std::fs::read_to_string(path).map_err(|source| Error::KeyFile { path: path.clone(), source })?
        }
        (None, None) => return Ok(None),
    };
    Ok(Some(ApiKey::new(&text)?))
}
