use std::fmt;
use std::path::Path;
use std::sync::Arc;

use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::{self, PemObject as _};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::Error;

/// The certificate that a server shows, and the key that proves it.
#[derive(Clone)]
pub struct Tls(Arc<ServerConfig>);

impl Tls {
    /// Reads a chain of certificates, the server's own first, and its private key from PEM files.
    ///
    /// # Errors
    /// [`Error::Certificate`] naming the file that cannot be used.
    pub fn from_files(certificates: &Path, key: &Path) -> Result<Self, Error> {
        let chain = CertificateDer::pem_file_iter(certificates)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .map_err(|error| unusable(certificates, "certificate", &error))?;
        if chain.is_empty() {
            return Err(unusable(certificates, "certificate", &pem::Error::NoItemsFound));
        }
        let private_key =
            PrivateKeyDer::from_pem_file(key).map_err(|error| unusable(key, "private key", &error))?;
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, private_key));
        let config = config.map_err(|error| Error::Certificate {
            path: certificates.to_owned(),
            problem: format!("it does not go together with the key {}: {error}", key.display()),
        })?;
        Ok(Self(Arc::new(config)))
    }

    /// For connections over which a protocol of this name is spoken.
    pub(crate) fn acceptor(&self, protocol: &str) -> TlsAcceptor {
        let mut config = ServerConfig::clone(&self.0);
        config.alpn_protocols = vec![protocol.into()];
        TlsAcceptor::from(Arc::new(config))
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Tls").finish_non_exhaustive()
    }
}

fn unusable(path: &Path, wanted: &str, error: &pem::Error) -> Error {
    let problem = match error {
        pem::Error::Io(error) => error.to_string(),
        pem::Error::NoItemsFound => format!("there is no {wanted} in it: a PEM file is wanted"),
        error => format!("it is not a PEM file with a {wanted}: {error}"),
    };
    Error::Certificate { path: path.to_owned(), problem }
}
