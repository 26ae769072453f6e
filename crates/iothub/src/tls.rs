//! One TLS configuration for AMQP and HTTPS: rustls on ring, passed explicitly, no process-wide default needed.

use std::sync::Arc;

use rustls::RootCertStore;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use thiserror::Error;

use crate::options::Roots;

/// Why the certificate authorities could not be loaded.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum RootsError {
    /// The text is not PEM.
    #[error("custom certificate authorities are not PEM")]
    NotPem(#[source] rustls_pki_types::pem::Error),
    /// There is no certificate in the text.
    #[error("custom certificate authorities hold no certificate")]
    NoCertificate,
    /// One of the certificates cannot be an authority.
    #[error("custom certificate authority {index} is not usable")]
    NotUsable {
        /// Which one, from one.
        index: usize,
        /// What the TLS library says.
        source: rustls::Error,
    },
    /// The operating system has no certificate authorities that can be loaded.
    #[error("system has no certificate authorities; install them or give custom ones")]
    NoSystemRoots,
    /// The cryptography provider supports none of the TLS versions.
    #[error("TLS configuration failed")]
    Config(#[source] rustls::Error),
}

/// How the certificates of servers are checked: against these authorities.
///
/// # Errors
/// [`RootsError`].
pub fn client_config(roots: &Roots) -> Result<Arc<rustls::ClientConfig>, RootsError> {
    let mut store = RootCertStore::empty();
    let (system, custom) = match roots {
        Roots::System => (true, None),
        Roots::SystemAnd(pem) => (true, Some(pem)),
        Roots::Only(pem) => (false, Some(pem)),
    };
    if system {
        let loaded = rustls_native_certs::load_native_certs();
        store.add_parsable_certificates(loaded.certs);
        if store.is_empty() && custom.is_none() {
            return Err(RootsError::NoSystemRoots);
        }
    }
    if let Some(pem) = custom {
        add_pem(&mut store, pem)?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(RootsError::Config)?
        .with_root_certificates(store)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

fn add_pem(store: &mut RootCertStore, pem: &str) -> Result<(), RootsError> {
    let mut count = 0;
    for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        count += 1;
        store
            .add(certificate.map_err(RootsError::NotPem)?)
            .map_err(|source| RootsError::NotUsable {
                index: count,
                source,
            })?;
    }
    if count == 0 {
        Err(RootsError::NoCertificate)
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn custom_roots_are_checked() {
        let only = |pem: &str| {
            client_config(&Roots::Only(pem.into()))
                .map(|_| ())
                .unwrap_err()
        };
        assert!(matches!(only(""), RootsError::NoCertificate));
        assert!(matches!(only("hello"), RootsError::NoCertificate));
        let bad = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        assert!(matches!(only(bad), RootsError::NotUsable { index: 1, .. }));
        let made = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
        assert!(client_config(&Roots::Only(made.cert.pem())).is_ok());
    }
}
