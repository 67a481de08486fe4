//! Whom clients trust.

use std::error::Error as StdError;
use std::io;
use std::path::Path;
use std::sync::Arc;

use agl_store::Error;
use rustls::crypto::ring;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};

/// A client that trusts the system's authorities, and those in a PEM file.
///
/// # Errors
/// [`Error::Invalid`] when the file cannot be used, or there is nobody to trust.
pub fn trusting(ca_file: Option<&Path>) -> Result<ClientConfig, Error> {
    let mut roots = RootCertStore::empty();
    let system = rustls_native_certs::load_native_certs();
    roots.add_parsable_certificates(system.certs);
    if let Some(path) = ca_file {
        let refused = |problem: String| {
            Error::invalid("ca_file", format!("cannot use the authorities in {}: {problem}", path.display()))
        };
        let certificates = CertificateDer::pem_file_iter(path)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .map_err(|error| refused(error.to_string()))?;
        if certificates.is_empty() {
            return Err(refused("there is no certificate in it: a PEM file is wanted".to_owned()));
        }
        for certificate in certificates {
            roots.add(certificate).map_err(|error| refused(error.to_string()))?;
        }
    }
    if roots.is_empty() {
        let message = "this system has no certificates of authorities, without which no https:// server can be \
                       trusted: name a PEM file of some as ca_file or AGL_CA_FILE";
        return Err(Error::invalid("ca_file", message));
    }
    config(roots)
}

/// For a client that speaks plain HTTP.
///
/// # Errors
/// None that is known of.
pub fn unused() -> Result<ClientConfig, Error> {
    config(RootCertStore::empty())
}

fn config(roots: RootCertStore) -> Result<ClientConfig, Error> {
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| Error::backend(format!("TLS cannot be set up: {error}")))?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

/// What the two sides could not agree on, where that is why a request failed. Trying again is of no use then.
#[must_use]
pub fn problem(error: &(dyn StdError + 'static)) -> Option<String> {
    let found = within(error)?;
    Some(match found {
        rustls::Error::InvalidCertificate(_) => {
            format!("{found}: if its authority is your own, name its PEM file as ca_file or AGL_CA_FILE")
        }
        rustls::Error::InvalidMessage(_) => format!("{found}: does it serve plain http://?"),
        _ => found.to_string(),
    })
}

/// The error of the TLS library that another one has at its bottom.
fn within<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a rustls::Error> {
    if let Some(found) = error.downcast_ref() {
        return Some(found);
    }
    let inner: &(dyn StdError + 'static) = match error.downcast_ref::<io::Error>() {
        // Its `source` would pass over the very error that it was made of.
        Some(error) => error.get_ref()?,
        None => error.source()?,
    };
    within(inner)
}
