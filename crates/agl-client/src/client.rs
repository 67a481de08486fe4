use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use agl_store::Error;
use reqwest::Url;

use crate::ClientOptions;
use crate::transport::Transport;

/// A store that is served elsewhere. Cheap to clone; clones share their connections.
///
/// It works on any tokio runtime, on several at once too: connections are kept for each runtime on its own.
#[derive(Debug, Clone)]
pub struct Client {
    pub(crate) transport: Arc<Transport>,
    /// Whether the server was found to take spans one by one only, as that of 0.3 does.
    pub(crate) one_by_one: Arc<AtomicBool>,
    /// The idempotency key that every changing call is sent under; a new one for each when absent.
    pub(crate) key: Option<Arc<str>>,
}

impl Client {
    /// A client of the server at `address`, e.g. `http://127.0.0.1:4747`. Nothing is sent yet.
    ///
    /// # Errors
    /// [`Error::Invalid`] when the address is not an `http://` or `https://` URL, or the file of authorities cannot
    /// be used.
    pub fn new(address: &str, options: ClientOptions) -> Result<Self, Error> {
        let transport = Transport::new(parse(address)?, options)?;
        Ok(Self { transport: Arc::new(transport), one_by_one: Arc::default(), key: None })
    }

    /// The server's address, without a slash at its end.
    #[must_use]
    pub fn address(&self) -> &str {
        self.transport.root().as_str().trim_end_matches('/')
    }

    /// How patient this client is.
    #[must_use]
    pub fn options(&self) -> &ClientOptions {
        self.transport.options()
    }

    /// Asks the server, as patiently as ever, whether it is there.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when it is not.
    pub async fn health(&self) -> Result<(), Error> {
        self.transport.get::<serde_json::Value>(&["health"]).await.map(|_| ())
    }
}

fn parse(address: &str) -> Result<Url, Error> {
    let invalid = |problem: &str| Error::invalid("address", format!("store address {address:?} {problem}"));
    let url =
        Url::parse(address).map_err(|_| invalid("is not a URL: write it like http://127.0.0.1:4747"))?;
    match url.scheme() {
        "http" | "https" if url.has_host() => Ok(url),
        _ => Err(invalid("is not a URL of a server: write it like http://127.0.0.1:4747")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_checked() {
        let client = Client::new("http://localhost:4747/", ClientOptions::default()).unwrap();
        assert_eq!(client.address(), "http://localhost:4747");
        for (address, word) in [
            ("ftp://localhost:4747", "http://127.0.0.1:4747"),
            ("localhost:4747", "http://127.0.0.1:4747"),
            ("127.0.0.1:4747", "http://127.0.0.1:4747"),
            ("", "http://127.0.0.1:4747"),
        ] {
            let error = Client::new(address, ClientOptions::default()).unwrap_err();
            assert!(matches!(&error, Error::Invalid { field, .. } if field == "address"), "{error:?}");
            assert!(error.to_string().contains(word), "{error}");
        }
    }
}
