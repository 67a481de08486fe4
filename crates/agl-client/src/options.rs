use std::path::PathBuf;
use std::time::Duration;

use agl_store::Error;
use agl_types::ApiKey;

/// The environment variable that names the file of [`ClientOptions::ca_file`].
const CA_FILE_VARIABLE: &str = "AGL_CA_FILE";

/// How a client gets in, and how patient it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientOptions {
    /// The key that the server asks for.
    pub key: Option<ApiKey>,
    /// A PEM file of authorities whose word about an `https://` server counts, beside the system's own.
    pub ca_file: Option<PathBuf>,
    /// For how long a call is tried again while the server cannot be reached or does not answer, counted from the
    /// start of the first try that failed. Zero means a single try.
    pub max_outage: Duration,
    /// How long setting up a connection may take.
    pub connect_timeout: Duration,
    /// How long one try may take. Waiting for rollouts comes on top.
    pub request_timeout: Duration,
    /// The pause before the first retry. It doubles from retry to retry, and each pause is cut by up to half at
    /// random, so that many clients do not come back at the same moment.
    pub first_pause: Duration,
    /// The longest pause between two tries.
    pub longest_pause: Duration,
    /// How many times in all a call is tried that the server answers with an error of its own (HTTP 500).
    pub server_error_tries: u32,
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self {
            key: None,
            ca_file: None,
            max_outage: Duration::from_secs(60),
            connect_timeout: Duration::from_secs(5),
            request_timeout: Duration::from_secs(30),
            first_pause: Duration::from_millis(100),
            longest_pause: Duration::from_secs(2),
            server_error_tries: 4,
        }
    }
}

impl ClientOptions {
    /// The defaults, with the key from `AGL_KEY` and the file of authorities from `AGL_CA_FILE`, where these are set
    /// to something.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a key that cannot be one.
    pub fn from_env() -> Result<Self, Error> {
        let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        let key = set(ApiKey::VARIABLE)
            .map(|text| {
                ApiKey::new(&text.to_string_lossy())
                    .map_err(|error| Error::invalid("key", format!("{}: {error}", ApiKey::VARIABLE)))
            })
            .transpose()?;
        Ok(Self { key, ca_file: set(CA_FILE_VARIABLE).map(PathBuf::from), ..Self::default() })
    }
}
