use std::time::Duration;

/// How patient a client is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientOptions {
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
            max_outage: Duration::from_secs(60),
            connect_timeout: Duration::from_secs(5),
            request_timeout: Duration::from_secs(30),
            first_pause: Duration::from_millis(100),
            longest_pause: Duration::from_secs(2),
            server_error_tries: 4,
        }
    }
}
